/*
 * Ranks of one host, forked by the leader. Nothing named is left anywhere: the sockets are inherited pairs, children
 * die with the leader (PR_SET_PDEATHSIG), and the leader reaps them by id.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "heart_link.h"
#include "weft/log.h"

/* How long close waits before it kills: a child that heard the farewell only has to release its memory. After a failure
 * it may be stuck in a kernel, and the whole group has to be gone within two seconds of the death. */
enum { REAP_MS = 2000, REAP_FAILED_MS = 700, DESCRIBE_MS = 100, OPEN_MS = 10000 };

struct child {
    pid_t pid; /* 0 once reaped */
    int status;
};

/* On the leader only: [rank_count], the leader's own entry unused. */
struct local_state {
    struct child *children;
};

static void sleep_ms(long ms)
{
    struct timespec pause = {.tv_sec = 0, .tv_nsec = ms * 1000000};

    (void)nanosleep(&pause, NULL);
}

/* True once the child is gone, waiting up to the deadline. */
static bool reap(struct child *child, int64_t deadline)
{
    while (child->pid != 0) {
        pid_t got = waitpid(child->pid, &child->status, WNOHANG);

        if (got == child->pid || (got < 0 && errno == ECHILD)) {
            child->pid = 0;
        } else if (weft_star_left_ms(deadline) == 0) {
            return false;
        } else {
            sleep_ms(1);
        }
    }
    return true;
}

static void describe(struct weft_bootstrap *bootstrap, uint32_t rank, char *reason_out, size_t reason_size)
{
    struct local_state *state = bootstrap->state;
    struct child *child;
    pid_t pid;

    if (bootstrap->rank != 0 || rank == 0) {
        return;
    }
    child = &state->children[rank];
    pid = child->pid;
    if (pid == 0 || !reap(child, weft_star_deadline(DESCRIBE_MS))) {
        return;
    }
    if (WIFSIGNALED(child->status)) {
        (void)snprintf(reason_out, reason_size, "process %d was killed by signal %d (%s)", (int)pid,
                       WTERMSIG(child->status), strsignal(WTERMSIG(child->status)));
    } else {
        (void)snprintf(reason_out, reason_size, "process %d exited with status %d", (int)pid,
                       WEXITSTATUS(child->status));
    }
}

static void close_end(struct weft_bootstrap *bootstrap)
{
    struct local_state *state = bootstrap->state;
    int64_t deadline = weft_star_deadline(bootstrap->failed_rank >= 0 ? REAP_FAILED_MS : REAP_MS);

    if (state == NULL) {
        return; /* a child */
    }
    for (uint32_t rank = 1; rank < bootstrap->rank_count; rank++) {
        struct child *child = &state->children[rank];

        bool is_stopped = child->pid != 0 && bootstrap->failed_rank >= 0 &&
                          weft_heart_thread_state((uint32_t)child->pid, (uint32_t)child->pid) == 'T';

        if (!reap(child, is_stopped ? 0 : deadline)) {
            weft_log(is_stopped ? WEFT_LOG_DEBUG : WEFT_LOG_WARN, STAR_LOG,
                     "rank %u (process %d) did not leave in time: killed", rank, (int)child->pid);
            (void)kill(child->pid, SIGKILL);
            (void)waitpid(child->pid, &child->status, 0);
            child->pid = 0;
        }
    }
    free(state->children);
    free(state);
}

static const struct star_hooks hooks = {.describe = describe, .close_end = close_end};

void weft_star_close_all(const int fds[STAR_CHANNEL_COUNT])
{
    for (int i = 0; i < STAR_CHANNEL_COUNT; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

enum weft_status weft_star_pairs(int ours_out[STAR_CHANNEL_COUNT], int theirs_out[STAR_CHANNEL_COUNT])
{
    int ours[STAR_CHANNEL_COUNT] = {-1, -1, -1};
    int theirs[STAR_CHANNEL_COUNT] = {-1, -1, -1};

    for (int i = 0; i < STAR_CHANNEL_COUNT; i++) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
            weft_log(WEFT_LOG_ERROR, STAR_LOG, "socketpair: %s", strerror(errno));
            weft_star_close_all(ours);
            weft_star_close_all(theirs);
            return WEFT_ERR_IO;
        }
        ours[i] = pair[0];
        theirs[i] = pair[1];
    }
    memcpy(ours_out, ours, sizeof(ours));
    memcpy(theirs_out, theirs, sizeof(theirs));
    return WEFT_OK;
}

/* In the new process: an own star instead of the leader's, whose descriptors all close. */
static enum weft_status become_child(struct weft_bootstrap *leader, pid_t leader_pid, uint32_t rank,
                                     const int fds[STAR_CHANNEL_COUNT], struct weft_bootstrap **out)
{
    struct local_state *state = leader->state;
    uint32_t rank_count = leader->rank_count;
    struct weft_bootstrap *bootstrap;
    int null_fd;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != leader_pid) {
        _exit(1); /* it died before prctl could notice */
    }
    (void)signal(SIGINT, SIG_IGN);
    weft_log_set_rank((int)rank);
    free(state->children);
    free(state);
    /* First, and without EPOLL_CTL_DEL: the epoll instance is shared with the leader, which still needs it. */
    close(leader->epoll_fd);
    leader->epoll_fd = -1;
    weft_star_free(leader);
    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_fd >= 0) {
        (void)dup2(null_fd, STDIN_FILENO); /* the terminal and a piped prompt belong to the leader */
        close(null_fd);
    }
    WEFT_TRY(weft_star_open("local", rank, rank_count, &bootstrap));
    if (weft_star_attach(bootstrap, 0, fds) != WEFT_OK) {
        weft_star_free(bootstrap);
        return WEFT_ERR_IO;
    }
    *out = bootstrap;
    return WEFT_OK;
}

/* Forks `rank`. *child_out is set in the child only. */
static enum weft_status fork_rank(struct weft_bootstrap *leader, uint32_t rank, struct weft_bootstrap **child_out)
{
    struct local_state *state = leader->state;
    pid_t leader_pid = getpid();
    int ours[STAR_CHANNEL_COUNT];
    int theirs[STAR_CHANNEL_COUNT];
    pid_t pid;

    WEFT_TRY(weft_star_pairs(ours, theirs));
    (void)fflush(NULL); /* or both processes print what is buffered */
    pid = fork();
    if (pid == 0) {
        weft_star_close_all(ours);
        if (become_child(leader, leader_pid, rank, theirs, child_out) != WEFT_OK) {
            _exit(1);
        }
        return WEFT_OK;
    }
    if (pid < 0) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "fork of rank %u: %s", rank, strerror(errno));
        weft_star_close_all(ours);
        weft_star_close_all(theirs);
        return WEFT_ERR_IO;
    }
    weft_star_close_all(theirs);
    state->children[rank].pid = pid;
    return weft_star_attach(leader, rank, ours);
}

static enum weft_status open_leader(uint32_t rank_count, struct weft_bootstrap **out)
{
    struct local_state *state = calloc(1, sizeof(*state));

    if (state == NULL || (state->children = calloc(rank_count, sizeof(state->children[0]))) == NULL) {
        free(state);
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "out of memory for %u ranks", rank_count);
        return WEFT_ERR_MEMORY;
    }
    if (weft_star_open("local", 0, rank_count, out) != WEFT_OK) {
        free(state->children);
        free(state);
        return WEFT_ERR_IO;
    }
    (*out)->hooks = &hooks;
    (*out)->state = state;
    return WEFT_OK;
}

enum weft_status weft_bootstrap_open_local(uint32_t rank_count, struct weft_bootstrap **out)
{
    int64_t deadline = weft_star_deadline(OPEN_MS);
    struct weft_bootstrap *leader;
    struct weft_bootstrap *child = NULL;
    enum weft_status status = WEFT_OK;

    if (rank_count == 0 || rank_count > STAR_RANK_MAX) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "%u ranks: expected 1 to %u", rank_count, STAR_RANK_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    WEFT_TRY(open_leader(rank_count, &leader));
    for (uint32_t rank = 1; rank < rank_count && status == WEFT_OK; rank++) {
        status = fork_rank(leader, rank, &child);
        if (child != NULL) {
            /* Without the word of the leader that all were forked this rank was never part of anything. */
            if (weft_star_go(child, deadline) != WEFT_OK) {
                _exit(1);
            }
            *out = child;
            return WEFT_OK;
        }
    }
    if (status == WEFT_OK) {
        status = weft_star_go(leader, deadline);
    }
    if (status != WEFT_OK) {
        weft_bootstrap_close(&leader);
        return status;
    }
    weft_log_set_rank(rank_count > 1 ? 0 : weft_log_rank());
    *out = leader;
    return WEFT_OK;
}
