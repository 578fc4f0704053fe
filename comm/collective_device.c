/*
 * Collectives between devices, over a channel that moves device memory (nccl): every rank's nodes to every rank, then
 * the additions by our kernel. Nothing is waited for: all takes effect in the order of the device's stream.
 *
 * When a wait runs out nobody knows who was missing: a device does not say. Then the ranks call the roll over the host
 * channels: who does not answer has been stuck.
 */
#include "collective_device.h"

#include <assert.h>
#include <string.h>

#include "weft/log.h"

/*
 * From here on, among three or more, each adds its slice and the slices are exchanged (two-shot), see collective.c. By
 * arithmetic, not measured: one more round costs some 20 us, which is what the bytes it saves take at 1 MiB (8 ranks,
 * NVLink at 300 GB/s), 4 MiB (4 ranks), or 0.1 to 0.3 MiB over PCIe.
 */
#define TWO_SHOT_SIZE ((size_t)512 << 10)
/* Of the roll call: what ranks may differ in when their deadlines run out. */
#define ROLL_CALL_MIN_MS 500u
#define ROLL_CALL_MAX_MS 5000u

static bool is_two_shot(uint32_t rank_count, size_t count)
{
    return rank_count > 2 && count * sizeof(float) >= TWO_SHOT_SIZE;
}

static struct weft_range slice_of_rank(const struct weft_comm *comm, size_t count, uint32_t rank)
{
    return comm_slice_of(count, comm->rank_count, rank);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- opening ---- */

size_t weft_comm_exchange_room(uint32_t rank_count, size_t sum_count_max)
{
    size_t small = sum_count_max, slice = 0;

    if (is_two_shot(rank_count, sum_count_max)) {
        small = TWO_SHOT_SIZE / sizeof(float);
        slice = weft_range_count(comm_slice_of(sum_count_max, rank_count, 0)); /* the largest */
    }
    return (larger(small, slice) + 15) / 16 * 16; /* rooms begin on cache lines */
}

enum weft_status weft_comm_open_exchange(struct weft_comm *comm)
{
    struct comm_exchange *exchange = &comm->exchange;
    size_t size;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        exchange->members[r] = r;
    }
    exchange->room_count = weft_comm_exchange_room(comm->rank_count, comm->sum_count_max);
    size = (comm->nodes.count - comm->node_counts[comm->rank]) * exchange->room_count * sizeof(float);
    exchange->received = comm->device.alloc(comm->device.context, larger(64, size));
    return exchange->received == NULL ? WEFT_ERR_MEMORY : WEFT_OK; /* logged by the device */
}

void weft_comm_close_exchange(struct weft_comm *comm)
{
    if (comm->exchange.received != NULL) {
        comm->device.free(comm->device.context, comm->exchange.received);
        comm->exchange.received = NULL;
    }
}

/* ---- waiting ---- */

enum weft_status weft_comm_name_missing(struct weft_comm *comm, enum weft_status status)
{
    uint32_t timeout_ms = comm->timeout_ms;
    enum weft_status found;

    if (status != WEFT_ERR_TIMEOUT) {
        return status;
    }
    comm->timeout_ms = timeout_ms / 4 < ROLL_CALL_MIN_MS   ? ROLL_CALL_MIN_MS
                       : timeout_ms / 4 > ROLL_CALL_MAX_MS ? ROLL_CALL_MAX_MS
                                                           : timeout_ms / 4;
    found = weft_comm_run_barrier(comm); /* its channel names whom it misses */
    comm->timeout_ms = timeout_ms;
    if (found == WEFT_OK) {
        weft_log(WEFT_LOG_ERROR, "comm", "the GPUs have exchanged nothing for %u ms, although all ranks are there",
                 timeout_ms);
    }
    return found != WEFT_OK ? found : status;
}

/* The channel's own answer, or the roll call's. */
static enum weft_status settle_exchange(struct weft_comm *comm, enum weft_status status)
{
    struct weft_channel *channel = comm->exchange.channel;

    if (status != WEFT_ERR_TIMEOUT || channel->failed_rank >= 0) {
        return status;
    }
    status = weft_comm_name_missing(comm, status);
    channel->failed_rank =
        comm->inner->failed_rank >= 0 || comm->outer == NULL ? comm->inner->failed_rank : comm->outer->failed_rank;
    return status;
}

enum weft_status weft_comm_connect_exchange(struct weft_comm *comm, const void *addresses)
{
    struct weft_channel *channel = comm->exchange.channel;

    return settle_exchange(comm, channel->backend->connect(channel, addresses));
}

enum weft_status weft_comm_finish_exchange(struct weft_comm *comm)
{
    struct weft_channel *channel = comm->exchange.channel;

    return settle_exchange(comm, channel->backend->finish(channel, comm->timeout_ms));
}

static enum weft_status transfer(struct weft_comm *comm, size_t count)
{
    struct weft_channel *channel = comm->exchange.channel;

    if (comm_is_mute(comm)) {
        return WEFT_OK;
    }
    for (size_t i = 0; i < count; i++) {
        comm->received_size += comm->exchange.transfers[i].recv_size;
    }
    return settle_exchange(comm,
                           channel->backend->transfer(channel, comm->exchange.transfers, count, comm->timeout_ms));
}

/* ---- sums ---- */

/* Where a node of another rank goes. */
static float *room_of(const struct weft_comm *comm, uint32_t node)
{
    uint32_t own_count = comm->node_counts[comm->rank];
    uint32_t room = node < comm->nodes.first[comm->rank] ? node : node - own_count;

    return comm->exchange.received + room * comm->exchange.room_count;
}

/*
 * Elements `share_of` each rank of every node to that rank: own nodes there, theirs for our share into their rooms.
 * One-shot: every share is everything.
 */
static enum weft_status exchange_nodes(struct weft_comm *comm, const float *nodes, size_t count, bool is_sliced)
{
    const struct weft_range everything = {0, (uint32_t)count};
    struct weft_range own = is_sliced ? slice_of_rank(comm, count, comm->rank) : everything;
    uint32_t own_count = comm->node_counts[comm->rank];
    size_t used = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        struct weft_range share = is_sliced ? slice_of_rank(comm, count, r) : everything;

        for (uint32_t k = 0; r != comm->rank && (k < own_count || k < comm->node_counts[r]); k++) {
            bool is_sending = k < own_count, is_receiving = k < comm->node_counts[r];

            comm->exchange.transfers[used++] = (struct weft_transfer){
                .peer = r,
                .send = is_sending ? nodes + k * count + share.begin : NULL,
                .send_size = is_sending ? weft_range_count(share) * sizeof(float) : 0,
                .recv = is_receiving ? room_of(comm, comm->nodes.first[r] + k) : NULL,
                .recv_size = is_receiving ? weft_range_count(own) * sizeof(float) : 0,
            };
        }
    }
    assert(used <= COMM_EXCHANGE_MAX);
    return transfer(comm, used);
}

/* What adds up elements `share` of all nodes: own ones where they lie, the others from their rooms. */
static struct weft_tree_add_args additions(struct weft_comm *comm, const float *nodes, size_t count,
                                           struct weft_range share, float *out)
{
    uint32_t own_first = comm->nodes.first[comm->rank];

    for (uint32_t n = 0; n < comm->nodes.count; n++) {
        bool is_own = n >= own_first && n - own_first < comm->node_counts[comm->rank];

        comm->left_inputs[n] = is_own ? nodes + (n - own_first) * count + share.begin : room_of(comm, n);
    }
    return (struct weft_tree_add_args){.inputs = comm->left_inputs,
                                       .input_count = comm->nodes.count,
                                       .adds = comm->nodes.adds,
                                       .count = weft_range_count(share),
                                       .out = out + share.begin};
}

/* Every rank's finished slice to every other. */
static enum weft_status exchange_slices(struct weft_comm *comm, size_t count, float *out)
{
    struct weft_range own = slice_of_rank(comm, count, comm->rank);
    size_t used = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        struct weft_range share = slice_of_rank(comm, count, r);

        if (r != comm->rank) {
            comm->exchange.transfers[used++] = (struct weft_transfer){
                .peer = r,
                .send = out + own.begin,
                .send_size = weft_range_count(own) * sizeof(float),
                .recv = out + share.begin,
                .recv_size = weft_range_count(share) * sizeof(float),
            };
        }
    }
    return transfer(comm, used);
}

bool weft_comm_exchange_is_one_shot(const struct weft_comm *comm, size_t count)
{
    return !is_two_shot(comm->rank_count, count);
}

enum weft_status weft_comm_exchange_tree_gather(struct weft_comm *comm, const float *nodes, size_t count, float *out,
                                                struct weft_tree_add_args *left_out)
{
    const struct weft_range everything = {0, (uint32_t)count};

    WEFT_TRY(exchange_nodes(comm, nodes, count, false));
    *left_out = additions(comm, nodes, count, everything, out);
    return WEFT_OK;
}

enum weft_status weft_comm_exchange_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    struct weft_tree_add_args left;

    if (!is_two_shot(comm->rank_count, count)) {
        WEFT_TRY(weft_comm_exchange_tree_gather(comm, nodes, count, out, &left));
        comm->device.tree_add(comm->device.context, &left);
        return WEFT_OK;
    }
    WEFT_TRY(exchange_nodes(comm, nodes, count, true));
    left = additions(comm, nodes, count, slice_of_rank(comm, count, comm->rank), out);
    if (left.count > 0) {
        comm->device.tree_add(comm->device.context, &left);
    }
    return exchange_slices(comm, count, out);
}

/* ---- gathers ---- */

enum weft_status weft_comm_exchange_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    char *to = out;
    size_t used = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        if (r == comm->rank && sizes[r] > 0) {
            comm->device.copy(comm->device.context, to, in, sizes[r]);
        }
        if (r != comm->rank && (sizes[r] > 0 || sizes[comm->rank] > 0)) {
            comm->exchange.transfers[used++] = (struct weft_transfer){
                .peer = r, .send = in, .send_size = sizes[comm->rank], .recv = to, .recv_size = sizes[r]};
        }
        to += sizes[r];
    }
    return transfer(comm, used);
}
