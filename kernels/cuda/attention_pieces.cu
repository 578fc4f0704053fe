/*
 * Attention over the paged cache with the CPU's bits (kernels/cpu/attention.c has the order of one query's result).
 *
 * A block of 256 threads walks pieces of 256 positions for one tile of queries: threads are positions while keys are
 * multiplied, then elements of the head while values are weighted, so that every sum is one thread's chain in the CPU's
 * order; the sum of weights has the CPU's 16 lanes. Values come through shared memory, on their way while keys are
 * multiplied. Split work: a block has one piece and leaves its sums to the merging kernel of attention.cu.
 */
#include "cuda/attention.h"

#include "cuda/numeric_cuda.h"
#include "cuda/ptx.h"

static const uint32_t THREADS = WEFT_CUDA_PIECE;
static const uint32_t WARP = 32;
static const uint32_t WARPS = THREADS / WARP;
static const uint32_t LANES = 16;                /* of sums over positions */
static const int UNITS_AT_ONCE = 4;              /* keys in flight per thread: 64 bytes */
static const size_t SEGMENT_SIZE_MAX = 64 << 10; /* bytes of values in shared memory */

/* How a piece's values are weighted: each thread has 2 elements of the head and of the Q queries so many. */
static constexpr __host__ __device__ int queries_per_thread(int q)
{
    return q >= 16 ? 4 : q >= 4 ? 2 : 1;
}

/* What happens to a query's piece: not seen, its first one, one to be merged. */
enum merge { MERGE_SKIP, MERGE_FIRST, MERGE_NEXT };

/* Shared memory of a block, in this order; sizes in floats. */
struct memory {
    float *queries;              /* [Q][EP] */
    float *weights;              /* [Q][256] */
    float *maxima;               /* [Q][8 warps] */
    struct weft_cuda_seen *seen; /* [Q] */
    float4 *merges;              /* [Q] a, b, sum so far, enum merge */
    unsigned char *values;       /* [segment][EP] */
};

/* Of all but the values, a multiple of 16 bytes. */
static __host__ __device__ __forceinline__ size_t memory_size(uint32_t q, uint32_t padded_head_size)
{
    return (q * (padded_head_size + WEFT_CUDA_PIECE + WARPS + 2 + 4) + 3) / 4 * 4 * sizeof(float);
}

static __device__ __forceinline__ struct memory memory_of(unsigned char *shared, uint32_t q, uint32_t padded_head_size)
{
    struct memory memory;

    memory.merges = reinterpret_cast<float4 *>(shared);
    memory.queries = reinterpret_cast<float *>(memory.merges + q);
    memory.weights = memory.queries + q * padded_head_size;
    memory.maxima = memory.weights + q * WEFT_CUDA_PIECE;
    memory.seen = reinterpret_cast<struct weft_cuda_seen *>(memory.maxima + q * WARPS);
    memory.values = shared + memory_size(q, padded_head_size);
    return memory;
}

/* The running state of a block: its tile, and what thread 16 i keeps of query i. */
struct state {
    struct weft_cuda_tile tile;
    struct weft_cuda_seen seen; /* by any query */
    uint32_t kv_head;
    float max;
    float sum;
    bool is_started;
};

/* ---- keys ---- */

static __device__ __forceinline__ float low_half(uint32_t word)
{
    return __uint_as_float(word << 16);
}

static __device__ __forceinline__ float high_half(uint32_t word)
{
    return __uint_as_float(word & 0xffff0000U);
}

/* scores[i] <- continued with n elements of a key: n = 4 of query i at `query`. */
static __device__ __forceinline__ float dot_four(float sum, float4 key, float4 query)
{
    sum = fmaf(key.x, query.x, sum);
    sum = fmaf(key.y, query.y, sum);
    sum = fmaf(key.z, query.z, sum);
    return fmaf(key.w, query.w, sum);
}

template <bool IS_BF16, int Q>
static __device__ __forceinline__ void dot_unit(uint4 unit, const float *queries, uint32_t stride, float scores[Q])
{
    if (IS_BF16) {
        float4 low = make_float4(low_half(unit.x), high_half(unit.x), low_half(unit.y), high_half(unit.y));
        float4 high = make_float4(low_half(unit.z), high_half(unit.z), low_half(unit.w), high_half(unit.w));

#pragma unroll
        for (int i = 0; i < Q; i++) {
            const float4 *query = reinterpret_cast<const float4 *>(queries + i * stride);

            scores[i] = dot_four(dot_four(scores[i], low, query[0]), high, query[1]);
        }
    } else {
        float4 key = make_float4(__uint_as_float(unit.x), __uint_as_float(unit.y), __uint_as_float(unit.z),
                                 __uint_as_float(unit.w));

#pragma unroll
        for (int i = 0; i < Q; i++) {
            scores[i] = dot_four(scores[i], key, *reinterpret_cast<const float4 *>(queries + i * stride));
        }
    }
}

/* scores[i] <- key of this thread's position with query i, over the head's elements in order. */
template <bool IS_BF16, int Q>
static __device__ __forceinline__ void score(const unsigned char *keys, const float *queries, uint32_t stride,
                                             float scores[Q])
{
    static const uint32_t in_unit = IS_BF16 ? 8 : 4;
    uint32_t unit_count = stride / in_unit;

    for (uint32_t first = 0; first < unit_count; first += UNITS_AT_ONCE) {
        uint4 units[UNITS_AT_ONCE];

#pragma unroll
        for (int i = 0; i < UNITS_AT_ONCE; i++) {
            if (first + i < unit_count) {
                units[i] = *reinterpret_cast<const uint4 *>(keys + (first + i) * WEFT_PAGE_POSITIONS *
                                                                       static_cast<size_t>(WEFT_CUDA_KEY_UNIT));
            }
        }
#pragma unroll
        for (int i = 0; i < UNITS_AT_ONCE; i++) {
            if (first + i < unit_count) {
                dot_unit<IS_BF16, Q>(units[i], queries + (first + i) * in_unit, stride, scores);
            }
        }
    }
}

/* ---- weights ---- */

static __device__ __forceinline__ float larger(float a, float b)
{
    return b > a ? b : a;
}

/* maxima[i][warp] <- the largest of the warp's scores of query i; a NaN is passed over, as on the CPU. */
template <int Q> static __device__ __forceinline__ void warp_maxima(const float scores[Q], float *maxima)
{
#pragma unroll
    for (int i = 0; i < Q; i++) {
        float max = larger(-INFINITY, scores[i]);

        for (int step = WARP / 2; step > 0; step /= 2) {
            max = larger(max, __shfl_xor_sync(0xffffffffU, max, step));
        }
        if (threadIdx.x % WARP == 0) {
            maxima[i * WARPS + threadIdx.x / WARP] = max;
        }
    }
}

static __device__ __forceinline__ float piece_maximum(const float *maxima)
{
    float max = maxima[0];

    for (uint32_t i = 1; i < WARPS; i++) {
        max = larger(max, maxima[i]);
    }
    return max;
}

/* Sum of a query's weights in 16 lanes; thread 16 i has query i's. All threads of the block take part. */
template <int Q> static __device__ __forceinline__ float sum_weights(const float *weights)
{
    uint32_t query = threadIdx.x / LANES;
    uint32_t lane = threadIdx.x % LANES;
    float sum = 0;

    if (query < Q) {
        for (uint32_t i = 0; i < WEFT_CUDA_PIECE; i += LANES) {
            sum += weights[query * WEFT_CUDA_PIECE + i + lane];
        }
    }
    for (uint32_t width = LANES / 2; width > 0; width /= 2) {
        float other = __shfl_down_sync(0xffffffffU, sum, width);

        sum = lane < width ? sum + other : sum;
    }
    return sum;
}

/* Thread 16 i decides how query i goes on with this piece, and tells the others. */
static __device__ __forceinline__ void decide_merge(struct state *state, const struct memory *memory, uint32_t begin,
                                                    float piece_sum)
{
    uint32_t query = threadIdx.x / LANES;
    struct weft_cuda_seen seen = weft_cuda_clip(memory->seen[query], begin, begin + WEFT_CUDA_PIECE);
    float max = piece_maximum(memory->maxima + query * WARPS);
    float4 merge = make_float4(0, 0, state->sum, __int_as_float(MERGE_SKIP));

    if (seen.begin < seen.end && !state->is_started) {
        state->is_started = true;
        state->max = max;
        state->sum = piece_sum;
        merge.w = __int_as_float(MERGE_FIRST);
    } else if (seen.begin < seen.end) {
        float new_max = max > state->max ? max : state->max;

        merge.x = weft_exp(state->max - new_max);
        merge.y = weft_exp(max - new_max);
        merge.w = __int_as_float(MERGE_NEXT);
        state->max = new_max;
        state->sum = fmaf(state->sum, merge.x, piece_sum * merge.y);
    }
    merge.z = state->sum;
    memory->merges[query] = merge;
}

/* ---- values ---- */

/* Starts copying the rows of positions [begin, end) to values[0 ...]. */
static __device__ __forceinline__ void load_values(const struct weft_cuda_attend *args, const struct state *state,
                                                   uint32_t begin, uint32_t end, uint32_t row_size,
                                                   unsigned char *values)
{
    const uint32_t *pages = args->table.pages + state->tile.sequence.page_first;
    uint32_t in_row = row_size / 16;

    for (uint32_t i = threadIdx.x; i < (end - begin) * in_row; i += THREADS) {
        uint32_t position = begin + i / in_row;
        const unsigned char *from =
            weft_cuda_kv_keys(&args->layer, pages[position / WEFT_PAGE_POSITIONS], state->kv_head) +
            args->layer.key_size + static_cast<size_t>(position % WEFT_PAGE_POSITIONS) * row_size;

        weft_ptx_copy_async(values + static_cast<size_t>(i) * 16, from + i % in_row * 16);
    }
    weft_ptx_copy_async_commit();
}

/* One thread's part in weighting values: two elements of the head, and QT queries. */
template <int QT> struct weigher {
    const unsigned char *values; /* this thread's pair at position `origin` */
    size_t row_size;             /* bytes */
    uint32_t origin;
    const float *weights; /* of its first query at the piece's first position */
    uint32_t piece_begin;
    struct weft_cuda_seen seen[QT];
};

template <bool IS_BF16, int QT>
static __device__ __forceinline__ float2 value_pair(const struct weigher<QT> *job, uint32_t position)
{
    const unsigned char *at = job->values + (position - job->origin) * job->row_size;

    if (IS_BF16) {
        uint32_t word = *reinterpret_cast<const uint32_t *>(at);

        return make_float2(low_half(word), high_half(word));
    }
    return *reinterpret_cast<const float2 *>(at);
}

/* sums += weight * value over positions that each query sees; what it does not see may hold anything. */
template <bool IS_BF16, int QT>
static __device__ __forceinline__ void weigh_checked(const struct weigher<QT> *job, uint32_t begin, uint32_t end,
                                                     float2 sums[QT])
{
    for (uint32_t p = begin; p < end; p++) {
        float2 value = value_pair<IS_BF16, QT>(job, p);

#pragma unroll
        for (int i = 0; i < QT; i++) {
            float weight = job->weights[i * WEFT_CUDA_PIECE + p - job->piece_begin];

            if (p >= job->seen[i].begin && p < job->seen[i].end) {
                sums[i].x = fmaf(value.x, weight, sums[i].x);
                sums[i].y = fmaf(value.y, weight, sums[i].y);
            }
        }
    }
}

/* The same where all see all; begin and end are multiples of 4. */
template <bool IS_BF16, int QT>
static __device__ __forceinline__ void weigh_whole(const struct weigher<QT> *job, uint32_t begin, uint32_t end,
                                                   float2 sums[QT])
{
#pragma unroll 2
    for (uint32_t p = begin; p < end; p += 4) {
        float2 values[4];

#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            values[j] = value_pair<IS_BF16, QT>(job, p + j);
        }
#pragma unroll
        for (int i = 0; i < QT; i++) {
            const float4 weights =
                *reinterpret_cast<const float4 *>(job->weights + i * WEFT_CUDA_PIECE + p - job->piece_begin);

            sums[i].x = dot_four(sums[i].x, make_float4(values[0].x, values[1].x, values[2].x, values[3].x), weights);
            sums[i].y = dot_four(sums[i].y, make_float4(values[0].y, values[1].y, values[2].y, values[3].y), weights);
        }
    }
}

template <bool IS_BF16, int QT>
static __device__ __forceinline__ void weigh(const struct weigher<QT> *job, uint32_t begin, uint32_t end,
                                             float2 sums[QT])
{
    struct weft_cuda_seen common = {begin, end};

    for (int i = 0; i < QT; i++) {
        common = weft_cuda_clip(common, job->seen[i].begin, job->seen[i].end);
    }
    common.begin = (common.begin + 3) / 4 * 4;
    common.end = common.end / 4 * 4;
    if (common.begin < common.end) {
        weigh_checked<IS_BF16, QT>(job, begin, common.begin, sums);
        weigh_whole<IS_BF16, QT>(job, common.begin, common.end, sums);
        begin = common.end;
    }
    weigh_checked<IS_BF16, QT>(job, begin, end, sums);
}

/* ---- one piece ---- */

/* weights[i][position of this thread] <- exp(score - maximum); barriers inside. */
template <bool IS_BF16, int Q>
static __device__ __forceinline__ void weights_of_piece(const struct weft_cuda_attend *args, const struct state *state,
                                                        const struct memory *memory, uint32_t piece_begin)
{
    uint32_t position = piece_begin + threadIdx.x;
    float scores[Q] = {};

    if (position >= state->seen.begin && position < state->seen.end) {
        uint32_t page = args->table.pages[state->tile.sequence.page_first + position / WEFT_PAGE_POSITIONS];
        const unsigned char *keys =
            weft_cuda_kv_keys(&args->layer, page, state->kv_head) + position % WEFT_PAGE_POSITIONS * WEFT_CUDA_KEY_UNIT;

        score<IS_BF16, Q>(keys, memory->queries, args->layer.padded_head_size, scores);
    }
#pragma unroll
    for (int i = 0; i < Q; i++) {
        struct weft_cuda_seen seen = memory->seen[i];

        scores[i] = position >= seen.begin && position < seen.end ? scores[i] * args->scale : -INFINITY;
    }
    warp_maxima<Q>(scores, memory->maxima);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Q; i++) {
        memory->weights[i * WEFT_CUDA_PIECE + threadIdx.x] =
            weft_exp(scores[i] - piece_maximum(memory->maxima + i * WARPS));
    }
}

/* sums <- this thread's elements of the piece's weighted values; then merges[] is there for all. */
template <bool IS_BF16, int Q, int QT>
static __device__ __forceinline__ void attend_piece(const struct weft_cuda_attend *args, struct state *state,
                                                    const struct memory *memory, uint32_t piece_begin, bool is_active,
                                                    struct weigher<QT> *job, float2 sums[QT])
{
    struct weft_cuda_seen seen = weft_cuda_clip(state->seen, piece_begin, piece_begin + WEFT_CUDA_PIECE);
    uint32_t row_size = static_cast<uint32_t>(job->row_size);
    float piece_sum;

    load_values(args, state, seen.begin, weft_cuda_clip(seen, 0, seen.begin + args->segment).end, row_size,
                memory->values);
    weights_of_piece<IS_BF16, Q>(args, state, memory, piece_begin);
    weft_ptx_copy_async_wait<0>();
    __syncthreads();
    piece_sum = sum_weights<Q>(memory->weights);
    if (threadIdx.x % LANES == 0 && threadIdx.x / LANES < Q) {
        decide_merge(state, memory, piece_begin, piece_sum);
    }
#pragma unroll
    for (int i = 0; i < QT; i++) {
        sums[i] = make_float2(0, 0);
    }
    job->piece_begin = piece_begin;
    for (uint32_t begin = seen.begin; begin < seen.end; begin += args->segment) {
        uint32_t end = weft_cuda_clip(seen, 0, begin + args->segment).end;

        if (begin > seen.begin) {
            __syncthreads(); /* all have done with the segment before */
            load_values(args, state, begin, end, row_size, memory->values);
            weft_ptx_copy_async_wait<0>();
            __syncthreads();
        }
        job->origin = begin;
        if (is_active) {
            weigh<IS_BF16, QT>(job, begin, end, sums);
        }
    }
    __syncthreads();
}

/* ---- the kernel ---- */

/* Queries and what they see, into shared memory; queries that do not exist are zero and see everything. */
template <int Q>
static __device__ __forceinline__ void load_queries(const struct weft_cuda_attend *args, const struct state *state,
                                                    const struct memory *memory)
{
    uint32_t padded = args->layer.padded_head_size;
    uint32_t per_token = args->heads.head_count + 2 * args->heads.kv_head_count;

    for (uint32_t i = threadIdx.x; i < Q * padded; i += THREADS) {
        uint32_t e = i % padded;
        float x = 0;

        if (i / padded < state->tile.count && e < args->heads.head_size) {
            x = args->qkv[weft_cuda_query_row(&state->tile, i / padded, per_token) * args->heads.head_size + e];
        }
        memory->queries[i] = x;
    }
    if (threadIdx.x < Q) {
        struct weft_cuda_seen all = {0, UINT32_MAX};

        memory->seen[threadIdx.x] =
            threadIdx.x < state->tile.count ? weft_cuda_seen_of(args, &state->tile, threadIdx.x) : all;
    }
    __syncthreads();
}

/* One piece of a split tile: its sums go to its slot. */
template <int Q, int QT>
static __device__ __forceinline__ void store_piece(const struct weft_cuda_attend *args, const struct state *state,
                                                   uint32_t slot, uint32_t pair, uint32_t first, bool is_active,
                                                   const float2 sums[QT])
{
    size_t index = (static_cast<size_t>(slot) * args->heads.kv_head_count + state->kv_head) * Q;
    uint32_t query = threadIdx.x / LANES;

    if (threadIdx.x % LANES == 0 && query < Q) {
        args->piece_sums[index + query] = make_float2(state->max, state->sum);
    }
#pragma unroll
    for (int i = 0; i < QT; i++) {
        if (is_active && first + i < state->tile.count) {
            float *to = args->piece_outs + (index + first + i) * args->heads.head_size + 2 * pair;

            *reinterpret_cast<float2 *>(to) = sums[i];
        }
    }
}

template <int QT>
static __device__ __forceinline__ void merge_piece(const struct memory *memory, uint32_t first, const float2 sums[QT],
                                                   float2 outs[QT])
{
#pragma unroll
    for (int i = 0; i < QT; i++) {
        float4 merge = memory->merges[first + i];
        int how = __float_as_int(merge.w);

        if (how == MERGE_FIRST) {
            outs[i] = sums[i];
        } else if (how == MERGE_NEXT) {
            outs[i].x = fmaf(outs[i].x, merge.x, sums[i].x * merge.y);
            outs[i].y = fmaf(outs[i].y, merge.x, sums[i].y * merge.y);
        }
    }
}

template <bool IS_BF16, int Q> static __global__ void __launch_bounds__(THREADS) attend(struct weft_cuda_attend args)
{
    WEFT_CUDA_SHARED(unsigned char, shared);
    static constexpr int QT = queries_per_thread(Q);
    struct memory memory = memory_of(shared, Q, args.layer.padded_head_size);
    struct weft_cuda_item item = args.items != NULL ? args.items[blockIdx.x] : weft_cuda_decode_item(&args, blockIdx.x);
    uint32_t pair = threadIdx.x % (args.heads.head_size / 2);
    uint32_t first = threadIdx.x / (args.heads.head_size / 2) * QT;
    bool is_active = first < Q;
    struct state state = {};
    struct weigher<QT> job = {
    };
    float2 outs[QT] = {};
    float2 sums[QT];
    struct weft_cuda_share share;
    uint32_t piece_end;

    state.kv_head = blockIdx.y;
    state.tile = weft_cuda_tile_of(&args, &item, blockIdx.y, Q);
    weft_ptx_let_next_start();
    if (state.tile.count == 0) {
        return;
    }
    state.seen.begin = weft_cuda_seen_of(&args, &state.tile, 0).begin;
    state.seen.end = weft_cuda_seen_of(&args, &state.tile, state.tile.count - 1).end;
    share = weft_cuda_share_of(&args, &state.tile, state.seen, &item, blockIdx.x);
    if (args.piece_outs != NULL && share.begin >= share.end) {
        return;
    }
    load_queries<Q>(&args, &state, &memory);
    first = is_active ? first : 0;
    job.row_size = args.layer.padded_head_size * (IS_BF16 ? 2 : 4);
    job.values = memory.values + pair * (IS_BF16 ? 4 : 8);
    job.weights = memory.weights + first * WEFT_CUDA_PIECE;
    for (int i = 0; i < QT; i++) {
        job.seen[i] = memory.seen[first + i];
    }
    if (args.piece_outs != NULL) {
        for (uint32_t piece = share.begin; piece < share.end; piece += share.step) {
            state.is_started = false;
            attend_piece<IS_BF16, Q, QT>(&args, &state, &memory, piece * WEFT_CUDA_PIECE, is_active, &job, sums);
            store_piece<Q, QT>(&args, &state, share.slot + piece, pair, first, is_active, sums);
        }
        return;
    }
    piece_end = (state.seen.end + WEFT_CUDA_PIECE - 1) / WEFT_CUDA_PIECE;
    for (uint32_t piece = state.seen.begin / WEFT_CUDA_PIECE; piece < piece_end; piece++) {
        attend_piece<IS_BF16, Q, QT>(&args, &state, &memory, piece * WEFT_CUDA_PIECE, is_active, &job, sums);
        merge_piece<QT>(&memory, first, sums, outs);
    }
#pragma unroll
    for (int i = 0; i < QT; i++) {
        if (is_active && first + i < state.tile.count) {
            float sum = memory.merges[first + i].z;
            size_t row = weft_cuda_query_row(&state.tile, first + i, args.heads.head_count);
            float *to = args.out + row * args.heads.head_size + 2 * pair;

            to[0] = outs[i].x / sum;
            to[1] = outs[i].y / sum;
        }
    }
}

/* ---- launching ---- */

typedef void attend_kernel(struct weft_cuda_attend);

template <bool IS_BF16> static attend_kernel *attend_kernel_of(uint32_t q)
{
    switch (q) {
    case 1: return attend<IS_BF16, 1>;
    case 2: return attend<IS_BF16, 2>;
    case 4: return attend<IS_BF16, 4>;
    case 8: return attend<IS_BF16, 8>;
    default: return attend<IS_BF16, 16>;
    }
}

/* Positions of values that fit, in whole pages. */
static uint32_t segment_of(uint32_t row_size)
{
    uint32_t fitting = static_cast<uint32_t>(SEGMENT_SIZE_MAX) / row_size;

    return fitting >= WEFT_CUDA_PIECE ? WEFT_CUDA_PIECE : fitting / WEFT_PAGE_POSITIONS * WEFT_PAGE_POSITIONS;
}

uint32_t weft_cuda_attend_queries(uint32_t head_size, uint32_t wanted)
{
    uint32_t most = head_size <= 128 ? 16 : head_size <= 256 ? 4 : 1;
    uint32_t q = 1;

    while (q < wanted && q < most) {
        q *= 2;
    }
    return q;
}

void weft_cuda_attend_init(struct weft_cuda_device *device)
{
    /* 16 queries of 128 elements take more than 4 of 256 or 1 of 512 */
    int size = static_cast<int>(memory_size(16, 128) + SEGMENT_SIZE_MAX);

    for (uint32_t q = 1; q <= 16; q *= 2) {
        cudaError_t error =
            cudaFuncSetAttribute(attend_kernel_of<true>(q), cudaFuncAttributeMaxDynamicSharedMemorySize, size);

        (void)weft_cuda_check(device, error, "shared memory of attention");
        error = cudaFuncSetAttribute(attend_kernel_of<false>(q), cudaFuncAttributeMaxDynamicSharedMemorySize, size);
        (void)weft_cuda_check(device, error, "shared memory of attention");
    }
}

void weft_cuda_attend_pieces(struct weft_cuda_device *device, bool is_bf16, uint32_t q, uint32_t block_count,
                             struct weft_cuda_attend *args)
{
    attend_kernel *kernel = is_bf16 ? attend_kernel_of<true>(q) : attend_kernel_of<false>(q);
    uint32_t row_size = args->layer.padded_head_size * (is_bf16 ? 2 : 4);

    args->segment = segment_of(row_size);
    WEFT_CUDA_LAUNCH(kernel, dim3(block_count, args->heads.kv_head_count), dim3(THREADS),
                     memory_size(q, args->layer.padded_head_size) + args->segment * row_size, device->stream, *args);
    (void)weft_cuda_launched(device, "attention");
}
