/*
 * What the sampler needs of a row of logits: the best entries, and partial log-sum-exps with the CPU's bits
 * (cpu/candidates.c, cpu/elementwise.h). A row of 128k logits is 0.5 MB that the last matrix product left in the L2;
 * both parts are bound by latency, some ten microseconds for any number of rows up to 30 or so.
 */
#include <assert.h>
#include <math.h>

#include "cuda/device_cuda.h"
#include "cuda/numeric_cuda.h"

static const uint32_t BLOCK = 256;

/* Lanes of a horizontal sum: part of the numerics contract. */
static const uint32_t LANES = 16;

static const uint32_t FULL = 0xffffffffU;

static const size_t ROOM_ALIGNMENT = 16; /* of the parts of the scratch */

/* ---- penalties ---- */

static __global__ void __launch_bounds__(BLOCK)
    penalize(float *logits, uint32_t width, const struct weft_penalty *penalties, uint32_t count)
{
    const uint32_t i = blockIdx.x * BLOCK + threadIdx.x;

    if (i >= count) {
        return;
    }
    const struct weft_penalty penalty = penalties[i];
    float *x = logits + static_cast<size_t>(penalty.row) * width + penalty.column;
    *x = (*x > 0 ? *x / penalty.repetition : *x * penalty.repetition) - penalty.subtract;
}

void weft_cuda_penalize(struct weft_device *base, float *logits, uint32_t width, const struct weft_penalty *penalties,
                        uint32_t count)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (count == 0) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        assert(penalties[i].column < width);
    }
    const struct weft_penalty *uploaded =
        static_cast<const struct weft_penalty *>(weft_cuda_upload(device, penalties, count * sizeof(*penalties)));
    if (uploaded == NULL) {
        return;
    }
    WEFT_CUDA_LAUNCH(penalize, dim3((count + BLOCK - 1) / BLOCK), dim3(BLOCK), 0, device->stream, logits, width,
                     uploaded, count);
    (void)weft_cuda_launched(device, "penalize");
}

/* ---- log-sum-exp ---- */

/* Exponentials in shared memory at a time. */
static const uint32_t CHUNK = 2048;

/* NaN wins and stays: no comparison with it is true. The left one of two equal ones stays. */
static __device__ __forceinline__ float larger(float a, float b)
{
    a = b > a ? b : a;
    return b != b ? b : a;
}

/*
 * The largest, as the CPU finds it: lane j over elements j, j + 16, ... in ascending order. "The left one stays" is
 * associative, so 16 groups of threads walk parts of the lanes, in order of groups; which zero wins shows in its sign.
 */
static __device__ float find_max(const float *x, uint32_t count, float (*parts)[LANES])
{
    const uint32_t lane = threadIdx.x % LANES;
    const uint32_t group = threadIdx.x / LANES;
    const uint32_t steps = (count + LANES - 1) / LANES;
    const uint32_t share = (steps + BLOCK / LANES - 1) / (BLOCK / LANES);
    const uint32_t end = (group + 1) * share < steps ? (group + 1) * share : steps;
    float max = -INFINITY;

#pragma unroll 4
    for (uint32_t s = group * share; s < end; s++) {
        const uint32_t i = s * LANES + lane;
        max = larger(max, i < count ? x[i] : -INFINITY);
    }
    parts[group][lane] = max;
    __syncthreads();
    if (threadIdx.x < 32) {
        max = parts[0][lane];
        for (uint32_t g = 1; g < BLOCK / LANES; g++) {
            max = larger(max, parts[g][lane]);
        }
        for (uint32_t distance = LANES / 2; distance > 0; distance /= 2) {
            max = larger(max, __shfl_down_sync(FULL, max, distance, LANES));
        }
        if (threadIdx.x == 0) {
            parts[0][0] = max;
        }
    }
    __syncthreads();
    return parts[0][0];
}

/*
 * One block per leaf and row. Exponentials are computed by all threads, a chunk ahead of the 16 that add them in the
 * CPU's order: a leaf of 16k entries is 1000 dependent additions, 3 microseconds.
 */
static __global__ void __launch_bounds__(BLOCK)
    sum_leaf(const float *logits, uint32_t width, const struct weft_range *leaves, const float *inv_temperatures,
             struct weft_lse *out)
{
    __shared__ float parts[BLOCK / LANES][LANES];
    __shared__ float chunks[2][CHUNK];
    const struct weft_range leaf = leaves[blockIdx.x];
    const float *x = logits + static_cast<size_t>(blockIdx.y) * width + leaf.begin;
    const uint32_t count = leaf.end - leaf.begin;
    const float factor = inv_temperatures[blockIdx.y];
    const float max = find_max(x, count, parts);
    float sum = 0;

    /* An empty leaf, or one of -infinity alone, contributes nothing. */
    for (uint32_t begin = 0; begin < count && max != -INFINITY; begin += CHUNK) {
        const uint32_t size = count - begin < CHUNK ? count - begin : CHUNK;
        float *chunk = chunks[begin / CHUNK % 2];

        for (uint32_t i = threadIdx.x; i < size; i += BLOCK) {
            chunk[i] = weft_exp((x[begin + i] - max) * factor);
        }
        __syncthreads(); /* also: this chunk's last readers are done, they were before the barrier of the other one */
        if (threadIdx.x < LANES) {
#pragma unroll 8
            for (uint32_t i = threadIdx.x; i < size; i += LANES) {
                sum += chunk[i];
            }
        }
    }
    if (threadIdx.x < 32) {
        for (uint32_t distance = LANES / 2; distance > 0; distance /= 2) {
            sum += __shfl_down_sync(FULL, sum, distance, LANES);
        }
        if (threadIdx.x == 0) {
            out[static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = {max, sum};
        }
    }
}

/* ---- the best entries ---- */

/*
 * A logit and its column as one number, larger when it comes first: NaN, then larger logits (both zeros alike), then
 * smaller columns. 0 is no entry.
 */
static __device__ __forceinline__ uint64_t key_of(float logit, uint32_t column)
{
    uint32_t bits = weft_f32_bits(logit == 0 ? 0.0f : logit);

    bits = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
    bits = logit != logit ? 0xffffffffU : bits;
    return static_cast<uint64_t>(bits) << 32 | ~column;
}

/* keys[count] in descending order; count a power of two. Bitonic (Batcher 1968): the same steps for all data. */
static __device__ void sort_keys(uint64_t *keys, uint32_t count)
{
    for (uint32_t run = 2; run <= count; run *= 2) {
        for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < count / 2; i += BLOCK) {
                const uint32_t low = 2 * i - i % distance;
                const uint64_t a = keys[low];
                const uint64_t b = keys[low + distance];
                const bool is_ascending = (low & run) != 0;

                if ((a < b) != is_ascending) {
                    keys[low] = b;
                    keys[low + distance] = a;
                }
            }
        }
    }
    __syncthreads();
}

/*
 * A tournament: each block sorts the entries of one part of a row in shared memory and keeps the best `kept`; rounds go
 * on with what was kept until one block per row is left, which writes candidates.
 */
struct round_args {
    const float *logits;             /* [B, width] */
    const uint64_t *keys;            /* [B, count] of the round before; NULL: the first, from the logits */
    uint64_t *keys_out;              /* [B, gridDim.x, kept]; NULL: the last round */
    struct weft_candidate *best_out; /* [B, kept] of the last round */
    uint32_t width;
    uint32_t count; /* entries of a row in this round */
    uint32_t part;  /* of a block, a power of two */
    uint32_t kept;
    int32_t token_first;
};

static __global__ void __launch_bounds__(BLOCK) keep_best(const struct round_args args)
{
    WEFT_CUDA_SHARED(uint64_t, keys);
    const uint32_t begin = blockIdx.x * args.part;
    const float *logits = args.logits + static_cast<size_t>(blockIdx.y) * args.width;

    for (uint32_t i = threadIdx.x; i < args.part; i += BLOCK) {
        const uint32_t column = begin + i;

        keys[i] = column >= args.count ? 0
                  : args.keys != NULL  ? args.keys[static_cast<size_t>(blockIdx.y) * args.count + column]
                                       : key_of(logits[column], column);
    }
    sort_keys(keys, args.part);
    const size_t out = (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * args.kept;
    for (uint32_t i = threadIdx.x; i < args.kept; i += BLOCK) {
        const uint64_t key = i < args.part ? keys[i] : 0;
        const uint32_t column = ~static_cast<uint32_t>(key);

        if (args.keys_out != NULL) {
            args.keys_out[out + i] = key;
        } else if (key == 0) {
            args.best_out[out + i] = {-INFINITY, -1};
        } else {
            args.best_out[out + i] = {logits[column], args.token_first + static_cast<int32_t>(column)};
        }
    }
}

/* Entries that one block sorts: 4096 (32 KiB) or, when more are wanted than halve that, twice as many as wanted. */
static const uint32_t PART = 4096;
static const uint32_t PART_MAX = 8192; /* 64 KiB: enough for 4096 entries, and what every GPU since sm_80 has */

static uint32_t part_for(uint32_t kept)
{
    uint32_t part = PART;

    while (part < 2 * kept) {
        part *= 2;
    }
    assert(part <= PART_MAX);
    return part;
}

static uint32_t round_up_power(uint32_t count)
{
    uint32_t power = 2;

    while (power < count) {
        power *= 2;
    }
    return power;
}

/* Scratch of one call, in order. */
struct room {
    struct weft_candidate *best;
    struct weft_lse *lse;
    uint64_t *keys[2]; /* of odd and even rounds */
};

/* Its bytes. */
struct room_sizes {
    size_t best;
    size_t lse;
    size_t keys;
    size_t all;
};

static struct room_sizes room_sizes(const struct weft_candidates_args *args)
{
    const uint32_t part = part_for(args->count);
    const size_t rows = args->row_count;
    struct room_sizes sizes = {};

    sizes.best = weft_cuda_align_up(rows * args->count * sizeof(struct weft_candidate), ROOM_ALIGNMENT);
    sizes.lse = weft_cuda_align_up(rows * args->leaf_count * sizeof(struct weft_lse), ROOM_ALIGNMENT);
    sizes.keys = rows * ((args->width + part - 1) / part) * args->count * sizeof(uint64_t);
    sizes.all = sizes.best + sizes.lse + 2 * sizes.keys + 1;
    return sizes;
}

/* With more entries parts are larger, and then there are fewer of them. */
size_t weft_cuda_candidates_scratch_size(const struct weft_device *device, const struct weft_candidates_args *most)
{
    struct weft_candidates_args fewer = *most;
    size_t size = room_sizes(most).all;

    (void)device;
    fewer.count = PART / 2;
    if (most->count > fewer.count && room_sizes(&fewer).all > size) {
        size = room_sizes(&fewer).all;
    }
    return size;
}

static bool make_room(struct weft_cuda_device *device, const struct weft_candidates_args *args, struct room *room)
{
    const struct room_sizes sizes = room_sizes(args);
    unsigned char *scratch = static_cast<unsigned char *>(weft_cuda_scratch(device, sizes.all));

    room->best = reinterpret_cast<struct weft_candidate *>(scratch);
    room->lse = reinterpret_cast<struct weft_lse *>(scratch + sizes.best);
    room->keys[0] = reinterpret_cast<uint64_t *>(scratch + sizes.best + sizes.lse);
    room->keys[1] = reinterpret_cast<uint64_t *>(scratch + sizes.best + sizes.lse + sizes.keys);
    return scratch != NULL;
}

static void find_best(struct weft_cuda_device *device, const struct weft_candidates_args *args, const struct room *room)
{
    const uint32_t part = part_for(args->count);
    struct round_args round = {};

    round.logits = args->logits;
    round.width = args->width;
    round.count = args->width;
    round.kept = args->count;
    round.token_first = args->token_first;
    if (PART_MAX * sizeof(uint64_t) > 48 << 10 &&
        !weft_cuda_check(device,
                         cudaFuncSetAttribute(keep_best, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(PART_MAX * sizeof(uint64_t))),
                         "shared memory for candidates")) {
        return;
    }
    for (uint32_t i = 0; round.best_out == NULL; i++) {
        const uint32_t block_count = round.count == 0 ? 1 : (round.count + part - 1) / part;

        round.part = round.count < part ? round_up_power(round.count) : part;
        round.keys_out = block_count > 1 ? room->keys[i % 2] : NULL;
        round.best_out = block_count > 1 ? NULL : room->best;
        WEFT_CUDA_LAUNCH(keep_best, dim3(block_count, args->row_count), dim3(BLOCK), round.part * sizeof(uint64_t),
                         device->stream, round);
        round.keys = round.keys_out;
        round.count = block_count * args->count;
    }
    (void)weft_cuda_launched(device, "candidates");
    weft_cuda_download(device, args->best_out, room->best,
                       static_cast<size_t>(args->row_count) * args->count * sizeof(*room->best));
}

static void sum_leaves(struct weft_cuda_device *device, const struct weft_candidates_args *args,
                       const struct room *room)
{
    const struct weft_range *leaves = static_cast<const struct weft_range *>(
        weft_cuda_upload(device, args->leaves, args->leaf_count * sizeof(*args->leaves)));
    const float *inv_temperatures = static_cast<const float *>(
        weft_cuda_upload(device, args->inv_temperatures, args->row_count * sizeof(*args->inv_temperatures)));

    if (leaves == NULL || inv_temperatures == NULL) {
        return;
    }
    WEFT_CUDA_LAUNCH(sum_leaf, dim3(args->leaf_count, args->row_count), dim3(BLOCK), 0, device->stream, args->logits,
                     args->width, leaves, inv_temperatures, room->lse);
    (void)weft_cuda_launched(device, "log-sum-exp");
    weft_cuda_download(device, args->lse_out, room->lse,
                       static_cast<size_t>(args->row_count) * args->leaf_count * sizeof(*room->lse));
}

void weft_cuda_candidates(struct weft_device *base, const struct weft_candidates_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct room room;

    for (uint32_t i = 0; i < args->leaf_count; i++) {
        assert(args->leaves[i].begin <= args->leaves[i].end && args->leaves[i].end <= args->width);
    }
    if (args->row_count == 0 || !make_room(device, args, &room)) {
        return;
    }
    if (args->count > 0) {
        find_best(device, args, &room);
    }
    if (args->leaf_count > 0) {
        sum_leaves(device, args, &room);
    }
}
