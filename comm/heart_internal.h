/* What the thread of heartbeats (heart.c) shares with those who start and end it (heart_open.c). */
#ifndef WEFT_COMM_HEART_INTERNAL_H
#define WEFT_COMM_HEART_INTERNAL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/epoll.h>

#include "heart_link.h"
#include "heart_mesh.h"
#include "heart_work.h"

/* By default: with what is left of the last interval under the promised second. */
#define HEART_SILENCE_MS 900

/* What epoll_fd says of wake_fd; of a link its index. */
#define HEART_WAKE UINT32_MAX
/* Links read in one go. */
#define HEART_EVENT_MAX 64

/* Whether the verdict is in the log. */
enum heart_saying { HEART_UNSAID, HEART_SPEAKING, HEART_SAID };

struct weft_heart {
    struct weft_bootstrap *bootstrap; /* its pulse only, until close */
    uint32_t rank;
    uint32_t link_count;
    struct heart_link *links; /* owned: leader: of ranks 1, 2 ...; worker: of rank 0 */
    struct epoll_event events[HEART_EVENT_MAX];
    _Atomic(struct heart_mesh *) mesh; /* owned; NULL: none, or not yet */
    int64_t cut_ns;                    /* leader: since when it sees a cut itself */
    bool has_report;                   /* leader: somebody tells of a cut, or has just ceased to */
    struct heart_beat own;             /* what this process says of itself */
    uint32_t silence_ms;               /* the group's */
    int64_t exit_ns;                   /* 0: never */
    bool knows_ends;                   /* whoever started the processes can say how one ended, if given time */
    int64_t run_ns;                    /* our own running time, in which silence counts */
    int64_t judge_ns;                  /* nobody can have been silent for too long before */
    int64_t self_worked_ns;
    int64_t self_window_ns;
    uint64_t self_window_done;
    struct heart_work work;
    uint64_t self_progress;
    int log_rank;
    int epoll_fd;   /* owned: wake_fd and the links */
    int wake_fd;    /* owned: tell and close */
    int verdict_fd; /* owned: readable once there is a verdict; in the star's epoll */
    pthread_t thread;
    pthread_t speaker; /* with exit_ns: says the verdict when the main thread does not */
    bool has_speaker;
    sem_t speaker_wake;
    _Atomic bool is_speaker_asked; /* woken to speak, not to end */
    _Atomic bool is_closing;
    _Atomic bool is_guard;           /* closed, but stays to end the process */
    _Atomic bool has_let_go;         /* of the bootstrap, and of every socket */
    _Atomic bool is_over;            /* there is a verdict */
    _Atomic int saying;              /* enum heart_saying */
    _Atomic uint32_t group_quiet_ms; /* worker: as the leader said */
    pthread_mutex_t mutex;           /* verdict, and link->last; lends its owner the priority of who waits */
    struct heart_verdict verdict;
    int64_t verdict_ns;
};

/* The thread: context is the heart. */
void *weft_heart_run(void *context);
/* For the calling thread: real time if possible, else a little before the others. */
void weft_heart_raise_priority(void);

/*
 * heart_leave.c. The speaker is started with the heart, because nothing may be in its way once there is a verdict: a
 * new thread needs memory, one more place in the container's limit, and a core among those that want one.
 */
WEFT_MUST_CHECK enum weft_status weft_heart_speaker_start(struct weft_heart *heart);
/* Waits until it has ended; it may be in the middle of its line. */
void weft_heart_speaker_end(struct weft_heart *heart);

/* Also heart_leave.c, once there is a verdict. Says it, should the main thread not have done so in time. */
void weft_heart_say_when_late(struct weft_heart *heart, int64_t now);
/* Ends the process when exit_ns have passed. */
void weft_heart_leave_when_due(struct weft_heart *heart, int64_t now);
/* In a worker of a group that was ended: takes leave of whoever started it and ends the process. While the bootstrap
 * is there. */
void weft_heart_take_leave_when_due(struct weft_heart *heart, int64_t now);

/* Makes an eventfd readable. */
void weft_heart_signal(int fd);

#endif
