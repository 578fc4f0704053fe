/*
 * struct weft_comm, shared by comm_open.c (choosing, opening), collective.c (algorithms) and comm.c (public calls,
 * poisoning, statistics).
 *
 * "Host" here is what the inner channel joins: the ranks of one machine when shm is used, else every rank is a host of
 * its own. The first rank of a host is its leader and speaks for it on the outer channel.
 */
#ifndef WEFT_COMM_INTERNAL_H
#define WEFT_COMM_INTERNAL_H

#include "backend.h"
#include "sum_plan.h"
#include "weft/comm.h"

#define COMM_RANK_MAX WEFT_LEAF_COUNT_MAX

/* Which node of which rank or host an input of a plan is. */
struct comm_node {
    uint8_t owner; /* position in members[], or host */
    uint8_t index; /* among the owner's nodes */
};

/* Two rounds of device memory in flight, see staging.c. */
#define STAGING_SLOTS 2
struct comm_pinned {
    char *in[STAGING_SLOTS];  /* owned pinned host memory: [own nodes][round_count] or own bytes of a gather */
    char *out[STAGING_SLOTS]; /* owned pinned host memory */
    size_t in_size;
    size_t out_size;
    size_t round_count;             /* elements */
    bool is_writing[STAGING_SLOTS]; /* the device may still be copying from out[] */
};

/* All ranks' nodes, ascending: inputs of the whole tree. */
struct comm_nodes {
    uint32_t count;
    uint32_t first[COMM_RANK_MAX + 1]; /* rank r has [first[r], first[r + 1]) */
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
};

/* Small sums through the peers' memory, see peer_sum.c. */
struct comm_peer_host;
struct comm_peer {
    bool is_open;
    bool is_waiting;                            /* sums have been issued since weft_comm_sync() */
    size_t room_count;                          /* elements of the largest sum */
    float *inboxes[COMM_RANK_MAX];              /* device memory; the own one owned, the others' open or NULL */
    uint32_t pids[COMM_RANK_MAX];               /* ranks of one host see each other's; 0: nobody has opened anything */
    _Atomic uint32_t *farewells[COMM_RANK_MAX]; /* not 0: the rank has closed the others' inboxes */
    struct weft_peer_sum_args left;             /* of the last tree_gather() */
    uint32_t *state;             /* owned device memory: [WEFT_PEER_STATE_COUNT], the greeting's result */
    struct comm_peer_host *host; /* owned pinned host memory */
};

/* Messages of one exchange between devices: a node each way per entry. */
#define COMM_EXCHANGE_MAX (COMM_RANK_MAX * WEFT_TREE_NODE_MAX)
/* Between devices directly, see collective_device.c. */
struct comm_exchange {
    struct weft_channel *channel;    /* owned; NULL: through host memory */
    uint32_t members[COMM_RANK_MAX]; /* of the channel: all ranks */
    float *received;                 /* owned device memory: [nodes of the others][room_count] */
    size_t room_count;               /* elements */
    struct weft_transfer transfers[COMM_EXCHANGE_MAX];
};

struct weft_comm {
    struct weft_bootstrap *bootstrap; /* borrowed */
    uint32_t rank;
    uint32_t rank_count;
    uint32_t timeout_ms;
    uint32_t leaf_count;
    struct weft_range leaves[COMM_RANK_MAX];
    size_t sum_count_max;
    size_t gather_size_max;
    size_t host_sum_count_max; /* of the host channels: what they are sized for */
    bool is_traced;
    bool is_rehearsing;
    char name[16];
    char reason[320]; /* of the choice */

    uint32_t host_count;
    uint32_t host_of[COMM_RANK_MAX];      /* by rank */
    uint32_t host_leaders[COMM_RANK_MAX]; /* rank, by host */
    uint32_t own_host;
    uint32_t members[COMM_RANK_MAX]; /* ranks of the own host, ascending */
    uint32_t member_count;
    uint32_t own_member;                   /* position in members[] */
    uint32_t outer_members[COMM_RANK_MAX]; /* own rank and all ranks of other hosts */
    uint32_t outer_member_count;

    struct weft_channel *inner;      /* owned: self or shm */
    struct weft_channel *outer;      /* owned: NULL with one host */
    size_t sum_sizes[COMM_RANK_MAX]; /* bytes of WEFT_AREA_SUM, by member */
    size_t scratch_size;

    uint32_t node_counts[COMM_RANK_MAX]; /* by rank */
    struct comm_nodes nodes;
    struct weft_sum_plan host_plan; /* members' nodes to the host's */
    struct comm_node host_inputs[WEFT_LEAF_COUNT_MAX];
    uint32_t host_node_counts[COMM_RANK_MAX]; /* by host */
    struct weft_sum_plan top_plan;            /* all hosts' nodes to the sum */
    struct comm_node top_inputs[WEFT_LEAF_COUNT_MAX];
    size_t chunk_count;                    /* elements per round between hosts */
    float *staging;                        /* owned: [all hosts' nodes][chunk_count]; leaders */
    size_t staging_offsets[COMM_RANK_MAX]; /* elements, by host */
    float *temporaries;                    /* owned: [64][WEFT_SUM_BLOCK] */
    struct weft_transfer *transfers;       /* owned: [transfer_count_max] */
    uint32_t transfer_count_max;

    const float *left_inputs[WEFT_LEAF_COUNT_MAX]; /* of the last tree_gather() */

    bool has_device;
    struct weft_comm_device device; /* when has_device */
    float *device_nodes;            /* owned device memory: [own nodes][sum_count_max] */
    struct comm_pinned pinned;
    struct comm_exchange exchange;
    struct comm_peer peer;

    enum weft_status status; /* of the first failure */
    int failed_rank;
    uint64_t received_size; /* of the collective under way */
    struct weft_comm_stats stats;
};

/* What is issued now is for nobody else. */
static inline bool comm_is_mute(const struct weft_comm *comm)
{
    return comm->is_rehearsing && (!comm->has_device || comm->device.recording == NULL ||
                                   comm->device.recording(comm->device.context) != WEFT_COMM_RECORDED);
}

static inline bool comm_is_leader(const struct weft_comm *comm)
{
    return comm->own_member == 0;
}

/* Part `index` of `parts` nearly equal ones of [0, count), beginning on cache lines; the first is the largest. */
static inline struct weft_range comm_slice_of(size_t count, uint32_t parts, uint32_t index)
{
    size_t step = ((count + parts - 1) / parts + 15) / 16 * 16;
    size_t begin = step * index, end = begin + step;

    return (struct weft_range){(uint32_t)(begin < count ? begin : count), (uint32_t)(end < count ? end : count)};
}

/* collective.c: no checks, no poisoning. failed_rank of the channel at fault is set. */
enum weft_status weft_comm_run_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out);
enum weft_status weft_comm_run_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out);
enum weft_status weft_comm_run_barrier(struct weft_comm *comm);
enum weft_status weft_comm_run_point_to_point(struct weft_comm *comm, const struct weft_transfer *transfer);

#endif
