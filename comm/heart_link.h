/* One neighbour's beat connection: reading and sending beats without ever blocking, and a close look at one that is
 * silent. No thread, no verdicts; private to heart.c. */
#ifndef WEFT_COMM_HEART_LINK_H
#define WEFT_COMM_HEART_LINK_H

#include "heart.h"

enum heart_beat_kind {
    HEART_BEAT = 1,     /* alive */
    HEART_VERDICT = 2,  /* `rank` on `host` is given up: `reason` */
    HEART_FAREWELL = 3, /* the sender closes in order */
};

#define HEART_NOBODY UINT32_MAX

/* All that ever travels; the same for every kind, so that nothing has to be framed. */
struct heart_beat {
    uint32_t magic;
    uint32_t kind;
    uint32_t rank;
    uint32_t phase;
    uint64_t number;
    uint64_t progress;
    uint64_t done; /* grows while the process works (heart_work.h) */
    uint64_t host_id;
    int32_t waiting_for;
    uint32_t pid;
    uint32_t tid;              /* of the sender's heart */
    uint32_t silence_ms;       /* the sender's setting; the leader's counts */
    uint32_t quiet_ms;         /* of the leader: since any rank worked */
    uint32_t cut_rank;         /* the other end of a cut link between hosts (heart_mesh.h), HEART_NOBODY */
    uint32_t cut_count;        /* of such links */
    uint32_t cut_ms;           /* how long nothing has come on that of cut_rank */
    char host[STAR_HOST_SIZE]; /* of `rank` */
    char reason[STAR_REASON_SIZE];
};

struct heart_link {
    uint32_t rank;
    int fd;               /* owned; -1 once it has ended */
    bool has_spoken;      /* `last` is set */
    bool has_left;        /* said farewell */
    bool owes_verdict;    /* has not been told yet */
    int64_t silence_ns;   /* since the last frame, in our own running time, at the last look */
    int64_t heard_run_ns; /* our running time when that came */
    int64_t heard_ns;     /* the clock's */
    int64_t cut_ns;       /* since when it reports a cut; 0: it does not */
    struct heart_beat last;
    struct heart_beat in;
    size_t in_have;
    struct heart_beat out;
    size_t out_left;
    _Atomic int64_t worked_ns; /* when it last showed work; 0: never */
    int64_t window_ns;         /* `worked_ns` looks at `done` once a second */
    uint64_t window_done;
};

enum heart_read { HEART_READ_NOTHING, HEART_READ_BEAT, HEART_READ_END };

/* The next whole beat into link->in. END: closed or broken, *reason_out says why. */
enum heart_read weft_heart_link_read(struct heart_link *link, const char **reason_out);

/* Sends what is left and then *beat (NULL: nothing new), as far as it goes at once. False: not taken, try again. */
bool weft_heart_link_send(struct heart_link *link, const struct heart_beat *beat);

/*
 * True when a neighbour silent for link->silence_ns must be given up, with the cause. limit_ns: silence that counts for
 * a process; own: what this process says of itself.
 */
bool weft_heart_link_is_lost(const struct heart_link *link, int64_t limit_ns, const struct heart_beat *own,
                             char *reason_out, size_t reason_size);

/*
 * The kernel at the other end has acknowledged all that was sent, or has said something within the second half of
 * silence_ns. True of a socket that is no TCP: the same host.
 */
bool weft_heart_is_acknowledged(int fd, int64_t silence_ns);

/* State letter of a thread of this host, as in /proc/PID/stat; 0 when there is none. T: stopped. */
char weft_heart_thread_state(uint32_t pid, uint32_t tid);

#endif
