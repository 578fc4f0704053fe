/*
 * The kernel of products of many tokens, one for every format of weights, and what its launch must know of a format.
 *
 * Blocks of 128 rows and 32, 64 or 128 tokens, operands through a pipeline of shared memory. Where there are too few
 * blocks for the GPU they split the columns by leaf or by chunk, and another kernel adds up what they leave.
 *
 * A *format* says how weights and activations lie and what a step with them is:
 *   stage_tiles    tiles of columns in a stage of the pipeline
 *   step_tiles     tiles of a step; stages and chunks have whole steps, which lie together
 *   stages(rows)   stages of the pipeline when a warp has `rows` row tiles
 *   weight_size    bytes of a tile of weights: 16 rows. [row tile][tile]
 *   scales_size    bytes of scales, not among the weights, of a row tile of a stage: behind its weights in the stage
 *   x_size         bytes of a tile of activations: 8 tokens. [token group][tile]
 *   load_scales(product, row_tile, tile, to)  starts copying those of the stage that begins with `tile`, by one warp
 *   ready_size(rows)  bytes of a row tile of a stage as the block makes it ready to be multiplied, each warp one row
 *                  tile for all; 0: as it lies in the stage
 *   make_ready(product, weights, tile, tile_end, to)  does that, of tiles below tile_end, by one warp
 *   step<ROWS>(weights, tile, scale, x, sums)  sums <- continued over the step from tile `tile` of the stage on, for
 *                  ROWS row tiles (weights) and WARP_GROUPS groups (x), a stage's bytes apart, by the whole warp; where
 *                  there are scales apart, `scale` places its columns: see column_of()
 */
#ifndef WEFT_CUDA_MATRIX_TILES_H
#define WEFT_CUDA_MATRIX_TILES_H

#include "cuda/matrix_tensor.h"

static const uint32_t TILES_THREADS = 256;
static const uint32_t BLOCK_ROW_TILES = 8; /* 128 rows */
static const int WARP_GROUPS = 4;          /* token groups of one warp: 32 tokens */

/* How the 8 warps of a block lie: WARP_ROWS row tiles each, 8 / WARP_ROWS warps along the rows, the rest along tokens.
 */
template <class FORMAT, int WARP_ROWS> struct tiles_shape {
    static const uint32_t warps_along_rows = BLOCK_ROW_TILES / WARP_ROWS;
    static const uint32_t groups = (TILES_THREADS / WEFT_CUDA_WARP) / warps_along_rows * WARP_GROUPS;
    static const uint32_t tokens = groups * 8;
    static const int stages = FORMAT::stages(WARP_ROWS);
    static const uint32_t weights_size = FORMAT::stage_tiles * FORMAT::weight_size; /* bytes of a row tile of a stage */
    static const uint32_t row_size = weights_size + FORMAT::scales_size;            /* the same with its scales */
    static const uint32_t group_size = FORMAT::stage_tiles * FORMAT::x_size;        /* bytes of a group of a stage */
    static const uint32_t stage_size = BLOCK_ROW_TILES * row_size + groups * group_size;
    static const uint32_t ready_size = FORMAT::ready_size(WARP_ROWS);
    static const uint32_t shared_size = stages * stage_size + BLOCK_ROW_TILES * ready_size;
    static const uint32_t accumulators = WARP_ROWS * WARP_GROUPS * 4; /* of one thread */
};

/* Who computes a block's sums: one block all of it, or one per leaf or chunk, for a combining kernel to finish. */
enum split { SPLIT_NONE, SPLIT_LEAVES, SPLIT_CHUNKS };

/* What multiply_tiles needs beside the product. */
struct tiles_args {
    const unsigned char *x; /* activations as the format has them */
    enum split split;
    uint32_t row_blocks;
    uint32_t token_blocks;
    uint32_t part_count; /* leaves or chunks when split, else 1 */
    uint32_t stack_depth;
    float *memory; /* split: sums [part][padded T][padded N]; else stacks [block][depth][accumulators of a block] */
};

typedef void tiles_kernel(struct weft_cuda_product, struct tiles_args);

/* What the launch needs to know: for 1, 2 and 4 row tiles per warp, kernels and their bytes of shared memory. */
struct tiles_format {
    tiles_kernel *kernels[3];
    uint32_t shared_sizes[3];
    uint32_t x_size; /* bytes of a tile of activations */
    /* Activations of the product's tokens into group_count groups at `to`. */
    void (*prepare)(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                    const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to);
};

/* matrix_tiles_16.cu, matrix_tiles_f8.cu, matrix_tiles_quant.cu: the formats. */
const struct tiles_format *weft_cuda_tiles_16(bool is_bf16);
const struct tiles_format *weft_cuda_tiles_f8(void);
const struct tiles_format *weft_cuda_tiles_quant(bool is_q4);

/* Where a step lies among its rows' scales: column c of it has scale (column + c) >> shift, the stage's first columns
 * have scale `first`. Made where a format has scales apart. */
struct tiles_scale {
    uint32_t first;
    uint32_t column;
    uint32_t shift;
};

/* What a format inherits whose scales, if any, lie among the weights and whose weights are multiplied as they lie. */
struct format_in_place {
    static const uint32_t scales_size = 0;

    static __device__ __forceinline__ void load_scales(const struct weft_cuda_product *, uint32_t, uint32_t,
                                                       unsigned char *)
    {
    }

    static constexpr uint32_t ready_size(int)
    {
        return 0;
    }

    static __device__ __forceinline__ void make_ready(const struct weft_cuda_product *, const unsigned char *, uint32_t,
                                                      uint32_t, unsigned char *)
    {
    }
};

/* One block's place: 128 rows, a block of tokens, and the tiles of its units. */
struct place {
    uint32_t row_tile;
    uint32_t group;
    uint32_t tile_begin;
    uint32_t tile_end;
};

/* Starts copying the first `limit` of SIZE consecutive bytes, by one warp. */
template <uint32_t SIZE>
static __device__ __forceinline__ void load_segment(unsigned char *to, const unsigned char *from, uint32_t limit)
{
    uint32_t first = threadIdx.x % WEFT_CUDA_WARP * 16;

#pragma unroll
    for (uint32_t i = 0; i < SIZE; i += WEFT_CUDA_WARP * 16) {
        if ((i + WEFT_CUDA_WARP * 16 <= SIZE || first + i < SIZE) && first + i < limit) {
            weft_ptx_copy_async(to + first + i, from + first + i);
        }
    }
}

/* Starts copying stage `stage` of the block's tiles, or nothing beyond the last; closes its group either way. A warp
 * has a row tile and its share of the groups. Rows beyond the matrix are copies of its last ones: nobody looks at their
 * sums. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void load_stage(const struct weft_cuda_product *product,
                                                  const struct tiles_args *args, const struct place *place,
                                                  uint32_t stage, unsigned char *shared)
{
    typedef tiles_shape<FORMAT, WARP_ROWS> shape;
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    uint32_t tile = place->tile_begin + stage * FORMAT::stage_tiles;
    uint32_t tiles = tile < place->tile_end ? place->tile_end - tile : 0;
    uint32_t row_tile = min(place->row_tile + warp, (product->row_count - 1) / WEFT_CUDA_TILE);
    unsigned char *to = shared + stage % shape::stages * shape::stage_size;

    static_assert(BLOCK_ROW_TILES * WEFT_CUDA_WARP == TILES_THREADS, "a warp for every row tile");
    load_segment<shape::weights_size>(to + warp * shape::row_size,
                                      product->weights +
                                          ((size_t)row_tile * product->tile_count + tile) * FORMAT::weight_size,
                                      tiles * FORMAT::weight_size);
    if (FORMAT::scales_size > 0 && tiles > 0) {
        FORMAT::load_scales(product, row_tile, tile, to + warp * shape::row_size + shape::weights_size);
    }
#pragma unroll
    for (uint32_t i = 0; i < shape::groups; i += BLOCK_ROW_TILES) {
        uint32_t group = i + warp;

        if (i + BLOCK_ROW_TILES <= shape::groups || group < shape::groups) {
            load_segment<shape::group_size>(to + BLOCK_ROW_TILES * shape::row_size + group * shape::group_size,
                                            args->x + ((size_t)(place->group + group) * product->tile_count + tile) *
                                                          FORMAT::x_size,
                                            tiles * FORMAT::x_size);
        }
    }
    weft_ptx_copy_async_commit();
}

/* sums += one step of columns from tile `tile` of the stage on, by one warp. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void multiply_step(const unsigned char *stage, const unsigned char *ready,
                                                     uint32_t tile, struct tiles_scale scale,
                                                     float sums[WARP_ROWS][WARP_GROUPS][4])
{
    typedef tiles_shape<FORMAT, WARP_ROWS> shape;
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    uint32_t row_tile = warp % shape::warps_along_rows * WARP_ROWS;
    uint32_t group = warp / shape::warps_along_rows * WARP_GROUPS;

    FORMAT::template step<WARP_ROWS>(
        shape::ready_size > 0 ? ready + row_tile * shape::ready_size : stage + row_tile * shape::row_size, tile, scale,
        stage + BLOCK_ROW_TILES * shape::row_size + group * shape::group_size, sums);
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
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void store(const struct place *place, const float sums[WARP_ROWS][WARP_GROUPS][4],
                                             uint32_t token_limit, uint32_t row_limit, size_t stride, const float *bias,
                                             float *out)
{
    uint32_t thread = weft_ptx_thread();
    uint32_t warp = thread / WEFT_CUDA_WARP;
    uint32_t lane = thread % WEFT_CUDA_WARP;
    uint32_t row_tile = place->row_tile + warp % tiles_shape<FORMAT, WARP_ROWS>::warps_along_rows * WARP_ROWS;
    uint32_t group = place->group + warp / tiles_shape<FORMAT, WARP_ROWS>::warps_along_rows * WARP_GROUPS;

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

/*
 * The same of a gated matrix: what comes of pairs of rows, which a thread has together. The sums go by way of the
 * pipeline's memory, which nobody needs any more, and come back one group at a time: exponentials and quotients of all
 * of them at once would ask for more registers than there are. `sums` were the block's last.
 */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void store_gated(const struct weft_cuda_product *product, const struct place *place,
                                                   const float sums[WARP_ROWS][WARP_GROUPS][4], unsigned char *shared)
{
    typedef tiles_shape<FORMAT, WARP_ROWS> shape;
    static_assert(shape::accumulators * TILES_THREADS * sizeof(float) <= shape::stages * shape::stage_size,
                  "the sums of a block fit into its pipeline");
    uint32_t thread = weft_ptx_thread();
    uint32_t warp = thread / WEFT_CUDA_WARP;
    uint32_t lane = thread % WEFT_CUDA_WARP;
    uint32_t row_tile = place->row_tile + warp % shape::warps_along_rows * WARP_ROWS;
    uint32_t group = place->group + warp / shape::warps_along_rows * WARP_GROUPS;

    __syncthreads(); /* the last stages have been read */
    push<WARP_ROWS>((float *)shared, sums);
#pragma unroll 1
    for (uint32_t i = 0; i < WARP_ROWS * WARP_GROUPS; i++) {
        float4 s = ((const float4 *)shared)[i * TILES_THREADS + thread];
        uint32_t row = (row_tile + i / WARP_GROUPS) * WEFT_CUDA_TILE + lane / 4;
        uint32_t token = (group + i % WARP_GROUPS) * 8 + lane % 4 * 2;

        if (token < product->token_count) {
            weft_cuda_store_gated(product, s.x, s.z, token, row);
        }
        if (token + 1 < product->token_count) {
            weft_cuda_store_gated(product, s.y, s.w, token + 1, row);
        }
    }
}

/* A block's pipeline: what it reads, and how far it has come. */
struct pipeline {
    struct place place;
    unsigned char *shared;
    uint32_t tile; /* multiplied next */
    struct tiles_scale scale;
};

/* What product->scales.columns[tile] is, from a chunk that is at hand. */
static __device__ __forceinline__ uint32_t column_of(const struct weft_cuda_product *product,
                                                     const struct weft_cuda_chunk *chunk, uint32_t tile)
{
    return product->scales.phase + chunk->column_begin + (tile - chunk->tile_begin) * WEFT_CUDA_TILE;
}

template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void pipeline_begin(const struct weft_cuda_product *product,
                                                      const struct tiles_args *args, struct pipeline *pipeline)
{
    __syncthreads(); /* a block's previous work has been read */
    for (uint32_t i = 0; i + 1 < tiles_shape<FORMAT, WARP_ROWS>::stages; i++) {
        load_stage<FORMAT, WARP_ROWS>(product, args, &pipeline->place, i, pipeline->shared);
    }
    pipeline->tile = pipeline->place.tile_begin;
}

/* sums <- one chunk, from zero. Whoever comes to a new stage waits for it, and sends for the one that takes the place
 * of the stage that all have left behind. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void
multiply_chunk(const struct weft_cuda_product *product, const struct tiles_args *args, struct pipeline *pipeline,
               const struct weft_cuda_chunk *chunk, float sums[WARP_ROWS][WARP_GROUPS][4])
{
    typedef tiles_shape<FORMAT, WARP_ROWS> shape;
    uint32_t tile_end = chunk->tile_begin + chunk->tile_count;
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    unsigned char *ready = pipeline->shared + shape::stages * shape::stage_size;

#pragma unroll
    for (int i = 0; i < WARP_ROWS * WARP_GROUPS * 4; i++) {
        sums[i / (WARP_GROUPS * 4)][i / 4 % WARP_GROUPS][i % 4] = 0;
    }
#pragma unroll 1
    for (; pipeline->tile < tile_end; pipeline->tile += FORMAT::step_tiles) {
        uint32_t index = pipeline->tile - pipeline->place.tile_begin;
        uint32_t stage = index / FORMAT::stage_tiles;
        const unsigned char *own = pipeline->shared + stage % shape::stages * shape::stage_size;

        if (FORMAT::scales_size > 0) {
            pipeline->scale.column = column_of(product, chunk, pipeline->tile);
            pipeline->scale.shift = product->scales.shift;
        }
        if (index % FORMAT::stage_tiles == 0) {
            weft_ptx_copy_async_wait<shape::stages - 2>();
            __syncthreads();
            load_stage<FORMAT, WARP_ROWS>(product, args, &pipeline->place, stage + shape::stages - 1, pipeline->shared);
            pipeline->scale.first = pipeline->scale.column >> pipeline->scale.shift;
            if (shape::ready_size > 0) {
                FORMAT::make_ready(product, own + warp * shape::row_size, pipeline->tile, pipeline->place.tile_end,
                                   ready + warp * shape::ready_size);
                __syncthreads();
            }
        }
        multiply_step<FORMAT, WARP_ROWS>(own, ready, index % FORMAT::stage_tiles, pipeline->scale, sums);
    }
}

/* total <- the chunks [begin, begin + count), added in order. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void
multiply_chunks(const struct weft_cuda_product *product, const struct tiles_args *args, struct pipeline *pipeline,
                uint32_t begin, uint32_t count, float total[WARP_ROWS][WARP_GROUPS][4])
{
    for (uint32_t i = 0; i < count; i++) {
        struct weft_cuda_chunk chunk = product->chunks[begin + i];
        float sums[WARP_ROWS][WARP_GROUPS][4];

        multiply_chunk<FORMAT, WARP_ROWS>(product, args, pipeline, &chunk, sums);
#pragma unroll
        for (int j = 0; j < WARP_ROWS * WARP_GROUPS * 4; j++) {
            float *to = &total[j / (WARP_GROUPS * 4)][j / 4 % WARP_GROUPS][j % 4];
            float sum = sums[j / (WARP_GROUPS * 4)][j / 4 % WARP_GROUPS][j % 4];

            *to = i == 0 ? sum : *to + sum;
        }
    }
}

/* One of the parts of a split product: its sum goes to memory. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void multiply_part(const struct weft_cuda_product *product,
                                                     const struct tiles_args *args, struct pipeline *pipeline,
                                                     uint32_t part)
{
    uint32_t begin = args->split == SPLIT_LEAVES ? product->leaves[part].chunk_begin : part;
    uint32_t count = args->split == SPLIT_LEAVES ? product->leaves[part].chunk_count : 1;
    uint32_t padded_tokens = args->token_blocks * tiles_shape<FORMAT, WARP_ROWS>::tokens;
    uint32_t padded_rows = args->row_blocks * BLOCK_ROW_TILES * WEFT_CUDA_TILE;
    float total[WARP_ROWS][WARP_GROUPS][4];

    pipeline->place.tile_begin = product->chunks[begin].tile_begin;
    pipeline->place.tile_end =
        product->chunks[begin + count - 1].tile_begin + product->chunks[begin + count - 1].tile_count;
    pipeline_begin<FORMAT, WARP_ROWS>(product, args, pipeline);
    multiply_chunks<FORMAT, WARP_ROWS>(product, args, pipeline, begin, count, total);
    store<FORMAT, WARP_ROWS>(&pipeline->place, total, padded_tokens, padded_rows, padded_rows, NULL,
                             args->memory + (size_t)part * padded_tokens * padded_rows);
}

/* The whole program. Sums that wait for their neighbour lie in global memory, which is the L2 for so little. */
template <class FORMAT, int WARP_ROWS>
static __device__ __forceinline__ void multiply_all(const struct weft_cuda_product *product,
                                                    const struct tiles_args *args, struct pipeline *pipeline)
{
    static const size_t level = (size_t)tiles_shape<FORMAT, WARP_ROWS>::accumulators * TILES_THREADS;
    uint32_t depth = blockIdx.x * args->stack_depth;
    float total[WARP_ROWS][WARP_GROUPS][4];

    pipeline->place.tile_begin = 0;
    pipeline->place.tile_end = product->tile_count;
    pipeline_begin<FORMAT, WARP_ROWS>(product, args, pipeline);
    for (uint32_t i = 0; i < product->leaf_count; i++) {
        const struct weft_cuda_leaf *next = &product->leaves[i];
        struct weft_cuda_leaf leaf;

        multiply_chunks<FORMAT, WARP_ROWS>(product, args, pipeline, next->chunk_begin, next->chunk_count, total);
        leaf = *next; /* once more: of what is kept all the while registers are short */
        for (uint32_t j = 0; j < leaf.add_count; j++) {
            depth--;
            pop_and_add<WARP_ROWS>(args->memory + depth * level, total);
        }
        if (leaf.node < 0) {
            push<WARP_ROWS>(args->memory + depth * level, total);
            depth++;
        } else if (product->gate_count == 0) {
            store<FORMAT, WARP_ROWS>(&pipeline->place, total, product->token_count, product->row_count,
                                     product->row_count, product->bias,
                                     product->out + (size_t)leaf.node * product->node_stride);
        }
    }
    if (product->gate_count > 0) {
        store_gated<FORMAT, WARP_ROWS>(product, &pipeline->place, total, pipeline->shared);
    }
}

/* Blocks take their work in turns: neighbours have the same rows and read the same weights. */
template <class FORMAT, int WARP_ROWS>
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
        pipeline.place.group = block % args.token_blocks * tiles_shape<FORMAT, WARP_ROWS>::groups;
        if (args.split == SPLIT_NONE) {
            multiply_all<FORMAT, WARP_ROWS>(&product, &args, &pipeline);
        } else {
            multiply_part<FORMAT, WARP_ROWS>(&product, &args, &pipeline, work / block_count);
        }
        weft_ptx_copy_async_wait<0>();
    }
}

/* What the launch must know of FORMAT. */
template <class FORMAT> struct tiles_format tiles_format_of(void)
{
    struct tiles_format format = {};

    format.kernels[0] = multiply_tiles<FORMAT, 1>;
    format.kernels[1] = multiply_tiles<FORMAT, 2>;
    format.kernels[2] = multiply_tiles<FORMAT, 4>;
    format.shared_sizes[0] = tiles_shape<FORMAT, 1>::shared_size;
    format.shared_sizes[1] = tiles_shape<FORMAT, 2>::shared_size;
    format.shared_sizes[2] = tiles_shape<FORMAT, 4>::shared_size;
    format.x_size = FORMAT::x_size;
    format.prepare = FORMAT::prepare;
    return format;
}

#endif
