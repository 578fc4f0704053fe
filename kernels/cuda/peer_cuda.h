/*
 * Sums through the peers' memory inside a kernel: what is sent, what is waited for, and when a kernel counts as over.
 * weft/peer.h says why it needs no barrier and no flag. T is weft_cuda_one or weft_cuda_four.
 */
#ifndef WEFT_CUDA_PEER_CUDA_H
#define WEFT_CUDA_PEER_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/port.h"
#include "cuda/ptx.h"
#include "cuda/tree_cuda.h"
#include "weft/peer.h"

/* Words of the state. */
enum { WEFT_CUDA_PEER_CALL, WEFT_CUDA_PEER_TICKET, WEFT_CUDA_PEER_STOPPED };

struct weft_cuda_peer_program {
    const float *nodes;
    uint32_t *inboxes[WEFT_LEAF_COUNT_MAX];
    struct weft_cuda_merges merges;
    uint32_t rank;
    uint32_t rank_count;
    uint32_t node_count;
    uint32_t own_first;
    uint32_t own_end;
    size_t count; /* all three in units of T */
    size_t room_count;
    size_t half_count;
    uint32_t *state;
    const uint32_t *stop;
};

/* `width`: floats of a T. */
static inline void weft_cuda_peer_program_init(struct weft_cuda_peer_program *program,
                                               const struct weft_peer_sum_args *args, size_t width)
{
    program->nodes = args->nodes;
    for (uint32_t r = 0; r < args->rank_count; r++) {
        program->inboxes[r] = reinterpret_cast<uint32_t *>(args->inboxes[r]);
    }
    program->rank = args->rank;
    program->rank_count = args->rank_count;
    program->node_count = args->first_nodes[args->rank_count];
    program->own_first = args->first_nodes[args->rank];
    program->own_end = args->first_nodes[args->rank + 1];
    program->count = args->count / width;
    program->room_count = args->room_count / width;
    program->half_count = program->node_count * program->room_count;
    program->state = args->state;
    program->stop = args->stop;
    weft_cuda_merges_init(&program->merges, args->adds, program->node_count);
}

/* ---- elements as words ---- */

static __device__ __forceinline__ void weft_cuda_peer_load(const uint32_t *inbox, size_t i, weft_cuda_one *value)
{
    uint32_t word;

    weft_ptx_load_shared_word(inbox + i, &word);
    value->v[0] = __uint_as_float(word);
}

static __device__ __forceinline__ void weft_cuda_peer_load(const uint32_t *inbox, size_t i, weft_cuda_four *value)
{
    uint32_t words[4];

    weft_ptx_load_shared_words(inbox + 4 * i, words);
    WEFT_CUDA_UNROLL
    for (uint32_t j = 0; j < 4; j++) {
        value->v[j] = __uint_as_float(words[j]);
    }
}

static __device__ __forceinline__ void weft_cuda_peer_store(uint32_t *inbox, size_t i, const weft_cuda_one &value)
{
    weft_ptx_store_shared_word(inbox + i, __float_as_uint(value.v[0]));
}

static __device__ __forceinline__ void weft_cuda_peer_store(uint32_t *inbox, size_t i, const weft_cuda_four &value)
{
    const uint32_t words[4] = {__float_as_uint(value.v[0]), __float_as_uint(value.v[1]), __float_as_uint(value.v[2]),
                               __float_as_uint(value.v[3])};

    weft_ptx_store_shared_words(inbox + 4 * i, words);
}

template <typename T> static __device__ __forceinline__ bool weft_cuda_peer_is_empty(const T &value)
{
    bool is_empty = false;

    WEFT_CUDA_UNROLL
    for (uint32_t j = 0; j < sizeof(T) / sizeof(float); j++) {
        is_empty = is_empty || __float_as_uint(value.v[j]) == WEFT_PEER_EMPTY;
    }
    return is_empty;
}

template <typename T> static __device__ __forceinline__ T weft_cuda_peer_empty(void)
{
    T value;

    WEFT_CUDA_UNROLL
    for (uint32_t j = 0; j < sizeof(T) / sizeof(float); j++) {
        value.v[j] = __uint_as_float(WEFT_PEER_EMPTY);
    }
    return value;
}

/* ---- sending ---- */

/* Element i of an own node as it is sent; also where the rank adds it itself, so that all have the same bits. */
template <typename T>
static __device__ __forceinline__ T weft_cuda_peer_own(const weft_cuda_peer_program &program, uint32_t node, size_t i)
{
    T value = reinterpret_cast<const T *>(program.nodes)[(node - program.own_first) * program.count + i];

    WEFT_CUDA_UNROLL
    for (uint32_t j = 0; j < sizeof(T) / sizeof(float); j++) {
        value.v[j] = __float_as_uint(value.v[j]) == WEFT_PEER_EMPTY ? __uint_as_float(WEFT_PEER_NAN) : value.v[j];
    }
    return value;
}

/* To the peer `step` ranks further, 0 < step < rank_count: not all begin with the same one. */
template <typename T>
static __device__ __forceinline__ void weft_cuda_peer_send(const weft_cuda_peer_program &program, size_t half,
                                                           uint32_t node, size_t i, uint32_t step, const T &value)
{
    const uint32_t next = program.rank + step;
    uint32_t *inbox = program.inboxes[next < program.rank_count ? next : next - program.rank_count];

    weft_cuda_peer_store(inbox, half + node * program.room_count + i, value);
}

/* ---- receiving ---- */

/* The host has given up; said to the sums after this one as well, which then do not look at the host's memory. */
static __device__ __forceinline__ bool weft_cuda_peer_is_told_to_stop(const weft_cuda_peer_program &program)
{
    uint32_t stop;

    weft_ptx_load_shared_word(program.stop, &stop);
    if (stop != 0) {
        weft_ptx_store_shared_word(program.state + WEFT_CUDA_PEER_STOPPED, 1);
    }
    return stop != 0;
}

/* values <- element i of nodes [first, first + WEFT_CUDA_LOAD_COUNT), as far as there are so many, when all have come;
 * their words are empty again. False: told to stop. */
template <typename T>
static __device__ __forceinline__ bool weft_cuda_peer_take(const weft_cuda_peer_program &program, uint32_t first,
                                                           size_t half, size_t i, T values[WEFT_CUDA_LOAD_COUNT])
{
    uint32_t *inbox = program.inboxes[program.rank];
    bool is_missing = true;

    for (uint32_t polls = 1; is_missing; polls++) {
        is_missing = false;
        WEFT_CUDA_UNROLL
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            const uint32_t node = first + k;
            if (node < program.node_count) {
                if (node >= program.own_first && node < program.own_end) {
                    values[k] = weft_cuda_peer_own<T>(program, node, i);
                } else {
                    weft_cuda_peer_load(inbox, half + node * program.room_count + i, &values[k]);
                }
                is_missing = is_missing || weft_cuda_peer_is_empty(values[k]);
            }
        }
        if (is_missing) {
            if (polls % WEFT_PTX_POLLS == 0 && weft_cuda_peer_is_told_to_stop(program)) {
                return false;
            }
            weft_ptx_poll_pause();
        }
    }
    WEFT_CUDA_UNROLL
    for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
        const uint32_t node = first + k;
        if (node < program.node_count && (node < program.own_first || node >= program.own_end)) {
            weft_cuda_peer_store(inbox, half + node * program.room_count + i, weft_cuda_peer_empty<T>());
        }
    }
    return true;
}

/* stack[0][thread] <- element i of the sum; the stack is as for weft_cuda_push(). False: told to stop. */
template <typename T, uint32_t BLOCK>
static __device__ __forceinline__ bool weft_cuda_peer_sum_at(const weft_cuda_peer_program &program, size_t half,
                                                             size_t i, T (*stack)[BLOCK], uint32_t thread)
{
    uint32_t depth = 0;

    for (uint32_t first = 0; first < program.node_count; first += WEFT_CUDA_LOAD_COUNT) {
        T values[WEFT_CUDA_LOAD_COUNT];
        if (!weft_cuda_peer_take(program, first, half, i, values)) {
            return false;
        }
        WEFT_CUDA_UNROLL
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            if (first + k < program.node_count) {
                weft_cuda_push(stack, thread, &depth, values[k], program.merges.of[first + k]);
            }
        }
    }
    return true;
}

/* ---- calls ---- */

/* Which half of the inboxes; every block, at its beginning. Changed by the last block only, when all have read it. */
static __device__ __forceinline__ uint32_t weft_cuda_peer_begin(const weft_cuda_peer_program &program, size_t *half,
                                                                bool *is_going)
{
    const uint32_t call = program.state[WEFT_CUDA_PEER_CALL];

    *half = call % 2 * program.half_count;
    *is_going = program.state[WEFT_CUDA_PEER_STOPPED] == 0;
    return call;
}

/* Every block, at its end. */
static __device__ __forceinline__ void weft_cuda_peer_end(const weft_cuda_peer_program &program, uint32_t call)
{
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(program.state + WEFT_CUDA_PEER_TICKET, 1U) == gridDim.x - 1) {
        program.state[WEFT_CUDA_PEER_TICKET] = 0;
        program.state[WEFT_CUDA_PEER_CALL] = call + 1;
    }
}

#endif
