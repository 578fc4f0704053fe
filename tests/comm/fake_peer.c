/*
 * Memory that several fake devices of one process have open, and sums through it: what kernels/cuda/peer_sum.cu does,
 * one element after another. Contract in fake_peer.h.
 */
#include "fake_peer.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shared {
    struct shared *next;
    uint64_t serial;
    int user_count; /* the owner, and who has opened it */
    char *memory;
    size_t size;
};

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *shared_list;
static uint64_t shared_serial;

/* The one that has it; with one user more when it is looked for by serial. NULL: none, or no more. */
static struct shared *find_shared(const void *pointer, uint64_t serial)
{
    struct shared *found;

    pthread_mutex_lock(&shared_lock);
    for (found = shared_list; found != NULL; found = found->next) {
        size_t offset = (size_t)((const char *)pointer - found->memory);

        if (serial == 0 ? offset < found->size : found->serial == serial) {
            found->user_count += serial != 0;
            break;
        }
    }
    pthread_mutex_unlock(&shared_lock);
    return found;
}

bool fake_peer_has(const void *pointer)
{
    return find_shared(pointer, 0) != NULL;
}

static void *seat_alloc_shared(void *context, size_t size, struct weft_peer_handle *handle_out, char *reason_out,
                               size_t reason_size)
{
    struct shared *shared = calloc(1, sizeof(*shared));

    (void)reason_out;
    (void)reason_size;
    assert(shared != NULL);
    *shared = (struct shared){.user_count = 1, .memory = calloc(1, size), .size = size};
    assert(shared->memory != NULL);
    pthread_mutex_lock(&shared_lock);
    shared->serial = ++shared_serial;
    shared->next = shared_list;
    shared_list = shared;
    pthread_mutex_unlock(&shared_lock);
    fake_device_take(context, 1);
    *handle_out = (struct weft_peer_handle){{0}};
    memcpy(handle_out->bytes, &shared->serial, sizeof(shared->serial));
    return shared->memory;
}

static void release_shared(void *context, void *memory)
{
    struct shared *shared = find_shared(memory, 0), **link = &shared_list;

    assert(shared != NULL);
    fake_device_take(context, -1);
    pthread_mutex_lock(&shared_lock);
    if (--shared->user_count == 0) {
        while (*link != shared) {
            link = &(*link)->next;
        }
        *link = shared->next;
        free(shared->memory);
        free(shared);
    }
    pthread_mutex_unlock(&shared_lock);
}

static void seat_free_shared(void *context, void *memory)
{
    fake_device_drain(context);
    release_shared(context, memory);
}

static void *seat_peer_open(void *context, const struct weft_peer_handle *handle, char *reason_out, size_t reason_size)
{
    struct shared *shared;
    uint64_t serial;

    memcpy(&serial, handle->bytes, sizeof(serial));
    shared = find_shared(NULL, serial);
    if (shared == NULL) {
        snprintf(reason_out, reason_size, "no such memory");
        return NULL;
    }
    fake_device_take(context, 1);
    return shared->memory;
}

static void seat_peer_close(void *context, void *memory)
{
    fake_device_drain(context);
    release_shared(context, memory);
}

struct peer_sum {
    struct weft_peer_sum_args args;
    float *inboxes[WEFT_LEAF_COUNT_MAX];
    uint32_t first_nodes[WEFT_LEAF_COUNT_MAX + 1];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
};

static _Atomic uint32_t *word_of(const struct peer_sum *sum, uint32_t rank, uint32_t node, size_t i)
{
    size_t node_count = sum->first_nodes[sum->args.rank_count];
    size_t half = *sum->args.state % 2 * node_count * sum->args.room_count;

    return (_Atomic uint32_t *)(sum->inboxes[rank] + half + node * sum->args.room_count + i);
}

static bool is_own(const struct peer_sum *sum, uint32_t node)
{
    return node >= sum->first_nodes[sum->args.rank] && node < sum->first_nodes[sum->args.rank + 1];
}

static uint32_t sendable(const struct peer_sum *sum, uint32_t node, size_t i)
{
    uint32_t bits;

    memcpy(&bits, sum->args.nodes + (node - sum->first_nodes[sum->args.rank]) * sum->args.count + i, sizeof(bits));
    return bits == WEFT_PEER_EMPTY ? WEFT_PEER_NAN : bits;
}

/* The word when it has come; it is empty again. False: told to stop. */
static bool take(const struct peer_sum *sum, uint32_t node, size_t i, float *value_out)
{
    _Atomic uint32_t *word = word_of(sum, sum->args.rank, node, i);
    uint32_t bits = is_own(sum, node) ? sendable(sum, node, i) : atomic_load(word);

    while (bits == WEFT_PEER_EMPTY) {
        if (__atomic_load_n(sum->args.stop, __ATOMIC_ACQUIRE) != 0) {
            return false;
        }
        sched_yield();
        bits = atomic_load(word);
    }
    if (!is_own(sum, node)) {
        atomic_store(word, WEFT_PEER_EMPTY);
    }
    memcpy(value_out, &bits, sizeof(bits));
    return true;
}

static bool add_element(const struct peer_sum *sum, size_t i)
{
    uint32_t node_count = sum->first_nodes[sum->args.rank_count];
    float slots[WEFT_LEAF_COUNT_MAX] = {0};

    for (uint32_t n = 0; n < node_count; n++) {
        if (!take(sum, n, i, &slots[n])) {
            return false;
        }
    }
    for (uint32_t a = 0; a + 1 < node_count; a++) {
        slots[sum->adds[a].left] += slots[sum->adds[a].right];
    }
    sum->args.out[i] = slots[0];
    return true;
}

static void run_peer_sum(void *argument)
{
    struct peer_sum *sum = argument;
    bool is_going = true;

    for (uint32_t n = sum->first_nodes[sum->args.rank]; n < sum->first_nodes[sum->args.rank + 1]; n++) {
        for (size_t i = 0; i < sum->args.count; i++) {
            for (uint32_t r = 0; r < sum->args.rank_count; r++) {
                if (r != sum->args.rank) {
                    atomic_store(word_of(sum, r, n, i), sendable(sum, n, i));
                }
            }
        }
    }
    for (size_t i = 0; i < sum->args.count && is_going; i++) {
        is_going = add_element(sum, i);
    }
    ++*sum->args.state;
    free(sum);
}

static void seat_peer_sum(void *context, const struct weft_peer_sum_args *args)
{
    struct fake_stream *stream = context; /* the stream is the device */
    struct peer_sum *sum = calloc(1, sizeof(*sum));

    assert(sum != NULL);
    sum->args = *args;
    sum->args.nodes = stream->memory(stream, args->nodes);
    sum->args.out = stream->memory(stream, args->out);
    sum->args.state = stream->memory(stream, args->state);
    memcpy(sum->inboxes, args->inboxes, args->rank_count * sizeof(sum->inboxes[0]));
    memcpy(sum->first_nodes, args->first_nodes, (args->rank_count + 1) * sizeof(sum->first_nodes[0]));
    memcpy(sum->adds, args->adds, (args->first_nodes[args->rank_count] - 1) * sizeof(sum->adds[0]));
    stream->enqueue(stream, run_peer_sum, NULL, sum);
}

void fake_peer_seat(struct weft_comm_device *seat)
{
    seat->alloc_shared = seat_alloc_shared;
    seat->free_shared = seat_free_shared;
    seat->peer_open = seat_peer_open;
    seat->peer_close = seat_peer_close;
    seat->peer_sum = seat_peer_sum;
}
