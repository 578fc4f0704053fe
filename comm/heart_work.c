/* What shows that this process works. Contract in heart_work.h. */
#include "heart_work.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* CPU milliseconds (or block reads) in a window: more than the threads of an idle server use. */
enum { WORK_WINDOW_MS = 1000, WORK_MIN = 50 };

/* Without a core for half a window is work: WORK_MIN of it. */
enum { WANTED_SHARE = 10 };

/* Less than this did not get a core. */
#define NO_CORE_NS 1000000

static int64_t nanoseconds(clockid_t clock)
{
    struct timespec time = {0};

    (void)clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The value of "\nName:\t..." in a status file; "" when it has none. */
static const char *field(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    return at != NULL ? at + strlen(name) : "";
}

/* False when the thread has ended. */
static bool read_thread(int folder, const char *tid, bool *is_runnable_out, uint64_t *sleeps_out)
{
    char path[64];
    char text[4096];
    ssize_t got;
    int fd;

    (void)snprintf(path, sizeof(path), "%.20s/status", tid);
    fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    got = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (got <= 0) {
        return false;
    }
    text[got] = '\0';
    *is_runnable_out = field(text, "\nState:\t")[0] == 'R';
    *sleeps_out = strtoull(field(text, "\nvoluntary_ctxt_switches:\t"), NULL, 10);
    return true;
}

/* True when a thread was runnable at the last look and at this, and has not slept between. */
static bool is_core_wanted(struct heart_work *work, uint32_t own_tid)
{
    DIR *folder = opendir("/proc/self/task");
    const struct dirent *entry;
    uint32_t count = 0;
    bool is_wanted = false;

    while (folder != NULL && count < HEART_WORK_THREADS && (entry = readdir(folder)) != NULL) {
        uint32_t tid = (uint32_t)strtoul(entry->d_name, NULL, 10);
        bool is_runnable = false;
        uint64_t sleeps = 0;

        if (tid == 0 || tid == own_tid || !read_thread(dirfd(folder), entry->d_name, &is_runnable, &sleeps)) {
            continue;
        }
        /* Threads that ended before it moved it down; one that moved up is looked at anew. */
        for (uint32_t i = count; i < work->thread_count && is_runnable && !is_wanted; i++) {
            is_wanted =
                work->threads[i].tid == tid && work->threads[i].is_runnable && work->threads[i].sleeps == sleeps;
        }
        work->threads[count].tid = tid;
        work->threads[count].is_runnable = is_runnable;
        work->threads[count++].sleeps = sleeps;
    }
    if (folder != NULL) {
        (void)closedir(folder);
    }
    work->thread_count = count;
    return is_wanted;
}

void weft_heart_work_look(struct heart_work *work, int64_t now, uint32_t own_tid, bool is_waiting, bool is_idle)
{
    int64_t cpu_ns = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    int64_t elapsed = now - work->looked_ns;
    int64_t got = cpu_ns - work->cpu_ns;
    bool is_first = work->looked_ns == 0;
    struct rusage usage = {0};

    (void)getrusage(RUSAGE_SELF, &usage);
    if (!is_waiting && !is_first) {
        work->spare_ns += got;
        work->done += (uint64_t)(work->spare_ns / 1000000) + ((uint64_t)usage.ru_inblock - work->blocks);
        work->spare_ns %= 1000000;
    }
    if (is_idle || got >= elapsed / 2) {
        work->thread_count = 0;
    } else if (is_core_wanted(work, own_tid) && !is_first && (!is_waiting || got < NO_CORE_NS)) {
        work->wanted_ns += elapsed;
        work->done += (uint64_t)(work->wanted_ns / (WANTED_SHARE * 1000000));
        work->wanted_ns %= WANTED_SHARE * 1000000;
    }
    work->looked_ns = now;
    work->cpu_ns = cpu_ns;
    work->blocks = (uint64_t)usage.ru_inblock;
}

bool weft_heart_did_work(uint64_t done, int64_t now, int64_t *window_ns, uint64_t *window_done)
{
    bool is_working;

    if (now - *window_ns < (int64_t)WORK_WINDOW_MS * 1000000) {
        return false;
    }
    is_working = *window_ns != 0 && done - *window_done >= WORK_MIN;
    *window_ns = now;
    *window_done = done;
    return is_working;
}
