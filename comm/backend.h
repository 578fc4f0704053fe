/*
 * The border between comm.c and the transports. Private to comm/.
 *
 * A *backend* is a table of functions, one file each; a *channel* is one opened instance that joins some ranks of the
 * group (its members). Channels move bytes and nothing else: adding, choosing, chunking, statistics and poisoning are
 * comm.c's. Two kinds:
 *
 *   message backends (tcp, ucx, mpi)  have transfer(): bytes from and to peers, in order per pair
 *   memory backends (self, shm)       have exchange() besides: every member publishes, all read in place, no copy
 *   device backends (nccl)            have transfer() between device memory, which is done in the order of the device's
 *                                     stream, and finish(), which waits for that
 *
 * comm.c opens at most two channels for host memory: an inner memory channel over the ranks of this host (self when
 * alone) and an outer message channel to all ranks of other hosts. A collective runs inside each host first; then one
 * rank per host, its leader, transfers to the other leaders; then leaders publish inside their hosts. A device channel
 * comes besides and joins all ranks.
 *
 * Rejected: a vtable of collectives (every transport would write each collective again, 15 of 20 no-ops), and one
 * primitive for all (either shm pays a copy, or tcp must imitate shared memory).
 *
 * Rules for every backend:
 * - Never touches the bootstrap: comm.c gathers addresses between prepare() and connect() and agrees on the outcome
 *   after each, so a rank that fails never leaves others waiting. weft_wait_check() is the only way to look at it.
 * - Every loop that waits goes through struct weft_wait: spin, then slow path about every millisecond.
 * - Whoever cannot go on because of a peer returns what weft_channel_lost(), weft_channel_mismatch() or
 *   weft_wait_check() returned: these log, name the peer in channel->failed_rank and tell the other ranks.
 * - After an error only close() is called. close() waits for nobody.
 * - Everything is sized in prepare() and connect(); exchange() and transfer() allocate nothing.
 * - No mutable globals: N ranks may be N threads of one process.
 */
#ifndef WEFT_COMM_BACKEND_H
#define WEFT_COMM_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/bootstrap.h"
#include "weft/comm.h"
#include "weft/status.h"
#include "weft/wait.h"

/* Bytes of one rank's address blob; a UCX worker address on a host with several NICs takes a few hundred. */
#define WEFT_ADDRESS_SIZE 2048

struct weft_backend;
struct weft_comm_path;

/* Pointers are borrowed and stay valid until the channel is closed. */
struct weft_channel_options {
    struct weft_bootstrap *bootstrap; /* for its kind in is_usable(); otherwise see the rules above */
    uint32_t rank;                    /* of this process, in the group */
    uint32_t rank_count;              /* of the group; at most 64, 1024 between hearts (heart_mesh.h) */
    /*
     * [member_count] ranks joined to this one, ascending, own rank included. The same for all members of a memory
     * channel. A message channel is only pairs: A lists B when B lists A (rank 0 of host X: itself and all of host Y).
     */
    const uint32_t *members;
    uint32_t member_count;
    const char *interface;       /* list of names or CIDRs (netif.h), or NULL */
    enum weft_wait_policy wait;  /* see weft_wait_spin() */
    uint32_t timeout_ms;         /* for connect(); exchange() and transfer() get their own */
    uint32_t transfer_count_max; /* entries of one transfer() call */
    uint64_t nonce;              /* random, the same on all ranks, unknown outside: the hello that strangers lack */
    const size_t *sum_sizes;     /* [member_count] bytes of each member's WEFT_AREA_SUM; memory backends */
    size_t scratch_size;         /* bytes of each member's WEFT_AREA_SCRATCH; memory backends */
    const struct weft_comm_device *device; /* NULL: host memory; device backends */
};

/* Backends embed this as their first member. */
struct weft_channel {
    const struct weft_backend *backend;
    struct weft_channel_options options;
    int failed_rank; /* -1 */
};

/*
 * One message each way with one peer; a size of 0 means no message that way. The k-th message from A to B meets the
 * k-th expectation at B of a message from A, over the life of the channel; both sides give the same size.
 */
struct weft_transfer {
    uint32_t peer; /* rank, a member, never oneself */
    const void *send;
    size_t send_size; /* bytes */
    void *recv;
    size_t recv_size; /* bytes */
};

/* Each member owns two areas, each double-buffered by itself, so that a sum produced in place survives a gather. */
enum weft_area { WEFT_AREA_SUM = 0, WEFT_AREA_SCRATCH = 1, WEFT_AREA_COUNT };

struct weft_exchange {
    enum weft_area area;
    const void *in;         /* own bytes; buffer(area) when produced in place, else copied there */
    const size_t *sizes;    /* [member_count] bytes that each member publishes, by position in members[]; may be 0 */
    const void **views_out; /* [member_count] where they can be read, own included, until the next exchange */
    uint32_t timeout_ms;
};

struct weft_backend {
    const char *name;

    /*
     * Can this rank use it? Local and cheap, no side effects. is_forced: the user asked for it; otherwise answer
     * whether it should be chosen by itself (ucx: only with an RDMA device). On false, one phrase in reason_out.
     */
    bool (*is_usable)(const struct weft_channel_options *options, bool is_forced, char *reason_out, size_t reason_size);

    /*
     * Local half of opening: memory, sockets, devices. Writes what peers need to address_out[WEFT_ADDRESS_SIZE]
     * (zeroed by the caller). Called on every rank of the group, also with member_count 1. Sets *out on success only.
     */
    enum weft_status (*prepare)(const struct weft_channel_options *options, void *address_out,
                                struct weft_channel **out);

    /*
     * Connects to all members within options.timeout_ms. addresses: [rank_count][WEFT_ADDRESS_SIZE], every rank's blob
     * by rank. Called on every rank, only when prepare() went well everywhere.
     */
    enum weft_status (*connect)(struct weft_channel *channel, const void *addresses);

    /* Runs all entries at the same time (both directions progress together), returns when all are done. */
    enum weft_status (*transfer)(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                 uint32_t timeout_ms);

    /*
     * Device backends only, else NULL. Waits until all transfers so far have happened. Here as in connect() and
     * transfer(), ERR_TIMEOUT with failed_rank -1 says that nobody knows who was missing.
     */
    enum weft_status (*finish)(struct weft_channel *channel, uint32_t timeout_ms);

    /* Memory backends only, else NULL. Where the own bytes of the next exchange in `area` go; 64-byte aligned. */
    void *(*buffer)(struct weft_channel *channel, enum weft_area area);

    /* Memory backends only, else NULL. All members call it with the same area and sizes. */
    enum weft_status (*exchange)(struct weft_channel *channel, const struct weft_exchange *exchange);

    /* A word of every member that all of them see at once, 0 when opened; comm.c's. May be NULL. */
    _Atomic uint32_t *(*note)(struct weft_channel *channel, uint32_t member);

    /* What connects this rank to `peer`, a member; false, or no function, where that cannot be said. */
    bool (*path)(const struct weft_channel *channel, uint32_t peer, struct weft_comm_path *path_out);

    /* Frees everything; NULL inside is fine. Sets *channel to NULL. */
    void (*close)(struct weft_channel **channel);
};

extern const struct weft_backend weft_backend_self;
extern const struct weft_backend weft_backend_shm;
extern const struct weft_backend weft_backend_tcp;
extern const struct weft_backend weft_backend_ucx;  /* with WEFT_HAVE_UCX */
extern const struct weft_backend weft_backend_mpi;  /* with WEFT_HAVE_MPI */
extern const struct weft_backend weft_backend_nccl; /* with WEFT_HAVE_NCCL */

/* Fills the base of a new channel. */
void weft_channel_init(struct weft_channel *channel, const struct weft_backend *backend,
                       const struct weft_channel_options *options);

/* Position of `rank` in members[], -1 when it is not one. */
int weft_channel_member_index(const struct weft_channel *channel, uint32_t rank);

/*
 * The connection to `rank` broke (`reason`: "Connection reset by peer"). Its end may only be the echo of somebody
 * else's death (a survivor may close before the leader has told us), so this first gives the bootstrap a moment to name
 * the true one, then asks the leader. Logs, sets failed_rank, tells the other ranks; returns ERR_PEER.
 */
enum weft_status weft_channel_lost(struct weft_channel *channel, uint32_t rank, const char *reason);

/* `rank` is in another call than we are: it sent found_size bytes, expected expected_size. As above. */
enum weft_status weft_channel_mismatch(struct weft_channel *channel, uint32_t rank, size_t expected_size,
                                       size_t found_size);

/*
 * One wait. The loop of every backend:
 *
 *     weft_wait_begin(&wait, channel, timeout_ms);
 *     while (!look()) {
 *         if (!weft_wait_spin(&wait)) {
 *             WEFT_TRY(weft_wait_check(&wait, missing_rank));
 *             sleep at most WEFT_WAIT_SLEEP_MS, in a way that the peer's bytes end: futex, poll() ...
 *         }
 *     }
 *
 * Call weft_wait_progress() when bytes came but more are missing: back to spinning. It does not move the deadline.
 */
#define WEFT_WAIT_SLEEP_MS 1

struct weft_wait {
    struct weft_channel *channel;
    uint64_t deadline_ns; /* counted from the first look at the clock; 0 before */
    uint64_t spin_end_ns; /* 0: starts at the next look */
    uint32_t pause_count;
    uint32_t timeout_ms;
    uint32_t extension_ms; /* by which the deadline was put off because the group works */
};

static inline void weft_wait_begin(struct weft_wait *wait, struct weft_channel *channel, uint32_t timeout_ms)
{
    *wait = (struct weft_wait){.channel = channel, .timeout_ms = timeout_ms};
}

static inline void weft_wait_progress(struct weft_wait *wait)
{
    wait->pause_count = 0;
    wait->spin_end_ns = 0;
}

/*
 * Pauses (or yields the core, by policy) and says true: look again; false: spun long enough, take the slow path. The
 * clock is first read after 64 pauses, so a wait that ends at once costs nothing.
 */
bool weft_wait_spin(struct weft_wait *wait);

/*
 * Slow path: ERR_TIMEOUT past the deadline (logged; missing_rank is named and reported to the other ranks) unless the
 * heartbeats say that somebody is at work (then it is put off, by 20 timeouts at most); ERR_PEER
 * when the bootstrap knows of a dead rank, else WEFT_OK.
 */
enum weft_status weft_wait_check(struct weft_wait *wait, uint32_t missing_rank);

/* As missing_rank, where nobody can tell: then ERR_TIMEOUT is not logged and names nobody. */
#define WEFT_WAIT_ANYBODY UINT32_MAX

/* CLOCK_MONOTONIC. */
uint64_t weft_comm_clock_ns(void);

#endif
