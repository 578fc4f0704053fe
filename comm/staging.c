/*
 * Activations in device memory over transports that only know host memory: through pinned host buffers, in rounds.
 * While one round is exchanged the next one is copied from the device and the last one to it. Additions are those of
 * the host (sum_plan.h), element by element, so rounds do not show in the bits.
 */
#include "staging.h"

#include <stdio.h>

#include "peer_sum.h"

/* Elements per round and node: 512 KiB, what a round between hosts has too. PCIe 4 takes about 20 us for it. */
#define ROUND_COUNT 131072u

/* For the last copies when closing; they need no peer. */
#define CLOSE_MS 200u

/* Of each input slot, then of each output slot. */
enum { MARK_IN = 0, MARK_OUT = STAGING_SLOTS };
_Static_assert(2 * STAGING_SLOTS <= WEFT_COMM_MARK_COUNT, "a mark for every slot");

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t weft_staging_round_count(size_t sum_count_max)
{
    return larger(1, smaller(sum_count_max, ROUND_COUNT));
}

enum weft_status weft_staging_init(struct weft_comm *comm)
{
    struct comm_pinned *pinned = &comm->pinned;
    uint32_t node_count = comm->node_counts[comm->rank];

    pinned->round_count = weft_staging_round_count(comm->sum_count_max);
    pinned->out_size =
        larger(pinned->round_count, smaller(comm->gather_size_max, ROUND_COUNT * sizeof(float)) / sizeof(float) + 1) *
        sizeof(float);
    pinned->in_size = larger(node_count * pinned->round_count * sizeof(float), pinned->out_size);
    for (uint32_t slot = 0; slot < STAGING_SLOTS; slot++) {
        pinned->in[slot] = comm->device.alloc_host(comm->device.context, pinned->in_size);
        pinned->out[slot] = comm->device.alloc_host(comm->device.context, pinned->out_size);
        if (pinned->in[slot] == NULL || pinned->out[slot] == NULL) {
            return WEFT_ERR_MEMORY; /* logged by the device */
        }
    }
    return WEFT_OK;
}

void weft_staging_fini(struct weft_comm *comm)
{
    if (comm->pinned.in[0] != NULL) { /* copies may be under way, after a failure in both directions */
        comm->device.mark(comm->device.context, MARK_IN);
        (void)comm->device.wait(comm->device.context, MARK_IN, CLOSE_MS);
    }
    for (uint32_t slot = 0; slot < STAGING_SLOTS; slot++) {
        if (comm->pinned.in[slot] != NULL) {
            comm->device.free_host(comm->device.context, comm->pinned.in[slot]);
        }
        if (comm->pinned.out[slot] != NULL) {
            comm->device.free_host(comm->device.context, comm->pinned.out[slot]);
        }
    }
    comm->pinned = (struct comm_pinned){0};
}

enum weft_status weft_comm_wait_device(struct weft_comm *comm, uint32_t mark)
{
    const struct weft_comm_device *device = &comm->device;
    uint64_t deadline_ns = 0;
    char reason[64];
    enum weft_status status;

    if (comm->peer.is_waiting) { /* the device may be late because a peer is */
        return weft_peer_wait(comm, mark);
    }
    status = device->wait(device->context, mark, WEFT_WAIT_SLEEP_MS);

    while (status == WEFT_ERR_TIMEOUT) {
        uint64_t now = weft_comm_clock_ns();

        deadline_ns = deadline_ns == 0 ? now + (uint64_t)comm->timeout_ms * 1000000u : deadline_ns;
        status = weft_bootstrap_check(comm->bootstrap);
        if (status != WEFT_OK) {
            comm->inner->failed_rank = weft_bootstrap_failed_rank(comm->bootstrap);
            return status;
        }
        if (now >= deadline_ns) {
            snprintf(reason, sizeof(reason), "its GPU has not finished its work within %u ms", comm->timeout_ms);
            comm->inner->failed_rank = (int)comm->rank;
            weft_bootstrap_abort(comm->bootstrap, comm->rank, reason); /* logs it */
            return WEFT_ERR_TIMEOUT;
        }
        status = device->wait(device->context, mark, WEFT_WAIT_SLEEP_MS);
    }
    return status;
}

/* out[slot] is the host's again. */
static enum weft_status take_output(struct weft_comm *comm, uint32_t slot)
{
    if (comm->pinned.is_writing[slot]) {
        WEFT_TRY(weft_comm_wait_device(comm, MARK_OUT + slot));
        comm->pinned.is_writing[slot] = false;
    }
    return WEFT_OK;
}

/* The first `size` bytes of out[slot] go to the device. */
static void begin_output(struct weft_comm *comm, uint32_t slot, void *to, size_t size)
{
    comm->device.write(comm->device.context, to, comm->pinned.out[slot], size);
    comm->device.mark(comm->device.context, MARK_OUT + slot);
    comm->pinned.is_writing[slot] = true;
}

/* ---- sums: a round is a range of elements ---- */

static size_t round_part(const struct comm_pinned *pinned, size_t count, size_t round)
{
    return smaller(count - round * pinned->round_count, pinned->round_count);
}

/* The round's elements of every node to the host, node after node. */
static void begin_sum_round(struct weft_comm *comm, const float *nodes, size_t count, size_t round)
{
    const struct weft_comm_device *device = &comm->device;
    size_t part = round_part(&comm->pinned, count, round);
    uint32_t slot = round % STAGING_SLOTS;

    for (uint32_t n = 0; n < comm->node_counts[comm->rank]; n++) {
        device->read(device->context, comm->pinned.in[slot] + n * part * sizeof(float),
                     nodes + n * count + round * comm->pinned.round_count, part * sizeof(float));
    }
    device->mark(device->context, MARK_IN + slot);
}

enum weft_status weft_staging_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    struct comm_pinned *pinned = &comm->pinned;
    size_t round_total = (count + pinned->round_count - 1) / pinned->round_count;

    begin_sum_round(comm, nodes, count, 0);
    for (size_t round = 0; round < round_total; round++) {
        uint32_t slot = round % STAGING_SLOTS;
        size_t part = round_part(pinned, count, round);

        if (round + 1 < round_total) {
            begin_sum_round(comm, nodes, count, round + 1);
        }
        WEFT_TRY(weft_comm_wait_device(comm, MARK_IN + slot));
        WEFT_TRY(take_output(comm, slot));
        WEFT_TRY(weft_comm_run_tree_sum(comm, (const float *)pinned->in[slot], part, (float *)pinned->out[slot]));
        begin_output(comm, slot, out + round * pinned->round_count, part * sizeof(float));
    }
    return WEFT_OK;
}

/* ---- gathers: a round is a range of the concatenation ---- */

/* parts[r] <- rank r's bytes in the round. Returns where this rank's begin in its own. */
static size_t gather_round(const struct weft_comm *comm, const size_t *sizes, size_t round, size_t *parts)
{
    size_t window_begin = round * comm->pinned.out_size;
    size_t window_end = window_begin + comm->pinned.out_size;
    size_t at = 0, own_offset = 0;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        size_t begin = larger(at, window_begin), end = smaller(at + sizes[r], window_end);

        parts[r] = end > begin ? end - begin : 0;
        if (r == comm->rank && parts[r] > 0) {
            own_offset = begin - at;
        }
        at += sizes[r];
    }
    return own_offset;
}

static void begin_gather_round(struct weft_comm *comm, const void *in, const size_t *sizes, size_t round)
{
    const struct weft_comm_device *device = &comm->device;
    uint32_t slot = round % STAGING_SLOTS;
    size_t parts[COMM_RANK_MAX];
    size_t offset = gather_round(comm, sizes, round, parts);

    if (parts[comm->rank] > 0) {
        device->read(device->context, comm->pinned.in[slot], (const char *)in + offset, parts[comm->rank]);
    }
    device->mark(device->context, MARK_IN + slot);
}

enum weft_status weft_staging_gather(struct weft_comm *comm, const void *in, const size_t *sizes, void *out)
{
    struct comm_pinned *pinned = &comm->pinned;
    size_t parts[COMM_RANK_MAX];
    size_t total = 0, round_total;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        total += sizes[r];
    }
    round_total = (total + pinned->out_size - 1) / pinned->out_size;
    for (size_t round = 0; round < round_total; round++) {
        uint32_t slot = round % STAGING_SLOTS;

        if (round == 0) {
            begin_gather_round(comm, in, sizes, 0);
        }
        if (round + 1 < round_total) {
            begin_gather_round(comm, in, sizes, round + 1);
        }
        (void)gather_round(comm, sizes, round, parts);
        WEFT_TRY(weft_comm_wait_device(comm, MARK_IN + slot));
        WEFT_TRY(take_output(comm, slot));
        WEFT_TRY(weft_comm_run_gather(comm, pinned->in[slot], parts, pinned->out[slot]));
        begin_output(comm, slot, (char *)out + round * pinned->out_size,
                     smaller(total - round * pinned->out_size, pinned->out_size));
    }
    return WEFT_OK;
}
