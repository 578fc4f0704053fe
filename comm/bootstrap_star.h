/*
 * The star of sockets behind every bootstrap (bootstrap.h); private to the bootstrap_*.c files.
 *
 * Three stream sockets per worker, not one. `data` carries length-prefixed frames in order; `control` carries
 * fixed-size notices ("rank 3 is dead", "I leave"); `beat` carries heartbeats and belongs to a thread of its own
 * (heart.h). Rejected: one socket with both kinds of frame. There a notice has to wait behind a data frame that is half
 * written or not yet read, so news of a death could not overtake bulk data, and a non-blocking check would have to
 * buffer whatever data precedes a notice. All control sockets sit in one epoll instance: a check is one system call
 * however many ranks there are, and the epoll descriptor itself can be polled.
 */
#ifndef WEFT_BOOTSTRAP_STAR_H
#define WEFT_BOOTSTRAP_STAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

#include "weft/bootstrap.h"

#define STAR_LOG         "comm/bootstrap"
#define STAR_MAGIC       0x54464557u /* "WEFT"; also catches a rank of the other byte order */
#define STAR_FRAME_MAX   ((size_t)1 << 30)
#define STAR_RANK_MAX    1024u
#define STAR_REASON_SIZE 240
#define STAR_HOST_SIZE   64
#define STAR_FOREVER     INT64_MAX

enum star_channel { STAR_DATA = 0, STAR_CONTROL = 1, STAR_BEAT = 2, STAR_CHANNEL_COUNT };

enum star_frame_kind {
    STAR_FRAME_DATA = 1,   /* weft_bootstrap_send() */
    STAR_FRAME_GATHER = 2, /* a part of all_gather, or its result */
    STAR_FRAME_GO = 3,     /* everybody has come */
};

struct star_header {
    uint32_t magic;
    uint32_t kind;
    uint64_t size;
};

enum star_notice_kind {
    STAR_NOTICE_LEAVE = 1, /* the sender closes in order; its sockets will close and that is no failure */
    STAR_NOTICE_DEAD = 2,  /* `rank` is to be considered dead */
};

struct star_notice {
    uint32_t magic;
    uint32_t kind;
    uint32_t rank;
    char host[STAR_HOST_SIZE];
    char reason[STAR_REASON_SIZE];
};

/* One neighbour: what has been read of its next frame and of its next notice. */
struct star_peer {
    int data_fd; /* owned; -1 when none */
    int control_fd;
    int beat_fd;      /* owned until the heart takes it */
    bool has_left;    /* said so; closing is then no failure */
    bool is_complete; /* `incoming` holds a whole frame that recv has not taken yet */
    struct star_header header;
    size_t header_have;
    uint8_t *incoming; /* owned; the frame being read */
    size_t incoming_capacity;
    size_t incoming_have;
    uint8_t *current; /* owned; the frame handed out by the last recv */
    size_t current_capacity;
    struct star_notice notice;
    size_t notice_have;
};

/* What this process is doing, for its heartbeats: written by the thread that works. */
struct star_pulse {
    _Atomic uint32_t phase; /* enum weft_phase */
    _Atomic uint64_t number;
    _Atomic uint64_t progress;
    _Atomic int32_t waiting_for; /* -1: nobody */
};

/* What differs between kinds after opening; any member may be NULL. */
struct star_hooks {
    /* More exact than "connection closed": how the process of `rank` ended. Leaves reason_out alone if unknown. */
    void (*describe)(struct weft_bootstrap *bootstrap, uint32_t rank, char *reason_out, size_t reason_size);
    /* Before the sockets close. */
    void (*close_begin)(struct weft_bootstrap *bootstrap);
    /* In a group that was ended: tells whoever started this process that it leaves in order, though the thread that
     * works is in the middle of a step. Any thread, once; may wait for all ranks to come here. */
    void (*take_leave)(struct weft_bootstrap *bootstrap);
    /* After they have been closed; releases `state`. */
    void (*close_end)(struct weft_bootstrap *bootstrap);
};

struct weft_bootstrap {
    uint32_t rank;
    uint32_t rank_count;
    const char *kind;
    int epoll_fd;             /* owned: all control sockets; -1 for one rank */
    uint32_t peer_count;      /* leader: rank_count, worker: 1 */
    struct star_peer *peers;  /* owned [peer_count]; by rank, so the leader's [0] stays empty */
    struct weft_heart *heart; /* owned; NULL without heartbeats */
    struct star_pulse pulse;
    int failed_rank;
    char failed_host[STAR_HOST_SIZE];
    char failed_reason[STAR_REASON_SIZE];
    const struct star_hooks *hooks;
    void *state; /* of the hooks */
};

/* Both ends of every channel, as stream socket pairs; closed on exec. Logged. */
WEFT_MUST_CHECK enum weft_status weft_star_pairs(int ours_out[STAR_CHANNEL_COUNT], int theirs_out[STAR_CHANNEL_COUNT]);
void weft_star_close_all(const int fds[STAR_CHANNEL_COUNT]);

/* A star without any socket yet. */
WEFT_MUST_CHECK enum weft_status weft_star_open(const char *kind, uint32_t rank, uint32_t rank_count,
                                                struct weft_bootstrap **out);
/* Takes the descriptors over, also on error. */
WEFT_MUST_CHECK enum weft_status weft_star_attach(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                  const int fds[STAR_CHANNEL_COUNT]);
/* Closes the sockets of one neighbour without a word; attach may follow. */
void weft_star_detach(struct weft_bootstrap *bootstrap, uint32_t rank);
/* Leader: tells everybody that all have come. Worker: waits for that. */
WEFT_MUST_CHECK enum weft_status weft_star_go(struct weft_bootstrap *bootstrap, int64_t deadline);

WEFT_MUST_CHECK enum weft_status weft_star_send(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                enum star_frame_kind kind, const void *data, size_t size,
                                                int64_t deadline);
WEFT_MUST_CHECK enum weft_status weft_star_recv(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                enum star_frame_kind kind, const void **data_out, size_t *size_out,
                                                int64_t deadline);
WEFT_MUST_CHECK enum weft_status weft_star_check(struct weft_bootstrap *bootstrap);

/* The reason by which every rank knows an end that the leader wanted (weft_bootstrap_end) from a failure of rank 0. */
#define STAR_REASON_END "the leader has ended the group"
bool weft_star_is_end(const char *reason);

/* "rank 3 on node-b failed: connection closed" */
void weft_star_failure_text(uint32_t rank, const char *host, const char *reason, char *out, size_t size);

/*
 * Records the first failure, logs it, and lets the leader tell everyone else. host: the rank's, NULL to ask the
 * heartbeats. `source` is the rank that brought the news (it may only have suspected, and hears what counts), -1 when
 * this process found out by itself.
 */
void weft_star_fail(struct weft_bootstrap *bootstrap, uint32_t rank, const char *host, const char *reason, int source);
/* A notice as it travels. The host of NOTICE_DEAD is the failed one's. */
void weft_star_notice(const struct weft_bootstrap *bootstrap, enum star_notice_kind kind, uint32_t rank,
                      const char *reason, struct star_notice *out);
/* Ends the texts of a notice that has come; false when it is none. */
bool weft_star_notice_clean(struct star_notice *notice);
/* Best effort, at most about 100 ms. */
void weft_star_notify(struct weft_bootstrap *bootstrap, uint32_t peer, enum star_notice_kind kind, uint32_t rank,
                      const char *reason);

/* Closes sockets and memory, no notice, no hooks. */
void weft_star_free(struct weft_bootstrap *bootstrap);

/* Lets this process open `count` descriptors, as far as the hard limit allows: the usual soft one is 1024. */
void weft_star_make_room(rlim_t count);

/* CLOCK_MONOTONIC ns; UINT32_MAX gives STAR_FOREVER. */
int64_t weft_star_now(void);
int64_t weft_star_deadline(uint32_t timeout_ms);
/* For poll(): milliseconds left, rounded up, 0 when passed, -1 for ever. */
int weft_star_left_ms(int64_t deadline);

#endif
