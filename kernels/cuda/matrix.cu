/* Weight matrices: the program of sums, rows of embeddings, and who multiplies. */
#include <assert.h>
#include <stdlib.h>

#include "cuda/matrix_f8.h"
#include "cuda/matrix_fast.h"
#include "cuda/matrix_quant.h"

static const uint32_t BLOCK = 256;          /* threads of the embedding's kernel */
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
    return {WEFT_CUDA_TILE, WEFT_CUDA_CHUNK_TILES, dtype == WEFT_F8_E4M3 ? WEFT_CUDA_F8_PAIR : 1};
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

/* E4M3 that cannot be kept is kept as the bf16 that it is multiplied as: rows are converted on their way to the GPU. */
static struct weft_matrix_desc kept_desc(const struct weft_matrix_desc *desc)
{
    struct weft_matrix_desc kept = *desc;

    if (desc->dtype == WEFT_F8_E4M3 && !weft_cuda_f8_can_keep(desc)) {
        kept.dtype = WEFT_BF16;
    }
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
    if (desc->dtype == WEFT_F8_E4M3) {
        return weft_cuda_f8_size(desc, row_count_of(desc), tile_count);
    }
    return (size_t)weft_cuda_divide_up(row_count_of(desc), WEFT_CUDA_TILE) * tile_count * WEFT_CUDA_TILE_SIZE;
}

/* Chunks, leaves, and for E4M3 the columns of the tiles. */
static size_t program_size(const struct weft_matrix_desc *desc, uint32_t chunk_count, uint32_t tile_count)
{
    return chunk_count * sizeof(struct weft_cuda_chunk) + leaf_count_of(desc) * sizeof(struct weft_cuda_leaf) +
           (desc->dtype == WEFT_F8_E4M3 ? tile_count * sizeof(uint32_t) : 0);
}

size_t weft_cuda_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    struct program program = {};
    struct weft_matrix_desc kept = kept_desc(desc);

    (void)device;
    make_program(&kept, &program);
    return weft_cuda_align_up(weights_size(&kept, program.tile_count), MEMORY_ALIGNMENT) +
           weft_cuda_align_up(program_size(&kept, program.chunk_count, program.tile_count), MEMORY_ALIGNMENT);
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

/* Fills what follows from the description, and the program in host memory: chunks, leaves, columns. */
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
        if (program.chunks[i].tile_count > matrix->chunk_tiles) {
            matrix->chunk_tiles = program.chunks[i].tile_count;
        }
    }
    if (desc->dtype == WEFT_F8_E4M3) {
        matrix->scales = weft_cuda_f8_scales(desc);
        weft_cuda_f8_set_columns(desc, program.chunks, matrix->chunk_count,
                                 (uint32_t *)(program.leaves + matrix->leaf_count));
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
    size_t size = program_size(desc, matrix->chunk_count, matrix->tile_count);
    unsigned char *host = (unsigned char *)malloc(size);
    enum weft_status status = WEFT_ERR_MEMORY;
    unsigned char *program;

    matrix->memory = (unsigned char *)weft_cuda_alloc(device, weft_cuda_matrix_size(device, desc));
    if (host != NULL && matrix->memory != NULL) {
        describe(desc, matrix, host);
        program = matrix->memory + weft_cuda_align_up(matrix->weights_size, MEMORY_ALIGNMENT);
        matrix->chunks = (const struct weft_cuda_chunk *)program;
        matrix->leaves = (const struct weft_cuda_leaf *)(matrix->chunks + matrix->chunk_count);
        if (desc->dtype == WEFT_F8_E4M3) {
            matrix->scales.columns = (const uint32_t *)(matrix->leaves + matrix->leaf_count);
            matrix->scales.values =
                (const float *)(matrix->memory + weft_cuda_f8_tiles_size(matrix->row_count, matrix->tile_count));
        }
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
    matrix->scale_cols = desc->scale_cols;
    matrix->scale_phase = desc->scale_phase;
    matrix->leaf_count = leaf_count_of(desc);
    matrix->node_count = matrix->leaf_count - (desc->leaves != NULL ? desc->add_count : 0);
    matrix->chunk_count = counts.chunk_count;
    matrix->tile_count = counts.tile_count;
    matrix->weights_size = weights_size(desc, counts.tile_count);
}

/* Of packing, and of multiplying on tensor cores. */
static size_t scratch_size(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    size_t raw = weft_cuda_pack_scratch(matrix);
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
        matrix->is_from_f8 = desc->dtype != kept.dtype;
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
    unsigned char *program = (unsigned char *)malloc(program_size(&kept, matrix.chunk_count, matrix.tile_count));
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

/* ---- embedding ---- */

static __device__ __forceinline__ float embedded(const struct weft_cuda_product *product, enum weft_dtype dtype,
                                                 const struct weft_cuda_chunk *chunk, uint32_t row, uint32_t column)
{
    if (dtype == WEFT_Q8_0 || dtype == WEFT_Q4_0) {
        return weft_cuda_quant_weight(product, dtype == WEFT_Q4_0, chunk, row, column);
    }
    return dtype == WEFT_F8_E4M3 ? weft_cuda_f8_weight(product, chunk, row, column)
                                 : weft_cuda_weight(product, dtype, chunk, row, column);
}

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
            out[k] = embedded(&product, dtype, &chunk, row, k);
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
    product.chunk_tiles = matrix->chunk_tiles;
    product.scales = matrix->scales;
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
    if (uploaded == NULL) {
        return;
    }
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
        } else if (!weft_dtype_is_quantised(matrix->dtype) && weft_cuda_is_few(matrix, &product)) {
            weft_cuda_multiply_few(cuda, matrix, &product);
        } else {
            weft_cuda_multiply_tiles(cuda, matrix, &product);
        }
    }
}
