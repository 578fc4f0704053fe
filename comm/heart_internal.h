/* What the thread of heartbeats (heart.c) shares with those who start and end it (heart_open.c). */
#ifndef WEFT_COMM_HEART_INTERNAL_H
#define WEFT_COMM_HEART_INTERNAL_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "heart_link.h"
#include "heart_mesh.h"

/* By default: with what is left of the last interval under the promised second. */
#define HEART_SILENCE_MS 900

struct weft_heart {
    struct weft_bootstrap *bootstrap; /* its pulse only, until close */
    uint32_t rank;
    uint32_t link_count;
    struct heart_link *links;          /* owned: leader: of ranks 1, 2 ...; worker: of rank 0 */
    struct pollfd *polls;              /* owned [link_count + 1] */
    _Atomic(struct heart_mesh *) mesh; /* owned; NULL: none, or not yet */
    int64_t cut_ns;                    /* leader: since when it sees a cut itself */
    struct heart_beat own;             /* what this process says of itself */
    uint32_t silence_ms;               /* the group's */
    int64_t exit_ns;                   /* 0: never */
    int64_t self_worked_ns;
    int64_t self_window_ns;
    uint64_t self_window_activity;
    uint64_t self_progress;
    int log_rank;
    int wake_fd;    /* owned: tell and close */
    int verdict_fd; /* owned: readable once there is a verdict; in the star's epoll */
    pthread_t thread;
    _Atomic bool is_closing;
    _Atomic bool is_guard;           /* closed, but stays to end the process */
    _Atomic bool has_let_go;         /* of the bootstrap, and of every socket */
    _Atomic bool is_over;            /* there is a verdict */
    _Atomic bool is_said;            /* somebody logs it, or has */
    _Atomic uint32_t group_quiet_ms; /* worker: as the leader said */
    pthread_mutex_t mutex;           /* verdict, and link->last */
    struct heart_verdict verdict;
    int64_t verdict_ns;
};

/* The thread: context is the heart. */
void *weft_heart_run(void *context);

/* Makes an eventfd readable. */
void weft_heart_signal(int fd);

#endif
