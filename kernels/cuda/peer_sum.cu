/*
 * Small sums over all ranks of a host, one kernel: own nodes into every peer's inbox, those of the others out of the
 * own one, additions along the leaf tree. weft/peer.h says why it needs no barrier and no flag.
 *
 * An element has the same thread on all ranks, so a block waits only for what the same block of its peers stores. The
 * kernel never lets its successor start early: that one's blocks could take the place of a peer's on a shared GPU.
 */
#include "cuda/device_cuda.h"
#include "cuda/ptx.h"
#include "cuda/tree_cuda.h"

namespace
{

const uint32_t BLOCK = 128;
/* Twice this many would still be resident at once on any GPU since sm_80 with 60 multiprocessors; ranks may share one.
 */
const uint32_t GRID_MAX = 128;

/* Words of the state. */
enum { STATE_CALL, STATE_TICKET, STATE_STOPPED };

struct peer_program {
    const float *nodes;
    float *out;
    uint32_t *inboxes[WEFT_LEAF_COUNT_MAX];
    struct weft_cuda_merges merges;
    uint32_t rank;
    uint32_t rank_count;
    uint32_t node_count;
    uint32_t own_first;
    uint32_t own_end;
    size_t count; /* all three in elements of the kernel's type */
    size_t room_count;
    size_t half_count;
    uint32_t *state;
    const uint32_t *stop;
};

} // namespace

/* ---- elements as words ---- */

static __device__ __forceinline__ float load_shared(const uint32_t *inbox, size_t i, float *)
{
    uint32_t word;

    weft_ptx_load_shared_word(inbox + i, &word);
    return __uint_as_float(word);
}

static __device__ __forceinline__ weft_cuda_four load_shared(const uint32_t *inbox, size_t i, weft_cuda_four *)
{
    uint32_t words[4];

    weft_ptx_load_shared_words(inbox + 4 * i, words);
    return weft_cuda_four{
        {__uint_as_float(words[0]), __uint_as_float(words[1]), __uint_as_float(words[2]), __uint_as_float(words[3])}};
}

static __device__ __forceinline__ void store_shared(uint32_t *inbox, size_t i, float value)
{
    weft_ptx_store_shared_word(inbox + i, __float_as_uint(value));
}

static __device__ __forceinline__ void store_shared(uint32_t *inbox, size_t i, const weft_cuda_four &value)
{
    const uint32_t words[4] = {__float_as_uint(value.v[0]), __float_as_uint(value.v[1]), __float_as_uint(value.v[2]),
                               __float_as_uint(value.v[3])};

    weft_ptx_store_shared_words(inbox + 4 * i, words);
}

static __device__ __forceinline__ bool is_empty(float value)
{
    return __float_as_uint(value) == WEFT_PEER_EMPTY;
}

static __device__ __forceinline__ bool is_empty(const weft_cuda_four &value)
{
    return is_empty(value.v[0]) || is_empty(value.v[1]) || is_empty(value.v[2]) || is_empty(value.v[3]);
}

/* As it is sent; also where the rank adds it itself, so that all have the same bits. */
static __device__ __forceinline__ float sendable(float value)
{
    return is_empty(value) ? __uint_as_float(WEFT_PEER_NAN) : value;
}

static __device__ __forceinline__ weft_cuda_four sendable(const weft_cuda_four &value)
{
    return weft_cuda_four{{sendable(value.v[0]), sendable(value.v[1]), sendable(value.v[2]), sendable(value.v[3])}};
}

static __device__ __forceinline__ float empty_element(float *)
{
    return __uint_as_float(WEFT_PEER_EMPTY);
}

static __device__ __forceinline__ weft_cuda_four empty_element(weft_cuda_four *)
{
    const float empty = __uint_as_float(WEFT_PEER_EMPTY);

    return weft_cuda_four{{empty, empty, empty, empty}};
}

/* ---- the kernel ---- */

template <typename T> static __device__ __forceinline__ T own_node(const peer_program &program, uint32_t node, size_t i)
{
    return sendable(reinterpret_cast<const T *>(program.nodes)[(node - program.own_first) * program.count + i]);
}

/* Peers in turn, beginning with the next rank, so that not all ranks write to the same one first. */
template <typename T> static __device__ __forceinline__ void push(const peer_program &program, size_t half, size_t i)
{
    for (uint32_t node = program.own_first; node < program.own_end; node++) {
        const T value = own_node<T>(program, node, i);
        const size_t at = half + node * program.room_count + i;

        for (uint32_t step = 1; step < program.rank_count; step++) {
            const uint32_t next = program.rank + step;
            store_shared(program.inboxes[next < program.rank_count ? next : next - program.rank_count], at, value);
        }
    }
}

/* The host has given up; said to the sums after this one as well, which then do not look at the host's memory. */
static __device__ bool is_told_to_stop(const peer_program &program)
{
    uint32_t stop;

    weft_ptx_load_shared_word(program.stop, &stop);
    if (stop != 0) {
        weft_ptx_store_shared_word(program.state + STATE_STOPPED, 1);
    }
    return stop != 0;
}

/* values <- element i of nodes [first, first + WEFT_CUDA_LOAD_COUNT), as far as there are so many, when all have come;
 * their words are empty again. False: told to stop. */
template <typename T>
static __device__ __forceinline__ bool take(const peer_program &program, uint32_t first, size_t half, size_t i,
                                            T values[WEFT_CUDA_LOAD_COUNT])
{
    uint32_t *inbox = program.inboxes[program.rank];
    bool is_missing = true;

    for (uint32_t polls = 1; is_missing; polls++) {
        is_missing = false;
#pragma unroll
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            const uint32_t node = first + k;
            if (node < program.node_count) {
                const bool is_own = node >= program.own_first && node < program.own_end;
                values[k] = is_own
                                ? own_node<T>(program, node, i)
                                : load_shared(inbox, half + node * program.room_count + i, static_cast<T *>(nullptr));
                is_missing = is_missing || is_empty(values[k]);
            }
        }
        if (is_missing) {
            if (polls % WEFT_PTX_POLLS == 0 && is_told_to_stop(program)) {
                return false;
            }
            weft_ptx_poll_pause();
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
        const uint32_t node = first + k;
        if (node < program.node_count && (node < program.own_first || node >= program.own_end)) {
            store_shared(inbox, half + node * program.room_count + i, empty_element(static_cast<T *>(nullptr)));
        }
    }
    return true;
}

/* out[i] <- the sum. False: told to stop. */
template <typename T>
static __device__ __forceinline__ bool add_up(const peer_program &program, size_t half, size_t i, T (*stack)[BLOCK])
{
    uint32_t depth = 0;

    for (uint32_t first = 0; first < program.node_count; first += WEFT_CUDA_LOAD_COUNT) {
        T values[WEFT_CUDA_LOAD_COUNT];
        if (!take(program, first, half, i, values)) {
            return false;
        }
#pragma unroll
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            if (first + k < program.node_count) {
                weft_cuda_push(stack, threadIdx.x, &depth, values[k], program.merges.of[first + k]);
            }
        }
    }
    reinterpret_cast<T *>(program.out)[i] = stack[0][threadIdx.x];
    return true;
}

template <typename T> static __global__ void __launch_bounds__(BLOCK) peer_sum(const peer_program program)
{
    __shared__ T stack[WEFT_CUDA_STACK_DEPTH][BLOCK];
    const uint32_t call = program.state[STATE_CALL]; /* changed by the last block only, when all have read it */
    const size_t half = call % 2 * program.half_count;
    const size_t first = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;
    const size_t stride = gridDim.x * static_cast<size_t>(BLOCK);
    bool is_going = program.state[STATE_STOPPED] == 0;

    for (size_t i = first; i < program.count && is_going; i += stride) {
        push<T>(program, half, i);
    }
    for (size_t i = first; i < program.count && is_going; i += stride) {
        is_going = add_up<T>(program, half, i, stack);
    }
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(program.state + STATE_TICKET, 1U) == gridDim.x - 1) {
        program.state[STATE_TICKET] = 0;
        program.state[STATE_CALL] = call + 1;
    }
}

/* ---- launching ---- */

static bool is_aligned(const struct weft_peer_sum_args *args)
{
    return (reinterpret_cast<uintptr_t>(args->nodes) | reinterpret_cast<uintptr_t>(args->out) |
            args->count * sizeof(float)) %
               sizeof(weft_cuda_four) ==
           0;
}

static void fill_program(const struct weft_peer_sum_args *args, size_t width, struct peer_program *program)
{
    program->nodes = args->nodes;
    program->out = args->out;
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

void weft_cuda_peer_sum(struct weft_device *base, const struct weft_peer_sum_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const bool is_by_four = is_aligned(args);
    struct peer_program program;

    if (args->count == 0) {
        return;
    }
    fill_program(args, is_by_four ? 4 : 1, &program);
    const size_t blocks = (program.count + BLOCK - 1) / BLOCK;
    const dim3 grid(static_cast<unsigned int>(blocks < GRID_MAX ? blocks : GRID_MAX));
    if (is_by_four) {
        WEFT_CUDA_LAUNCH_RESIDENT(peer_sum<weft_cuda_four>, grid, dim3(BLOCK), 0, device->stream, program);
    } else {
        WEFT_CUDA_LAUNCH_RESIDENT(peer_sum<float>, grid, dim3(BLOCK), 0, device->stream, program);
    }
    (void)weft_cuda_launched(device, "peer_sum");
}
