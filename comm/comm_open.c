/*
 * Opening: every rank tells what it can use, all decide the same from the same cards, then channels open in two steps
 * with an agreement after each, so that a rank that cannot go on never leaves the others waiting.
 */
#include "collective_device.h"
#include "comm_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peer_sum.h"
#include "select.h"
#include "staging.h"
#include "weft/log.h"

/* Rounds between hosts: 512 KiB per node stays in L2, and adding one round overlaps the wire's next. */
#define CHUNK_COUNT 131072u
/* Scratch for gathers; larger ones go in rounds that stay in L2. */
#define SCRATCH_SIZE 262144u

static enum weft_status check_options(const struct weft_comm_options *options, uint32_t rank_count)
{
    uint32_t next = 0;

    if (rank_count > COMM_RANK_MAX || options->leaf_count < rank_count || options->leaf_count > WEFT_LEAF_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, "comm", "%u ranks over %u leaves: at most one rank per leaf and %d leaves", rank_count,
                 options->leaf_count, WEFT_LEAF_COUNT_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    if (options->timeout_ms == 0 || options->timeout_ms > INT32_MAX) { /* some waits take a little more */
        weft_log(WEFT_LOG_ERROR, "comm", "a deadline of %u ms: expected 1 to %d", options->timeout_ms, INT32_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        if (options->leaves[r].begin != next || options->leaves[r].end <= next) {
            weft_log(WEFT_LOG_ERROR, "comm", "leaf ranges do not tile: rank %u has [%u, %u), expected to begin at %u",
                     r, options->leaves[r].begin, options->leaves[r].end, next);
            return WEFT_ERR_ARGUMENT;
        }
        next = options->leaves[r].end;
    }
    if (next != options->leaf_count) {
        weft_log(WEFT_LOG_ERROR, "comm", "leaf ranges end at %u of %u", next, options->leaf_count);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

/* ---- sizes and plans ---- */

static void set_hosts(struct weft_comm *comm, const uint64_t *host_ids)
{
    for (uint32_t r = 0; r < comm->rank_count; r++) {
        uint32_t h = 0;

        while (h < comm->host_count && host_ids[comm->host_leaders[h]] != host_ids[r]) {
            h++;
        }
        if (h == comm->host_count) {
            comm->host_leaders[comm->host_count++] = r;
        }
        comm->host_of[r] = h;
    }
    comm->own_host = comm->host_of[comm->rank];
    for (uint32_t r = 0; r < comm->rank_count; r++) {
        bool is_inside = comm->host_of[r] == comm->own_host;

        if (r == comm->rank) {
            comm->own_member = comm->member_count;
        }
        if (is_inside) {
            comm->members[comm->member_count++] = r;
        }
        if (!is_inside || r == comm->rank) {
            comm->outer_members[comm->outer_member_count++] = r;
        }
    }
}

/* The plan of one host: its ranks' nodes in, its own nodes out. */
static void plan_host(const struct weft_comm *comm, uint32_t host, struct weft_sum_plan *plan, struct comm_node *inputs)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];
    uint32_t count = 0;
    uint8_t member = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        if (comm->host_of[r] == host) {
            uint32_t own = (uint32_t)weft_tree_nodes(comm->leaf_count, comm->leaves[r], nodes + count);

            for (uint32_t k = 0; k < own; k++) {
                inputs[count + k] = (struct comm_node){member, (uint8_t)k};
            }
            count += own;
            member++;
        }
    }
    weft_sum_plan_init(plan, comm->leaf_count, nodes, count);
}

/* The plan over all hosts; inputs ascending although hosts may interleave. */
static void plan_top(struct weft_comm *comm)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];
    struct weft_sum_plan plan;
    struct comm_node unused[WEFT_LEAF_COUNT_MAX];
    uint32_t count = 0;

    for (uint32_t h = 0; h < comm->host_count; h++) {
        plan_host(comm, h, &plan, unused);
        comm->host_node_counts[h] = plan.output_count;
        for (uint32_t k = 0; k < plan.output_count; k++) {
            uint32_t at = count++;

            for (; at > 0 && nodes[at - 1].begin > plan.outputs[k].begin; at--) {
                nodes[at] = nodes[at - 1];
                comm->top_inputs[at] = comm->top_inputs[at - 1];
            }
            nodes[at] = plan.outputs[k];
            comm->top_inputs[at] = (struct comm_node){(uint8_t)h, (uint8_t)k};
        }
    }
    weft_sum_plan_init(&comm->top_plan, comm->leaf_count, nodes, count);
    assert(comm->top_plan.output_count == 1);
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static enum weft_status size_buffers(struct weft_comm *comm)
{
    size_t slice_size = (comm->host_sum_count_max / comm->member_count + 1 + 16) * sizeof(float);
    size_t staging_count = 0;
    uint32_t entries = 1;

    comm->chunk_count = larger(1, smaller(comm->host_sum_count_max, CHUNK_COUNT));
    comm->scratch_size =
        larger(larger(slice_size, comm->chunk_count * sizeof(float)), smaller(comm->gather_size_max, SCRATCH_SIZE));
    comm->scratch_size = (comm->scratch_size + 63) / 64 * 64;
    for (uint32_t m = 0; m < comm->member_count; m++) {
        comm->sum_sizes[m] = larger(64, comm->node_counts[comm->members[m]] * comm->host_sum_count_max * sizeof(float));
    }
    for (uint32_t h = 0; h < comm->host_count; h++) {
        uint32_t rank_count = 0;

        for (uint32_t r = 0; r < comm->rank_count; r++) {
            rank_count += comm->host_of[r] == h;
        }
        comm->staging_offsets[h] = staging_count;
        staging_count += comm->host_node_counts[h] * comm->chunk_count;
        entries = (uint32_t)larger(entries, larger(rank_count, comm->host_node_counts[h]));
    }
    comm->transfer_count_max = entries * comm->host_count;
    comm->transfers = calloc(comm->transfer_count_max, sizeof(comm->transfers[0]));
    comm->temporaries = aligned_alloc(64, (size_t)WEFT_LEAF_COUNT_MAX * WEFT_SUM_BLOCK * sizeof(float));
    if (comm->host_count > 1 && comm_is_leader(comm)) {
        comm->staging = aligned_alloc(64, (staging_count * sizeof(float) + 63) / 64 * 64);
    }
    if (comm->transfers == NULL || comm->temporaries == NULL ||
        (comm->host_count > 1 && comm_is_leader(comm) && comm->staging == NULL)) {
        weft_log(WEFT_LOG_ERROR, "comm", "out of memory: %zu bytes of staging", staging_count * sizeof(float));
        return WEFT_ERR_MEMORY;
    }
    return WEFT_OK;
}

size_t weft_comm_device_size(const struct weft_comm_options *options, uint32_t rank, uint32_t rank_count)
{
    const char *backend = options->backend == NULL ? "auto" : options->backend;
    bool has_peers = strcmp(backend, "auto") == 0 || strcmp(backend, "peer") == 0;
    struct weft_range nodes[WEFT_TREE_NODE_MAX];
    size_t own = 0, all = 0, size;

    for (uint32_t r = 0; r < rank_count; r++) {
        size_t count = weft_tree_nodes(options->leaf_count, options->leaves[r], nodes);

        own = r == rank ? count : own;
        all += count;
    }
    size = larger(64, own * options->sum_count_max * sizeof(float));
    if (rank_count > 1 && (has_peers || strcmp(backend, "nccl") == 0)) {
        size += (all - own) * weft_comm_exchange_room(rank_count, options->sum_count_max) * sizeof(float);
    }
    return size + (rank_count > 1 && has_peers ? weft_peer_inbox_size((uint32_t)all, options->sum_count_max) : 0);
}

/* What device memory needs besides. */
static enum weft_status open_device_part(struct weft_comm *comm, const struct comm_choice *choice)
{
    size_t size = comm->node_counts[comm->rank] * comm->sum_count_max * sizeof(float);

    if (!comm->has_device) {
        return WEFT_OK;
    }
    comm->device_nodes = comm->device.alloc(comm->device.context, larger(64, size));
    if (comm->device_nodes == NULL) {
        return WEFT_ERR_MEMORY; /* logged by the device */
    }
    if (comm->rank_count == 1) {
        return WEFT_OK;
    }
    return choice->device != NULL ? weft_comm_open_exchange(comm) : weft_staging_init(comm);
}

static void close_device_part(struct weft_comm *comm)
{
    if (comm->has_device) {
        weft_staging_fini(comm);
        weft_comm_close_exchange(comm);
    }
    if (comm->device_nodes != NULL) {
        comm->device.free(comm->device.context, comm->device_nodes);
    }
}

/* ---- channels ---- */

/* Everybody's status; the first that is not WEFT_OK, logged by those it did not happen to. */
static enum weft_status agree(struct weft_comm *comm, const char *what, enum weft_status own)
{
    int32_t mine = own, all[COMM_RANK_MAX];
    enum weft_status status =
        weft_bootstrap_all_gather(comm->bootstrap, &mine, sizeof(mine), all, comm->timeout_ms + 1000);

    if (status != WEFT_OK) {
        return own != WEFT_OK ? own : status;
    }
    for (uint32_t r = 0; r < comm->rank_count; r++) {
        if (all[r] != WEFT_OK) {
            if (own == WEFT_OK) {
                weft_log(WEFT_LOG_ERROR, "comm", "rank %u cannot %s: %s", r, what,
                         weft_status_name((enum weft_status)all[r]));
            }
            return own != WEFT_OK ? own : (enum weft_status)all[r];
        }
    }
    return WEFT_OK;
}

/* Addresses of all ranks for one channel, together with everybody's success so far. */
static enum weft_status gather_addresses(struct weft_comm *comm, const unsigned char *own, unsigned char **all_out)
{
    unsigned char *all = malloc((size_t)comm->rank_count * WEFT_ADDRESS_SIZE);
    enum weft_status status = agree(comm, "open its channel", all == NULL ? WEFT_ERR_MEMORY : WEFT_OK);

    if (status == WEFT_OK) {
        status = weft_bootstrap_all_gather(comm->bootstrap, own, WEFT_ADDRESS_SIZE, all, comm->timeout_ms + 1000);
    }
    if (status != WEFT_OK) {
        free(all);
        return status;
    }
    *all_out = all;
    return WEFT_OK;
}

static enum weft_status open_channel(struct weft_comm *comm, const struct weft_backend *backend,
                                     const struct weft_channel_options *options, struct weft_channel **channel)
{
    unsigned char address[WEFT_ADDRESS_SIZE] = {0};
    unsigned char *all;
    enum weft_status status = backend->prepare(options, address, channel);

    WEFT_TRY(agree(comm, "prepare its channel", status));
    WEFT_TRY(gather_addresses(comm, address, &all));
    status = backend->finish != NULL ? weft_comm_connect_exchange(comm, all) : backend->connect(*channel, all);
    free(all);
    if (status != WEFT_OK && (*channel)->failed_rank < 0) { /* no peer's fault: the others may be waiting for us */
        weft_bootstrap_abort(comm->bootstrap, comm->rank, "cannot connect its channel");
    }
    return agree(comm, "connect its channel", status);
}

static enum weft_status open_channels(struct weft_comm *comm, const struct weft_comm_options *options,
                                      const struct comm_choice *choice)
{
    struct weft_channel_options channel_options = {
        .bootstrap = comm->bootstrap,
        .rank = comm->rank,
        .rank_count = comm->rank_count,
        .members = comm->members,
        .member_count = comm->member_count,
        .interface = options->interface,
        .wait = options->wait,
        .timeout_ms = comm->timeout_ms,
        .transfer_count_max = comm->transfer_count_max,
        .nonce = choice->nonce,
        .sum_sizes = comm->sum_sizes,
        .scratch_size = comm->scratch_size,
        .device = comm->has_device ? &comm->device : NULL,
    };
    const struct weft_backend *inner = comm->member_count > 1 ? choice->inner : &weft_backend_self;

    WEFT_TRY(open_channel(comm, inner, &channel_options, &comm->inner));
    if (comm->host_count > 1) {
        channel_options.members = comm->outer_members;
        channel_options.member_count = comm->outer_member_count;
        WEFT_TRY(open_channel(comm, choice->outer, &channel_options, &comm->outer));
    }
    if (choice->device == NULL) {
        return WEFT_OK;
    }
    channel_options.members = comm->exchange.members;
    channel_options.member_count = comm->rank_count;
    channel_options.transfer_count_max = COMM_EXCHANGE_MAX;
    return open_channel(comm, choice->device, &channel_options, &comm->exchange.channel);
}

static void init_comm(struct weft_comm *comm, struct weft_bootstrap *bootstrap, const struct weft_comm_options *options,
                      const struct comm_choice *choice)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];

    comm->bootstrap = bootstrap;
    comm->rank = weft_bootstrap_rank(bootstrap);
    comm->rank_count = weft_bootstrap_rank_count(bootstrap);
    comm->timeout_ms = options->timeout_ms;
    comm->leaf_count = options->leaf_count;
    comm->sum_count_max = options->sum_count_max;
    comm->gather_size_max = options->gather_size_max;
    comm->host_sum_count_max = options->sum_count_max;
    comm->is_traced = options->is_traced;
    if (options->device != NULL) {
        comm->has_device = true;
        comm->device = *options->device;
        comm->host_sum_count_max = choice->device != NULL ? 1 : weft_staging_round_count(options->sum_count_max);
    }
    comm->failed_rank = -1;
    memcpy(comm->leaves, options->leaves, comm->rank_count * sizeof(comm->leaves[0]));
    for (uint32_t r = 0; r < comm->rank_count; r++) {
        comm->node_counts[r] = (uint32_t)weft_tree_nodes(comm->leaf_count, comm->leaves[r], nodes + comm->nodes.count);
        comm->nodes.first[r] = comm->nodes.count;
        comm->nodes.count += comm->node_counts[r];
    }
    comm->nodes.first[comm->rank_count] = comm->nodes.count;
    (void)weft_tree_adds(comm->leaf_count, nodes, comm->nodes.count, comm->nodes.adds);
}

/* After the channels, because closing and waiting need them. */
static enum weft_status open_peers(struct weft_comm *comm, enum comm_peer_wish wish)
{
    char why[160] = "";
    size_t used = strlen(comm->reason);

    if (wish == COMM_PEER_NEVER) {
        return WEFT_OK;
    }
    WEFT_TRY(weft_peer_open(comm, why, sizeof(why)));
    if (!comm->peer.is_open) { /* a rank may have died since it gave its card, and others found its memory gone */
        WEFT_TRY(agree(comm, "reach the peers' memory", WEFT_OK));
    }
    if (!comm->peer.is_open && wish == COMM_PEER_MUST) {
        weft_log(WEFT_LOG_ERROR, "comm", "peer was asked for, but %s", why);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (!comm->peer.is_open) {
        snprintf(comm->reason + used, sizeof(comm->reason) - used, "; not through the peers' memory: %s", why);
        return WEFT_OK;
    }
    snprintf(comm->reason + used, sizeof(comm->reason) - used, "; sums up to %zu KiB through the peers' memory",
             comm->peer.room_count * sizeof(float) / 1024);
    memmove(comm->name + strlen("peer+"), comm->name, sizeof(comm->name) - strlen("peer+"));
    memcpy(comm->name, "peer+", strlen("peer+"));
    comm->name[sizeof(comm->name) - 1] = '\0';
    return WEFT_OK;
}

enum weft_status weft_comm_open(struct weft_bootstrap *bootstrap, const struct weft_comm_options *options,
                                struct weft_comm **out)
{
    struct comm_choice choice;
    struct weft_comm *comm;
    enum weft_status status;

    WEFT_TRY(check_options(options, weft_bootstrap_rank_count(bootstrap)));
    WEFT_TRY(weft_comm_choose(bootstrap, options, &choice));
    comm = calloc(1, sizeof(*comm));
    if (comm == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm", "out of memory");
        weft_bootstrap_abort(bootstrap, weft_bootstrap_rank(bootstrap), "out of memory");
        return WEFT_ERR_MEMORY;
    }
    init_comm(comm, bootstrap, options, &choice);
    set_hosts(comm, choice.host_ids);
    plan_host(comm, comm->own_host, &comm->host_plan, comm->host_inputs);
    plan_top(comm);
    snprintf(comm->name, sizeof(comm->name), "%s", choice.name);
    snprintf(comm->reason, sizeof(comm->reason), "%s", choice.reason);
    status = size_buffers(comm);
    status = agree(comm, "allocate", status == WEFT_OK ? open_device_part(comm, &choice) : status);
    if (status == WEFT_OK) {
        status = open_channels(comm, options, &choice);
    }
    if (status == WEFT_OK) {
        status = open_peers(comm, choice.peer);
    }
    if (status != WEFT_OK) {
        weft_comm_close(&comm);
        return status;
    }
    if (comm->rank == 0) {
        weft_log(WEFT_LOG_INFO, "comm", "%s for %u rank%s on %u host%s: %s", comm->name, comm->rank_count,
                 comm->rank_count == 1 ? "" : "s", choice.machine_count, choice.machine_count == 1 ? "" : "s",
                 comm->reason);
    }
    *out = comm;
    return WEFT_OK;
}

void weft_comm_close(struct weft_comm **comm_pointer)
{
    struct weft_comm *comm = *comm_pointer;

    if (comm == NULL) {
        return;
    }
    weft_peer_close(comm);
    if (comm->exchange.channel != NULL) {
        comm->exchange.channel->backend->close(&comm->exchange.channel);
    }
    if (comm->outer != NULL) {
        comm->outer->backend->close(&comm->outer);
    }
    if (comm->inner != NULL) {
        comm->inner->backend->close(&comm->inner);
    }
    close_device_part(comm);
    free(comm->transfers);
    free(comm->temporaries);
    free(comm->staging);
    free(comm);
    *comm_pointer = NULL;
}
