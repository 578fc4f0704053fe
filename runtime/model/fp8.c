/* FP8 weights: finding and reading their scales, and bytes to f32. The forms are fp8_config.c's. */
#include "model/fp8.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"
#include "weft/log.h"
#include "weft/numeric.h"

static const char where[] = "model/fp8";

/* The largest value of E4M3. */
#define E4M3_MAX 448.0f

enum { E4M3_NAN = 0x7f };

/* Rows and columns of a tensor that one scale is for; 0: all of them. */
struct grid {
    uint32_t block_rows;
    uint32_t block_cols;
    uint32_t cols; /* scales of one row of blocks */
};

static uint32_t ceil_div(uint32_t count, uint32_t size)
{
    return count / size + (count % size != 0);
}

/* How the scales lie: as the form says, else as many as there are rows, or one. */
static struct grid grid_of(const struct weft_fp8 *fp8, const struct weft_tensor *tensor,
                           const struct weft_tensor *scale)
{
    if (fp8->block_rows != 0) {
        return (struct grid){fp8->block_rows, fp8->block_cols, ceil_div((uint32_t)tensor->dims[1], fp8->block_cols)};
    }
    return (struct grid){scale->dim_count > 0 && scale->dims[0] == tensor->dims[0] ? 1 : 0, 0, 1};
}

/* ---- finding ---- */

static bool has_shape(const struct weft_tensor *scale, uint64_t rows, uint64_t cols)
{
    return scale->dim_count == 2 && scale->dims[0] == rows && scale->dims[1] == cols;
}

static bool is_fitting(const struct weft_fp8 *fp8, const struct weft_tensor *tensor, const struct weft_tensor *scale)
{
    uint64_t rows = tensor->dims[0];

    if (fp8->block_rows != 0) {
        return has_shape(scale, ceil_div((uint32_t)rows, fp8->block_rows),
                         ceil_div((uint32_t)tensor->dims[1], fp8->block_cols));
    }
    return scale->dim_count == 0 || (scale->dim_count == 1 && (scale->dims[0] == 1 || scale->dims[0] == rows)) ||
           has_shape(scale, rows, 1) || has_shape(scale, 1, 1);
}

static enum weft_status check_scale(const struct weft_checkpoint *checkpoint, const struct weft_fp8 *fp8,
                                    const struct weft_tensor *tensor, const struct weft_tensor *scale)
{
    enum weft_element element;
    char expected[96], found[200];

    if (weft_tensor_element(scale, &element) != 0 || element == WEFT_ELEMENT_F8_E4M3) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: element type %s is not supported for scales: F32, F16, BF16 are",
                 weft_checkpoint_file(checkpoint, scale->file), scale->name, scale->dtype);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (is_fitting(fp8, tensor, scale)) {
        return WEFT_OK;
    }
    if (fp8->block_rows != 0) {
        snprintf(expected, sizeof(expected), "[%u, %u] for blocks of [%u, %u]",
                 ceil_div((uint32_t)tensor->dims[0], fp8->block_rows),
                 ceil_div((uint32_t)tensor->dims[1], fp8->block_cols), fp8->block_rows, fp8->block_cols);
    } else {
        snprintf(expected, sizeof(expected), "[%" PRIu64 ", 1] for rows or [1] for the tensor", tensor->dims[0]);
    }
    weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected shape %s, found %s",
             weft_checkpoint_file(checkpoint, scale->file), scale->name, expected,
             weft_tensor_shape(scale, found, sizeof(found)));
    return WEFT_ERR_FORMAT;
}

enum weft_status weft_fp8_scale_find(const struct weft_checkpoint *checkpoint, const struct weft_fp8 *fp8,
                                     const struct weft_tensor *tensor, const struct weft_tensor **out)
{
    static const char *const endings[] = {"_scale_inv", "_scale"};
    const struct weft_tensor *scale = NULL;
    char name[300];

    if (!fp8->is_there) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: element type %s, but config.json has no quantization_config for it",
                 weft_checkpoint_file(checkpoint, tensor->file), tensor->name, tensor->dtype);
        return WEFT_ERR_UNSUPPORTED;
    }
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]) && scale == NULL; i++) {
        snprintf(name, sizeof(name), "%.256s%s", tensor->name, endings[i]);
        scale = weft_checkpoint_find(checkpoint, name);
    }
    if (scale == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s is %s: its scales %s_scale_inv or %s_scale are missing",
                 weft_checkpoint_file(checkpoint, tensor->file), tensor->name, tensor->dtype, tensor->name,
                 tensor->name);
        return WEFT_ERR_FORMAT;
    }
    WEFT_TRY(check_scale(checkpoint, fp8, tensor, scale));
    *out = scale;
    return WEFT_OK;
}

uint32_t weft_fp8_row_scales(const struct weft_fp8 *fp8, struct weft_range cols)
{
    if (fp8->block_cols == 0 || cols.begin >= cols.end) {
        return 1;
    }
    return (cols.end - 1) / fp8->block_cols - cols.begin / fp8->block_cols + 1;
}

/* Rows of blocks that rows of the tensor touch. */
static struct weft_range blocks_of(const struct grid *grid, struct weft_range rows)
{
    if (rows.begin >= rows.end) {
        return (struct weft_range){0, 0};
    }
    if (grid->block_rows == 0) {
        return (struct weft_range){0, 1};
    }
    return (struct weft_range){rows.begin / grid->block_rows, (rows.end - 1) / grid->block_rows + 1};
}

/* Of a scale, whose type was checked when it was found. */
static enum weft_element element_of(const struct weft_tensor *scale)
{
    enum weft_element element = WEFT_ELEMENT_F32;

    (void)weft_tensor_element(scale, &element);
    return element;
}

uint64_t weft_fp8_scales_size(const struct weft_fp8 *fp8, const struct weft_tensor *tensor,
                              const struct weft_tensor *scale, struct weft_range rows)
{
    const struct grid grid = grid_of(fp8, tensor, scale);

    return (uint64_t)weft_range_count(blocks_of(&grid, rows)) * grid.cols * weft_element_size(element_of(scale));
}

/* ---- reading scales ---- */

static enum weft_status reserve(struct weft_fp8_reader *reader, size_t count)
{
    if (count <= reader->capacity) {
        return WEFT_OK;
    }
    weft_fp8_reader_fini(reader);
    reader->values = malloc(count * sizeof(float));
    reader->bytes = malloc(count * sizeof(float));
    if (reader->values == NULL || reader->bytes == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory for %zu scales", count);
        weft_fp8_reader_fini(reader);
        return WEFT_ERR_MEMORY;
    }
    reader->capacity = count;
    return WEFT_OK;
}

static enum weft_status check_value(const struct weft_fp8_reader *reader, const struct weft_tensor *scale, size_t index,
                                    float value)
{
    if (fabsf(value) <= 3.4028234663852886e38f / E4M3_MAX) {
        return WEFT_OK;
    }
    weft_log(WEFT_LOG_ERROR, where, "%s: %s: scale %zu: expected a finite factor, found %g",
             weft_checkpoint_file(reader->checkpoint, scale->file), scale->name, index, (double)value);
    return WEFT_ERR_FORMAT;
}

/* Makes the values those of rows `blocks` of blocks. */
static enum weft_status load(struct weft_fp8_reader *reader, const struct weft_tensor *scale, struct weft_range blocks,
                             const struct grid *grid, uint64_t *byte_count, uint64_t *call_count)
{
    size_t first = (size_t)blocks.begin * grid->cols, count = (size_t)weft_range_count(blocks) * grid->cols;
    enum weft_element element = element_of(scale);
    size_t size = weft_element_size(element);

    WEFT_TRY(reserve(reader, count));
    reader->scale = NULL;
    WEFT_TRY(weft_checkpoint_read(reader->checkpoint, scale->file, scale->offset + first * size, reader->bytes,
                                  count * size, call_count));
    *byte_count += count * size;
    for (size_t i = 0; i < count; i++) {
        reader->values[i] = weft_element_value(reader->bytes + i * size, element);
        WEFT_TRY(check_value(reader, scale, first + i, reader->values[i]));
    }
    reader->scale = scale;
    reader->blocks = blocks;
    return WEFT_OK;
}

enum weft_status weft_fp8_scales(struct weft_fp8_reader *reader, const struct weft_fp8_part *part,
                                 struct weft_range wanted, float *to, uint64_t *byte_count, uint64_t *call_count)
{
    const struct grid grid = grid_of(reader->fp8, part->tensor, part->scale);
    struct weft_range needed = blocks_of(&grid, part->rows);
    uint32_t count = weft_fp8_row_scales(reader->fp8, part->cols);
    uint32_t first = grid.block_cols == 0 ? 0 : part->cols.begin / grid.block_cols;

    assert(part->rows.begin < part->rows.end);
    if (reader->scale != part->scale || needed.begin < reader->blocks.begin || needed.end > reader->blocks.end) {
        WEFT_TRY(load(reader, part->scale, blocks_of(&grid, wanted), &grid, byte_count, call_count));
    }
    for (uint32_t row = part->rows.begin; row < part->rows.end; row++) {
        uint32_t block = grid.block_rows == 0 ? 0 : row / grid.block_rows;
        const float *from = reader->values + (size_t)(block - reader->blocks.begin) * grid.cols + first;
        memcpy(to, from, count * sizeof(*to));
        to += count;
    }
    return WEFT_OK;
}

void weft_fp8_reader_fini(struct weft_fp8_reader *reader)
{
    free(reader->values);
    free(reader->bytes);
    reader->values = NULL;
    reader->bytes = NULL;
    reader->scale = NULL;
    reader->capacity = 0;
}

/* ---- weights ---- */

static bool has_nan(const unsigned char *bytes, uint32_t count)
{
    unsigned found = 0;

    for (uint32_t i = 0; i < count; i++) {
        found |= (bytes[i] & E4M3_NAN) == E4M3_NAN;
    }
    return found != 0;
}

enum weft_status weft_fp8_check(const struct weft_checkpoint *checkpoint, const struct weft_fp8_part *part,
                                const unsigned char *bytes, size_t stride)
{
    uint32_t count = weft_range_count(part->cols), col = 0;

    for (uint32_t row = 0; row < weft_range_count(part->rows); row++) {
        const unsigned char *from = bytes + row * stride;
        if (!has_nan(from, count)) {
            continue;
        }
        while ((from[col] & E4M3_NAN) != E4M3_NAN) {
            col++;
        }
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: row %u, column %u: expected a number, found NaN (0x%02x)",
                 weft_checkpoint_file(checkpoint, part->tensor->file), part->tensor->name, part->rows.begin + row,
                 part->cols.begin + col, from[col]);
        return WEFT_ERR_FORMAT;
    }
    return WEFT_OK;
}

void weft_fp8_table(float table[256])
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t exponent = i >> 3 & 0xf, fraction = i & 7;
        /* 2^(exponent - 7) * (1 + fraction / 8); without exponent 2^-6 * fraction / 8 */
        float value = exponent == 0 ? ldexpf((float)fraction, -9) : ldexpf((float)(8 + fraction), (int)exponent - 10);
        value = (i & E4M3_NAN) == E4M3_NAN ? weft_f32_from_bits(0x7fc00000U) : value;
        table[i] = i < 128 ? value : -value;
    }
}

void weft_fp8_decode(const struct weft_fp8 *fp8, const float table[256], const unsigned char *bytes,
                     struct weft_range cols, const float *scales, float *out)
{
    uint32_t count = weft_range_count(cols);

    for (uint32_t j = 0; j < count;) {
        uint32_t end = count;
        float scale = *scales++;
        if (fp8->block_cols != 0) {
            uint32_t next = ((cols.begin + j) / fp8->block_cols + 1) * fp8->block_cols - cols.begin;
            end = next < count ? next : count;
        }
        for (; j < end; j++) {
            out[j] = table[bytes[j]] * scale;
        }
    }
}
