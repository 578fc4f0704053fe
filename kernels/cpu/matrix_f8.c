/*
 * Matrices of E4M3 bytes (weft/f8.h). A panel is its scales, [scale][16] f32, then its bytes, [column][16]; leaves need
 * no padding, so a column's place does not depend on them. What is multiplied are bf16 pairs made of some columns at a
 * time, which stay in the core's first cache.
 */
#include <assert.h>
#include <string.h>

#include "cpu/matrix.h"
#include "weft/f8.h"

static size_t scales_size(const struct weft_matrix *matrix)
{
    return weft_f8_scale_count(matrix->col_count, matrix->scale_cols, matrix->scale_phase) * WEFT_LANES * sizeof(float);
}

size_t weft_cpu_f8_panel_size(const struct weft_matrix_desc *desc)
{
    return weft_f8_row_size(desc->col_count, desc->scale_cols, desc->scale_phase) * WEFT_LANES;
}

void weft_cpu_f8_pack(const struct weft_matrix *matrix, const unsigned char *const *rows, uint32_t first_lane,
                      uint32_t lane_count, unsigned char *panel)
{
    uint32_t scale_count = weft_f8_scale_count(matrix->col_count, matrix->scale_cols, matrix->scale_phase);
    unsigned char *bytes = panel + scales_size(matrix);

    for (uint32_t s = 0; s < scale_count; s++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy((float *)panel + (size_t)s * WEFT_LANES + first_lane + i, rows[i] + s * sizeof(float),
                   sizeof(float));
        }
    }
    for (uint32_t k = 0; k < matrix->col_count; k++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            bytes[(size_t)k * WEFT_LANES + first_lane + i] = rows[i][scale_count * sizeof(float) + k];
        }
    }
}

static uint16_t weight(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t column, uint32_t lane)
{
    uint32_t scale = weft_f8_scale_index(column, matrix->scale_cols, matrix->scale_phase);

    return weft_f8_weight(panel[scales_size(matrix) + (size_t)column * WEFT_LANES + lane],
                          ((const float *)panel)[(size_t)scale * WEFT_LANES + lane]);
}

void weft_cpu_f8_unpack_row(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t lane, float *out)
{
    for (uint32_t k = 0; k < matrix->col_count; k++) {
        out[k] = weft_bf16_to_f32(weight(matrix, panel, k, lane));
    }
}

/* One column by itself: where a scale ends between the two of a pair, or the columns do. */
static void unpack_column(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t column, uint32_t to,
                          uint32_t *pairs)
{
    for (uint32_t i = 0; i < WEFT_LANES; i++) {
        uint32_t *pair = pairs + (size_t)(to / 2) * WEFT_LANES + i;
        uint32_t half = weight(matrix, panel, column, i);

        *pair = to % 2 == 0 ? half : (*pair & 0xffffU) | half << 16;
    }
}

void weft_cpu_f8_unpack(const struct weft_matrix *matrix, const struct weft_cpu_kernels *kernels,
                        const unsigned char *panel, struct weft_range columns, uint32_t *pairs)
{
    const unsigned char *bytes = panel + scales_size(matrix);

    for (uint32_t column = columns.begin; column < columns.end;) {
        uint32_t to = column - columns.begin;
        uint64_t scale_end = weft_f8_scale_end(column, matrix->scale_cols, matrix->scale_phase);
        uint32_t run = (uint32_t)(scale_end < columns.end ? scale_end : columns.end) - column;
        uint32_t scale = weft_f8_scale_index(column, matrix->scale_cols, matrix->scale_phase);

        if (to % 2 != 0 || run == 1) {
            unpack_column(matrix, panel, column, to, pairs);
            column++;
            continue;
        }
        kernels->unpack_f8(bytes + (size_t)column * WEFT_LANES, (const float *)panel + (size_t)scale * WEFT_LANES,
                           run / 2, pairs + (size_t)(to / 2) * WEFT_LANES);
        column += run / 2 * 2;
    }
}
