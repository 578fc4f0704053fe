/*
 * LD_PRELOAD: a bad disk under a checkpoint. LAB_READ_MS: every pread() takes this long more. LAB_READ_ERROR: the
 * number of the host (nodeN) on which reads fail with EIO from the 8th on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    static _Atomic int count;
    ssize_t (*real)(int, void *, size_t, off_t) = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    const char *delay = getenv("LAB_READ_MS");
    const char *victim = getenv("LAB_READ_ERROR");
    char host[64] = "";

    if (delay != NULL) {
        struct timespec pause = {.tv_sec = atol(delay) / 1000, .tv_nsec = atol(delay) % 1000 * 1000000};

        nanosleep(&pause, NULL);
    }
    (void)gethostname(host, sizeof(host) - 1);
    if (victim != NULL && strncmp(host, "node", 4) == 0 && strcmp(host + 4, victim) == 0 && ++count >= 8) {
        errno = EIO;
        return -1;
    }
    return real(fd, data, size, offset);
}
