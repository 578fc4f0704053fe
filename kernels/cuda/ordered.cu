/*
 * What communication needs of a GPU: copies that nobody waits for, marks in the stream, pinned memory, and sums along
 * the leaf tree.
 */
#include "cuda/device_cuda.h"
#include "cuda/tree_cuda.h"

#include <assert.h>
#include <string.h>

void weft_cuda_id(const struct weft_device *base, unsigned char id_out[WEFT_DEVICE_ID_SIZE])
{
    const struct weft_cuda_device *device = reinterpret_cast<const struct weft_cuda_device *>(base);
    cudaDeviceProp properties;

    memset(id_out, 0, WEFT_DEVICE_ID_SIZE);
    if (cudaGetDeviceProperties(&properties, device->index) == cudaSuccess) {
        static_assert(sizeof(properties.uuid) == WEFT_DEVICE_ID_SIZE, "an id is a UUID");
        memcpy(id_out, &properties.uuid, WEFT_DEVICE_ID_SIZE);
    }
}

void *weft_cuda_alloc_host(struct weft_device *base, size_t size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    void *memory = NULL;
    cudaError_t error = cudaMallocHost(&memory, size > 0 ? size : 1);

    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: cannot allocate %zu bytes of pinned host memory: %s", device->index,
                      size, cudaGetErrorString(error));
        return NULL;
    }
    memset(memory, 0, size);
    return memory;
}

void weft_cuda_free_host(struct weft_device *base, void *memory)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    (void)weft_cuda_wait(device, NULL);
    if (!device->is_stuck) {
        (void)weft_cuda_check(device, cudaFreeHost(memory), "freeing pinned memory");
    }
}

static void copy(struct weft_device *base, void *to, const void *from, size_t size, cudaMemcpyKind kind,
                 const char *what)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (size > 0) {
        (void)weft_cuda_check(device, cudaMemcpyAsync(to, from, size, kind, device->stream), what);
    }
}

void weft_cuda_begin_read(struct weft_device *base, void *to_host, const void *from, size_t size)
{
    copy(base, to_host, from, size, cudaMemcpyDeviceToHost, "copying from the GPU");
}

void weft_cuda_begin_write(struct weft_device *base, void *to, const void *from_host, size_t size)
{
    copy(base, to, from_host, size, cudaMemcpyHostToDevice, "copying to the GPU");
}

void weft_cuda_copy(struct weft_device *base, void *to, const void *from, size_t size)
{
    copy(base, to, from, size, cudaMemcpyDeviceToDevice, "copying");
}

void weft_cuda_mark(struct weft_device *base, uint32_t mark)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (device->marks[mark] == NULL &&
        !weft_cuda_check(device, cudaEventCreateWithFlags(&device->marks[mark], cudaEventDisableTiming), "an event")) {
        return;
    }
    (void)weft_cuda_check(device, cudaEventRecord(device->marks[mark], device->stream), "an event");
}

enum weft_status weft_cuda_wait_mark(struct weft_device *base, uint32_t mark, uint32_t timeout_ms)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (device->status != WEFT_OK || device->marks[mark] == NULL) {
        return device->status;
    }
    return weft_cuda_poll(device, device->marks[mark], timeout_ms);
}

/* ---- sums along the leaf tree ---- */

static const uint32_t BLOCK = 128;

template <typename T>
static __global__ void __launch_bounds__(BLOCK)
    tree_add(const struct weft_cuda_tree_program program, size_t count, T *out)
{
    __shared__ T stack[WEFT_CUDA_STACK_DEPTH][BLOCK];
    const size_t i = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;

    if (i < count) {
        out[i] = weft_cuda_tree_at(&program, i, stack, threadIdx.x);
    }
}

static bool is_aligned(const struct weft_tree_add_args *args)
{
    uintptr_t bits = reinterpret_cast<uintptr_t>(args->out) | (args->count * sizeof(float));

    for (uint32_t n = 0; n < args->input_count; n++) {
        bits |= reinterpret_cast<uintptr_t>(args->inputs[n]);
    }
    return bits % sizeof(weft_cuda_four) == 0;
}

void weft_cuda_tree_add(struct weft_device *base, const struct weft_tree_add_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const bool is_by_four = is_aligned(args);
    const size_t count = is_by_four ? args->count / 4 : args->count;
    const dim3 grid(static_cast<unsigned int>((count + BLOCK - 1) / BLOCK));
    struct weft_cuda_tree_program program;

    if (count == 0) {
        return;
    }
    weft_cuda_tree_program_init(&program, args);
    if (is_by_four) {
        WEFT_CUDA_LAUNCH(tree_add<weft_cuda_four>, grid, dim3(BLOCK), 0, device->stream, program, count,
                         reinterpret_cast<weft_cuda_four *>(args->out));
    } else {
        WEFT_CUDA_LAUNCH(tree_add<weft_cuda_one>, grid, dim3(BLOCK), 0, device->stream, program, count,
                         reinterpret_cast<weft_cuda_one *>(args->out));
    }
    (void)weft_cuda_launched(device, "tree_add");
}
