/*
 * Weight matrices on the GPU, shared by the files that pack, multiply in the CPU's order and multiply on tensor cores.
 *
 * Every matrix is summed by one program. Its columns are cut into *chunks* of at most WEFT_CUDA_CHUNK_TILES tiles of 16
 * columns: each leaf of the tree into as few and as equal ones as possible, so that the cut depends on the leaf alone.
 * On tensor cores a chunk is one chain of multiply-adds in ascending order of columns; a leaf is its chunks added in
 * ascending order; nodes are leaves added along the tree. That is the whole numerics contract of 16-bit weights, and of
 * E4M3, here: which block or warp computes a chunk, and for how many tokens at once, is free. Quantised weights have
 * the chunks of weft/quant.h, and tiles that are blocks of 32 columns.
 */
#ifndef WEFT_CUDA_MATRIX_H
#define WEFT_CUDA_MATRIX_H

#include "cuda/device_cuda.h"
#include "cuda/numeric_cuda.h"
#include "cuda/port.h"

/* Rows, and columns, of a tile: one A operand of mma.sync.m16n8k16; and its bytes. */
static const uint32_t WEFT_CUDA_TILE = 16;
static const uint32_t WEFT_CUDA_TILE_SIZE = 512;
/* Rows of a panel of f32 weights: one warp. */
static const uint32_t WEFT_CUDA_PANEL = 32;
/* Tiles of one chunk, at most: 512 columns. Part of the numerics contract. */
static const uint32_t WEFT_CUDA_CHUNK_TILES = 32;
/* Tokens of one pass: bounds the scratch; more tokens take several passes. */
static const uint32_t WEFT_CUDA_TOKENS_MAX = 2048;
/* Sums waiting for their right-hand neighbour. */
static const uint32_t WEFT_CUDA_STACK_MAX = WEFT_LEAF_COUNT_MAX;

/* Columns [column_begin, column_begin + column_count), padded with zeros to tiles [tile_begin, tile_begin +
 * tile_count), both even for quantised weights and E4M3. Chunks tile the columns and the tiles in ascending order; an
 * empty leaf is one empty chunk. */
struct weft_cuda_chunk {
    uint32_t column_begin;
    uint32_t column_count;
    uint32_t tile_begin;
    uint32_t tile_count;
};

/*
 * One leaf, a step of the program: the sum of its chunks in order; then add_count times sum <- pop() + sum; then the
 * sum is node `node`, or is pushed when node is negative.
 */
struct weft_cuda_leaf {
    uint32_t chunk_begin;
    uint32_t chunk_count;
    uint32_t add_count;
    int32_t node;
};

/* Scales of weights kept as E4M3: matrix_f8.h. */
struct weft_cuda_scales {
    const float *values;     /* [row tile][count][16] */
    const uint32_t *columns; /* [tile] */
    uint32_t count;          /* of a row */
    uint32_t shift;          /* column c has scale (phase + c) >> shift */
    uint32_t phase;
    uint32_t chunk_count; /* of a row in a chunk, at most */
};

struct weft_matrix {
    enum weft_dtype dtype;
    enum weft_dtype source; /* of rows to be packed */
    bool is_from_f8;        /* rows come as E4M3 (weft/f8.h), and become bf16 */
    uint32_t scale_cols;    /* of E4M3, kept or not: as in its description */
    uint32_t scale_phase;
    uint32_t row_count;  /* of a gated matrix with padding: rows as they lie */
    uint32_t gate_count; /* F of a gated matrix, else 0 */
    uint32_t col_count;
    uint32_t leaf_count; /* 1 for a column-parallel matrix */
    uint32_t chunk_count;
    uint32_t node_count;
    uint32_t tile_count;                          /* of one row of tiles */
    uint32_t chunk_tiles;                         /* of the longest chunk */
    uint32_t stack_depth;                         /* most sums pushed at a time */
    bool is_aligned;                              /* chunks begin at multiples of 4 columns, and so do rows of x */
    size_t weights_size;                          /* bytes */
    uint32_t node_tile_ends[WEFT_LEAF_COUNT_MAX]; /* node i has the tiles from the end of node i - 1 on */
    struct weft_cuda_fast_matrix *fast;           /* matrix_fast.cu; NULL: multiplied as in exact; owned */
    unsigned char *memory;                        /* owned: weights with their scales, chunks, leaves, columns */
    const struct weft_cuda_chunk *chunks;         /* [chunk_count], device memory */
    const struct weft_cuda_leaf *leaves;          /* [leaf_count], device memory */
    struct weft_cuda_scales scales;               /* kept E4M3, device memory */
};

/* Elements of a row of its products. */
static inline uint32_t weft_cuda_out_width(const struct weft_matrix *matrix)
{
    return matrix->gate_count > 0 ? matrix->gate_count : matrix->row_count;
}

/*
 * What the kernels get. Weights of 16 bits: [row tile][tile][lane][columns / 2][row / 8][2], the operand of one lane in
 * 16 bytes as mma has it: lane l has rows l / 4 and l / 4 + 8, of each the four columns from 4 (l % 4) on. (The tensor
 * core's columns are thereby permuted inside a tile, for weights and activations alike.) Weights of 32 bits:
 * [panel][column][32 rows]. Quantised weights: matrix_quant.h; E4M3: matrix_f8.h. Rows of padding are zero.
 *
 * Of a gated matrix a row tile has 8 gates, then the 8 rows that they let through: the two of a pair are in one lane's
 * operand, and their sums in one thread.
 */
struct weft_cuda_product {
    const unsigned char *weights;
    const struct weft_cuda_chunk *chunks;
    const struct weft_cuda_leaf *leaves;
    uint32_t leaf_count;
    uint32_t chunk_count;
    uint32_t tile_count;
    uint32_t chunk_tiles; /* of the longest chunk */
    uint32_t row_count;
    uint32_t gate_count;
    uint32_t col_count;
    uint32_t token_count;
    const float *x;     /* [T, K] */
    const float *bias;  /* [N] or NULL */
    float *out;         /* [nodes, T, N] */
    size_t node_stride; /* elements from one node to the next in out */
    struct weft_cuda_scales scales;
};

/* Rows as they are handed over, in device memory, and where a kernel packs them to. */
struct weft_cuda_raw_rows {
    const unsigned char *rows; /* [row_count], how large each is the format knows */
    unsigned char *weights;
    const struct weft_cuda_chunk *chunks;
    uint32_t tile_count;
    uint32_t col_count;
    uint32_t gate_count;
    uint32_t row_begin;
    uint32_t row_count;
};

/* Row tiles that have some of them; there is at least one row. */
static inline uint32_t weft_cuda_raw_row_tiles(const struct weft_cuda_raw_rows *raw)
{
    return weft_cuda_divide_up(raw->row_begin + raw->row_count, WEFT_CUDA_TILE) - raw->row_begin / WEFT_CUDA_TILE;
}

/* Of the rows of a gated matrix (gate_count 0: any other) the place of the one that is written as `row`. */
static __device__ __forceinline__ uint32_t weft_cuda_row_place(uint32_t row, uint32_t gate_count)
{
    uint32_t half = WEFT_CUDA_TILE / 2;
    uint32_t is_up = row >= gate_count ? 1 : 0;
    uint32_t pair = row - is_up * gate_count;

    return gate_count == 0 ? row : pair / half * WEFT_CUDA_TILE + is_up * half + pair % half;
}

/* Element of a 16-bit tile: of the 256, the one of row r and column k. */
static __device__ __forceinline__ uint32_t weft_cuda_tile_index(uint32_t row, uint32_t column)
{
    return row % 8 * 32 + column / 4 * 8 + column % 4 / 2 * 4 + row / 8 * 2 + column % 2;
}

/* Element (row, column of the chunk) of f32 or 16 bits as f32; exact. */
static __device__ __forceinline__ float weft_cuda_weight(const struct weft_cuda_product *product, enum weft_dtype dtype,
                                                         const struct weft_cuda_chunk *chunk, uint32_t row,
                                                         uint32_t column)
{
    const unsigned char *weights = product->weights;
    size_t tile;
    uint16_t bits;

    if (dtype == WEFT_F32) {
        size_t index = (size_t)(row / WEFT_CUDA_PANEL) * product->col_count + chunk->column_begin + column;

        return ((const float *)weights)[index * WEFT_CUDA_PANEL + row % WEFT_CUDA_PANEL];
    }
    tile = (size_t)(row / WEFT_CUDA_TILE) * product->tile_count + chunk->tile_begin + column / WEFT_CUDA_TILE;
    bits = ((const uint16_t *)(weights + tile * WEFT_CUDA_TILE_SIZE))[weft_cuda_tile_index(row % WEFT_CUDA_TILE,
                                                                                           column % WEFT_CUDA_TILE)];
    return dtype == WEFT_BF16 ? weft_bf16_to_f32(bits) : weft_f16_to_f32(bits);
}

/* What comes of the sums of the gate in row `row` and of its other half, bias not yet added. Nothing for the rows of
 * other halves and of padding. */
static __device__ __forceinline__ void weft_cuda_store_gated(const struct weft_cuda_product *product, float gate,
                                                             float up, uint32_t token, uint32_t row)
{
    uint32_t half = WEFT_CUDA_TILE / 2;
    uint32_t pair = row / WEFT_CUDA_TILE * half + row % half;

    if (row % WEFT_CUDA_TILE < half && pair < product->gate_count) {
        if (product->bias != NULL) {
            gate = gate + product->bias[pair];
            up = up + product->bias[product->gate_count + pair];
        }
        product->out[(size_t)token * product->gate_count + pair] = gate / (1.0f + weft_exp(-gate)) * up;
    }
}

/* The sum of the only leaf. */
static __device__ __forceinline__ float weft_cuda_sum_chunks(const struct weft_cuda_product *product,
                                                             const float *values, size_t stride, bool has_leaf_sums)
{
    float sum = values[0];

    for (uint32_t i = 1; i < product->chunk_count && !has_leaf_sums; i++) {
        sum = sum + values[i * stride];
    }
    return sum;
}

/*
 * Runs the program for one row and token: values[i * stride] is the sum of chunk i, or of leaf i when has_leaf_sums;
 * nodes go to out[j * node_stride], with bias added. In a gated matrix the other half's values lie half a tile on.
 */
static __device__ __forceinline__ void weft_cuda_finish(const struct weft_cuda_product *product, const float *values,
                                                        size_t stride, bool has_leaf_sums, uint32_t token, uint32_t row)
{
    float *out = product->out + (size_t)token * product->row_count + row;
    float stack[WEFT_CUDA_STACK_MAX];
    uint32_t depth = 0;

    if (product->gate_count > 0) {
        if (row % WEFT_CUDA_TILE < WEFT_CUDA_TILE / 2) {
            weft_cuda_store_gated(product, weft_cuda_sum_chunks(product, values, stride, has_leaf_sums),
                                  weft_cuda_sum_chunks(product, values + WEFT_CUDA_TILE / 2, stride, has_leaf_sums),
                                  token, row);
        }
        return;
    }
    for (uint32_t i = 0; i < product->leaf_count; i++) {
        struct weft_cuda_leaf leaf = product->leaves[i];
        float sum = values[(has_leaf_sums ? i : leaf.chunk_begin) * stride];

        for (uint32_t j = 1; j < leaf.chunk_count && !has_leaf_sums; j++) {
            sum = sum + values[(leaf.chunk_begin + j) * stride];
        }
        for (uint32_t j = 0; j < leaf.add_count; j++) {
            sum = stack[--depth] + sum;
        }
        if (leaf.node < 0) {
            stack[depth++] = sum;
        } else {
            out[(size_t)leaf.node * product->node_stride] = product->bias != NULL ? sum + product->bias[row] : sum;
        }
    }
}

/* pack.cu: scratch of packing the matrix's rows. */
size_t weft_cuda_pack_scratch(const struct weft_matrix *matrix);

/* matrix_reference.cu: the CPU's order and bits, for every dtype. */
void weft_cuda_multiply_reference(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                  const struct weft_cuda_product *product);

/* matrix_few.cu: 16-bit weights and E4M3 on tensor cores, decode's few tokens; is_few says whether it can. */
bool weft_cuda_is_few(const struct weft_matrix *matrix, const struct weft_cuda_product *product);
void weft_cuda_multiply_few(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                            const struct weft_cuda_product *product);

/* matrix_quant_few.cu: the same for quantised weights; in scratch of weft_cuda_quant_few_scratch() bytes. */
bool weft_cuda_is_quant_few(const struct weft_matrix *matrix, uint32_t token_count);
void weft_cuda_multiply_quant_few(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                  const struct weft_cuda_product *product);
size_t weft_cuda_quant_few_scratch(const struct weft_matrix *matrix);

/* matrix_tiles.cu: 16-bit weights, E4M3 and quantised ones on tensor cores, up to WEFT_CUDA_TOKENS_MAX tokens, in
 * scratch of at most weft_cuda_tiles_scratch() bytes. */
void weft_cuda_multiply_tiles(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                              const struct weft_cuda_product *product);
size_t weft_cuda_tiles_scratch(const struct weft_cuda_device *device, const struct weft_matrix *matrix);

/* Once per device, before the first product: kernels that take more shared memory than every GPU gives unasked. */
void weft_cuda_few_init(struct weft_cuda_device *device);
void weft_cuda_quant_few_init(struct weft_cuda_device *device);
void weft_cuda_tiles_init(struct weft_cuda_device *device);

#endif
