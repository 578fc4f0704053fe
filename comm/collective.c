/*
 * The collectives, over one inner (memory) and perhaps one outer (message) channel: inside the host, between leaders,
 * inside the host again.
 *
 * Who waits for somebody that may wait himself gets more time: a leader waits for its members the least, for other
 * leaders longer, a member for its leader the longest; for its own device each waits the least of all. So when a rank
 * is stuck, those that wait for it directly run out first and report it, before the others could blame the one in
 * between.
 */
#include "comm_internal.h"

#include <assert.h>
#include <string.h>

/* Between these deadlines; several times what a report takes to reach everybody, on a busy machine too: at 100 ms ranks
 * that shared their cores with twenty others blamed whoever waited in between. */
#define STEP_MS 500u
/*
 * From here on, among three or more, each adds its part of the elements and the parts are exchanged (two-shot) instead
 * of everyone adding everything (one-shot): less traffic against one more synchronisation.
 */
#define TWO_SHOT_SIZE 65536u
/*
 * Likewise between H hosts: one-shot takes (H - 1) S / B + L (size, bandwidth, latency of a message), two-shot
 * 2 (H - 1) / H S / B + 2 L, which is less from S = L B H / ((H - 1) (H - 2)) on. L B, latency included that the
 * software adds, is about the same on networks of all speeds: 250 us at 1 Gbit/s, 30 us at 10 Gbit/s.
 */
#define LATENCY_BANDWIDTH 32768u

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- phases ---- */

/* Of a wait for ranks that wait for nobody but their device. */
static uint32_t timeout_of(const struct weft_comm *comm)
{
    return comm->timeout_ms + (comm->has_device ? STEP_MS : 0);
}

static enum weft_status exchange(struct weft_comm *comm, enum weft_area area, const void *in, const size_t *sizes,
                                 const void **views)
{
    bool is_behind_leader = comm->host_count > 1 && !comm_is_leader(comm);
    const struct weft_exchange exchange = {
        .area = area,
        .in = in,
        .sizes = sizes,
        .views_out = views,
        .timeout_ms = timeout_of(comm) + (is_behind_leader ? 2 * STEP_MS : 0),
    };

    for (uint32_t m = 0; m < comm->member_count; m++) {
        comm->received_size += m == comm->own_member ? 0 : sizes[m];
    }
    return comm->inner->backend->exchange(comm->inner, &exchange);
}

static void *scratch(struct weft_comm *comm)
{
    return comm->inner->backend->buffer(comm->inner, WEFT_AREA_SCRATCH);
}

/* The leader's `size` bytes in its scratch buffer reach the members; *view_out is where they lie. */
static enum weft_status publish_from_leader(struct weft_comm *comm, size_t size, const void **view_out)
{
    size_t sizes[COMM_RANK_MAX] = {size};
    const void *views[COMM_RANK_MAX];

    WEFT_TRY(exchange(comm, WEFT_AREA_SCRATCH, scratch(comm), sizes, views));
    *view_out = views[0];
    return WEFT_OK;
}

static enum weft_status transfer_outer(struct weft_comm *comm, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        comm->received_size += comm->transfers[i].recv_size;
    }
    return comm->outer->backend->transfer(comm->outer, comm->transfers, count, timeout_of(comm) + STEP_MS);
}

/* ---- tree_sum ---- */

/* Every member adds its slice of all elements, then the slices are exchanged. */
static enum weft_status finish_two_shot(struct weft_comm *comm, const float **inputs, size_t count, float *out)
{
    struct weft_range own = comm_slice_of(count, comm->member_count, comm->own_member);
    float *part = scratch(comm);
    size_t sizes[COMM_RANK_MAX];
    const void *views[COMM_RANK_MAX];

    for (uint32_t i = 0; i < comm->host_plan.input_count; i++) {
        inputs[i] += own.begin;
    }
    weft_sum_plan_run(&comm->host_plan, inputs, &part, weft_range_count(own), comm->temporaries);
    for (uint32_t m = 0; m < comm->member_count; m++) {
        sizes[m] = weft_range_count(comm_slice_of(count, comm->member_count, m)) * sizeof(float);
    }
    WEFT_TRY(exchange(comm, WEFT_AREA_SCRATCH, part, sizes, views));
    for (uint32_t m = 0; m < comm->member_count; m++) {
        memcpy(out + comm_slice_of(count, comm->member_count, m).begin, views[m], sizes[m]);
    }
    return WEFT_OK;
}

/*
 * The elements that the leader of `host` adds up in a round. Two hosts: everything, each for itself. More, and enough
 * elements: its slice, which the others then get from it; with H hosts 2 (H - 1) / H of the elements come in, not H
 * - 1.
 */
static struct weft_range share_of(const struct weft_comm *comm, size_t count, uint32_t host)
{
    size_t hosts = comm->host_count;

    if (count * sizeof(float) * (hosts - 1) * (hosts - 2) < LATENCY_BANDWIDTH * hosts) {
        return (struct weft_range){0, (uint32_t)count};
    }
    return comm_slice_of(count, comm->host_count, host);
}

/* The leader's entries: of own host's nodes each leader's share, of theirs our share, into staging. */
static uint32_t fill_node_transfers(struct weft_comm *comm, const float *const *own_nodes, size_t count)
{
    uint32_t own_count = comm->host_node_counts[comm->own_host];
    size_t recv_size = weft_range_count(share_of(comm, count, comm->own_host)) * sizeof(float);
    uint32_t used = 0;

    for (uint32_t h = 0; h < comm->host_count; h++) {
        struct weft_range share = share_of(comm, count, h);
        uint32_t their_count = comm->host_node_counts[h];

        for (uint32_t k = 0; h != comm->own_host && (k < own_count || k < their_count); k++) {
            assert(used < comm->transfer_count_max);
            comm->transfers[used++] = (struct weft_transfer){
                .peer = comm->host_leaders[h],
                .send = k < own_count ? own_nodes[k] + share.begin : NULL,
                .send_size = k < own_count ? weft_range_count(share) * sizeof(float) : 0,
                .recv = comm->staging + comm->staging_offsets[h] + k * comm->chunk_count,
                .recv_size = k < their_count ? recv_size : 0,
            };
        }
    }
    return used;
}

/* The second half of a sliced round: every leader's finished share to every other. */
static uint32_t fill_share_transfers(struct weft_comm *comm, size_t count, float *to)
{
    struct weft_range own = share_of(comm, count, comm->own_host);
    uint32_t used = 0;

    for (uint32_t h = 0; h < comm->host_count; h++) {
        struct weft_range share = share_of(comm, count, h);

        if (h != comm->own_host) {
            comm->transfers[used++] = (struct weft_transfer){
                .peer = comm->host_leaders[h],
                .send = to + own.begin,
                .send_size = weft_range_count(own) * sizeof(float),
                .recv = to + share.begin,
                .recv_size = weft_range_count(share) * sizeof(float),
            };
        }
    }
    return used;
}

/* The host's nodes: added up in staging, or where they lie when the leader is alone (then there is nothing to add). */
static void add_own_host(struct weft_comm *comm, const float *const *inputs, size_t count, const float **own_nodes)
{
    float *sums[WEFT_LEAF_COUNT_MAX];

    for (uint32_t k = 0; k < comm->host_plan.output_count; k++) {
        sums[k] = comm->staging + comm->staging_offsets[comm->own_host] + k * comm->chunk_count;
        own_nodes[k] = comm->member_count == 1 ? inputs[k] : sums[k];
    }
    if (comm->member_count > 1) {
        weft_sum_plan_run(&comm->host_plan, inputs, sums, count, comm->temporaries);
    }
}

/* Leaders, one round: inputs[i][0..count) of the members to to[0..count), over all hosts. */
static enum weft_status sum_between_hosts(struct weft_comm *comm, const float *const *inputs, size_t count, float *to)
{
    struct weft_range share = share_of(comm, count, comm->own_host);
    const float *own_nodes[WEFT_LEAF_COUNT_MAX];
    const float *top[WEFT_LEAF_COUNT_MAX];
    float *to_share = to + share.begin;

    add_own_host(comm, inputs, count, own_nodes);
    WEFT_TRY(transfer_outer(comm, fill_node_transfers(comm, own_nodes, count)));
    for (uint32_t i = 0; i < comm->top_plan.input_count; i++) {
        struct comm_node node = comm->top_inputs[i];

        top[i] = node.owner == comm->own_host
                     ? own_nodes[node.index] + share.begin
                     : comm->staging + comm->staging_offsets[node.owner] + node.index * comm->chunk_count;
    }
    weft_sum_plan_run(&comm->top_plan, top, &to_share, weft_range_count(share), comm->temporaries);
    if (weft_range_count(share_of(comm, count, 0)) == count) {
        return WEFT_OK;
    }
    return transfer_outer(comm, fill_share_transfers(comm, count, to));
}

static enum weft_status finish_between_hosts(struct weft_comm *comm, const float **inputs, size_t count, float *out)
{
    for (size_t offset = 0; offset < count; offset += comm->chunk_count) {
        size_t chunk = smaller(count - offset, comm->chunk_count);
        const void *view;

        if (comm_is_leader(comm)) {
            float *to = comm->member_count == 1 ? out + offset : scratch(comm);

            WEFT_TRY(sum_between_hosts(comm, inputs, chunk, to));
        }
        if (comm->member_count > 1) {
            WEFT_TRY(publish_from_leader(comm, chunk * sizeof(float), &view));
            memcpy(out + offset, view, chunk * sizeof(float));
        }
        for (uint32_t i = 0; i < comm->host_plan.input_count; i++) {
            inputs[i] += chunk;
        }
    }
    return WEFT_OK;
}

enum weft_status weft_comm_run_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    size_t sizes[COMM_RANK_MAX];
    const void *views[COMM_RANK_MAX];
    const float *inputs[WEFT_LEAF_COUNT_MAX];

    for (uint32_t m = 0; m < comm->member_count; m++) {
        sizes[m] = comm->node_counts[comm->members[m]] * count * sizeof(float);
    }
    WEFT_TRY(exchange(comm, WEFT_AREA_SUM, nodes, sizes, views));
    for (uint32_t i = 0; i < comm->host_plan.input_count; i++) {
        struct comm_node node = comm->host_inputs[i];

        inputs[i] = (const float *)views[node.owner] + node.index * count;
    }
    if (comm->host_count > 1) {
        return finish_between_hosts(comm, inputs, count, out);
    }
    if (comm->member_count > 2 && count * sizeof(float) >= TWO_SHOT_SIZE) {
        return finish_two_shot(comm, inputs, count, out);
    }
    weft_sum_plan_run(&comm->host_plan, inputs, &out, count, comm->temporaries);
    return WEFT_OK;
}

/* ---- gather: all_gather, and broadcast as a gather in which one rank has bytes ---- */

/* Inside the host: every member's part to its place in out. */
static enum weft_status gather_inside(struct weft_comm *comm, const void *in, const size_t *sizes,
                                      const size_t *offsets, char *out)
{
    size_t largest = 0;
    char *own = out + offsets[comm->rank];

    if (sizes[comm->rank] > 0 && own != in) {
        memmove(own, in, sizes[comm->rank]);
    }
    for (uint32_t m = 0; m < comm->member_count; m++) {
        size_t size = sizes[comm->members[m]];

        largest = size > largest ? size : largest;
    }
    for (size_t done = 0; comm->member_count > 1 && done < largest; done += comm->scratch_size) {
        size_t parts[COMM_RANK_MAX];
        const void *views[COMM_RANK_MAX];

        for (uint32_t m = 0; m < comm->member_count; m++) {
            size_t size = sizes[comm->members[m]];

            parts[m] = size > done ? smaller(size - done, comm->scratch_size) : 0;
        }
        WEFT_TRY(exchange(comm, WEFT_AREA_SCRATCH, parts[comm->own_member] > 0 ? own + done : NULL, parts, views));
        for (uint32_t m = 0; m < comm->member_count; m++) {
            if (m != comm->own_member && parts[m] > 0) {
                memcpy(out + offsets[comm->members[m]] + done, views[m], parts[m]);
            }
        }
    }
    return WEFT_OK;
}

/* The next rank of `host` after `rank` that has bytes; rank_count when none. */
static uint32_t next_with_bytes(const struct weft_comm *comm, const size_t *sizes, uint32_t host, uint32_t rank)
{
    while (rank < comm->rank_count && (comm->host_of[rank] != host || sizes[rank] == 0)) {
        rank++;
    }
    return rank;
}

/* Between leaders: each host's parts, straight from and into out. */
static enum weft_status gather_between_hosts(struct weft_comm *comm, const size_t *sizes, const size_t *offsets,
                                             char *out)
{
    uint32_t used = 0;

    for (uint32_t h = 0; h < comm->host_count; h++) {
        uint32_t ours = next_with_bytes(comm, sizes, comm->own_host, 0);
        uint32_t theirs = next_with_bytes(comm, sizes, h, 0);

        while (h != comm->own_host && (ours < comm->rank_count || theirs < comm->rank_count)) {
            struct weft_transfer transfer = {.peer = comm->host_leaders[h]};

            if (ours < comm->rank_count) {
                transfer.send = out + offsets[ours];
                transfer.send_size = sizes[ours];
                ours = next_with_bytes(comm, sizes, comm->own_host, ours + 1);
            }
            if (theirs < comm->rank_count) {
                transfer.recv = out + offsets[theirs];
                transfer.recv_size = sizes[theirs];
                theirs = next_with_bytes(comm, sizes, h, theirs + 1);
            }
            assert(used < comm->transfer_count_max);
            comm->transfers[used++] = transfer;
        }
    }
    return transfer_outer(comm, used);
}

/* A walk over the bytes of all other hosts, in rank order. */
struct cursor {
    uint32_t rank;
    size_t done; /* bytes of that rank */
};

/* Up to `room` bytes between out and a packed buffer. Returns how many. */
static size_t move_remote(const struct weft_comm *comm, struct cursor *cursor, const size_t *sizes,
                          const size_t *offsets, char *out, char *packed, bool is_packing, size_t room)
{
    size_t used = 0;

    while (cursor->rank < comm->rank_count && used < room) {
        bool is_remote = comm->host_of[cursor->rank] != comm->own_host;
        size_t left = is_remote ? sizes[cursor->rank] - cursor->done : 0;
        size_t part = smaller(left, room - used);
        char *place = out + offsets[cursor->rank] + cursor->done;

        if (part > 0) {
            memcpy(is_packing ? packed + used : place, is_packing ? place : packed + used, part);
        }
        used += part;
        cursor->done += part;
        if (part == left) {
            *cursor = (struct cursor){.rank = cursor->rank + 1};
        }
    }
    return used;
}

/* The leader hands what came from other hosts to its members. */
static enum weft_status gather_hand_out(struct weft_comm *comm, const size_t *sizes, const size_t *offsets, char *out)
{
    struct cursor cursor = {0};
    size_t left = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        left += comm->host_of[r] == comm->own_host ? 0 : sizes[r];
    }
    while (left > 0) {
        size_t part = smaller(left, comm->scratch_size);
        const void *view;

        if (comm_is_leader(comm)) {
            move_remote(comm, &cursor, sizes, offsets, out, scratch(comm), true, part);
        }
        WEFT_TRY(publish_from_leader(comm, part, &view));
        if (!comm_is_leader(comm)) {
            move_remote(comm, &cursor, sizes, offsets, out, (char *)(uintptr_t)view, false, part);
        }
        left -= part;
    }
    return WEFT_OK;
}

enum weft_status weft_comm_run_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    size_t offsets[COMM_RANK_MAX];
    size_t offset = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        offsets[r] = offset;
        offset += sizes[r];
    }
    WEFT_TRY(gather_inside(comm, in, sizes, offsets, out));
    if (comm->host_count > 1 && comm_is_leader(comm)) {
        WEFT_TRY(gather_between_hosts(comm, sizes, offsets, out));
    }
    if (comm->host_count > 1 && comm->member_count > 1) {
        WEFT_TRY(gather_hand_out(comm, sizes, offsets, out));
    }
    return WEFT_OK;
}

/* ---- the rest ---- */

enum weft_status weft_comm_run_barrier(struct weft_comm *comm)
{
    const size_t sizes[COMM_RANK_MAX] = {0};
    const void *views[COMM_RANK_MAX];
    const char sent = 0;
    char received[COMM_RANK_MAX];
    uint32_t used = 0;

    WEFT_TRY(exchange(comm, WEFT_AREA_SCRATCH, NULL, sizes, views));
    if (comm->host_count == 1) {
        return WEFT_OK;
    }
    if (comm_is_leader(comm)) {
        for (uint32_t h = 0; h < comm->host_count; h++) {
            if (h != comm->own_host) {
                comm->transfers[used++] = (struct weft_transfer){comm->host_leaders[h], &sent, 1, &received[h], 1};
            }
        }
        WEFT_TRY(transfer_outer(comm, used));
    }
    return comm->member_count == 1 ? WEFT_OK : exchange(comm, WEFT_AREA_SCRATCH, NULL, sizes, views);
}

enum weft_status weft_comm_run_point_to_point(struct weft_comm *comm, const struct weft_transfer *transfer)
{
    struct weft_channel *channel = comm->host_of[transfer->peer] == comm->own_host ? comm->inner : comm->outer;

    return channel->backend->transfer(channel, transfer, 1, comm->timeout_ms);
}
