/*
 * Moving activations between the ranks of a group.
 *
 * Transports move bytes, our code adds: tree_sum() sends maximal tree nodes (tree.h) and finishes the canonical tree on
 * every rank, so its bits are the same for every split and every backend. Backends: self, shm (inside a host), tcp,
 * ucx, mpi (any), chosen by intersecting what every rank can use; inside a host shm, between hosts tcp or ucx, mpi
 * where those cannot.
 *
 * A communicator belongs to one thread at a time; all ranks make the same calls in the same order with the same sizes.
 * Activations (tree_sum, sum_buffer, all_gather) lie in host memory, or in device memory when the communicator is
 * opened with a struct weft_comm_device: then these calls take effect in the order of the device's stream and need not
 * be done when they return; weft_comm_sync() waits for what other ranks have to add. Everything else moves host memory.
 *
 * Every wait has the deadline of weft_comm_options.timeout_ms. The first failure poisons the communicator: every later
 * call returns the same error, weft_comm_failed_rank() names the peer. Nothing here spins for ever and nothing is
 * static.
 */
#ifndef WEFT_COMM_H
#define WEFT_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "weft/bootstrap.h"
#include "weft/peer.h"
#include "weft/status.h"
#include "weft/tree.h"
#include "weft/wait.h"

struct weft_comm;

/*
 * How to handle device memory: filled by the runtime from the device table (weft/device.h has the same operations), so
 * that comm knows no device. All take effect in the order of one stream, also with what the caller issues by itself.
 * Functions without a status keep the device's first error; wait() returns it.
 */
#define WEFT_COMM_MARK_COUNT 8
enum weft_comm_recording { WEFT_COMM_ISSUED, WEFT_COMM_RECORDED, WEFT_COMM_REPLAYED };
struct weft_comm_device {
    void *context;        /* first argument of every function; borrowed until close */
    unsigned char id[16]; /* two ranks with the same one share the device */
    void *stream;         /* cudaStream_t, or NULL: NCCL cannot be used */
    /* `size` bytes of device memory, 64-byte aligned; NULL: logged. Makes the device the thread's current one. */
    void *(*alloc)(void *context, size_t size);
    void (*free)(void *context, void *memory);
    /* The same in host memory that is copied at the link's speed (pinned). Freed with nothing under way, unless
     * wait() failed or ran out: then it is the device's to know whether it may still write there. */
    void *(*alloc_host)(void *context, size_t size);
    void (*free_host)(void *context, void *memory);
    /* Begin a copy from the device, to it, inside it. The host's side is left alone until a later mark was waited for.
     */
    void (*read)(void *context, void *to_host, const void *from, size_t size);
    void (*write)(void *context, void *to, const void *from_host, size_t size);
    void (*copy)(void *context, void *to, const void *from, size_t size);
    /* args->before is issued, too. */
    void (*tree_add)(void *context, const struct weft_tree_add_args *args);
    /* Sets mark 0 to WEFT_COMM_MARK_COUNT - 1 behind everything issued so far. */
    void (*mark)(void *context, uint32_t mark);
    /* Until all before the mark is done. ERR_TIMEOUT: not logged, call again; otherwise the device's first error. */
    enum weft_status (*wait)(void *context, uint32_t mark, uint32_t timeout_ms);
    /* Sums in the memory of peers, as weft_device_alloc_shared() and what follows it there; all NULL: cannot. */
    void *(*alloc_shared)(void *context, size_t size, struct weft_peer_handle *handle_out, char *reason_out,
                          size_t reason_size);
    void (*free_shared)(void *context, void *memory);
    void *(*peer_open)(void *context, const struct weft_peer_handle *handle, char *reason_out, size_t reason_size);
    void (*peer_close)(void *context, void *memory);
    void (*peer_sum)(void *context, const struct weft_peer_sum_args *args);
    /* As weft_device_recording(); NULL: nothing is ever recorded. */
    enum weft_comm_recording (*recording)(void *context);
};

struct weft_comm_options {
    const char *backend;   /* NULL or "auto"; "self", "shm", "tcp", "ucx", "mpi" forces one for all pairs, "nccl" for
                              device memory; "peer": as "auto", but small sums must go through the peers' memory */
    const char *interface; /* between hosts: names or CIDRs by preference, "eth0,10.0.0.0/8"; NULL: by route */
    uint32_t timeout_ms;   /* of every wait */
    uint32_t leaf_count;   /* V */
    const struct weft_range *leaves; /* [rank_count], every rank's leaf range, tiling [0, V); copied */
    size_t sum_count_max;            /* largest `count` of tree_sum(), elements */
    size_t gather_size_max;          /* largest sum of sizes of all_gather() and largest broadcast(), bytes */
    enum weft_wait_policy wait;
    const struct weft_comm_device *device; /* NULL: activations in host memory; copied. The same kind on all ranks */
    bool is_traced;                        /* collect weft_comm_stats (two clock reads per collective) */
};

/* Collective over the bootstrap, which is borrowed until close. Logs the choice and its reason once, on rank 0. */
WEFT_MUST_CHECK enum weft_status weft_comm_open(struct weft_bootstrap *bootstrap,
                                                const struct weft_comm_options *options, struct weft_comm **out);
void weft_comm_close(struct weft_comm **comm);

/* Bytes of device memory that weft_comm_open() takes on `rank`, at most: nobody knows yet what it will choose. Of the
 * options only backend, leaf_count, leaves and sum_count_max. NCCL's own buffers come besides. */
size_t weft_comm_device_size(const struct weft_comm_options *options, uint32_t rank, uint32_t rank_count);

/*
 * out[i] <- sum over all V leaves of the tree, in tree order, 0 <= i < count; the same bits on every rank.
 *
 * nodes   [node_count][count] f32: this rank's partial sums, one per maximal node of its leaf range, in leaf order
 *         (node_count = weft_tree_nodes(own range)); borrowed until the call returns (device memory: until the stream
 *         is past it). May be what weft_comm_sum_buffer() returned: then shm saves a copy.
 * out     [count] f32; must not overlap nodes.
 *
 * Cost: one exchange; (sum over ranks of node_count - own) * count * 4 bytes received per rank. Device memory without
 * NCCL: besides a copy to the host and one back, in rounds that overlap with the exchange.
 * ERR_PEER, ERR_TIMEOUT poison the communicator.
 */
WEFT_MUST_CHECK enum weft_status weft_comm_tree_sum(struct weft_comm *comm, const float *nodes, size_t count,
                                                    float *out);

/*
 * tree_sum() up to its last additions, for a caller that makes them while it does something else: *left_out is what
 * weft_comm_device.tree_add() would have to do then, reading own nodes, nodes that other ranks have sent, or `out`
 * itself where there is nothing left to add (host memory, large sums). Through the memory of peers all of it is left,
 * the exchange too: left_out->before, which the caller issues in any case, since the others wait for it. Its memory is
 * the communicator's: to be used before the next call here, in device memory by operations issued before it.
 */
WEFT_MUST_CHECK enum weft_status weft_comm_tree_gather(struct weft_comm *comm, const float *nodes, size_t count,
                                                       float *out, struct weft_tree_add_args *left_out);

/*
 * Room for [node_count][count] f32 into which the caller may produce its nodes for the next tree_sum() or
 * tree_gather(), 64-byte aligned, in device memory when opened with a device. Valid until then. Never NULL for count <=
 * sum_count_max.
 */
float *weft_comm_sum_buffer(struct weft_comm *comm, size_t count);

/*
 * Sums in steps that a device records and replays, which call tree_sum() and tree_gather() as ever (weft/device.h,
 * graphs). Whether those of `count` elements can be recorded: they are nothing but operations of the device's stream.
 * Not so in host memory, or through it. The same on all ranks. All ranks record the same sums in the same order, each
 * for itself, and replay them together; recordings are closed before the communicator.
 */
bool weft_comm_is_recordable(const struct weft_comm *comm, size_t count);

/* Until it ends, sums and gathers of activations exchange nothing, unless they are being recorded, and are not counted;
 * peers need not be there. What remains to be added is added: the results mean nothing. */
void weft_comm_rehearse(struct weft_comm *comm, bool is_rehearsing);

/* out <- concatenation over ranks r of r's in[sizes[r]]; sizes[rank_count] bytes, the same on all ranks, some may be 0.
 */
WEFT_MUST_CHECK enum weft_status weft_comm_all_gather(struct weft_comm *comm, const void *in, const size_t *sizes,
                                                      void *out);

/* The same between host memory, whatever the communicator was opened with. */
WEFT_MUST_CHECK enum weft_status weft_comm_all_gather_host(struct weft_comm *comm, const void *in, const size_t *sizes,
                                                           void *out);

/*
 * Waits until nothing on the device's stream depends on other ranks any more, keeping an eye on them: a rank that dies
 * ends it. To be called before the host waits for the device in another way. Nothing to wait for in host memory.
 */
WEFT_MUST_CHECK enum weft_status weft_comm_sync(struct weft_comm *comm);

/* data[size] of `root` reaches every rank. Host memory, as all below. */
WEFT_MUST_CHECK enum weft_status weft_comm_broadcast(struct weft_comm *comm, uint32_t root, void *data, size_t size);

/* Point to point, blocking, matched in order per pair. For set-up and tests; not for the hot path. */
WEFT_MUST_CHECK enum weft_status weft_comm_send(struct weft_comm *comm, uint32_t peer, const void *data, size_t size);
WEFT_MUST_CHECK enum weft_status weft_comm_recv(struct weft_comm *comm, uint32_t peer, void *data, size_t size);

WEFT_MUST_CHECK enum weft_status weft_comm_barrier(struct weft_comm *comm);

/* -1 while nobody has failed. */
int weft_comm_failed_rank(const struct weft_comm *comm);
/* "shm", "tcp", "shm+tcp" ... */
const char *weft_comm_backend(const struct weft_comm *comm);
/* Why: "one host", "asked for", or what ruled out the backends before it. */
const char *weft_comm_reason(const struct weft_comm *comm);

/* The connection to a rank of another host. */
struct weft_comm_path {
    char interface[16];          /* of this host that it leaves through */
    uint32_t mtu;                /* bytes of that interface's largest IP packet; 0: not known */
    uint32_t resent_count;       /* segments that had to be sent again so far */
    struct sockaddr_storage own; /* both ends, without ports */
    struct sockaddr_storage peer;
};

/* False where the transport to `peer` knows none: shm, ucx, mpi. */
bool weft_comm_path(const struct weft_comm *comm, uint32_t peer, struct weft_comm_path *path_out);

enum weft_comm_op {
    WEFT_COMM_TREE_SUM,
    WEFT_COMM_ALL_GATHER,
    WEFT_COMM_BROADCAST,
    WEFT_COMM_BARRIER,
    WEFT_COMM_OP_COUNT
};

/* Totals since open, zero unless is_traced. Time includes waiting for slower peers. */
struct weft_comm_stats {
    struct {
        uint64_t call_count;
        uint64_t byte_count; /* received by this rank */
        uint64_t time_ns;
        uint64_t time_max_ns;
    } ops[WEFT_COMM_OP_COUNT];
};
void weft_comm_stats(const struct weft_comm *comm, struct weft_comm_stats *stats_out);

#endif
