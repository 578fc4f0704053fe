/*
 * 16-bit weights times any number of tokens, for prefill and large batches.
 *
 * Blocks of 128 rows and 32, 64 or 128 tokens, operands through a pipeline of shared memory. Activations are rounded
 * and put in order beforehand, once. Where there are too few blocks for the GPU they split the columns by leaf or by
 * chunk, and another kernel adds up what they leave.
 */
#include "cuda/matrix_tensor.h"

/* rounded [token group][tile][lane][4]: the B operand of one lane in 8 bytes. A block has one chunk of one group. */
template <bool IS_BF16>
static __global__ void round_activations(struct weft_cuda_product product, unsigned char *rounded)
{
    struct weft_cuda_chunk chunk = product.chunks[blockIdx.x];
    uint2 *to =
        (uint2 *)(rounded + ((size_t)blockIdx.y * product.tile_count + chunk.tile_begin) * WEFT_CUDA_GROUP_SIZE);

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * WEFT_CUDA_WARP; i += blockDim.x) {
        uint32_t token = blockIdx.y * WEFT_CUDA_GROUP + i % WEFT_CUDA_WARP / 4;
        uint32_t column = i / WEFT_CUDA_WARP * WEFT_CUDA_TILE + i % 4 * 4;
        float4 four = make_float4(0, 0, 0, 0);

        if (token < product.token_count) {
            const float *x = product.x + (size_t)token * product.col_count + chunk.column_begin + column;

            four.x = column < chunk.column_count ? x[0] : 0;
            four.y = column + 1 < chunk.column_count ? x[1] : 0;
            four.z = column + 2 < chunk.column_count ? x[2] : 0;
            four.w = column + 3 < chunk.column_count ? x[3] : 0;
        }
        to[i] = weft_cuda_round_four<IS_BF16>(four);
    }
}

static const uint32_t TILES_THREADS = 256;
static const uint32_t STAGE_TILES = 4; /* 64 columns */
/* 3 x 32 KiB, the most of any shape, fit where a block gets 99 KiB: every GPU since sm_80. */
static const int STAGES = 3;
static const uint32_t BLOCK_ROW_TILES = 8; /* 128 rows */
static const int WARP_GROUPS = 4;          /* token groups of one warp: 32 tokens */

/* How the 8 warps of a block lie: WARP_ROWS row tiles each, 8 / WARP_ROWS warps along the rows, the rest along tokens.
 */
template <int WARP_ROWS> struct shape {
    static const uint32_t warps_along_rows = BLOCK_ROW_TILES / WARP_ROWS;
    static const uint32_t groups = (TILES_THREADS / WEFT_CUDA_WARP) / warps_along_rows * WARP_GROUPS;
    static const uint32_t tokens = groups * 8;
    static const uint32_t stage_size = STAGE_TILES * (BLOCK_ROW_TILES * WEFT_CUDA_TILE_SIZE + groups * 256);
    static const uint32_t accumulators = WARP_ROWS * WARP_GROUPS * 4; /* of one thread */
};

/* Who computes a block's sums: one block all of it, or one per leaf or chunk, for a combining kernel to finish. */
enum split { SPLIT_NONE, SPLIT_LEAVES, SPLIT_CHUNKS };

/* What multiply_tiles needs beside the product. */
struct tiles_args {
    const unsigned char *rounded;
    enum split split;
    uint32_t row_blocks;
    uint32_t token_blocks;
    uint32_t part_count; /* leaves or chunks when split, else 1 */
    uint32_t stack_depth;
    float *memory; /* split: sums [part][padded T][padded N]; else stacks [block][depth][accumulators of a block] */
};

/* One block's place: 128 rows, a block of tokens, and the tiles of its units. */
struct place {
    uint32_t row_tile;
    uint32_t group;
    uint32_t tile_begin;
    uint32_t tile_end;
};

/* Starts copying stage `stage` of the block's tiles, or nothing beyond the last; closes its group either way. Rows
 * beyond the matrix are copies of its last ones: nobody looks at their sums. */
template <int WARP_ROWS>
static __device__ __forceinline__ void load_stage(const struct weft_cuda_product *product,
                                                  const struct tiles_args *args, const struct place *place,
                                                  uint32_t stage, unsigned char *shared)
{
    uint32_t tile = place->tile_begin + stage * STAGE_TILES;
    uint32_t last_row_tile = (product->row_count - 1) / WEFT_CUDA_TILE;
    unsigned char *to = shared + stage % STAGES * shape<WARP_ROWS>::stage_size;

    for (uint32_t i = threadIdx.x; i < BLOCK_ROW_TILES * STAGE_TILES * WEFT_CUDA_WARP; i += TILES_THREADS) {
        uint32_t row_tile = place->row_tile + i / (STAGE_TILES * WEFT_CUDA_WARP);
        uint32_t column_tile = tile + i / WEFT_CUDA_WARP % STAGE_TILES;

        row_tile = row_tile < last_row_tile ? row_tile : last_row_tile;
        if (column_tile < place->tile_end) {
            weft_ptx_copy_async(to + i * 16,
                                product->weights +
                                    ((size_t)row_tile * product->tile_count + column_tile) * WEFT_CUDA_TILE_SIZE +
                                    i % WEFT_CUDA_WARP * 16);
        }
    }
    to += BLOCK_ROW_TILES * STAGE_TILES * WEFT_CUDA_TILE_SIZE;
    for (uint32_t i = threadIdx.x; i < shape<WARP_ROWS>::groups * STAGE_TILES * 16; i += TILES_THREADS) {
        uint32_t group = place->group + i / (STAGE_TILES * 16);
        uint32_t column_tile = tile + i / 16 % STAGE_TILES;

        if (column_tile < place->tile_end) {
            weft_ptx_copy_async(to + i * 16,
                                args->rounded +
                                    ((size_t)group * product->tile_count + column_tile) * WEFT_CUDA_GROUP_SIZE +
                                    i % 16 * 16);
        }
    }
    weft_ptx_copy_async_commit();
}

/* sums += one tile of columns, by one warp. */
template <bool IS_BF16, int WARP_ROWS>
static __device__ __forceinline__ void multiply_stage_tile(const unsigned char *stage, uint32_t tile,
                                                           float sums[WARP_ROWS][WARP_GROUPS][4])
{
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t row_tile = warp % shape<WARP_ROWS>::warps_along_rows * WARP_ROWS;
    uint32_t group = warp / shape<WARP_ROWS>::warps_along_rows * WARP_GROUPS;
    const uint4 *weights = (const uint4 *)stage + (row_tile * STAGE_TILES + tile) * WEFT_CUDA_WARP + lane;
    const uint2 *x = (const uint2 *)(stage + BLOCK_ROW_TILES * STAGE_TILES * WEFT_CUDA_TILE_SIZE) +
                     (group * STAGE_TILES + tile) * WEFT_CUDA_WARP + lane;
    uint4 a[WARP_ROWS];

#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        a[r] = weights[r * STAGE_TILES * WEFT_CUDA_WARP];
    }
#pragma unroll
    for (int g = 0; g < WARP_GROUPS; g++) {
        uint2 b = x[g * STAGE_TILES * WEFT_CUDA_WARP];

#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            weft_cuda_multiply_tile<IS_BF16>(sums[r][g], a[r], b);
        }
    }
}

template <int WARP_ROWS>
static __device__ __forceinline__ void push(float *memory, const float sums[WARP_ROWS][WARP_GROUPS][4])
{
#pragma unroll
    for (int i = 0; i < WARP_ROWS * WARP_GROUPS; i++) {
        const float *s = sums[i / WARP_GROUPS][i % WARP_GROUPS];

        ((float4 *)memory)[i * TILES_THREADS + threadIdx.x] = make_float4(s[0], s[1], s[2], s[3]);
    }
}

/* sums <- popped + sums */
template <int WARP_ROWS>
static __device__ __forceinline__ void pop_and_add(const float *memory, float sums[WARP_ROWS][WARP_GROUPS][4])
{
#pragma unroll
    for (int i = 0; i < WARP_ROWS * WARP_GROUPS; i++) {
        float *s = sums[i / WARP_GROUPS][i % WARP_GROUPS];
        float4 popped = ((const float4 *)memory)[i * TILES_THREADS + threadIdx.x];

        s[0] = popped.x + s[0];
        s[1] = popped.y + s[1];
        s[2] = popped.z + s[2];
        s[3] = popped.w + s[3];
    }
}

/* out[token * stride + row], rows and tokens below the limits, bias added when there is one. */
template <int WARP_ROWS>
static __device__ __forceinline__ void store(const struct place *place, const float sums[WARP_ROWS][WARP_GROUPS][4],
                                             uint32_t token_limit, uint32_t row_limit, size_t stride, const float *bias,
                                             float *out)
{
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t row_tile = place->row_tile + warp % shape<WARP_ROWS>::warps_along_rows * WARP_ROWS;
    uint32_t group = place->group + warp / shape<WARP_ROWS>::warps_along_rows * WARP_GROUPS;

#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
        for (int i = 0; i < WARP_GROUPS * 4; i++) {
            uint32_t row = (row_tile + r) * WEFT_CUDA_TILE + lane / 4 + i % 4 / 2 * 8;
            uint32_t token = (group + i / 4) * 8 + lane % 4 * 2 + i % 2;

            if (row < row_limit && token < token_limit) {
                out[token * stride + row] = bias != NULL ? sums[r][i / 4][i % 4] + bias[row] : sums[r][i / 4][i % 4];
            }
        }
    }
}

/* A block's pipeline: what it reads, and how far it has come. */
struct pipeline {
    struct place place;
    unsigned char *shared;
    uint32_t tile; /* multiplied next */
};

template <int WARP_ROWS>
static __device__ __forceinline__ void pipeline_begin(const struct weft_cuda_product *product,
                                                      const struct tiles_args *args, struct pipeline *pipeline)
{
    __syncthreads(); /* a block's previous work has been read */
    for (uint32_t i = 0; i + 1 < STAGES; i++) {
        load_stage<WARP_ROWS>(product, args, &pipeline->place, i, pipeline->shared);
    }
    pipeline->tile = pipeline->place.tile_begin;
}

/* sums <- one chunk, from zero. Whoever comes to a new stage waits for it, and sends for the one that takes the place
 * of the stage that all have left behind. */
template <bool IS_BF16, int WARP_ROWS>
static __device__ __forceinline__ void multiply_chunk(const struct weft_cuda_product *product,
                                                      const struct tiles_args *args, struct pipeline *pipeline,
                                                      uint32_t tile_end, float sums[WARP_ROWS][WARP_GROUPS][4])
{
#pragma unroll
    for (int i = 0; i < WARP_ROWS * WARP_GROUPS * 4; i++) {
        sums[i / (WARP_GROUPS * 4)][i / 4 % WARP_GROUPS][i % 4] = 0;
    }
#pragma unroll 1
    for (; pipeline->tile < tile_end; pipeline->tile++) {
        uint32_t index = pipeline->tile - pipeline->place.tile_begin;
        uint32_t stage = index / STAGE_TILES;

        if (index % STAGE_TILES == 0) {
            weft_ptx_copy_async_wait<STAGES - 2>();
            __syncthreads();
            load_stage<WARP_ROWS>(product, args, &pipeline->place, stage + STAGES - 1, pipeline->shared);
        }
        multiply_stage_tile<IS_BF16, WARP_ROWS>(pipeline->shared + stage % STAGES * shape<WARP_ROWS>::stage_size,
                                                index % STAGE_TILES, sums);
    }
}

/* total <- the chunks [begin, begin + count), added in order. */
template <bool IS_BF16, int WARP_ROWS>
static __device__ __forceinline__ void
multiply_chunks(const struct weft_cuda_product *product, const struct tiles_args *args, struct pipeline *pipeline,
                uint32_t begin, uint32_t count, float total[WARP_ROWS][WARP_GROUPS][4])
{
    for (uint32_t i = 0; i < count; i++) {
        struct weft_cuda_chunk chunk = product->chunks[begin + i];
        float sums[WARP_ROWS][WARP_GROUPS][4];

        multiply_chunk<IS_BF16, WARP_ROWS>(product, args, pipeline, chunk.tile_begin + chunk.tile_count, sums);
#pragma unroll
        for (int j = 0; j < WARP_ROWS * WARP_GROUPS * 4; j++) {
            float *to = &total[j / (WARP_GROUPS * 4)][j / 4 % WARP_GROUPS][j % 4];
            float sum = sums[j / (WARP_GROUPS * 4)][j / 4 % WARP_GROUPS][j % 4];

            *to = i == 0 ? sum : *to + sum;
        }
    }
}

/* One of the parts of a split product: its sum goes to memory. */
template <bool IS_BF16, int WARP_ROWS>
static __device__ __forceinline__ void multiply_part(const struct weft_cuda_product *product,
                                                     const struct tiles_args *args, struct pipeline *pipeline,
                                                     uint32_t part)
{
    uint32_t begin = args->split == SPLIT_LEAVES ? product->leaves[part].chunk_begin : part;
    uint32_t count = args->split == SPLIT_LEAVES ? product->leaves[part].chunk_count : 1;
    uint32_t padded_tokens = args->token_blocks * shape<WARP_ROWS>::tokens;
    uint32_t padded_rows = args->row_blocks * BLOCK_ROW_TILES * WEFT_CUDA_TILE;
    float total[WARP_ROWS][WARP_GROUPS][4];

    pipeline->place.tile_begin = product->chunks[begin].tile_begin;
    pipeline->place.tile_end =
        product->chunks[begin + count - 1].tile_begin + product->chunks[begin + count - 1].tile_count;
    pipeline_begin<WARP_ROWS>(product, args, pipeline);
    multiply_chunks<IS_BF16, WARP_ROWS>(product, args, pipeline, begin, count, total);
    store<WARP_ROWS>(&pipeline->place, total, padded_tokens, padded_rows, padded_rows, NULL,
                     args->memory + (size_t)part * padded_tokens * padded_rows);
}

/* The whole program. Sums that wait for their neighbour lie in global memory, which is the L2 for so little. */
template <bool IS_BF16, int WARP_ROWS>
static __device__ __forceinline__ void multiply_all(const struct weft_cuda_product *product,
                                                    const struct tiles_args *args, struct pipeline *pipeline)
{
    static const size_t level = (size_t)shape<WARP_ROWS>::accumulators * TILES_THREADS;
    float *stack = args->memory + blockIdx.x * args->stack_depth * level;
    float total[WARP_ROWS][WARP_GROUPS][4];

    pipeline->place.tile_begin = 0;
    pipeline->place.tile_end = product->tile_count;
    pipeline_begin<WARP_ROWS>(product, args, pipeline);
    for (uint32_t i = 0; i < product->leaf_count; i++) {
        struct weft_cuda_leaf leaf = product->leaves[i];

        multiply_chunks<IS_BF16, WARP_ROWS>(product, args, pipeline, leaf.chunk_begin, leaf.chunk_count, total);
        for (uint32_t j = 0; j < leaf.add_count; j++) {
            stack -= level;
            pop_and_add<WARP_ROWS>(stack, total);
        }
        if (leaf.node < 0) {
            push<WARP_ROWS>(stack, total);
            stack += level;
        } else {
            store<WARP_ROWS>(&pipeline->place, total, product->token_count, product->row_count, product->row_count,
                             product->bias, product->out + (size_t)leaf.node * product->node_stride);
        }
    }
}

/* Blocks take their work in turns: neighbours have the same rows and read the same weights. */
template <bool IS_BF16, int WARP_ROWS>
static __global__ void __launch_bounds__(TILES_THREADS, WARP_ROWS == 4 ? 1 : 2)
    multiply_tiles(struct weft_cuda_product product, struct tiles_args args)
{
    WEFT_CUDA_SHARED(unsigned char, shared);
    uint32_t block_count = args.row_blocks * args.token_blocks;

    for (uint32_t work = blockIdx.x; work < block_count * args.part_count; work += gridDim.x) {
        uint32_t block = work % block_count;
        struct pipeline pipeline = {};

        pipeline.shared = shared;
        pipeline.place.row_tile = block / args.token_blocks * BLOCK_ROW_TILES;
        pipeline.place.group = block % args.token_blocks * shape<WARP_ROWS>::groups;
        if (args.split == SPLIT_NONE) {
            multiply_all<IS_BF16, WARP_ROWS>(&product, &args, &pipeline);
        } else {
            multiply_part<IS_BF16, WARP_ROWS>(&product, &args, &pipeline, work / block_count);
        }
        weft_ptx_copy_async_wait<0>();
    }
}

/* A thread has one row of one token. */
static __global__ void combine(struct weft_cuda_product product, const float *sums, bool has_leaf_sums,
                               uint32_t padded_tokens, uint32_t padded_rows)
{
    uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;

    if (row < product.row_count) {
        weft_cuda_finish(&product, sums + (size_t)blockIdx.y * padded_rows + row, (size_t)padded_tokens * padded_rows,
                         has_leaf_sums, blockIdx.y, row);
    }
}

/* ---- launching ---- */

typedef void tiles_kernel(struct weft_cuda_product, struct tiles_args);

/* One way of multiplying T tokens. */
struct plan {
    uint32_t warp_rows; /* 4, 2 or 1: 128, 64 or 32 tokens per block */
    uint32_t block_tokens;
    uint32_t grid; /* blocks of multiply_tiles */
    struct tiles_args tiles;
    size_t rounded_size; /* bytes of scratch, then */
    size_t memory_size;
};

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/*
 * A block on every multiprocessor is enough: those of a product bound by memory share it evenly, and for one bound by
 * arithmetic it is all there is. `slots` is how many blocks can work at a time.
 */
static void plan_split(const struct weft_matrix *matrix, uint32_t enough, uint32_t slots, struct plan *plan)
{
    struct tiles_args *tiles = &plan->tiles;
    uint32_t blocks = tiles->row_blocks * tiles->token_blocks;

    if (blocks >= enough || matrix->chunk_count == 1) {
        tiles->split = SPLIT_NONE;
        tiles->part_count = 1;
    } else if (matrix->leaf_count == matrix->chunk_count || blocks * matrix->leaf_count >= enough) {
        tiles->split = SPLIT_LEAVES;
        tiles->part_count = matrix->leaf_count;
    } else {
        tiles->split = SPLIT_CHUNKS;
        tiles->part_count = matrix->chunk_count;
    }
    plan->grid = blocks * tiles->part_count;
    if (tiles->split == SPLIT_NONE) {
        plan->grid = plan->grid < slots ? plan->grid : slots;
        plan->memory_size = (size_t)plan->grid * matrix->stack_depth * plan->block_tokens;
    } else {
        plan->memory_size = (size_t)plan->grid * plan->block_tokens;
    }
    plan->memory_size *= BLOCK_ROW_TILES * WEFT_CUDA_TILE * sizeof(float);
}

static struct plan make_plan(const struct weft_cuda_device *device, const struct weft_matrix *matrix,
                             uint32_t token_count)
{
    struct plan plan = {};

    plan.warp_rows = token_count <= 32 ? 1 : token_count <= 64 ? 2 : 4;
    plan.block_tokens = 32 * plan.warp_rows;
    plan.tiles.row_blocks = divide_up(matrix->row_count, BLOCK_ROW_TILES * WEFT_CUDA_TILE);
    plan.tiles.token_blocks = divide_up(token_count, plan.block_tokens);
    plan.tiles.stack_depth = matrix->stack_depth;
    plan.rounded_size = (size_t)plan.tiles.token_blocks * plan.block_tokens / WEFT_CUDA_GROUP * matrix->tile_count *
                        WEFT_CUDA_GROUP_SIZE;
    plan_split(matrix, device->sm_count, device->sm_count * (plan.warp_rows == 4 ? 1 : 2), &plan);
    return plan;
}

size_t weft_cuda_tiles_scratch(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    size_t most = 0;

    for (uint32_t tokens = 32; tokens <= WEFT_CUDA_TOKENS_MAX; tokens += 32) {
        struct plan plan = make_plan(device, matrix, tokens);

        most = plan.rounded_size + plan.memory_size > most ? plan.rounded_size + plan.memory_size : most;
    }
    return most;
}

static tiles_kernel *tiles_kernel_of(bool is_bf16, uint32_t warp_rows)
{
    static tiles_kernel *const kernels[2][3] = {
        {multiply_tiles<false, 1>, multiply_tiles<false, 2>, multiply_tiles<false, 4>},
        {multiply_tiles<true, 1>, multiply_tiles<true, 2>, multiply_tiles<true, 4>}};

    return kernels[is_bf16][warp_rows / 2];
}

static uint32_t tiles_shared_size(uint32_t warp_rows)
{
    uint32_t size = warp_rows == 1   ? shape<1>::stage_size
                    : warp_rows == 2 ? shape<2>::stage_size
                                     : shape<4>::stage_size;

    return STAGES * size;
}

void weft_cuda_tiles_init(struct weft_cuda_device *device)
{
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t warp_rows = 1U << i / 2;
        cudaError_t error =
            cudaFuncSetAttribute(tiles_kernel_of(i % 2 != 0, warp_rows), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)tiles_shared_size(warp_rows));

        weft_cuda_check(device, error, "shared memory of the matmul kernel");
    }
}

void weft_cuda_multiply_tiles(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                              const struct weft_cuda_product *product)
{
    struct plan plan = make_plan(device, matrix, product->token_count);
    bool is_bf16 = matrix->dtype == WEFT_BF16;
    void (*round)(struct weft_cuda_product, unsigned char *) =
        is_bf16 ? round_activations<true> : round_activations<false>;
    tiles_kernel *kernel = tiles_kernel_of(is_bf16, plan.warp_rows);
    unsigned char *scratch = (unsigned char *)weft_cuda_scratch(device, plan.rounded_size + plan.memory_size);
    uint32_t groups = plan.tiles.token_blocks * plan.block_tokens / WEFT_CUDA_GROUP;
    uint32_t padded_rows = plan.tiles.row_blocks * BLOCK_ROW_TILES * WEFT_CUDA_TILE;

    if (scratch == NULL) {
        return;
    }
    plan.tiles.rounded = scratch;
    plan.tiles.memory = (float *)(scratch + plan.rounded_size);
    WEFT_CUDA_LAUNCH(round, dim3(matrix->chunk_count, groups), dim3(TILES_THREADS), 0, device->stream, *product,
                     scratch);
    WEFT_CUDA_LAUNCH(kernel, dim3(plan.grid), dim3(TILES_THREADS), tiles_shared_size(plan.warp_rows), device->stream,
                     *product, plan.tiles);
    if (plan.tiles.split != SPLIT_NONE) {
        WEFT_CUDA_LAUNCH(combine, dim3(divide_up(product->row_count, TILES_THREADS), product->token_count),
                         dim3(TILES_THREADS), 0, device->stream, *product, (const float *)plan.tiles.memory,
                         plan.tiles.split == SPLIT_LEAVES, plan.tiles.token_blocks * plan.block_tokens, padded_rows);
    }
    weft_cuda_launched(device, "matmul of many tokens");
}
