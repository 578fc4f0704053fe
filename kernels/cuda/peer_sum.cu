/*
 * Small sums over all ranks of a host, one kernel: own nodes into every peer's inbox, those of the others out of the
 * own one, additions along the leaf tree (peer_cuda.h).
 *
 * An element has the same thread on all ranks, so a block waits only for what the same block of its peers stores. The
 * kernel never lets its successor start early: that one's blocks could take the place of a peer's on a shared GPU. It
 * starts early itself: that the products before it end depends on no peer.
 */
#include "cuda/device_cuda.h"
#include "cuda/peer_cuda.h"

static const uint32_t BLOCK = 128;
/* Twice this many would still be resident at once on any GPU since sm_80 with 60 multiprocessors; ranks may share one.
 */
static const uint32_t GRID_MAX = 128;

template <typename T>
static __device__ __forceinline__ void push(const weft_cuda_peer_program &program, size_t half, size_t i)
{
    for (uint32_t node = program.own_first; node < program.own_end; node++) {
        const T value = weft_cuda_peer_own<T>(program, node, i);

        for (uint32_t step = 1; step < program.rank_count; step++) {
            weft_cuda_peer_send(program, half, node, i, step, value);
        }
    }
}

template <typename T>
static __global__ void __launch_bounds__(BLOCK) peer_sum(const weft_cuda_peer_program program, T *out)
{
    __shared__ T stack[WEFT_CUDA_STACK_DEPTH][BLOCK];
    const size_t first = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;
    const size_t stride = gridDim.x * static_cast<size_t>(BLOCK);
    size_t half;
    bool is_going;

    weft_ptx_wait_for_previous();
    const uint32_t call = weft_cuda_peer_begin(program, &half, &is_going);
    for (size_t i = first; i < program.count && is_going; i += stride) {
        push<T>(program, half, i);
    }
    for (size_t i = first; i < program.count && is_going; i += stride) {
        is_going = weft_cuda_peer_sum_at(program, half, i, stack, threadIdx.x);
        if (is_going) {
            out[i] = stack[0][threadIdx.x];
        }
    }
    weft_cuda_peer_end(program, call);
}

static bool is_aligned(const struct weft_peer_sum_args *args)
{
    return (reinterpret_cast<uintptr_t>(args->nodes) | reinterpret_cast<uintptr_t>(args->out) |
            args->count * sizeof(float)) %
               sizeof(weft_cuda_four) ==
           0;
}

template <typename T> static void launch(struct weft_cuda_device *device, const struct weft_peer_sum_args *args)
{
    struct weft_cuda_peer_program program;

    weft_cuda_peer_program_init(&program, args, sizeof(T) / sizeof(float));
    const size_t blocks = (program.count + BLOCK - 1) / BLOCK;
    const dim3 grid(static_cast<unsigned int>(blocks < GRID_MAX ? blocks : GRID_MAX));
    WEFT_CUDA_LAUNCH_RESIDENT(device->can_start_early, peer_sum<T>, grid, dim3(BLOCK), 0, device->stream, program,
                              reinterpret_cast<T *>(args->out));
    (void)weft_cuda_launched(device, "peer_sum");
}

void weft_cuda_peer_sum(struct weft_device *base, const struct weft_peer_sum_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (args->count == 0) {
        return;
    }
    if (is_aligned(args)) {
        launch<weft_cuda_four>(device, args);
    } else {
        launch<weft_cuda_one>(device, args);
    }
}
