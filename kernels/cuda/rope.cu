/*
 * Rotary positions with the CPU's bits (cpu/rope.c), and the KV cache's new entries. Angles once per step, in f64: 2 T
 * E flops times 30, a few microseconds on GPUs made for it; the rotation is bound by memory.
 */
#include <assert.h>

#include "cuda/kv_cache.h"
#include "cuda/numeric_cuda.h"
#include "cuda/ptx.h"

static const uint32_t BLOCK = 128;

/* Lanes of a horizontal sum: part of the numerics contract. */
static const uint32_t LANES = 16;

/* Frequencies travel as arguments of the kernel, which may have 4 KiB. */
static const uint32_t FREQUENCIES_MAX = 256;

struct angle_args {
    struct weft_cuda_sequences table;
    float inv_freq[FREQUENCIES_MAX];
    uint32_t token_count;
    uint32_t half;
    float scale;
    float *angles;
};

static __global__ void __launch_bounds__(BLOCK) rope_angles(const struct angle_args args)
{
    const size_t index = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;
    const uint32_t i = static_cast<uint32_t>(index % args.half);
    const uint32_t token = static_cast<uint32_t>(index / args.half);
    float cosine;
    float sine;

    if (token >= args.token_count) {
        return;
    }
    const struct weft_cuda_sequence sequence = weft_cuda_find_sequence(&args.table, token);
    const uint32_t position = sequence.position + (token - sequence.token_begin);
    weft_cos_sin(static_cast<float>(position) * args.inv_freq[i], &cosine, &sine);
    float2 *out = reinterpret_cast<float2 *>(args.angles) + static_cast<size_t>(token) * args.half + i;
    *out = make_float2(cosine * args.scale, sine * args.scale);
}

void weft_cuda_rope_angles(struct weft_device *base, const struct weft_batch *batch, const float *inv_freq,
                           uint32_t head_size, float scale, float *angles)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const size_t count = static_cast<size_t>(batch->token_count) * (head_size / 2);
    struct angle_args args = {};

    assert(head_size % 2 == 0 && head_size / 2 <= FREQUENCIES_MAX);
    if (count == 0) {
        return;
    }
    args.table = weft_cuda_upload_sequences(device, batch);
    args.token_count = batch->token_count;
    args.half = head_size / 2;
    args.scale = scale;
    args.angles = angles;
    for (uint32_t i = 0; i < args.half; i++) {
        args.inv_freq[i] = inv_freq[i];
    }
    if (args.table.sequences != NULL) {
        WEFT_CUDA_LAUNCH(rope_angles, dim3(static_cast<unsigned int>((count + BLOCK - 1) / BLOCK)), dim3(BLOCK), 0,
                         device->stream, args);
        (void)weft_cuda_launched(device, "rope_angles");
    }
}

/* ---- rotating and storing ---- */

struct rope_args {
    struct weft_rope_args rope;
    struct weft_cuda_kv_layer layer;
    struct weft_cuda_sequences table;
    uint32_t token_count;
};

/* Where one position of a KV head lies. */
template <typename T> struct kv_place {
    T *keys; /* of the page; then its values */
    uint32_t slot;
    uint32_t padded_head_size;
};

template <typename T> static __device__ __forceinline__ T *key_at(const kv_place<T> &place, uint32_t e)
{
    static const uint32_t in_unit = WEFT_CUDA_KEY_UNIT / sizeof(T);

    return place.keys + (e / in_unit * WEFT_PAGE_POSITIONS + place.slot) * in_unit + e % in_unit;
}

template <typename T> static __device__ __forceinline__ T *value_at(const kv_place<T> &place, uint32_t e)
{
    return place.keys + static_cast<size_t>(WEFT_PAGE_POSITIONS + place.slot) * place.padded_head_size + e;
}

/* Rows beyond the last sequence have none: keys NULL. */
template <typename T>
static __device__ __forceinline__ kv_place<T> find_place(const struct rope_args *args, uint32_t token, uint32_t kv_head)
{
    const struct weft_cuda_sequence sequence = weft_cuda_find_sequence(&args->table, token);
    const uint32_t position = sequence.position + (token - sequence.token_begin);

    if (token - sequence.token_begin >= sequence.token_count) {
        return {NULL, 0, 0};
    }
    const uint32_t page = args->table.pages[sequence.page_first + position / WEFT_PAGE_POSITIONS];

    return {reinterpret_cast<T *>(weft_cuda_kv_keys(&args->layer, page, kv_head)), position % WEFT_PAGE_POSITIONS,
            args->layer.padded_head_size};
}

/* 1 / the root mean square of a head, by its warp: 16 lanes add the squares as the CPU does, 128 elements are 8
 * dependent additions. */
static __device__ __forceinline__ float norm_factor(const float *x, uint32_t size, uint32_t lane, float eps)
{
    float sum = 0;

    for (uint32_t i = lane; i < size && lane < LANES; i += LANES) {
        sum = fmaf(x[i], x[i], sum);
    }
    for (uint32_t distance = LANES / 2; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(0xffffffffU, sum, distance, LANES);
    }
    sum = __shfl_sync(0xffffffffU, sum, 0);
    return 1.0f / sqrtf(sum / static_cast<float>(size) + eps);
}

/* A pair of a head: normalised when there is a norm, then rotated. */
static __device__ __forceinline__ float2 rotate(float2 pair, float2 angle, const float *norm, float factor, uint32_t i,
                                                uint32_t half)
{
    if (norm != NULL) {
        pair.x = pair.x * factor * norm[i];
        pair.y = pair.y * factor * norm[i + half];
    }
    return make_float2(fmaf(pair.x, angle.x, -(pair.y * angle.y)), fmaf(pair.y, angle.x, pair.x * angle.y));
}

/*
 * One warp per head of a token, values included. A query's norm reads what its rotation writes, but lanes only write
 * after all have read: the fold is between. Starts early and touches nothing until its predecessor, the product that
 * makes qkv, has ended.
 */
template <typename T, T (*CONVERT)(float)>
static __global__ void __launch_bounds__(BLOCK) rope_append(const struct rope_args args)
{
    const struct weft_rope_args *rope = &args.rope;
    const uint32_t query_heads = rope->heads.head_count;
    const uint32_t kv_heads = rope->heads.kv_head_count;
    const uint32_t heads = query_heads + 2 * kv_heads; /* rows per token */
    const uint32_t size = rope->heads.head_size;
    const uint32_t half = size / 2;
    const size_t index = blockIdx.x * static_cast<size_t>(BLOCK / 32) + threadIdx.x / 32;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t token = static_cast<uint32_t>(index / heads);
    const uint32_t head = static_cast<uint32_t>(index % heads);
    float *x = rope->qkv + index * size;

    weft_ptx_let_next_start();
    weft_ptx_wait_for_previous();
    if (token >= args.token_count) {
        return;
    }
    if (head >= query_heads + kv_heads) {
        const kv_place<T> place = find_place<T>(&args, token, head - query_heads - kv_heads);

        for (uint32_t e = lane; e < size && place.keys != NULL; e += 32) {
            *value_at(place, e) = CONVERT(x[e]);
        }
        return;
    }
    const bool is_query = head < query_heads;
    const float *norm = is_query ? rope->q_norm : rope->k_norm;
    const float2 *angles = reinterpret_cast<const float2 *>(rope->angles) + static_cast<size_t>(token) * half;
    const kv_place<T> place = is_query ? kv_place<T>{} : find_place<T>(&args, token, head - query_heads);

    if (!is_query && place.keys == NULL) {
        return;
    }
    const float factor = norm != NULL ? norm_factor(x, size, lane, rope->eps) : 1;
    for (uint32_t i = lane; i < half; i += 32) {
        const float2 pair = rotate(make_float2(x[i], x[i + half]), angles[i], norm, factor, i, half);

        if (is_query) {
            x[i] = pair.x;
            x[i + half] = pair.y;
        } else {
            *key_at(place, i) = CONVERT(pair.x);
            *key_at(place, i + half) = CONVERT(pair.y);
        }
    }
}

static __device__ __forceinline__ float as_it_is(float x)
{
    return x;
}

static void check_pages(const struct weft_batch *batch)
{
    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        const struct weft_batch_sequence *sequence = &batch->sequences[i];

        assert(sequence->token_count == 0 ||
               (sequence->position + sequence->token_count - 1) / WEFT_PAGE_POSITIONS < sequence->page_count);
    }
}

void weft_cuda_rope_append(struct weft_device *base, struct weft_kv_cache *cache, const struct weft_batch *batch,
                           const struct weft_rope_args *rope)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const struct weft_heads *heads = &rope->heads;
    const size_t rows = batch->token_count * (static_cast<size_t>(heads->head_count) + 2 * heads->kv_head_count);
    const uint32_t per_block = BLOCK / 32;
    auto *kernel =
        cache->desc.dtype == WEFT_F32 ? rope_append<float, as_it_is> : rope_append<uint16_t, weft_f32_to_bf16>;

    assert(rope->layer < cache->desc.layer_count && heads->kv_head_count == cache->desc.kv_head_count &&
           heads->head_size == cache->desc.head_size && heads->head_size % 2 == 0);
    check_pages(batch);
    if (rows == 0) {
        return;
    }
    const struct rope_args args = {*rope, weft_cuda_kv_layer(cache, rope->layer),
                                   weft_cuda_upload_sequences(device, batch), batch->token_count};
    if (args.table.sequences != NULL) {
        WEFT_CUDA_LAUNCH_EARLY(device->can_start_early, kernel,
                               dim3(static_cast<unsigned int>((rows + per_block - 1) / per_block)), dim3(BLOCK), 0,
                               device->stream, args);
        (void)weft_cuda_launched(device, "rope_append");
    }
}
