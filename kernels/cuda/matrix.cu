/*
 * Weight matrices: the program of sums, packing at load, rows of embeddings, and who multiplies.
 *
 * Rows are packed on the GPU: they are copied as they are into scratch, piece by piece, and a kernel puts them in
 * their places, so that the host only copies.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/matrix_fast.h"
#include "cuda/matrix_quant.h"
#include "weft/f8.h"

static const uint32_t BLOCK = 256;          /* threads of the packing kernels */
static const size_t PIECE_SIZE = 8 << 20;   /* bytes of raw rows packed at a time, at least one row */
static const size_t MEMORY_ALIGNMENT = 256; /* of the parts of a matrix's memory */

/* ---- the program ---- */

struct program {
    uint32_t chunk_count;
    uint32_t tile_count;
    struct weft_cuda_chunk *chunks; /* [chunk_count], or NULL: only count */
    struct weft_cuda_leaf *leaves;  /* [leaf_count] */
};

static uint32_t gate_count_of(const struct weft_matrix_desc *desc)
{
    assert(!desc->is_gated || (desc->row_count % 2 == 0 && desc->leaves == NULL));
    return desc->is_gated ? desc->row_count / 2 : 0;
}

/* Rows as they lie: those of a gated matrix in whole tiles. */
static uint32_t row_count_of(const struct weft_matrix_desc *desc)
{
    return desc->is_gated ? weft_cuda_divide_up(gate_count_of(desc), WEFT_CUDA_TILE / 2) * WEFT_CUDA_TILE
                          : desc->row_count;
}

static uint32_t leaf_count_of(const struct weft_matrix_desc *desc)
{
    return desc->leaves != NULL ? desc->leaf_count : 1;
}

static struct weft_range leaf_of(const struct weft_matrix_desc *desc, uint32_t index)
{
    struct weft_range all = {0, desc->col_count};

    return desc->leaves != NULL ? desc->leaves[index] : all;
}

/* Columns of a tile, tiles of a chunk at most, and what the tiles of a chunk are padded to a multiple of. */
struct tiling {
    uint32_t columns;
    uint32_t chunk_tiles;
    uint32_t multiple;
};

static struct tiling tiling_of(enum weft_dtype dtype)
{
    if (weft_dtype_is_quantised(dtype)) {
        return {WEFT_QUANT_BLOCK, WEFT_QUANT_CHUNK_BLOCKS, WEFT_CUDA_PAIR};
    }
    return {WEFT_CUDA_TILE, WEFT_CUDA_CHUNK_TILES, 1};
}

/* Chunks of one leaf: their tiles differ by one at most, but for padding; the cut depends on the leaf's width alone. */
static void cut_leaf(struct tiling tiling, struct weft_range leaf, uint32_t leaf_index, struct program *program)
{
    uint32_t width = weft_range_count(leaf);
    uint32_t tiles = weft_cuda_divide_up(width, tiling.columns);
    uint32_t count = tiles > 0 ? weft_cuda_divide_up(tiles, tiling.chunk_tiles) : 1;

    if (program->chunks != NULL) {
        program->leaves[leaf_index] = {program->chunk_count, count, 0, -1};
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t tile_begin = (uint32_t)((uint64_t)tiles * i / count);
        uint32_t tile_end = (uint32_t)((uint64_t)tiles * (i + 1) / count);
        uint32_t tile_count = weft_cuda_divide_up(tile_end - tile_begin, tiling.multiple) * tiling.multiple;
        uint32_t begin = tile_begin * tiling.columns;
        uint32_t end = i + 1 < count ? tile_end * tiling.columns : width;

        if (program->chunks != NULL) {
            program->chunks[program->chunk_count] = {leaf.begin + begin, end - begin, program->tile_count, tile_count};
        }
        program->chunk_count++;
        program->tile_count += tile_count;
    }
}

/*
 * The tree as pops: an addition can happen when the last leaf of its right-hand side is done, and the stack's top then
 * is its left-hand side, because every slot covers a contiguous range and the left one ends where the right one begins.
 */
static void set_adds(const struct weft_matrix_desc *desc, struct program *program)
{
    uint32_t leaf_count = leaf_count_of(desc);
    uint32_t ends[WEFT_LEAF_COUNT_MAX]; /* slot i covers leaves [i, ends[i]); 0: merged into another */
    int32_t node = 0;

    for (uint32_t i = 0; i < leaf_count; i++) {
        ends[i] = i + 1;
    }
    for (uint32_t i = 0; desc->leaves != NULL && i < desc->add_count; i++) {
        struct weft_tree_add add = desc->adds[i];

        assert(add.left < add.right && add.right < leaf_count && ends[add.left] == add.right && ends[add.right] > 0);
        ends[add.left] = ends[add.right];
        program->leaves[ends[add.right] - 1].add_count++;
        ends[add.right] = 0;
    }
    for (uint32_t i = 0; i < leaf_count; i++) {
        if (ends[i] > 0) {
            program->leaves[ends[i] - 1].node = node++;
        }
    }
}

/* Counts, and when there is room for them the chunks and leaves. */
static void make_program(const struct weft_matrix_desc *desc, struct program *program)
{
    uint32_t leaf_count = leaf_count_of(desc);

    assert(leaf_count >= 1 && leaf_count <= WEFT_LEAF_COUNT_MAX);
    program->chunk_count = 0;
    program->tile_count = 0;
    for (uint32_t i = 0; i < leaf_count; i++) {
        cut_leaf(tiling_of(desc->dtype), leaf_of(desc, i), i, program);
    }
    if (program->chunks != NULL) {
        set_adds(desc, program);
    }
}

/* ---- size, open, close ---- */

/* E4M3 is kept as the bf16 that it is multiplied as: rows are converted on their way to the GPU. */
static struct weft_matrix_desc kept_desc(const struct weft_matrix_desc *desc)
{
    struct weft_matrix_desc kept = *desc;

    kept.dtype = desc->dtype == WEFT_F8_E4M3 ? WEFT_BF16 : desc->dtype;
    return kept;
}

static size_t weights_size(const struct weft_matrix_desc *desc, uint32_t tile_count)
{
    if (desc->dtype == WEFT_F32) {
        return (size_t)weft_cuda_divide_up(row_count_of(desc), WEFT_CUDA_PANEL) * WEFT_CUDA_PANEL * desc->col_count *
               sizeof(float);
    }
    if (weft_dtype_is_quantised(desc->dtype)) {
        return (size_t)weft_cuda_divide_up(row_count_of(desc), WEFT_CUDA_TILE) * (tile_count / WEFT_CUDA_PAIR) *
               weft_cuda_pair_size(desc->dtype == WEFT_Q4_0);
    }
    return (size_t)weft_cuda_divide_up(row_count_of(desc), WEFT_CUDA_TILE) * tile_count * WEFT_CUDA_TILE_SIZE;
}

static size_t program_size(uint32_t leaf_count, uint32_t chunk_count)
{
    return chunk_count * sizeof(struct weft_cuda_chunk) + leaf_count * sizeof(struct weft_cuda_leaf);
}

size_t weft_cuda_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    struct program program = {};
    struct weft_matrix_desc kept = kept_desc(desc);

    (void)device;
    make_program(&kept, &program);
    return weft_cuda_align_up(weights_size(&kept, program.tile_count), MEMORY_ALIGNMENT) +
           weft_cuda_align_up(program_size(leaf_count_of(&kept), program.chunk_count), MEMORY_ALIGNMENT);
}

static uint32_t stack_depth(const struct weft_cuda_leaf *leaves, uint32_t count)
{
    uint32_t depth = 0;
    uint32_t most = 0;

    for (uint32_t i = 0; i < count; i++) {
        assert(leaves[i].add_count <= depth);
        depth -= leaves[i].add_count;
        depth += leaves[i].node < 0 ? 1 : 0;
        most = depth > most ? depth : most;
    }
    assert(depth == 0 && most <= WEFT_CUDA_STACK_MAX);
    return most;
}

/* Fills what follows from the description, and the program in host memory: chunks, then leaves. */
static void describe(const struct weft_matrix_desc *desc, struct weft_matrix *matrix, unsigned char *host)
{
    struct program program = {};

    program.chunks = (struct weft_cuda_chunk *)host;
    program.leaves = (struct weft_cuda_leaf *)(program.chunks + matrix->chunk_count);
    make_program(desc, &program);
    matrix->stack_depth = stack_depth(program.leaves, matrix->leaf_count);
    matrix->is_aligned = desc->col_count % 4 == 0;
    for (uint32_t i = 0; i < matrix->chunk_count; i++) {
        matrix->is_aligned = matrix->is_aligned && program.chunks[i].column_begin % 4 == 0;
    }
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        const struct weft_cuda_leaf *leaf = &program.leaves[i];
        const struct weft_cuda_chunk *last = &program.chunks[leaf->chunk_begin + leaf->chunk_count - 1];

        if (leaf->node >= 0) {
            matrix->node_tile_ends[leaf->node] = last->tile_begin + last->tile_count;
        }
    }
}

static enum weft_status open_memory(struct weft_device *device, const struct weft_matrix_desc *desc,
                                    struct weft_matrix *matrix)
{
    size_t size = program_size(matrix->leaf_count, matrix->chunk_count);
    unsigned char *host = (unsigned char *)malloc(size);
    enum weft_status status = WEFT_ERR_MEMORY;
    unsigned char *program;

    matrix->memory = (unsigned char *)weft_cuda_alloc(device, weft_cuda_matrix_size(device, desc));
    if (host != NULL && matrix->memory != NULL) {
        describe(desc, matrix, host);
        program = matrix->memory + weft_cuda_align_up(matrix->weights_size, MEMORY_ALIGNMENT);
        matrix->chunks = (const struct weft_cuda_chunk *)program;
        matrix->leaves = (const struct weft_cuda_leaf *)(matrix->chunks + matrix->chunk_count);
        status = weft_cuda_write(device, program, host, size);
    }
    free(host);
    return status;
}

/* Whether tensor cores multiply; quantised matrices have the same bits on them as anywhere. */
static bool is_tensor(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    return weft_dtype_is_quantised(matrix->dtype) ||
           (matrix->dtype != WEFT_F32 && device->numerics != WEFT_CUDA_REFERENCE);
}

/* All that is known of it before there is memory, but for the depth of its stack. */
static void set_shape(const struct weft_matrix_desc *desc, struct weft_matrix *matrix)
{
    struct program counts = {};

    make_program(desc, &counts);
    matrix->dtype = desc->dtype;
    matrix->source = weft_dtype_is_quantised(desc->dtype) ? desc->source : desc->dtype;
    assert(!weft_dtype_is_quantised(matrix->source));
    matrix->row_count = row_count_of(desc);
    matrix->gate_count = gate_count_of(desc);
    matrix->col_count = desc->col_count;
    matrix->leaf_count = leaf_count_of(desc);
    matrix->node_count = matrix->leaf_count - (desc->leaves != NULL ? desc->add_count : 0);
    matrix->chunk_count = counts.chunk_count;
    matrix->tile_count = counts.tile_count;
    matrix->weights_size = weights_size(desc, counts.tile_count);
}

/* Bytes of a row to be packed, and how many are packed at a time, at most. */
static size_t raw_row_size(const struct weft_matrix *matrix)
{
    return matrix->col_count * weft_dtype_size(matrix->source);
}

static uint32_t raw_rows_max(const struct weft_matrix *matrix)
{
    size_t rows = raw_row_size(matrix) == 0 ? matrix->row_count : PIECE_SIZE / raw_row_size(matrix);

    return rows < 1 ? 1 : rows < matrix->row_count ? (uint32_t)rows : matrix->row_count;
}

/* Of packing, and of multiplying on tensor cores. */
static size_t scratch_size(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    size_t raw = raw_row_size(matrix) * (matrix->row_count > 0 ? raw_rows_max(matrix) : 0);
    size_t tiles = is_tensor(device, matrix) ? weft_cuda_tiles_scratch(device, matrix) : 0;
    size_t few = weft_dtype_is_quantised(matrix->dtype) ? weft_cuda_quant_few_scratch(matrix) : 0;
    size_t fast = weft_cuda_fast_scratch(device, matrix);
    size_t most = tiles > few ? tiles : few;

    most = most > fast ? most : fast;
    return most > raw ? most : raw;
}

enum weft_status weft_cuda_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                       struct weft_matrix **out)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    struct weft_matrix *matrix;
    enum weft_status status = WEFT_ERR_MEMORY;

    matrix = (struct weft_matrix *)calloc(1, sizeof(*matrix));
    if (matrix != NULL) {
        struct weft_matrix_desc kept = kept_desc(desc);

        set_shape(&kept, matrix);
        matrix->is_from_f8 = desc->dtype == WEFT_F8_E4M3;
        matrix->scale_cols = desc->scale_cols;
        matrix->scale_phase = desc->scale_phase;
        status = open_memory(device, &kept, matrix);
    }
    if (status == WEFT_OK && is_tensor(cuda, matrix)) {
        weft_cuda_few_init(cuda);
        weft_cuda_quant_few_init(cuda);
        weft_cuda_tiles_init(cuda);
        status = weft_cuda_fast_matrix_open(cuda, matrix);
    }
    if (status != WEFT_OK) {
        if (matrix != NULL) {
            weft_cuda_matrix_close(device, matrix);
        }
        return status;
    }
    *out = matrix;
    return WEFT_OK;
}

size_t weft_cuda_matrix_scratch_size(const struct weft_device *base, const struct weft_matrix_desc *desc)
{
    const struct weft_cuda_device *device = reinterpret_cast<const struct weft_cuda_device *>(base);
    struct weft_matrix_desc kept = kept_desc(desc);
    struct weft_matrix matrix = {};

    set_shape(&kept, &matrix);
    unsigned char *program = (unsigned char *)malloc(program_size(matrix.leaf_count, matrix.chunk_count));
    if (program == NULL) {
        return 0; /* then opening the matrix will fail, too */
    }
    describe(&kept, &matrix, program);
    free(program);
    return scratch_size(device, &matrix);
}

void weft_cuda_matrix_close(struct weft_device *device, struct weft_matrix *matrix)
{
    if (matrix->memory != NULL) {
        weft_cuda_free(device, matrix->memory);
    }
    weft_cuda_fast_matrix_close(matrix);
    free(matrix);
}

/* ---- packing ---- */

/* Raw rows in device memory and where they go. */
struct pack_args {
    const unsigned char *rows; /* [row_count][col_count] */
    unsigned char *weights;
    const struct weft_cuda_chunk *chunks;
    uint32_t tile_count;
    uint32_t col_count;
    uint32_t gate_count;
    uint32_t row_begin;
    uint32_t row_count;
};

/* A block has one row; threads have its columns. */
static __global__ void pack_32(struct pack_args args)
{
    uint32_t row = weft_cuda_row_place(args.row_begin + blockIdx.x, args.gate_count);
    const float *from = (const float *)args.rows + (size_t)blockIdx.x * args.col_count;
    float *to = (float *)args.weights + (size_t)(row / WEFT_CUDA_PANEL) * args.col_count * WEFT_CUDA_PANEL;

    for (uint32_t k = threadIdx.x; k < args.col_count; k += blockDim.x) {
        to[(size_t)k * WEFT_CUDA_PANEL + row % WEFT_CUDA_PANEL] = from[k];
    }
}

/*
 * A block has one row tile and one chunk, a thread the four columns of one row that a lane has. Eight neighbouring
 * threads have the two rows of four lanes, 16 columns each, read and written in whole 32-byte sectors.
 */
static __global__ void pack_16(struct pack_args args)
{
    struct weft_cuda_chunk chunk = args.chunks[blockIdx.y];
    uint32_t row_tile = args.row_begin / WEFT_CUDA_TILE + blockIdx.x;

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * 64; i += blockDim.x) {
        uint32_t tile = i / 64;
        uint32_t lane = i % 64 / 2;
        uint32_t row = row_tile * WEFT_CUDA_TILE + lane / 4 + i % 2 * 8;
        uint32_t column = tile * WEFT_CUDA_TILE + lane % 4 * 4;

        if (row >= args.row_begin && row < args.row_begin + args.row_count) {
            const uint16_t *from = (const uint16_t *)args.rows + (size_t)(row - args.row_begin) * args.col_count +
                                   chunk.column_begin + column;
            uint32_t place = weft_cuda_row_place(row, args.gate_count);
            ushort2 *to = (ushort2 *)(args.weights +
                                      ((size_t)(place / WEFT_CUDA_TILE) * args.tile_count + chunk.tile_begin + tile) *
                                          WEFT_CUDA_TILE_SIZE) +
                          (place % 8 * 4 + lane % 4) * 4 + place % WEFT_CUDA_TILE / 8;

            to[0] =
                make_ushort2(column < chunk.column_count ? from[0] : 0, column + 1 < chunk.column_count ? from[1] : 0);
            to[2] = make_ushort2(column + 2 < chunk.column_count ? from[2] : 0,
                                 column + 3 < chunk.column_count ? from[3] : 0);
        }
    }
}

/* Packs rows that lie in device memory. */
static void pack(struct weft_cuda_device *device, const struct weft_matrix *matrix, uint32_t row_begin,
                 uint32_t row_count, const void *rows)
{
    struct pack_args args = {};
    uint32_t tile_begin = row_begin / WEFT_CUDA_TILE;
    uint32_t tile_end = weft_cuda_divide_up(row_begin + row_count, WEFT_CUDA_TILE);

    args.rows = (const unsigned char *)rows;
    args.weights = matrix->memory;
    args.chunks = matrix->chunks;
    args.tile_count = matrix->tile_count;
    args.col_count = matrix->col_count;
    args.gate_count = matrix->gate_count;
    args.row_begin = row_begin;
    args.row_count = row_count;
    if (weft_dtype_is_quantised(matrix->dtype)) {
        weft_cuda_quantise_rows(device, matrix, row_begin, row_count, rows);
    } else if (matrix->dtype == WEFT_F32) {
        WEFT_CUDA_LAUNCH(pack_32, dim3(row_count), dim3(BLOCK), 0, device->stream, args);
    } else {
        WEFT_CUDA_LAUNCH(pack_16, dim3(tile_end - tile_begin, matrix->chunk_count), dim3(BLOCK), 0, device->stream,
                         args);
    }
    weft_cuda_launched(device, "packing a matrix");
    device->has_fresh_weights = true;
}

/* to[col_count] <- a row of E4M3 as bf16. */
static void convert_row(const struct weft_matrix *matrix, const unsigned char *row, uint16_t *to)
{
    const unsigned char *bytes =
        row + weft_f8_row_size(matrix->col_count, matrix->scale_cols, matrix->scale_phase) - matrix->col_count;

    for (uint32_t k = 0; k < matrix->col_count; k++) {
        float scale;

        memcpy(&scale, row + weft_f8_scale_index(k, matrix->scale_cols, matrix->scale_phase) * sizeof(scale),
               sizeof(scale));
        to[k] = weft_f8_weight(bytes[k], scale);
    }
}

/* to[row_count][row_size], without gaps. */
static void gather_rows(const struct weft_matrix *matrix, unsigned char *to, const unsigned char *rows,
                        size_t row_stride, uint32_t row_count, size_t row_size)
{
    for (uint32_t i = 0; i < row_count && matrix->is_from_f8; i++) {
        convert_row(matrix, rows + i * row_stride, (uint16_t *)(to + i * row_size));
    }
    for (uint32_t i = 0; i < row_count && !matrix->is_from_f8; i++) {
        memcpy(to + i * row_size, rows + i * row_stride, row_size);
    }
}

enum weft_status weft_cuda_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                             uint32_t row_count, const void *rows, size_t row_stride)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    size_t row_size = raw_row_size(matrix);
    uint32_t piece_rows = raw_rows_max(matrix);
    bool is_gathered = row_stride != row_size || matrix->is_from_f8;
    unsigned char *gathered = NULL;
    enum weft_status status = WEFT_OK;
    void *raw;

    assert(row_begin <= matrix->row_count && row_count <= matrix->row_count - row_begin);
    if (row_count == 0 || row_size == 0) {
        return WEFT_OK;
    }
    piece_rows = piece_rows < row_count ? piece_rows : row_count;
    raw = weft_cuda_scratch(cuda, piece_rows * row_size);
    if (is_gathered) {
        gathered = (unsigned char *)malloc(piece_rows * row_size);
    }
    if (raw == NULL || (is_gathered && gathered == NULL)) {
        free(gathered);
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t done = 0; done < row_count && status == WEFT_OK; done += piece_rows) {
        uint32_t count = row_count - done < piece_rows ? row_count - done : piece_rows;
        const unsigned char *from = (const unsigned char *)rows + done * row_stride;

        if (gathered != NULL) {
            gather_rows(matrix, gathered, from, row_stride, count, row_size);
            from = gathered;
        }
        status = weft_cuda_write(device, raw, from, count * row_size);
        if (status == WEFT_OK) {
            pack(cuda, matrix, row_begin + done, count, raw);
        }
    }
    free(gathered);
    return status;
}

/* ---- embedding ---- */

/* A block has one row of the output and one chunk of the columns. */
static __global__ void embed(struct weft_cuda_product product, enum weft_dtype dtype, const uint32_t *rows)
{
    struct weft_cuda_chunk chunk = product.chunks[blockIdx.y];
    uint32_t row = rows[blockIdx.x];
    float *out = product.out + (size_t)blockIdx.x * product.col_count + chunk.column_begin;

    for (uint32_t k = threadIdx.x; k < chunk.column_count; k += blockDim.x) {
        if (row == WEFT_NO_ROW) {
            out[k] = -0.0f;
        } else {
            out[k] = dtype == WEFT_Q8_0 || dtype == WEFT_Q4_0
                         ? weft_cuda_quant_weight(&product, dtype == WEFT_Q4_0, &chunk, row, k)
                         : weft_cuda_weight(&product, dtype, &chunk, row, k);
        }
    }
}

static struct weft_cuda_product product_of(const struct weft_matrix *matrix)
{
    struct weft_cuda_product product = {};

    product.weights = matrix->memory;
    product.chunks = matrix->chunks;
    product.leaves = matrix->leaves;
    product.leaf_count = matrix->leaf_count;
    product.chunk_count = matrix->chunk_count;
    product.tile_count = matrix->tile_count;
    product.row_count = matrix->row_count;
    product.gate_count = matrix->gate_count;
    product.col_count = matrix->col_count;
    return product;
}

void weft_cuda_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                     float *out)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    struct weft_cuda_product product = product_of(matrix);
    const uint32_t *uploaded;

    assert(matrix->gate_count == 0);
    for (uint32_t i = 0; i < count; i++) {
        assert(rows[i] < matrix->row_count || rows[i] == WEFT_NO_ROW);
    }
    if (count == 0) {
        return;
    }
    uploaded = (const uint32_t *)weft_cuda_upload(cuda, rows, count * sizeof(*rows));
    product.out = out;
    WEFT_CUDA_LAUNCH(embed, dim3(count, matrix->chunk_count), dim3(BLOCK), 0, cuda->stream, product, matrix->dtype,
                     uploaded);
    weft_cuda_launched(cuda, "embed");
}

/* ---- multiplication ---- */

void weft_cuda_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x,
                      uint32_t token_count, const float *bias, float *out)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    struct weft_cuda_product product = product_of(matrix);

    assert(bias == NULL || matrix->node_count == 1);
    if (matrix->row_count == 0) {
        return;
    }
    product.bias = bias;
    product.node_stride = (size_t)token_count * matrix->row_count;
    product.token_count = token_count;
    product.x = x;
    product.out = out;
    for (uint32_t first = weft_cuda_multiply_fast(cuda, matrix, &product); first < token_count;
         first += WEFT_CUDA_TOKENS_MAX) {
        uint32_t rest = token_count - first;

        product.token_count = rest < WEFT_CUDA_TOKENS_MAX ? rest : WEFT_CUDA_TOKENS_MAX;
        product.x = x + (size_t)first * matrix->col_count;
        product.out = out + (size_t)first * weft_cuda_out_width(matrix);
        if (!is_tensor(cuda, matrix)) {
            weft_cuda_multiply_reference(cuda, matrix, &product);
        } else if (weft_dtype_is_quantised(matrix->dtype) && weft_cuda_is_quant_few(matrix, product.token_count)) {
            weft_cuda_multiply_quant_few(cuda, matrix, &product);
        } else if (!weft_dtype_is_quantised(matrix->dtype) &&
                   weft_cuda_is_few(matrix, product.x, product.token_count)) {
            weft_cuda_multiply_few(cuda, matrix, &product);
        } else {
            weft_cuda_multiply_tiles(cuda, matrix, &product);
        }
    }
}
