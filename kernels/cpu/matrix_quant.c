/* Quantised matrices: packing, which quantises, rows as embeddings, and the activations of a multiplication. */
#include <assert.h>
#include <string.h>

#include "cpu/matrix.h"
#include "cpu/quant_panel.h"
#include "weft/numeric.h"

/* One block of a matrix: which columns, and where in a panel. */
struct block {
    uint32_t column;
    uint32_t column_count; /* 1 .. 32 */
    size_t scales;         /* bytes from the start of the panel */
    size_t values;
};

/* Calls visit(context, block) for each block of the matrix, in the order in which a panel holds them. */
typedef void visit_fn(void *context, const struct block *block);

static void visit_chunk(const struct weft_matrix *matrix, struct weft_range blocks, struct weft_range leaf,
                        size_t offset, visit_fn *visit, void *context)
{
    size_t values = offset + weft_quant_scales_size(weft_range_count(blocks));

    for (uint32_t b = blocks.begin; b < blocks.end; b++) {
        uint32_t column = leaf.begin + b * WEFT_QUANT_BLOCK;
        struct block block = {.column = column,
                              .column_count = weft_min_u32(leaf.end - column, WEFT_QUANT_BLOCK),
                              .scales = offset + (size_t)(b - blocks.begin) * WEFT_QUANT_BLOCK_SCALES_SIZE,
                              .values = values + (b - blocks.begin) * weft_quant_block_size(matrix->dtype)};

        visit(context, &block);
    }
}

static void visit_blocks(const struct weft_matrix *matrix, visit_fn *visit, void *context)
{
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        uint32_t block_count = weft_quant_block_count(weft_range_count(matrix->leaves[i]));
        size_t offset = matrix->leaf_offsets[i];

        for (uint32_t c = 0; c < weft_quant_chunk_count(block_count); c++) {
            struct weft_range blocks = {weft_quant_chunk_begin(block_count, c),
                                        weft_quant_chunk_begin(block_count, c + 1)};

            visit_chunk(matrix, blocks, matrix->leaves[i], offset, visit, context);
            offset += weft_quant_chunk_size(matrix->dtype, weft_range_count(blocks));
        }
    }
}

/* ---- packing ---- */

struct pack_row {
    const struct weft_matrix *matrix;
    const struct weft_cpu_kernels *kernels;
    const unsigned char *row;
    unsigned char *panel;
    uint32_t lane;
};

/* x[32] <- the columns of a block as f32, then zeros. */
static void load_block(const struct pack_row *pack, const struct block *block, float *x)
{
    size_t size = weft_dtype_size(pack->matrix->source);
    const unsigned char *from = pack->row + block->column * size;
    uint16_t bits[WEFT_QUANT_BLOCK] = {0};

    if (pack->matrix->source == WEFT_F32) {
        memset(x, 0, WEFT_QUANT_BLOCK * sizeof(*x));
        memcpy(x, from, block->column_count * size);
        return;
    }
    memcpy(bits, from, block->column_count * size);
    for (uint32_t k = 0; k < WEFT_QUANT_BLOCK; k++) {
        x[k] = pack->matrix->source == WEFT_F16 ? weft_f16_to_f32(bits[k]) : weft_bf16_to_f32(bits[k]);
    }
}

static void pack_q8_0(const int8_t *values, unsigned char *to)
{
    for (uint32_t quad = 0; quad < WEFT_QUANT_QUADS; quad++) {
        for (uint32_t k = 0; k < WEFT_QUANT_QUAD; k++) {
            to[quad * WEFT_QUANT_QUAD_SIZE + k] =
                (unsigned char)(values[quad * WEFT_QUANT_QUAD + k] + WEFT_Q8_0_OFFSET);
        }
    }
}

static void pack_q4_0(const int8_t *values, unsigned char *to)
{
    for (uint32_t pair = 0; pair < WEFT_QUANT_QUADS / 2; pair++) {
        const int8_t *even = values + (size_t)pair * 2 * WEFT_QUANT_QUAD;
        const int8_t *odd = even + WEFT_QUANT_QUAD;

        for (uint32_t k = 0; k < WEFT_QUANT_QUAD; k++) {
            to[pair * WEFT_QUANT_QUAD_SIZE + k] =
                (unsigned char)((even[k] + WEFT_Q4_0_OFFSET) | (odd[k] + WEFT_Q4_0_OFFSET) << 4);
        }
    }
}

static void pack_block(void *context, const struct block *block)
{
    const struct pack_row *pack = context;
    unsigned char *values_to = pack->panel + block->values + (size_t)pack->lane * WEFT_QUANT_QUAD;
    float x[WEFT_QUANT_BLOCK];
    int8_t values[WEFT_QUANT_BLOCK];
    uint16_t scale;

    load_block(pack, block, x);
    if (pack->matrix->dtype == WEFT_Q8_0) {
        pack->kernels->quantise_q8_0(x, values, &scale);
        pack_q8_0(values, values_to);
    } else {
        pack->kernels->quantise_q4_0(x, values, &scale);
        pack_q4_0(values, values_to);
    }
    memcpy(pack->panel + block->scales + pack->lane * sizeof(scale), &scale, sizeof(scale));
}

void weft_cpu_quant_pack(const struct weft_matrix *matrix, const struct weft_cpu_kernels *kernels,
                         const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                         unsigned char *panel)
{
    for (uint32_t i = 0; i < lane_count; i++) {
        struct pack_row pack = {
            .matrix = matrix, .kernels = kernels, .row = rows[i], .panel = panel, .lane = first_lane + i};

        visit_blocks(matrix, pack_block, &pack);
    }
}

/* ---- rows as embeddings ---- */

struct unpack_row {
    const struct weft_matrix *matrix;
    const unsigned char *panel;
    uint32_t lane;
    float *out;
};

static void unpack_block(void *context, const struct block *block)
{
    const struct unpack_row *unpack = context;
    bool is_q8 = unpack->matrix->dtype == WEFT_Q8_0;
    const unsigned char *values = unpack->panel + block->values + (size_t)unpack->lane * WEFT_QUANT_QUAD;
    uint16_t scale;

    memcpy(&scale, unpack->panel + block->scales + unpack->lane * sizeof(scale), sizeof(scale));
    for (uint32_t k = 0; k < block->column_count; k++) {
        uint32_t quad = k / WEFT_QUANT_QUAD;
        uint32_t byte = values[(is_q8 ? quad : quad / 2) * WEFT_QUANT_QUAD_SIZE + k % WEFT_QUANT_QUAD];
        uint32_t nibble = quad % 2 == 0 ? byte & 0xf : byte >> 4;
        int32_t value = is_q8 ? (int32_t)byte - WEFT_Q8_0_OFFSET : (int32_t)nibble - WEFT_Q4_0_OFFSET;

        unpack->out[block->column + k] = (float)value * weft_f16_to_f32(scale);
    }
}

void weft_cpu_quant_unpack(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t lane, float *out)
{
    struct unpack_row unpack = {.matrix = matrix, .panel = panel, .lane = lane, .out = out};

    visit_blocks(matrix, unpack_block, &unpack);
}

/* ---- activations ---- */

struct activations_job {
    struct weft_cpu_device *device;
    const struct weft_matrix *matrix;
    const float *x;
};

static void activations_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct activations_job *job = context;
    const struct weft_matrix *matrix = job->matrix;

    (void)worker;
    for (uint32_t t = begin; t < end; t++) {
        const float *x = job->x + (size_t)t * matrix->col_count;
        struct weft_cpu_quant_x *blocks = job->device->quant_x + (size_t)t * matrix->block_count;

        for (uint32_t i = 0; i < matrix->leaf_count; i++) {
            struct weft_range leaf = matrix->leaves[i];

            job->device->kernels.quantise_x(x + leaf.begin, weft_range_count(leaf), weft_quant_offset(matrix->dtype),
                                            blocks + matrix->leaf_blocks[i]);
        }
    }
}

uint32_t weft_cpu_quant_tokens_max(const struct weft_matrix *matrix)
{
    assert(matrix->block_count <= WEFT_CPU_QUANT_BLOCKS);
    return WEFT_CPU_QUANT_BLOCKS / (matrix->block_count > 0 ? matrix->block_count : 1);
}

void weft_cpu_quant_activations(struct weft_cpu_device *device, const struct weft_matrix *matrix, const float *x,
                                uint32_t token_count)
{
    struct activations_job job = {.device = device, .matrix = matrix, .x = x};

    weft_pool_run(device->pool, WEFT_POOL_STATIC, token_count, activations_task, &job);
}
