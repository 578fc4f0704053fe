/*
 * How the ranks of a group find each other, and the control channel that stays afterwards.
 *
 * Whatever started the processes (mpirun, our own fork, a TCP rendezvous, threads of a test), the result is the same: a
 * star of stream sockets between rank 0 (the leader) and every other rank. It carries addresses while communicators
 * open, StepPlans and results afterwards, and it is how death is noticed: the kernel closes a dead process's socket at
 * once. The leader then tells everybody else who died. MPI, if it started us, is not used again until
 * weft_bootstrap_close().
 *
 * A bootstrap belongs to one thread at a time. Frames are length-prefixed; a frame is at most 1 GiB.
 */
#ifndef WEFT_BOOTSTRAP_H
#define WEFT_BOOTSTRAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

struct weft_bootstrap;

/* One rank, no sockets: every call below works and does nothing. */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_open_self(struct weft_bootstrap **out);

/*
 * Forks rank_count - 1 children; returns in every process, the caller being rank 0. Call before any thread is started.
 * Children die with the leader (PR_SET_PDEATHSIG: with its calling thread, so open in one that stays), ignore SIGINT
 * (the terminal sends it to all; the leader decides), have no stdin, and must leave by _exit(). Sets the log's rank.
 * weft_bootstrap_close() on the leader reaps them.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_open_local(uint32_t rank_count, struct weft_bootstrap **out);

/* Ranks as threads of this process: fills out[rank_count]; hand each to its own thread (which sets its log rank). */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_open_threads(uint32_t rank_count, struct weft_bootstrap **out);

#define WEFT_BOOTSTRAP_RANK_ANY UINT32_MAX

struct weft_bootstrap_tcp_options {
    const char *leader;   /* "host:port" or "[v6]:port"; rank 0 listens there, the others connect and retry */
    uint32_t rank;        /* of this process; RANK_ANY: the leader gives one, the same for the same host */
    uint32_t rank_count;  /* at most 1024 */
    uint32_t local_rank;  /* with RANK_ANY: among the local_count ranks of this host, which become neighbours */
    uint32_t local_count; /* 0: 1; divides rank_count; the same everywhere, on the leader too */
    uint32_t timeout_ms;  /* until all have come; the error names who is missing, as does a line every few seconds */
    const char *secret; /* the same on all ranks, proved, never sent; "" or NULL: none. Strangers are refused, logged */
    const char *program;             /* name and version, the same on all ranks: others are refused; NULL: "" */
    const char *const *hosts;        /* [rank_count] names for messages, an entry or all NULL: not known */
    const char *trouble;             /* NULL, or why this rank cannot take part: see below */
    enum weft_status trouble_status; /* of it; what the leader's open returns when a worker has trouble */
    int watch_fd; /* > 0: leader; whoever starts the ranks writes "RANK REASON\n" when it cannot: ends the wait */
};

/*
 * With `trouble` this rank comes only to say so, and gets ERR_STATE, without a line of its own. A worker's ends the
 * group at once, whoever is still missing: every rank that has come fails with "rank 2 on node2 failed: cannot take
 * part: TROUBLE". A leader tells those who come within a moment.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_open_tcp(const struct weft_bootstrap_tcp_options *options,
                                                         struct weft_bootstrap **out);

/*
 * MPI_Init, then the star over TCP between the ranks of MPI_COMM_WORLD. Once per process. interface: as in comm.h;
 * where nothing of rank 0's matches (a name that only a transport knows), all its addresses are offered.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_open_mpi(const char *interface, uint32_t timeout_ms,
                                                         struct weft_bootstrap **out);

uint32_t weft_bootstrap_rank(const struct weft_bootstrap *bootstrap);
uint32_t weft_bootstrap_rank_count(const struct weft_bootstrap *bootstrap);
/* "self", "local", "threads", "tcp", "mpi". */
const char *weft_bootstrap_kind(const struct weft_bootstrap *bootstrap);
/* Same number on ranks that can share memory (same boot, pid, uts and network namespace), different otherwise. */
uint64_t weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap);

/*
 * out[rank_count][size] <- every rank's in[size], on every rank. Collective. Not for the hot path.
 * ERR_PEER names the dead rank in the log; weft_bootstrap_failed_rank() returns it.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_all_gather(struct weft_bootstrap *bootstrap, const void *in,
                                                           size_t size, void *out, uint32_t timeout_ms);

/*
 * Control frames. Leader <-> any worker only. recv returns a buffer owned by the bootstrap until the next recv from
 * that rank. ERR_TIMEOUT of recv is not logged and harmless: call again. A send that timed out half way makes the
 * receiver's rank failed.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_send(struct weft_bootstrap *bootstrap, uint32_t rank, const void *data,
                                                     size_t size, uint32_t timeout_ms);
/* timeout_ms UINT32_MAX waits for ever (an idle worker): sleeping in poll(), but still noticing death and abort. */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_recv(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                     const void **data_out, size_t *size_out, uint32_t timeout_ms);

/*
 * Sleeps until wake_fd (>= 0; an eventfd or pipe, not drained here) is readable, a peer fails, or timeout_ms passed.
 * WEFT_OK when woken, ERR_TIMEOUT, ERR_PEER. This is how an idle leader waits for requests.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_wait(struct weft_bootstrap *bootstrap, int wake_fd,
                                                     uint32_t timeout_ms);

/*
 * Non-blocking look at every socket: ERR_PEER when a rank has died, aborted or was reported dead by the leader (the
 * leader passes the news on by itself). Cheap enough for the slow path of every wait (about a microsecond per socket).
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_check(struct weft_bootstrap *bootstrap);

/* The first rank known to have failed, -1 when none; and why ("connection closed", "process 42 was killed by signal 9
 * (Killed)"), "" when none; valid until close. From then on every call above returns ERR_PEER. */
int weft_bootstrap_failed_rank(const struct weft_bootstrap *bootstrap);
const char *weft_bootstrap_failed_reason(const struct weft_bootstrap *bootstrap);

/* Name of the failed rank's host, "" when there is none or it is not known. Valid until close. */
const char *weft_bootstrap_failed_host(const struct weft_bootstrap *bootstrap);

/* Tells all ranks that `rank` is to be considered dead (own rank: "I give up"). Best effort, never blocks for long. */
void weft_bootstrap_abort(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason);

/*
 * Abort for what this rank cannot be sure of: its connection to `rank` has ended, which may only be that one's answer
 * to somebody else's death. The leader, who hears of things in their order, is asked; what it says within timeout_ms is
 * what has happened, `rank` has failed otherwise. Returns once that is recorded.
 */
void weft_bootstrap_suspect(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason, uint32_t timeout_ms);

/*
 * Ends the group at once, whatever its ranks are in the middle of: for a leader that has told its clients and waits for
 * no long step. Any thread of rank 0, before close. Every wait of every rank then fails as if rank 0 had, but nothing
 * is logged, and a process that is stuck leaves (exit_ms) with 0. Without heartbeats nothing happens.
 */
void weft_bootstrap_end(struct weft_bootstrap *bootstrap);
/*
 * For a leader that leaves its process after weft_bootstrap_end() without waiting for its own step: what has started
 * the ranks hears that all leave in order: MPI_Finalize, to which a rank that is in a step itself is brought by its
 * heartbeats (with exit_ms). Any thread but the one that works. False: nobody is to be told. Only close may follow.
 */
bool weft_bootstrap_take_leave(struct weft_bootstrap *bootstrap);
/* Whether that is what a wait of this rank has failed with. */
bool weft_bootstrap_is_ended(const struct weft_bootstrap *bootstrap);

/* ---- heartbeats ---- */

struct weft_heartbeat_options {
    uint32_t silence_ms; /* until a rank that sends no heartbeat is given up; 0: 900. UINT32_MAX: never, for debuggers.
                            The leader's value counts for all ranks */
    uint32_t exit_ms;    /* 0: never. Else this process leaves by _exit(1) this long after a failure (by _exit(0) after
                            weft_bootstrap_end), whatever its other threads are stuck in, unless it has ended by itself;
                            one line says why if none did before */
    const char *interface; /* of the beats between hosts: as in comm.h, the same on all ranks; NULL: all */
};

/*
 * Starts the heartbeats of this rank: a thread that does nothing else and a connection of its own to the leader (or, on
 * the leader, to every rank), and one between the first ranks of all hosts. Collective, right after opening, with
 * nothing else in progress. From then on a rank that is stopped, a host that is cut off or gone, and two hosts that do
 * not reach each other, fail within silence_ms (about twice that for a network), on both sides, whatever this thread is
 * doing. A failure wakes every wait of this bootstrap. ERR_PEER when a rank failed meanwhile.
 */
WEFT_MUST_CHECK enum weft_status weft_bootstrap_heartbeat(struct weft_bootstrap *bootstrap,
                                                          const struct weft_heartbeat_options *options);

/* What a rank is doing; travels with every beat. */
enum weft_phase {
    WEFT_PHASE_START = 0,
    WEFT_PHASE_LOAD = 1, /* number: bytes read */
    WEFT_PHASE_IDLE = 2,
    WEFT_PHASE_STEP = 3, /* number: of the step */
};

/* From the thread that works; a few nanoseconds each. */
void weft_bootstrap_phase(struct weft_bootstrap *bootstrap, enum weft_phase phase, uint64_t number);
/* One more piece of work is done (a layer, an exchange). */
void weft_bootstrap_progress(struct weft_bootstrap *bootstrap);
/* This rank waits for `rank`, until its next progress. */
void weft_bootstrap_waiting(struct weft_bootstrap *bootstrap, uint32_t rank);

/*
 * Milliseconds since `rank` last did any work: progress, CPU time, bytes from a disk, a thread that wants a core and
 * gets none; waiting for others is none. For
 * the own rank, and always on a worker: since any rank did. UINT32_MAX when that is not known. Tells busy from stuck.
 */
uint32_t weft_bootstrap_quiet_ms(struct weft_bootstrap *bootstrap, uint32_t rank);

/*
 * From any thread, at any time before close: true once a failure is known to the heartbeats, even while the thread that
 * owns the bootstrap is stuck. text_out[size] <- "rank 3 on node-b failed: ...".
 */
bool weft_bootstrap_lost(struct weft_bootstrap *bootstrap, uint32_t *rank_out, char *text_out, size_t size);

/*
 * Says farewell, so that leaving in order is no failure for the others (unless they still want something from this
 * rank), and closes the sockets. Leader of a local group: waits for the children (2 s, after a failure 0.7 s), then
 * kills them by id. mpi: MPI_Finalize, or not when a rank has failed: exit soon then. Sets *bootstrap to NULL.
 */
void weft_bootstrap_close(struct weft_bootstrap **bootstrap);

#endif
