/* The public calls: argument checks, poisoning by the first failure, statistics. Algorithms are in collective.c. */
#include "weft/comm.h"

#include <assert.h>
#include <stdio.h>

#include "collective_device.h"
#include "comm_internal.h"
#include "peer_sum.h"
#include "staging.h"
#include "weft/log.h"

/* Poisons. A failure that no peer caused is told to the others as our own, so that they do not wait for us in vain. */
static enum weft_status settle(struct weft_comm *comm, enum weft_status status)
{
    if (status == WEFT_OK || comm->status != WEFT_OK) {
        return status;
    }
    comm->status = status;
    weft_peer_stop(comm);
    comm->failed_rank = comm->inner->failed_rank;
    if (comm->failed_rank < 0 && comm->outer != NULL) {
        comm->failed_rank = comm->outer->failed_rank;
    }
    if (comm->failed_rank < 0 && comm->exchange.channel != NULL) {
        comm->failed_rank = comm->exchange.channel->failed_rank;
    }
    if (comm->failed_rank < 0) {
        const char *cause = weft_log_last_error(); /* whoever found it has logged it */
        char reason[160];

        snprintf(reason, sizeof(reason), "its communicator failed: %s",
                 cause[0] != '\0' ? cause : weft_status_name(status));
        comm->failed_rank = (int)comm->rank;
        weft_bootstrap_abort(comm->bootstrap, comm->rank, reason);
    }
    return status;
}

struct timing {
    uint64_t begin_ns;
};

static struct timing begin_op(struct weft_comm *comm)
{
    comm->received_size = 0;
    return (struct timing){comm->is_traced ? weft_comm_clock_ns() : 0};
}

static enum weft_status end_op(struct weft_comm *comm, enum weft_comm_op op, struct timing timing,
                               enum weft_status status)
{
    if (comm->is_traced && !comm->is_rehearsing && status == WEFT_OK) {
        uint64_t time_ns = weft_comm_clock_ns() - timing.begin_ns;

        comm->stats.ops[op].call_count++;
        comm->stats.ops[op].byte_count += comm->received_size;
        comm->stats.ops[op].time_ns += time_ns;
        if (time_ns > comm->stats.ops[op].time_max_ns) {
            comm->stats.ops[op].time_max_ns = time_ns;
        }
    }
    if (status == WEFT_OK) {
        weft_bootstrap_progress(comm->bootstrap);
    }
    return settle(comm, status);
}

/* ---- activations: where they lie decides ---- */

static enum weft_status run_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    const bool is_exchange = comm->exchange.channel != NULL && !weft_peer_takes(comm, count);

    if (comm_is_mute(comm) && !is_exchange) {
        return WEFT_OK;
    }
    if (!comm->has_device) {
        return weft_comm_run_tree_sum(comm, nodes, count, out);
    }
    if (comm->rank_count == 1) {
        comm->device.copy(comm->device.context, out, nodes, count * sizeof(float));
        return WEFT_OK;
    }
    if (weft_peer_takes(comm, count)) {
        weft_peer_tree_sum(comm, nodes, count, out);
        return WEFT_OK;
    }
    return is_exchange ? weft_comm_exchange_tree_sum(comm, nodes, count, out)
                       : weft_staging_tree_sum(comm, nodes, count, out);
}

static enum weft_status run_tree_gather(struct weft_comm *comm, const float *nodes, size_t count, float *out,
                                        struct weft_tree_add_args *left_out)
{
    if (weft_peer_takes(comm, count)) {
        if (!comm_is_mute(comm)) {
            weft_peer_tree_gather(comm, nodes, count, out, left_out);
            return WEFT_OK;
        }
    } else if (comm->exchange.channel != NULL && weft_comm_exchange_is_one_shot(comm, count)) {
        return weft_comm_exchange_tree_gather(comm, nodes, count, out, left_out);
    }
    WEFT_TRY(run_tree_sum(comm, nodes, count, out));
    comm->left_inputs[0] = out;
    *left_out = (struct weft_tree_add_args){.inputs = comm->left_inputs, .input_count = 1, .count = count, .out = out};
    return WEFT_OK;
}

static enum weft_status run_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    if (comm_is_mute(comm)) {
        return WEFT_OK;
    }
    if (!comm->has_device) {
        return weft_comm_run_gather(comm, in, sizes, out);
    }
    if (comm->rank_count == 1) {
        if (sizes[0] > 0) {
            comm->device.copy(comm->device.context, out, in, sizes[0]);
        }
        return WEFT_OK;
    }
    return comm->exchange.channel != NULL ? weft_comm_exchange_gather(comm, in, sizes, out)
                                          : weft_staging_gather(comm, in, sizes, out);
}

enum weft_status weft_comm_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    struct timing timing = begin_op(comm);

    assert(count <= comm->sum_count_max);
    WEFT_TRY(comm->status);
    if (count == 0) {
        return WEFT_OK;
    }
    return end_op(comm, WEFT_COMM_TREE_SUM, timing, run_tree_sum(comm, nodes, count, out));
}

enum weft_status weft_comm_tree_gather(struct weft_comm *comm, const float *nodes, size_t count, float *out,
                                       struct weft_tree_add_args *left_out)
{
    struct timing timing = begin_op(comm);

    assert(count <= comm->sum_count_max);
    WEFT_TRY(comm->status);
    if (count == 0) {
        comm->left_inputs[0] = out;
        *left_out = (struct weft_tree_add_args){.inputs = comm->left_inputs, .input_count = 1, .out = out};
        return WEFT_OK;
    }
    return end_op(comm, WEFT_COMM_TREE_SUM, timing, run_tree_gather(comm, nodes, count, out, left_out));
}

bool weft_comm_is_recordable(const struct weft_comm *comm, size_t count)
{
    return comm->has_device && comm->device.recording != NULL && comm->rank_count > 1 &&
           (comm->exchange.channel != NULL || weft_peer_takes(comm, count));
}

void weft_comm_rehearse(struct weft_comm *comm, bool is_rehearsing)
{
    comm->is_rehearsing = is_rehearsing;
}

float *weft_comm_sum_buffer(struct weft_comm *comm, size_t count)
{
    assert(count <= comm->sum_count_max);
    return comm->has_device ? comm->device_nodes : comm->inner->backend->buffer(comm->inner, WEFT_AREA_SUM);
}

static size_t total_of(const struct weft_comm *comm, const size_t *sizes)
{
    size_t total = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        total += sizes[r];
    }
    return total;
}

enum weft_status weft_comm_all_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    struct timing timing = begin_op(comm);

    assert(total_of(comm, sizes) <= comm->gather_size_max);
    WEFT_TRY(comm->status);
    return end_op(comm, WEFT_COMM_ALL_GATHER, timing, run_gather(comm, in, sizes, out));
}

enum weft_status weft_comm_all_gather_host(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    struct timing timing = begin_op(comm);

    assert(total_of(comm, sizes) <= comm->gather_size_max);
    WEFT_TRY(comm->status);
    return end_op(comm, WEFT_COMM_ALL_GATHER, timing, weft_comm_run_gather(comm, in, sizes, out));
}

enum weft_status weft_comm_sync(struct weft_comm *comm)
{
    WEFT_TRY(comm->status);
    if (comm->exchange.channel != NULL) {
        WEFT_TRY(settle(comm, weft_comm_finish_exchange(comm))); /* sums through the peers' memory included */
        comm->peer.is_waiting = false;
    } else if (comm->peer.is_waiting) {
        WEFT_TRY(settle(comm, weft_peer_finish(comm)));
    } else {
        return WEFT_OK; /* staging has waited for every peer by itself */
    }
    weft_bootstrap_progress(comm->bootstrap);
    return WEFT_OK;
}

enum weft_status weft_comm_broadcast(struct weft_comm *comm, uint32_t root, void *data, size_t size)
{
    struct timing timing = begin_op(comm);
    size_t sizes[COMM_RANK_MAX] = {0};

    assert(root < comm->rank_count && size <= comm->gather_size_max);
    WEFT_TRY(comm->status);
    sizes[root] = size;
    return end_op(comm, WEFT_COMM_BROADCAST, timing, weft_comm_run_gather(comm, data, sizes, data));
}

enum weft_status weft_comm_send(struct weft_comm *comm, uint32_t peer, const void *data, size_t size)
{
    const struct weft_transfer transfer = {.peer = peer, .send = data, .send_size = size};

    assert(peer < comm->rank_count && peer != comm->rank);
    WEFT_TRY(comm->status);
    return settle(comm, weft_comm_run_point_to_point(comm, &transfer));
}

enum weft_status weft_comm_recv(struct weft_comm *comm, uint32_t peer, void *data, size_t size)
{
    const struct weft_transfer transfer = {.peer = peer, .recv = data, .recv_size = size};

    assert(peer < comm->rank_count && peer != comm->rank);
    WEFT_TRY(comm->status);
    return settle(comm, weft_comm_run_point_to_point(comm, &transfer));
}

enum weft_status weft_comm_barrier(struct weft_comm *comm)
{
    struct timing timing = begin_op(comm);

    WEFT_TRY(comm->status);
    return end_op(comm, WEFT_COMM_BARRIER, timing, weft_comm_run_barrier(comm));
}

int weft_comm_failed_rank(const struct weft_comm *comm)
{
    return comm->failed_rank;
}

const char *weft_comm_backend(const struct weft_comm *comm)
{
    return comm->name;
}

const char *weft_comm_reason(const struct weft_comm *comm)
{
    return comm->reason;
}

void weft_comm_stats(const struct weft_comm *comm, struct weft_comm_stats *stats_out)
{
    *stats_out = comm->stats;
}

bool weft_comm_path(const struct weft_comm *comm, uint32_t peer, struct weft_comm_path *path_out)
{
    const struct weft_channel *channel = comm->host_of[peer] == comm->own_host ? NULL : comm->outer;

    assert(peer < comm->rank_count);
    return channel != NULL && channel->backend->path != NULL && channel->backend->path(channel, peer, path_out);
}
