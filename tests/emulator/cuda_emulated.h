/*
 * CUDA for the .cu files of kernels/cuda when a C++ compiler builds them (kernels/cuda/port.h says what they may use):
 * the language, the device side, the runtime, and the launch.
 */
#ifndef WEFT_TESTS_EMULATOR_CUDA_EMULATED_H
#define WEFT_TESTS_EMULATOR_CUDA_EMULATED_H

#include <memory>
#include <tuple>

#include "emulator/cuda_types.h"

#include "emulator/grid.h"

#include "emulator/cuda_runtime_emulated.h"

/* A kernel with its arguments: what one thread runs. */
struct weft_emulated_call {
    virtual ~weft_emulated_call() = default;
    virtual void run() const = 0;
};

template <typename... P> struct weft_emulated_call_of final : weft_emulated_call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    template <typename... A>
    explicit weft_emulated_call_of(void (*function)(P...), A... values) : kernel(function), arguments(values...)
    {
    }
    void run() const override
    {
        std::apply(kernel, arguments);
    }
};

struct weft_emulated_grid {
    const char *kernel; /* its name, static */
    const void *function;
    dim3 grid;
    dim3 block;
    size_t shared_size;
    bool is_resident; /* WEFT_CUDA_LAUNCH_RESIDENT */
    std::shared_ptr<const weft_emulated_call> call;
};

/* Puts the grid into the stream; errors as CUDA has them, at the next cudaPeekAtLastError(). `pointers`: the arguments
 * that are pointers, which must be device memory, pinned host memory or NULL. */
void weft_emulated_launch_grid(const weft_emulated_grid *grid, cudaStream_t stream, const void *const *pointers,
                               uint32_t pointer_count);

template <typename T> static inline const void *weft_emulated_pointer(T)
{
    return nullptr;
}

template <typename T> static inline const void *weft_emulated_pointer(T *pointer)
{
    return const_cast<const void *>(static_cast<const volatile void *>(pointer));
}

template <typename... P, typename... A>
static inline void weft_emulated_launch(bool is_resident, const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                                        size_t shared_size, cudaStream_t stream, A... arguments)
{
    const void *pointers[] = {nullptr, weft_emulated_pointer(arguments)...};
    weft_emulated_grid launch = {name,
                                 reinterpret_cast<const void *>(kernel),
                                 grid,
                                 block,
                                 shared_size,
                                 is_resident,
                                 std::make_shared<weft_emulated_call_of<P...>>(kernel, arguments...)};

    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
    weft_emulated_launch_grid(&launch, stream, pointers, 1 + sizeof...(A));
}

/* Streams are none for NCCL, only for its stub in tests (control.h, has_nccl). */
void *weft_emulated_nccl_stream(cudaStream_t stream);
#define WEFT_CUDA_STREAM_FOR_NCCL(stream) weft_emulated_nccl_stream(stream)

#define WEFT_CUDA_SHARED(type, name) type *name = static_cast<type *>(weft_emulated_self->shared)

#define WEFT_CUDA_LAUNCH_EARLY(is_early, kernel, grid, block, shared_size, stream, ...)                                \
    ((void)(is_early), WEFT_CUDA_LAUNCH(kernel, grid, block, shared_size, stream, __VA_ARGS__))

#define WEFT_CUDA_LAUNCH(kernel, grid, block, shared_size, stream, ...)                                                \
    weft_emulated_launch(false, #kernel, kernel, grid, block, shared_size, stream, ##__VA_ARGS__)

/* All blocks at once is more than the emulator can do; the same ascending order on all GPUs does as well. */
#define WEFT_CUDA_LAUNCH_RESIDENT(is_early, kernel, grid, block, shared_size, stream, ...)                             \
    ((void)(is_early), weft_emulated_launch(true, #kernel, kernel, grid, block, shared_size, stream, ##__VA_ARGS__))

#endif
