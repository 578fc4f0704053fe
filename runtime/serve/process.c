/* /proc/self, see proc(5). */
#include "process.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The file's beginning as a text; "" when it cannot be read. */
static void text_read(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    size_t got = file != NULL ? fread(text, 1, size - 1, file) : 0;

    text[got] = '\0';
    if (file != NULL) {
        fclose(file);
    }
}

/* When the machine began, in seconds since 1970. */
static double boot_seconds(void)
{
    FILE *file = fopen("/proc/stat", "re");
    char line[256];
    unsigned long long seconds = 0;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL && sscanf(line, "btime %llu", &seconds) != 1) {
    }
    if (file != NULL) {
        fclose(file);
    }
    return (double)seconds;
}

static double fds_count(void)
{
    DIR *folder = opendir("/proc/self/fd");
    double count = -3; /* ".", ".." and the folder itself */

    if (folder == NULL) {
        return 0;
    }
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

void weft_process_read(struct weft_process *out)
{
    unsigned long long user = 0;
    unsigned long long kernel = 0;
    unsigned long long start = 0;
    unsigned long long virtual_size = 0;
    long long resident_pages = 0;
    struct rlimit files = {0};
    char text[1024];
    double ticks = (double)sysconf(_SC_CLK_TCK);

    text_read("/proc/self/stat", text, sizeof(text));
    const char *after_name = strrchr(text, ')'); /* the name may hold blanks and brackets */
    if (after_name != NULL) {
        /* Fields 3 (state) to 24 (rss). */
        (void)sscanf(after_name + 1,
                     " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %llu %llu %lld",
                     &user, &kernel, &start, &virtual_size, &resident_pages);
    }
    (void)getrlimit(RLIMIT_NOFILE, &files);
    *out = (struct weft_process){
        .cpu_seconds = (double)(user + kernel) / ticks,
        .start_seconds = boot_seconds() + (double)start / ticks,
        .resident_size = (double)resident_pages * (double)sysconf(_SC_PAGESIZE),
        .virtual_size = (double)virtual_size,
        .fd_count = fds_count(),
        .fd_max = (double)files.rlim_cur,
    };
}
