/* Forked neighbours of a rank. Their death is noticed like any rank's: by the group. */
#include "local_ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { END_MS = 2000, LOOK_MS = 10 };

static void become_child(pid_t parent)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) {
        _exit(1); /* it was faster */
    }
    (void)setsid(); /* Ctrl-C is the leader's business */
    if (null >= 0) {
        (void)dup2(null, STDIN_FILENO);
        close(null);
    }
}

bool weft_local_ranks_start(struct weft_placement *placement, struct weft_local_ranks *out)
{
    pid_t parent = getpid();

    out->count = 0;
    if (placement->fork_count > WEFT_LOCAL_RANKS_MAX) {
        fprintf(stderr, "weft: --local-ranks: expected at most %d, found %u\n", WEFT_LOCAL_RANKS_MAX,
                placement->fork_count);
        return false;
    }
    for (uint32_t i = 1; i < placement->fork_count; i++) {
        pid_t pid = fork();

        if (pid < 0) {
            fprintf(stderr, "weft: --local-ranks: fork: %s\n", strerror(errno));
            weft_local_ranks_end(out);
            return false;
        }
        if (pid == 0) {
            become_child(parent);
            out->count = 0;
            placement->rank += i;
            placement->local_rank += i;
            return true;
        }
        out->pids[out->count++] = pid;
    }
    return true;
}

void weft_local_ranks_end(struct weft_local_ranks *ranks)
{
    unsigned waited_ms = 0;

    for (unsigned i = 0; i < ranks->count; i++) {
        while (waitpid(ranks->pids[i], NULL, WNOHANG) == 0) {
            if (waited_ms >= END_MS) {
                (void)kill(ranks->pids[i], SIGKILL);
                (void)waitpid(ranks->pids[i], NULL, 0);
                break;
            }
            (void)usleep(LOOK_MS * 1000);
            waited_ms += LOOK_MS;
        }
    }
    ranks->count = 0;
}
