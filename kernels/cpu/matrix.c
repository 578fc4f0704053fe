/*
 * Weight matrices: packed into panels of 16 rows, leaf by leaf; rows as embeddings. matmul.c multiplies.
 *
 * A panel of K columns is contiguous; panels follow one another. The last panel is padded with zero rows.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/matrix.h"
#include "cpu/quant_panel.h"
#include "weft/log.h"
#include "weft/numeric.h"

/* Bytes of a leaf in a panel. bf16 keeps pairs of columns together: an odd last column takes a whole pair. */
static size_t leaf_size(enum weft_dtype dtype, uint32_t col_count)
{
    size_t columns = dtype == WEFT_BF16 ? (size_t)col_count + col_count % 2 : col_count;

    if (weft_dtype_is_quantised(dtype)) {
        return weft_quant_leaf_size(dtype, weft_quant_block_count(col_count));
    }
    return columns * WEFT_LANES * weft_dtype_size(dtype);
}

size_t weft_cpu_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    size_t panel_size = desc->leaves == NULL ? leaf_size(desc->dtype, desc->col_count) : 0;
    size_t panel_count = weft_cpu_panel_count(desc->row_count, desc->is_gated ? desc->row_count / 2 : 0);

    (void)device;
    if (desc->dtype == WEFT_F8_E4M3) {
        return panel_count * weft_cpu_f8_panel_size(desc);
    }
    for (uint32_t i = 0; desc->leaves != NULL && i < desc->leaf_count; i++) {
        panel_size += leaf_size(desc->dtype, weft_range_count(desc->leaves[i]));
    }
    return panel_count * panel_size;
}

/* The device has it from the start, but only quantised matrices touch its pages. */
size_t weft_cpu_matrix_scratch_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    (void)device;
    return weft_dtype_is_quantised(desc->dtype) ? WEFT_CPU_QUANT_BLOCKS * sizeof(struct weft_cpu_quant_x) : 0;
}

static void set_leaves(struct weft_matrix *matrix, const struct weft_matrix_desc *desc)
{
    bool is_consumed[WEFT_LEAF_COUNT_MAX] = {false};
    uint32_t column = 0;

    if (desc->leaves == NULL) {
        matrix->leaf_count = 1;
        matrix->leaves[0] = (struct weft_range){0, desc->col_count};
    } else {
        assert(desc->leaf_count >= 1 && desc->leaf_count <= WEFT_LEAF_COUNT_MAX && desc->add_count < desc->leaf_count);
        matrix->leaf_count = desc->leaf_count;
        matrix->add_count = desc->add_count;
        memcpy(matrix->leaves, desc->leaves, desc->leaf_count * sizeof(*desc->leaves));
        if (desc->add_count > 0) {
            memcpy(matrix->adds, desc->adds, desc->add_count * sizeof(*desc->adds));
        }
    }
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        struct weft_range leaf = matrix->leaves[i];

        assert(leaf.begin == column && leaf.begin <= leaf.end && (leaf.begin % 2 == 0 || leaf.begin == leaf.end));
        column = leaf.end;
        matrix->leaf_offsets[i] = matrix->panel_size;
        matrix->panel_size += leaf_size(matrix->dtype, weft_range_count(leaf));
        matrix->leaf_blocks[i] = matrix->block_count;
        matrix->block_count += weft_quant_block_count(weft_range_count(leaf));
    }
    assert(column == matrix->col_count);
    if (matrix->dtype == WEFT_F8_E4M3) { /* of which leaf_offsets know nothing */
        matrix->panel_size = weft_cpu_f8_panel_size(desc);
    }
    for (uint32_t i = 0; i < matrix->add_count; i++) {
        assert(matrix->adds[i].left < matrix->adds[i].right && matrix->adds[i].right < matrix->leaf_count);
        is_consumed[matrix->adds[i].right] = true;
    }
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        if (!is_consumed[i]) {
            matrix->node_slots[matrix->node_count++] = (uint8_t)i;
        }
    }
    assert(matrix->node_count == matrix->leaf_count - matrix->add_count);
}

enum weft_status weft_cpu_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                      struct weft_matrix **out)
{
    struct weft_matrix *matrix = calloc(1, sizeof(*matrix));

    if (matrix == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a matrix");
        return WEFT_ERR_MEMORY;
    }
    matrix->dtype = desc->dtype;
    matrix->source = desc->source;
    matrix->scale_cols = desc->scale_cols;
    matrix->scale_phase = desc->scale_phase;
    matrix->row_count = desc->row_count;
    matrix->gate_count = desc->is_gated ? desc->row_count / 2 : 0;
    assert(!desc->is_gated || (desc->row_count % 2 == 0 && desc->leaves == NULL));
    matrix->col_count = desc->col_count;
    set_leaves(matrix, desc);
    matrix->panels = weft_cpu_alloc(device, weft_cpu_matrix_size(device, desc));
    if (matrix->panels == NULL) {
        free(matrix);
        return WEFT_ERR_MEMORY;
    }
    *out = matrix;
    return WEFT_OK;
}

void weft_cpu_matrix_close(struct weft_device *device, struct weft_matrix *matrix)
{
    weft_cpu_free(device, matrix->panels);
    free(matrix);
}

/* ---- packing ---- */

struct pack_job {
    const struct weft_matrix *matrix;
    const struct weft_cpu_kernels *kernels;
    uint32_t row_begin;
    uint32_t row_end;
    const unsigned char *rows; /* from row_begin on */
    size_t row_stride;
    uint32_t part_begin;  /* row with which the first of these panels begins: 0, or F of a gated matrix */
    uint32_t panel_first; /* of the part's */
};

/* Transposes `count` units of rows first_lane .. first_lane + lane_count - 1 of one panel. Rows may be unaligned. */
static void pack_32(uint32_t *panel, const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                    uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy(&panel[(size_t)k * WEFT_LANES + first_lane + i], rows[i] + (size_t)k * 4, 4);
        }
    }
}

static void pack_16(uint16_t *panel, const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                    uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy(&panel[(size_t)k * WEFT_LANES + first_lane + i], rows[i] + (size_t)k * 2, 2);
        }
    }
}

static void pack_panel(const struct pack_job *job, uint32_t index)
{
    const struct weft_matrix *matrix = job->matrix;
    const unsigned char *rows[WEFT_LANES];
    uint32_t panel_begin = job->part_begin + index * WEFT_LANES;
    uint32_t begin = job->row_begin > panel_begin ? job->row_begin : panel_begin;
    uint32_t end = weft_min_u32(job->row_end, panel_begin + WEFT_LANES);
    uint32_t place = matrix->gate_count > 0 ? 2 * index + (job->part_begin > 0) : index;
    unsigned char *panel = matrix->panels + place * matrix->panel_size;
    uint32_t pair_count = matrix->col_count / 2;

    for (uint32_t row = begin; row < end; row++) {
        rows[row - begin] = job->rows + (size_t)(row - job->row_begin) * job->row_stride;
    }
    if (weft_dtype_is_quantised(matrix->dtype)) {
        weft_cpu_quant_pack(matrix, job->kernels, rows, begin - panel_begin, end - begin, panel);
    } else if (matrix->dtype == WEFT_F8_E4M3) {
        weft_cpu_f8_pack(matrix, rows, begin - panel_begin, end - begin, panel);
    } else if (matrix->dtype == WEFT_F32) {
        pack_32((uint32_t *)panel, rows, begin - panel_begin, end - begin, matrix->col_count);
    } else if (matrix->dtype == WEFT_F16) {
        pack_16((uint16_t *)panel, rows, begin - panel_begin, end - begin, matrix->col_count);
    } else { /* two little-endian neighbours in a row are one pair */
        pack_32((uint32_t *)panel, rows, begin - panel_begin, end - begin, pair_count);
        for (uint32_t row = begin; row < end && matrix->col_count % 2 != 0; row++) {
            memcpy((uint32_t *)panel + (size_t)pair_count * WEFT_LANES + row - panel_begin,
                   rows[row - begin] + (size_t)pair_count * 4, 2);
        }
    }
}

static void pack_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct pack_job *job = context;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        pack_panel(job, job->panel_first + i);
    }
}

enum weft_status weft_cpu_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                            uint32_t row_count, const void *rows, size_t row_stride)
{
    uint32_t row_end = row_begin + row_count;
    uint32_t width = weft_cpu_out_width(matrix); /* rows of a part */

    assert(row_begin <= matrix->row_count && row_count <= matrix->row_count - row_begin);
    for (uint32_t part = 0; part < matrix->row_count; part += width) {
        uint32_t begin = row_begin > part ? row_begin : part;
        struct pack_job job = {.matrix = matrix,
                               .kernels = &weft_cpu_device(device)->kernels,
                               .row_begin = begin,
                               .row_end = weft_min_u32(row_end, part + width),
                               .rows = (const unsigned char *)rows + (size_t)(begin - row_begin) * row_stride,
                               .row_stride = row_stride,
                               .part_begin = part,
                               .panel_first = (begin - part) / WEFT_LANES};

        if (begin < job.row_end) {
            weft_pool_run(weft_cpu_device(device)->pool, WEFT_POOL_STATIC,
                          weft_ceil_div(job.row_end - part, WEFT_LANES) - job.panel_first, pack_task, &job);
        }
    }
    return WEFT_OK;
}

/* ---- embedding ---- */

static void unpack_row(const struct weft_matrix *matrix, uint32_t row, float *out)
{
    const unsigned char *panel = matrix->panels + (size_t)(row / WEFT_LANES) * matrix->panel_size;
    uint32_t lane = row % WEFT_LANES;

    if (weft_dtype_is_quantised(matrix->dtype)) {
        weft_cpu_quant_unpack(matrix, panel, lane, out);
        return;
    }
    if (matrix->dtype == WEFT_F8_E4M3) {
        weft_cpu_f8_unpack_row(matrix, panel, lane, out);
        return;
    }
    for (uint32_t k = 0; k < matrix->col_count; k++) {
        size_t index = (size_t)k * WEFT_LANES + lane;

        if (matrix->dtype == WEFT_F32) {
            out[k] = ((const float *)panel)[index];
        } else if (matrix->dtype == WEFT_F16) {
            out[k] = weft_f16_to_f32(((const uint16_t *)panel)[index]);
        } else {
            uint32_t pair = ((const uint32_t *)panel)[(size_t)(k / 2) * WEFT_LANES + lane];

            out[k] = weft_bf16_to_f32((uint16_t)(k % 2 == 0 ? pair : pair >> 16));
        }
    }
}

struct embed_job {
    const struct weft_matrix *matrix;
    const uint32_t *rows;
    float *out;
};

static void embed_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct embed_job *job = context;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        float *out = job->out + (size_t)i * job->matrix->col_count;

        if (job->rows[i] == WEFT_NO_ROW) {
            for (uint32_t k = 0; k < job->matrix->col_count; k++) {
                out[k] = -0.0f;
            }
        } else {
            assert(job->rows[i] < job->matrix->row_count);
            unpack_row(job->matrix, job->rows[i], out);
        }
    }
}

void weft_cpu_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                    float *out)
{
    struct embed_job job = {.matrix = matrix, .rows = rows, .out = out};

    assert(matrix->gate_count == 0);
    weft_pool_run(weft_cpu_device(device)->pool, WEFT_POOL_STATIC, count, embed_task, &job);
}
