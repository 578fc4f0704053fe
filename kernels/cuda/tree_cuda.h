/* Additions along the leaf tree inside a kernel, as a stack machine: one thread per element, or per four. */
#ifndef WEFT_CUDA_TREE_CUDA_H
#define WEFT_CUDA_TREE_CUDA_H

#include <stdint.h>

#include "cuda/port.h"
#include "weft/tree.h"

/* Input i is pushed, then the two topmost are added of[i] times. */
struct weft_cuda_merges {
    uint8_t of[WEFT_LEAF_COUNT_MAX];
};

/* An addition closes where its right operand's last input stands. */
static inline void weft_cuda_merges_init(struct weft_cuda_merges *merges, const struct weft_tree_add *adds,
                                         uint32_t input_count)
{
    uint32_t last[WEFT_LEAF_COUNT_MAX];

    for (uint32_t n = 0; n < input_count; n++) {
        merges->of[n] = 0;
        last[n] = n;
    }
    for (uint32_t a = 0; a + 1 < input_count; a++) {
        merges->of[last[adds[a].right]]++;
        last[adds[a].left] = last[adds[a].right];
    }
}

/* Entries a canonical tree over 64 leaves can leave on the stack: one per level, and the one just pushed. */
static const uint32_t WEFT_CUDA_STACK_DEPTH = 8;
/* Inputs that are loaded at the same time. */
static const uint32_t WEFT_CUDA_LOAD_COUNT = 8;

/* One element, or four where all pointers allow it: one 16-byte load. */
struct weft_cuda_one {
    float v[1];
};

struct __align__(16) weft_cuda_four
{
    float v[4];
};

static __device__ __forceinline__ weft_cuda_one weft_cuda_add(const weft_cuda_one &a, const weft_cuda_one &b)
{
    return weft_cuda_one{{a.v[0] + b.v[0]}};
}

static __device__ __forceinline__ weft_cuda_four weft_cuda_add(const weft_cuda_four &a, const weft_cuda_four &b)
{
    return weft_cuda_four{{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}};
}

/* The stack of `thread` is stack[0..][thread]; *depth is how much of it is in use. Pushes `top` and merges. */
template <typename T, uint32_t BLOCK>
static __device__ __forceinline__ void weft_cuda_push(T (*stack)[BLOCK], uint32_t thread, uint32_t *depth, T top,
                                                      uint32_t merges)
{
    for (; merges > 0; merges--) {
        top = weft_cuda_add(stack[--*depth][thread], top);
    }
    stack[(*depth)++][thread] = top;
}

/* A sum of inputs in device memory. */
struct weft_cuda_tree_program {
    const float *inputs[WEFT_LEAF_COUNT_MAX];
    struct weft_cuda_merges merges;
    uint32_t input_count;
};

static inline void weft_cuda_tree_program_init(struct weft_cuda_tree_program *program,
                                               const struct weft_tree_add_args *args)
{
    program->input_count = args->input_count;
    for (uint32_t n = 0; n < args->input_count; n++) {
        program->inputs[n] = args->inputs[n];
    }
    weft_cuda_merges_init(&program->merges, args->adds, args->input_count);
}

/* Element i of the sum, in units of T; `thread` of stack[WEFT_CUDA_STACK_DEPTH] is as for weft_cuda_push(). */
template <typename T, uint32_t BLOCK>
static __device__ __forceinline__ T weft_cuda_tree_at(const struct weft_cuda_tree_program *program, size_t i,
                                                      T (*stack)[BLOCK], uint32_t thread)
{
    uint32_t depth = 0;

    for (uint32_t first = 0; first < program->input_count; first += WEFT_CUDA_LOAD_COUNT) {
        T values[WEFT_CUDA_LOAD_COUNT];
        WEFT_CUDA_UNROLL
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            if (first + k < program->input_count) {
                values[k] = reinterpret_cast<const T *>(program->inputs[first + k])[i];
            }
        }
        WEFT_CUDA_UNROLL
        for (uint32_t k = 0; k < WEFT_CUDA_LOAD_COUNT; k++) {
            if (first + k < program->input_count) {
                weft_cuda_push(stack, thread, &depth, values[k], program->merges.of[first + k]);
            }
        }
    }
    return stack[0][thread];
}

#endif
