/*
 * A small sum over all ranks of a host, the residual, the bias and the RMS norm of its rows, in one kernel: what
 * peer_sum.cu and the norm of elementwise.cu do in two, with the same bits and over the same inboxes, so that ranks may
 * do it either way.
 *
 * The first blocks send, the last ones have a row each: they receive it, add, normalise. Senders wait for nobody;
 * receivers wait for the senders of peers alone, never for a receiver, and are so few that senders find a place beside
 * them, also where three ranks share a GPU. Once all rows are there nothing is waited for any more, and the successor
 * is let in while they are normalised: until then its blocks could take a sender's place.
 */
#include "cuda/device_cuda.h"
#include "cuda/norm.h"
#include "cuda/peer_cuda.h"
#include "cuda/ptx.h"

/* Threads of a block: with eight loads each they have in flight what one multiprocessor can read of the L2. */
static const uint32_t BLOCK_MAX = 512;
static const uint32_t BLOCK_MIN = 64;
static const uint32_t SENDER_MAX = 64;

/*
 * Where one kernel is faster than two, by arithmetic (README.md): a multiprocessor reads 64 bytes of the L2 per clock,
 * so the block of a row needs 1.2 us for 128 KiB that `peer_sum` would spread over many; the second kernel costs 1.7.
 * Rows: those of decode, and few enough to leave places for the senders of two more ranks on 60 multiprocessors.
 */
static const size_t RECEIVED_MAX = 128 << 10;
static const uint32_t ROW_MAX = 16;

namespace
{

struct program {
    struct weft_cuda_peer_program sum;
    struct weft_cuda_norm_rows rows;
    const float *bias;
    uint32_t sender_count;
};

} // namespace

/* x + (sum + bias), as weft_cuda_norm_row() asks for it. Told to stop: x, and nothing is waited for any more. */
struct row_plus_sum {
    const struct weft_cuda_peer_program &sum;
    const float *bias;
    size_t half;
    bool is_going;
};

template <typename V> static __device__ __forceinline__ V element_of(row_plus_sum &what, V *x, size_t begin, uint32_t i)
{
    V stack[WEFT_CUDA_STACK_DEPTH][1]; /* in local memory, that is in the L1 */

    what.is_going = what.is_going && weft_cuda_peer_sum_at(what.sum, what.half, begin + i, stack, 0);
    return what.is_going ? weft_cuda_norm_add(x, stack[0][0], what.bias, i) : x[i];
}

static __device__ __forceinline__ void row_is_there(const row_plus_sum &)
{
    weft_ptx_let_next_start();
}

/* This block's part of all that goes to peers: element by element, node by node, peer by peer. */
template <typename V> static __device__ __forceinline__ void send(const program &program, size_t half)
{
    const struct weft_cuda_peer_program &sum = program.sum;
    const uint32_t count = static_cast<uint32_t>(sum.count); /* at most half an MiB of them for all peers: 32 bits do */
    const uint32_t own_count = (sum.own_end - sum.own_first) * count;
    const uint32_t total = own_count * (sum.rank_count - 1);

    for (uint32_t k = blockIdx.x * blockDim.x + threadIdx.x; k < total; k += program.sender_count * blockDim.x) {
        const uint32_t at = k % own_count;
        const uint32_t node = sum.own_first + at / count;
        const uint32_t i = at % count;

        weft_cuda_peer_send(sum, half, node, i, 1 + k / own_count, weft_cuda_peer_own<V>(sum, node, i));
    }
}

template <typename V> static __global__ void __launch_bounds__(BLOCK_MAX) peer_norm(const program program)
{
    __shared__ weft_cuda_norm_room<V> room;
    size_t half;
    bool is_going;

    static_assert(sizeof(room.chunk) / sizeof(V) % BLOCK_MAX == 0, "an element has the same thread in both passes");
    weft_ptx_wait_for_previous();
    const uint32_t call = weft_cuda_peer_begin(program.sum, &half, &is_going);
    if (blockIdx.x >= program.sender_count) {
        row_plus_sum what = {program.sum, program.bias, half, is_going};
        weft_cuda_norm_row(what, program.rows, blockIdx.x - program.sender_count, blockDim.x, &room);
    } else if (is_going) {
        send<V>(program, half);
    }
    weft_cuda_peer_end(program.sum, call);
}

/* ---- launching ---- */

static bool pays(const struct weft_add_norm_args *args)
{
    const struct weft_peer_sum_args *sum = args->y->before;
    const uint32_t own_count = sum->first_nodes[sum->rank + 1] - sum->first_nodes[sum->rank];
    const size_t received = sum->first_nodes[sum->rank_count] - own_count;

    return args->token_count <= ROW_MAX && received * args->width * sizeof(float) <= RECEIVED_MAX;
}

static bool is_by_four(const struct weft_add_norm_args *args)
{
    const uintptr_t bits = reinterpret_cast<uintptr_t>(args->x) | reinterpret_cast<uintptr_t>(args->weight) |
                           reinterpret_cast<uintptr_t>(args->out) | reinterpret_cast<uintptr_t>(args->bias) |
                           reinterpret_cast<uintptr_t>(args->y->before->nodes) | args->width * sizeof(float);

    return bits % sizeof(weft_cuda_four) == 0;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* A thread per element of a row as far as there are so many, and then of what is sent. */
template <typename V> static void launch(struct weft_cuda_device *device, const struct weft_add_norm_args *args)
{
    const uint32_t by = sizeof(V) / sizeof(float);
    struct program program = {};
    uint32_t block = BLOCK_MIN;

    weft_cuda_peer_program_init(&program.sum, args->y->before, by);
    program.rows = {args->x, args->weight, args->out, args->width, args->eps};
    program.bias = args->bias;
    while (block < BLOCK_MAX && block * by < args->width) {
        block *= 2;
    }
    const uint32_t own_count = (program.sum.own_end - program.sum.own_first) * static_cast<uint32_t>(program.sum.count);
    program.sender_count = smaller(weft_cuda_divide_up(own_count * (program.sum.rank_count - 1), block), SENDER_MAX);
    WEFT_CUDA_LAUNCH_RESIDENT(device->can_start_early, peer_norm<V>, dim3(program.sender_count + args->token_count),
                              dim3(block), 0, device->stream, program);
    (void)weft_cuda_launched(device, "peer_norm");
}

bool weft_cuda_peer_norm(struct weft_cuda_device *device, const struct weft_add_norm_args *args)
{
    if (args->token_count == 0 || args->width == 0 || !pays(args)) {
        return false;
    }
    if (is_by_four(args)) {
        launch<weft_cuda_four>(device, args);
    } else {
        launch<weft_cuda_one>(device, args);
    }
    return true;
}

void weft_cuda_peer_norm_init(struct weft_cuda_device *device)
{
    struct cudaFuncAttributes attributes = {};
    const bool is_there =
        weft_cuda_check(device, cudaFuncGetAttributes(&attributes, peer_norm<weft_cuda_one>), "code of sums and norms");

    if (is_there) {
        (void)weft_cuda_check(device, cudaFuncGetAttributes(&attributes, peer_norm<weft_cuda_four>),
                              "code of sums and norms");
    }
}
