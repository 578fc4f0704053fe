/*
 * Small sums between GPUs of one host: inboxes in device memory that all ranks can write to. Here are the inboxes, who
 * opens and closes them when, waiting, and giving up; storing, polling and adding is one operation of the device.
 *
 * An inbox is freed when nobody has it open any more: ranks of one process count its users (the device does), those of
 * others say farewell in host memory that all share when they have closed it.
 */
#include "peer_sum.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "collective_device.h"
#include "heart_link.h"
#include "weft/log.h"

/* Of a sum, elements: 512 KiB per node. By arithmetic, as in collective_device.c: at 300 GB/s eight ranks' nodes take
 * 12 us, for which two rounds of NCCL are no match. */
#define ROOM_MAX 131072u
/* Of an inbox, when many nodes would make it larger. */
#define INBOX_MAX ((size_t)16 << 20)
/* A device may show its neighbours' memory along with shared memory unless that fills whole pages: CUDA's have 2 MiB.
 */
#define PAGE_SIZE ((size_t)2 << 20)

/* The mark behind everything (weft/comm.h); staging.c has the lower ones, comm_nccl.c the same. */
#define MARK_LAST (WEFT_COMM_MARK_COUNT - 1u)

/* For sums under way when closing, and then for the farewells of others. */
#define CLOSE_MS 500u

/* The first sum of a group, looked at before any other is trusted to this way. */
#define GREETING_COUNT 64u
#define GREETING_MS    5000u

/* Pinned host memory. */
struct comm_peer_host {
    uint32_t stop;                   /* kernels read it */
    _Alignas(64) float words[16384]; /* what is copied to and from the device when opening */
};

/* What ranks tell each other when opening. */
struct peer_card {
    struct weft_peer_handle handle;
    uint32_t pid;
    uint32_t is_good;
    char reason[128];
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- sizes ---- */

size_t weft_peer_room_count(uint32_t node_count, size_t sum_count_max)
{
    size_t fit = INBOX_MAX / (2 * node_count * sizeof(float));

    return (smaller(smaller(sum_count_max, ROOM_MAX), fit) + 15) / 16 * 16;
}

size_t weft_peer_inbox_size(uint32_t node_count, size_t sum_count_max)
{
    size_t size = 2 * node_count * weft_peer_room_count(node_count, sum_count_max) * sizeof(float);

    return (size + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE;
}

/* ---- the device, while nobody else is involved ---- */

static enum weft_status finish_own(struct weft_comm *comm, uint32_t timeout_ms)
{
    const struct weft_comm_device *device = &comm->device;

    device->mark(device->context, MARK_LAST);
    return device->wait(device->context, MARK_LAST, timeout_ms);
}

/* ---- opening ---- */

static bool alloc_memory(struct weft_comm *comm, struct peer_card *card)
{
    const struct weft_comm_device *device = &comm->device;
    struct comm_peer *peer = &comm->peer;
    size_t state_size = WEFT_PEER_STATE_COUNT * sizeof(uint32_t) + GREETING_COUNT * sizeof(float);

    if (device->alloc_shared == NULL || comm->inner->backend->note == NULL) {
        snprintf(card->reason, sizeof(card->reason), "no shared memory of the %s",
                 device->alloc_shared == NULL ? "device" : "host");
        return false;
    }
    for (uint32_t m = 0; m < comm->member_count; m++) {
        peer->farewells[comm->members[m]] = comm->inner->backend->note(comm->inner, m);
    }
    peer->host = device->alloc_host(device->context, sizeof(*peer->host));
    peer->state = device->alloc(device->context, state_size);
    if (peer->host == NULL || peer->state == NULL) {
        snprintf(card->reason, sizeof(card->reason), "out of memory");
        return false;
    }
    memset(peer->host, 0, sizeof(*peer->host));
    peer->inboxes[comm->rank] =
        device->alloc_shared(device->context, weft_peer_inbox_size(comm->nodes.count, comm->sum_count_max),
                             &card->handle, card->reason, sizeof(card->reason));
    return peer->inboxes[comm->rank] != NULL;
}

static enum weft_status empty_inbox(struct weft_comm *comm)
{
    const struct weft_comm_device *device = &comm->device;
    const uint32_t empty = WEFT_PEER_EMPTY;
    const size_t total = 2 * comm->nodes.count * comm->peer.room_count;
    const size_t step = sizeof(comm->peer.host->words) / sizeof(float);

    for (size_t i = 0; i < step; i++) {
        memcpy(&comm->peer.host->words[i], &empty, sizeof(empty));
    }
    for (size_t done = 0; done < total; done += step) {
        device->write(device->context, comm->peer.inboxes[comm->rank] + done, comm->peer.host->words,
                      smaller(step, total - done) * sizeof(float));
    }
    return finish_own(comm, comm->timeout_ms);
}

/* Everybody's card. The first reason why it cannot be, naming the rank, goes to reason_out; *is_good_out says whether
 * there is none. */
static enum weft_status gather_cards(struct weft_comm *comm, const struct peer_card *own, struct peer_card *cards,
                                     char *reason_out, size_t reason_size, bool *is_good_out)
{
    WEFT_TRY(weft_bootstrap_all_gather(comm->bootstrap, own, sizeof(*own), cards, comm->timeout_ms + 1000));
    *is_good_out = true;
    for (uint32_t r = 0; r < comm->rank_count && *is_good_out; r++) {
        if (!cards[r].is_good) {
            *is_good_out = false;
            snprintf(reason_out, reason_size, "%.*s on rank %u", (int)sizeof(cards[r].reason) - 1, cards[r].reason, r);
        }
    }
    return WEFT_OK;
}

static bool open_inboxes(struct weft_comm *comm, const struct peer_card *cards, struct peer_card *own)
{
    const struct weft_comm_device *device = &comm->device;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        if (r != comm->rank) {
            comm->peer.inboxes[r] =
                device->peer_open(device->context, &cards[r].handle, own->reason, sizeof(own->reason));
        }
        if (comm->peer.inboxes[r] == NULL) {
            return false;
        }
    }
    return true;
}

/* Small integers: exact in every order, so the sum is known without the tree. */
static float greeting_value(uint32_t node, uint32_t i)
{
    return (float)((node + 1) * (i + 1));
}

/* A sum whose result is known, in each half of the inboxes: memory that can be opened need not work. */
static bool greet(struct weft_comm *comm, uint32_t turn, struct peer_card *own)
{
    const struct weft_comm_device *device = &comm->device;
    struct comm_peer_host *host = comm->peer.host;
    const uint32_t count = (uint32_t)smaller(GREETING_COUNT - turn, comm->sum_count_max);
    const uint32_t first = comm->nodes.first[comm->rank], node_count = comm->node_counts[comm->rank];
    float *result = (float *)(comm->peer.state + WEFT_PEER_STATE_COUNT);
    enum weft_status status;

    for (uint32_t n = 0; n < node_count; n++) {
        for (uint32_t i = 0; i < count; i++) {
            host->words[n * count + i] = greeting_value(first + n, i);
        }
    }
    device->write(device->context, comm->device_nodes, host->words, node_count * count * sizeof(float));
    weft_peer_tree_sum(comm, comm->device_nodes, count, result);
    status = finish_own(comm, GREETING_MS);
    if (status != WEFT_OK) {
        weft_peer_stop(comm);
        snprintf(own->reason, sizeof(own->reason), "a first sum %s",
                 status == WEFT_ERR_TIMEOUT ? "does not come" : "fails");
        return false;
    }
    device->read(device->context, host->words, result, count * sizeof(float));
    status = finish_own(comm, GREETING_MS);
    for (uint32_t i = 0; i < count && status == WEFT_OK; i++) {
        uint32_t expected = comm->nodes.count * (comm->nodes.count + 1) / 2 * (i + 1);

        if (host->words[i] != (float)expected) {
            snprintf(own->reason, sizeof(own->reason), "a first sum gives %g for %u", (double)host->words[i], expected);
            return false;
        }
    }
    return status == WEFT_OK;
}

static enum weft_status open_all(struct weft_comm *comm, char *reason_out, size_t reason_size)
{
    struct peer_card own = {.pid = (uint32_t)getpid()}, cards[COMM_RANK_MAX];
    bool is_good;

    comm->peer.room_count = weft_peer_room_count(comm->nodes.count, comm->sum_count_max);
    own.is_good = alloc_memory(comm, &own) && empty_inbox(comm) == WEFT_OK;
    WEFT_TRY(gather_cards(comm, &own, cards, reason_out, reason_size, &is_good));
    if (!is_good) {
        return WEFT_OK;
    }
    for (uint32_t r = 0; r < comm->rank_count; r++) {
        comm->peer.pids[r] = cards[r].pid;
    }
    own.is_good = open_inboxes(comm, cards, &own);
    WEFT_TRY(gather_cards(comm, &own, cards, reason_out, reason_size, &is_good));
    for (uint32_t turn = 0; turn < 2 && is_good; turn++) {
        own.is_good = greet(comm, turn, &own);
        WEFT_TRY(gather_cards(comm, &own, cards, reason_out, reason_size, &is_good));
    }
    comm->peer.is_open = is_good;
    comm->peer.is_waiting = false;
    return WEFT_OK;
}

enum weft_status weft_peer_open(struct weft_comm *comm, char *reason_out, size_t reason_size)
{
    enum weft_status status = open_all(comm, reason_out, reason_size);

    if (status == WEFT_OK && !comm->peer.is_open) {
        weft_peer_close(comm);
    }
    return status;
}

/* ---- closing ---- */

static void nap(void)
{
    const struct timespec pause = {.tv_nsec = 200000};

    (void)nanosleep(&pause, NULL);
}

/* The own device does nothing any more that concerns peers. One that does not come to rest even when told to stop is
 * given up by its own deadline when memory is freed. */
static void come_to_rest(struct weft_comm *comm)
{
    if (comm->status != WEFT_OK || weft_bootstrap_failed_rank(comm->bootstrap) >= 0) {
        weft_peer_stop(comm);
    }
    if (finish_own(comm, CLOSE_MS) == WEFT_ERR_TIMEOUT) {
        weft_peer_stop(comm);
    }
}

/* One whose failure is another's verdict may live on, stopped, and write into the inbox when it is let go. */
static bool is_dead(uint32_t pid)
{
    char state = weft_heart_thread_state(pid, pid);

    return state == 0 || state == 'Z' || state == 'X';
}

/* Whether every other process has closed the own inbox, or is dead. */
static bool is_left(const struct weft_comm *comm)
{
    const struct comm_peer *peer = &comm->peer;

    for (uint32_t r = 0; r < comm->rank_count; r++) {
        bool is_visitor = peer->pids[r] != 0 && peer->pids[r] != peer->pids[comm->rank];

        if (is_visitor && atomic_load(peer->farewells[r]) == 0 && !is_dead(peer->pids[r])) {
            return false;
        }
    }
    return true;
}

static void free_inbox(struct weft_comm *comm)
{
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)CLOSE_MS * 1000000u;

    while (!is_left(comm) && weft_comm_clock_ns() < deadline_ns) {
        nap();
    }
    if (is_left(comm)) {
        comm->device.free_shared(comm->device.context, comm->peer.inboxes[comm->rank]);
    } else {
        weft_log(WEFT_LOG_WARN, "comm", "another rank has memory of this one open still: left behind");
    }
}

void weft_peer_close(struct weft_comm *comm)
{
    const struct weft_comm_device *device = &comm->device;
    struct comm_peer *peer = &comm->peer;

    peer->is_open = false;
    if (peer->inboxes[comm->rank] != NULL) {
        come_to_rest(comm);
        for (uint32_t r = 0; r < comm->rank_count; r++) {
            if (r != comm->rank && peer->inboxes[r] != NULL) {
                device->peer_close(device->context, peer->inboxes[r]);
            }
        }
        atomic_store(peer->farewells[comm->rank], 1);
        free_inbox(comm);
    }
    if (peer->state != NULL) {
        device->free(device->context, peer->state);
    }
    if (peer->host != NULL) {
        device->free_host(device->context, peer->host);
    }
    *peer = (struct comm_peer){.is_open = false};
}

/* ---- sums ---- */

bool weft_peer_takes(const struct weft_comm *comm, size_t count)
{
    return comm->peer.is_open && count <= comm->peer.room_count;
}

/* Counted as issued: it will be. */
static struct weft_peer_sum_args begin_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    comm->peer.is_waiting = true;
    comm->received_size += (comm->nodes.count - comm->node_counts[comm->rank]) * count * sizeof(float);
    return (struct weft_peer_sum_args){
        .nodes = nodes,
        .out = out,
        .count = count,
        .inboxes = comm->peer.inboxes,
        .first_nodes = comm->nodes.first,
        .adds = comm->nodes.adds,
        .rank = comm->rank,
        .rank_count = comm->rank_count,
        .room_count = comm->peer.room_count,
        .state = comm->peer.state,
        .stop = &comm->peer.host->stop,
    };
}

void weft_peer_tree_sum(struct weft_comm *comm, const float *nodes, size_t count, float *out)
{
    const struct weft_peer_sum_args args = begin_sum(comm, nodes, count, out);

    comm->device.peer_sum(comm->device.context, &args);
}

void weft_peer_tree_gather(struct weft_comm *comm, const float *nodes, size_t count, float *out,
                           struct weft_tree_add_args *left_out)
{
    comm->peer.left = begin_sum(comm, nodes, count, out);
    comm->left_inputs[0] = out;
    *left_out = (struct weft_tree_add_args){
        .inputs = comm->left_inputs, .input_count = 1, .count = count, .out = out, .before = &comm->peer.left};
}

/* ---- waiting ---- */

enum weft_status weft_peer_wait(struct weft_comm *comm, uint32_t mark)
{
    const struct weft_comm_device *device = &comm->device;
    struct weft_wait wait;
    enum weft_status status;

    weft_wait_begin(&wait, comm->inner, comm->timeout_ms);
    status = device->wait(device->context, mark, WEFT_WAIT_SLEEP_MS);
    while (status == WEFT_ERR_TIMEOUT) {
        status = weft_wait_check(&wait, WEFT_WAIT_ANYBODY);
        if (status != WEFT_OK) {
            return weft_comm_name_missing(comm, status);
        }
        status = device->wait(device->context, mark, WEFT_WAIT_SLEEP_MS);
    }
    return status;
}

enum weft_status weft_peer_finish(struct weft_comm *comm)
{
    if (comm->peer.is_waiting) {
        comm->device.mark(comm->device.context, MARK_LAST);
        WEFT_TRY(weft_peer_wait(comm, MARK_LAST));
        comm->peer.is_waiting = false;
    }
    return WEFT_OK;
}

void weft_peer_stop(struct weft_comm *comm)
{
    if (comm->peer.host != NULL) {
        __atomic_store_n(&comm->peer.host->stop, 1, __ATOMIC_RELEASE);
    }
}
