/*
 * Matrices of E4M3 bytes (weft/f8.h). A panel is its scales, [scale][16] f32, then its bytes as f8 pairs; leaves begin
 * at even columns, so a column's place does not depend on them. What is multiplied are bf16 pairs made of some columns
 * at a time, which stay in the core's first cache.
 */
#include <assert.h>
#include <string.h>

#include "cpu/f8_pairs.h"
#include "cpu/matrix.h"

static size_t scales_size(const struct weft_matrix *matrix)
{
    return weft_f8_scale_count(matrix->col_count, matrix->scale_cols, matrix->scale_phase) * WEFT_LANES * sizeof(float);
}

size_t weft_cpu_f8_panel_size(const struct weft_matrix_desc *desc)
{
    size_t row_size = weft_f8_row_size(desc->col_count, desc->scale_cols, desc->scale_phase);

    return (row_size + desc->col_count % 2) * WEFT_LANES;
}

/* Of a panel: where the pair of a column is. */
static size_t pair_offset(const struct weft_matrix *matrix, uint32_t column)
{
    return scales_size(matrix) + (size_t)(column / 2) * 2 * WEFT_LANES;
}

void weft_cpu_f8_pack(const struct weft_matrix *matrix, const unsigned char *const *rows, uint32_t first_lane,
                      uint32_t lane_count, unsigned char *panel)
{
    uint32_t scale_count = weft_f8_scale_count(matrix->col_count, matrix->scale_cols, matrix->scale_phase);
    size_t scales_end = scale_count * sizeof(float);

    for (uint32_t s = 0; s < scale_count; s++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy((float *)panel + (size_t)s * WEFT_LANES + first_lane + i, rows[i] + s * sizeof(float),
                   sizeof(float));
        }
    }
    for (uint32_t k = 0; k < matrix->col_count; k += 2) {
        unsigned char *pair = panel + pair_offset(matrix, k);
        size_t size = k + 1 < matrix->col_count ? 2 : 1;

        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy(pair + weft_cpu_f8_place(first_lane + i), rows[i] + scales_end + k, size);
        }
    }
}

static uint16_t weight(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t column, uint32_t lane)
{
    uint32_t scale = weft_f8_scale_index(column, matrix->scale_cols, matrix->scale_phase);

    return weft_f8_weight(panel[pair_offset(matrix, column) + weft_cpu_f8_place(lane) + column % 2],
                          ((const float *)panel)[(size_t)scale * WEFT_LANES + lane]);
}

void weft_cpu_f8_unpack_row(const struct weft_matrix *matrix, const unsigned char *panel, uint32_t lane, float *out)
{
    for (uint32_t k = 0; k < matrix->col_count; k++) {
        out[k] = weft_bf16_to_f32(weight(matrix, panel, k, lane));
    }
}

/* One pair by itself: where a scale ends between its columns, or they do. */
static void unpack_pair(const struct weft_matrix *matrix, const unsigned char *panel, struct weft_range columns,
                        uint32_t *pair)
{
    for (uint32_t i = 0; i < WEFT_LANES; i++) {
        pair[i] = weight(matrix, panel, columns.begin, i);
        if (columns.begin + 1 < columns.end) {
            pair[i] |= (uint32_t)weight(matrix, panel, columns.begin + 1, i) << 16;
        }
    }
}

void weft_cpu_f8_unpack(const struct weft_matrix *matrix, const struct weft_cpu_kernels *kernels,
                        const unsigned char *panel, struct weft_range columns, uint32_t *pairs)
{
    assert(columns.begin % 2 == 0 || columns.begin == columns.end);
    while (columns.begin < columns.end) {
        uint64_t scale_end = weft_f8_scale_end(columns.begin, matrix->scale_cols, matrix->scale_phase);
        uint32_t pair_count = ((uint32_t)(scale_end < columns.end ? scale_end : columns.end) - columns.begin) / 2;
        uint32_t scale = weft_f8_scale_index(columns.begin, matrix->scale_cols, matrix->scale_phase);

        if (pair_count == 0) {
            unpack_pair(matrix, panel, columns, pairs);
            pair_count = 1;
        } else {
            kernels->unpack_f8(panel + pair_offset(matrix, columns.begin),
                               (const float *)panel + (size_t)scale * WEFT_LANES, pair_count, pairs);
        }
        columns.begin += 2 * pair_count;
        pairs += (size_t)pair_count * WEFT_LANES;
    }
}
