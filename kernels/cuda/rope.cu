/*
 * Rotary positions with the CPU's bits (cpu/rope.c). Angles once per step, in f64: 2 T E flops times 30, a few
 * microseconds on GPUs made for it; the rotation is bound by memory.
 */
#include <assert.h>

#include "cuda/device_cuda.h"
#include "cuda/numeric_cuda.h"

static const uint32_t BLOCK = 128;

/* Lanes of a horizontal sum: part of the numerics contract. */
static const uint32_t LANES = 16;

/* Sequences and frequencies travel as arguments of the kernel, which may have 4 KiB: nothing is uploaded. */
static const uint32_t SEQUENCES_MAX = 128;
static const uint32_t FREQUENCIES_MAX = 256;

struct angle_sequence {
    uint32_t token_begin;
    uint32_t position;
};

/* Consecutive sequences of a step. */
struct angle_args {
    struct angle_sequence sequences[SEQUENCES_MAX];
    float inv_freq[FREQUENCIES_MAX];
    uint32_t sequence_count;
    uint32_t token_begin;
    uint32_t token_count;
    uint32_t half;
    float scale;
    float *angles;
};

static __global__ void __launch_bounds__(BLOCK) rope_angles(const struct angle_args args)
{
    const size_t index = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;
    const uint32_t i = static_cast<uint32_t>(index % args.half);
    const uint32_t token = args.token_begin + static_cast<uint32_t>(index / args.half);
    uint32_t low = 0;
    uint32_t high = args.sequence_count;
    float cosine;
    float sine;

    if (index >= static_cast<size_t>(args.token_count) * args.half) {
        return;
    }
    while (high - low > 1) { /* the last sequence that begins at or before the token: empty ones are passed over */
        const uint32_t middle = (low + high) / 2;

        if (args.sequences[middle].token_begin <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const uint32_t position = args.sequences[low].position + (token - args.sequences[low].token_begin);
    weft_cos_sin(static_cast<float>(position) * args.inv_freq[i], &cosine, &sine);
    float2 *out = reinterpret_cast<float2 *>(args.angles) + static_cast<size_t>(token) * args.half + i;
    *out = make_float2(cosine * args.scale, sine * args.scale);
}

void weft_cuda_rope_angles(struct weft_device *base, const struct weft_batch *batch, const float *inv_freq,
                           uint32_t head_size, float scale, float *angles)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct angle_args args = {};

    assert(head_size % 2 == 0 && head_size / 2 <= FREQUENCIES_MAX);
    args.half = head_size / 2;
    args.scale = scale;
    args.angles = angles;
    for (uint32_t i = 0; i < args.half; i++) {
        args.inv_freq[i] = inv_freq[i];
    }
    for (uint32_t first = 0; first < batch->sequence_count; first += SEQUENCES_MAX) {
        const uint32_t left = batch->sequence_count - first;

        args.sequence_count = left < SEQUENCES_MAX ? left : SEQUENCES_MAX;
        args.token_count = 0;
        for (uint32_t s = 0; s < args.sequence_count; s++) {
            const struct weft_batch_sequence *sequence = &batch->sequences[first + s];

            args.sequences[s] = {sequence->token_begin, sequence->position};
            args.token_count += sequence->token_count;
        }
        args.token_begin = args.sequences[0].token_begin;
        const size_t count = static_cast<size_t>(args.token_count) * args.half;
        if (count > 0) {
            WEFT_CUDA_LAUNCH(rope_angles, dim3(static_cast<unsigned int>((count + BLOCK - 1) / BLOCK)), dim3(BLOCK), 0,
                             device->stream, args);
        }
    }
    (void)weft_cuda_launched(device, "rope_angles");
}

/*
 * One warp per head of a token. With a norm, 16 lanes add the squares as the CPU does; 128 elements are 8 dependent
 * additions. The norm reads what the rotation writes, but lanes only write after all have read: the fold is between.
 */
static __global__ void __launch_bounds__(BLOCK) rope(const struct weft_rope_args args)
{
    const uint32_t rotated = args.heads.head_count + args.heads.kv_head_count; /* heads per token */
    const uint32_t size = args.heads.head_size;
    const uint32_t half = size / 2;
    const size_t index = blockIdx.x * static_cast<size_t>(BLOCK / 32) + threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    const size_t token = index / rotated;
    const uint32_t head = static_cast<uint32_t>(index % rotated);
    const float *norm = head < args.heads.head_count ? args.q_norm : args.k_norm;
    float *x = args.qkv + (token * (rotated + args.heads.kv_head_count) + head) * size;
    const float2 *angles = reinterpret_cast<const float2 *>(args.angles) + token * half;
    float factor = 1;

    if (token >= args.token_count) {
        return;
    }
    if (norm != NULL) {
        float sum = 0;
        for (uint32_t i = lane; i < size && lane < LANES; i += LANES) {
            sum = fmaf(x[i], x[i], sum);
        }
        for (uint32_t distance = LANES / 2; distance > 0; distance /= 2) {
            sum += __shfl_down_sync(0xffffffffU, sum, distance, LANES);
        }
        sum = __shfl_sync(0xffffffffU, sum, 0);
        factor = 1.0f / sqrtf(sum / static_cast<float>(size) + args.eps);
    }
    for (uint32_t i = lane; i < half; i += 32) {
        float a = x[i];
        float b = x[i + half];
        const float2 angle = angles[i];

        if (norm != NULL) {
            a = a * factor * norm[i];
            b = b * factor * norm[i + half];
        }
        x[i] = fmaf(a, angle.x, -(b * angle.y));
        x[i + half] = fmaf(b, angle.x, a * angle.y);
    }
}

void weft_cuda_rope(struct weft_device *base, const struct weft_rope_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const size_t heads = args->token_count * (static_cast<size_t>(args->heads.head_count) + args->heads.kv_head_count);
    const uint32_t per_block = BLOCK / 32;

    assert(args->heads.head_size % 2 == 0);
    if (heads == 0) {
        return;
    }
    WEFT_CUDA_LAUNCH(rope, dim3(static_cast<unsigned int>((heads + per_block - 1) / per_block)), dim3(BLOCK), 0,
                     device->stream, *args);
    (void)weft_cuda_launched(device, "rope");
}
