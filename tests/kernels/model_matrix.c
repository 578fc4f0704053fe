/* The matrices of check_matmul.c and check_quant_matmul.c. */
#include "model_matrix.h"

#include <stdlib.h>
#include <string.h>

#include "model_quant.h"
#include "weft/numeric.h"

/* What rows consist of. */
static enum weft_dtype element_of(const struct model_matrix *matrix)
{
    return weft_dtype_is_quantised(matrix->dtype) ? matrix->source : matrix->dtype;
}

/* Random even cuts (some leaves empty), and random merges of neighbours down to a random number of nodes. */
void model_matrix_cut(struct check *check, struct model_matrix *matrix, uint32_t leaf_count)
{
    uint8_t alive[WEFT_LEAF_COUNT_MAX];
    uint32_t alive_count = leaf_count;
    uint32_t node_count = 1 + check_below(check, leaf_count);
    uint32_t begin = 0;

    matrix->leaf_count = leaf_count;
    for (uint32_t i = 0; i < leaf_count; i++) {
        uint32_t pairs = (matrix->col_count - begin) / 2;
        uint32_t size = 2 * check_below(check, 2 * (pairs / (leaf_count - i)) + 2); /* about an equal share */
        uint32_t end = i + 1 == leaf_count || begin + size > matrix->col_count ? matrix->col_count : begin + size;

        if (i + 1 < leaf_count && end % 2 != 0) {
            end--;
        }
        matrix->leaves[i] = (struct weft_range){begin, end};
        alive[i] = (uint8_t)i;
        begin = end;
    }
    while (alive_count > node_count) {
        uint32_t i = check_below(check, alive_count - 1);

        matrix->adds[matrix->add_count++] = (struct weft_tree_add){alive[i], alive[i + 1]};
        memmove(&alive[i + 1], &alive[i + 2], alive_count - i - 2);
        alive_count--;
    }
}

void model_matrix_init(struct check *check, struct model_matrix *matrix)
{
    size_t count = (size_t)matrix->row_count * matrix->col_count;
    enum weft_dtype element = element_of(matrix);

    matrix->rows = malloc(count * weft_dtype_size(element) + 1);
    matrix->values = malloc(count * sizeof(float) + 1);
    if (weft_dtype_is_quantised(matrix->dtype)) {
        model_quant_fill(check, matrix->values, count);
    } else {
        check_fill(check, CHECK_PLAIN, matrix->values, count);
    }
    for (size_t i = 0; i < count; i++) {
        float value = matrix->values[i];

        if (element == WEFT_F32) {
            ((float *)matrix->rows)[i] = value;
        } else if (element == WEFT_F16) {
            ((uint16_t *)matrix->rows)[i] = weft_f32_to_f16(value);
            value = weft_f16_to_f32(weft_f32_to_f16(value));
        } else {
            ((uint16_t *)matrix->rows)[i] = weft_f32_to_bf16(value);
            value = weft_bf16_to_f32(weft_f32_to_bf16(value));
        }
        matrix->values[i] = value;
    }
}

void model_matrix_fini(struct model_matrix *matrix)
{
    free(matrix->rows);
    free(matrix->values);
}

void model_matrix_part(const struct model_matrix *whole, struct weft_range rows, struct weft_range columns,
                       struct model_matrix *part)
{
    size_t size = weft_dtype_size(element_of(whole));
    uint32_t width = weft_range_count(columns);

    *part = (struct model_matrix){.dtype = whole->dtype,
                                  .source = whole->source,
                                  .row_count = weft_range_count(rows),
                                  .col_count = width,
                                  .leaf_count = 0};
    part->rows = malloc((size_t)part->row_count * width * size + 1);
    part->values = NULL;
    for (uint32_t row = 0; row < part->row_count; row++) {
        memcpy(part->rows + (size_t)row * width * size,
               whole->rows + ((size_t)(rows.begin + row) * whole->col_count + columns.begin) * size, width * size);
    }
}

uint32_t model_matrix_combine(const struct model_matrix *model, float *sums, float *nodes)
{
    uint32_t slots = model->leaf_count == 0 ? 1 : model->leaf_count;
    bool is_gone[WEFT_LEAF_COUNT_MAX] = {false};
    uint32_t node_count = 0;

    for (uint32_t i = 0; i < model->add_count; i++) {
        sums[model->adds[i].left] += sums[model->adds[i].right];
        is_gone[model->adds[i].right] = true;
    }
    for (uint32_t i = 0; i < slots; i++) {
        if (!is_gone[i]) {
            nodes[node_count++] = sums[i];
        }
    }
    return node_count;
}

struct weft_matrix_desc model_matrix_desc(const struct model_matrix *model)
{
    return (struct weft_matrix_desc){.dtype = model->dtype,
                                     .source = model->source,
                                     .row_count = model->row_count,
                                     .col_count = model->col_count,
                                     .leaves = model->leaf_count > 0 ? model->leaves : NULL,
                                     .leaf_count = model->leaf_count,
                                     .adds = model->adds,
                                     .add_count = model->add_count,
                                     .is_gated = model->is_gated};
}

struct weft_matrix *model_matrix_open_as(struct check *check, struct weft_device *device,
                                         const struct weft_matrix_desc *desc, const unsigned char *rows, size_t stride)
{
    uint32_t cut = check_below(check, desc->row_count + 1);
    struct weft_matrix *matrix;

    if (weft_matrix_open(device, desc, &matrix) != WEFT_OK ||
        weft_matrix_write_rows(device, matrix, cut, desc->row_count - cut, rows + cut * stride, stride) != WEFT_OK ||
        weft_matrix_write_rows(device, matrix, 0, cut, rows, stride) != WEFT_OK) {
        abort();
    }
    return matrix;
}

struct weft_matrix *model_matrix_open(struct check *check, struct weft_device *device, const struct model_matrix *model)
{
    struct weft_matrix_desc desc = model_matrix_desc(model);
    size_t stride = model->col_count * weft_dtype_size(element_of(model));
    bool is_quantised = weft_dtype_is_quantised(model->dtype);
    size_t least = is_quantised ? (size_t)model->row_count * model->col_count / 2 : model->row_count * stride;

    if (weft_matrix_size(device, &desc) < least) {
        abort();
    }
    return model_matrix_open_as(check, device, &desc, model->rows, stride);
}

uint32_t model_matrix_nodes(const struct model_matrix *model)
{
    return model->leaf_count == 0 ? 1 : model->leaf_count - model->add_count;
}

void model_matrix_multiply(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                           const struct model_matrix *model, uint32_t token_count, float *x, float *bias, float *out)
{
    size_t x_size = (size_t)token_count * model->col_count * sizeof(*x);
    uint32_t width = model->is_gated ? model->row_count / 2 : model->row_count;
    size_t out_size = (size_t)model_matrix_nodes(model) * token_count * width * sizeof(*out);
    float *lent_x = check_lend(device, x, x_size);
    float *lent_bias = check_lend(device, bias, model->row_count * sizeof(*bias));
    float *lent_out = check_lend(device, out, out_size);

    weft_device_matmul(device, matrix, lent_x, token_count, lent_bias, lent_out);
    check_return(check, device, lent_out, out, out_size);
    check_return(check, device, lent_bias, bias, model->row_count * sizeof(*bias));
    check_return(check, device, lent_x, x, x_size);
}
