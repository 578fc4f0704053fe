/*
 * Quantised matrices of the device table, against the naive model by bits: on every device, because the numbers of
 * weft/quant.h are the same on all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_matrix.h"
#include "model_quant.h"
#include "weft/numeric.h"

/* A matrix as blocks, leaf after leaf, and activations cut in the same way. */
struct blocks {
    uint32_t row_count;
    uint32_t block_count; /* of a row */
    int8_t *values;       /* [row_count][block_count][32] owned */
    float *scales;        /* [row_count][block_count] owned */
};

static uint32_t leaf_count_of(const struct model_matrix *model)
{
    return model->leaf_count == 0 ? 1 : model->leaf_count;
}

static struct weft_range leaf_of(const struct model_matrix *model, uint32_t index)
{
    return model->leaf_count == 0 ? (struct weft_range){0, model->col_count} : model->leaves[index];
}

static uint32_t blocks_of(struct weft_range leaf)
{
    return (leaf.end - leaf.begin + MODEL_BLOCK - 1) / MODEL_BLOCK;
}

/* Of rows [row_count][col_count]; is_x: activations. */
static struct blocks blocks_begin(const struct model_matrix *model, bool is_x, const float *rows, uint32_t row_count)
{
    struct blocks blocks = {.row_count = row_count};
    size_t index = 0;

    for (uint32_t i = 0; i < leaf_count_of(model); i++) {
        blocks.block_count += blocks_of(leaf_of(model, i));
    }
    blocks.values = malloc((size_t)row_count * blocks.block_count * MODEL_BLOCK + 1);
    blocks.scales = malloc((size_t)row_count * blocks.block_count * sizeof(float) + 1);
    for (uint32_t row = 0; row < row_count; row++) {
        for (uint32_t i = 0; i < leaf_count_of(model); i++) {
            struct weft_range leaf = leaf_of(model, i);

            for (uint32_t k = leaf.begin; k < leaf.end; k += MODEL_BLOCK, index++) {
                const float *from = rows + (size_t)row * model->col_count + k;
                uint32_t count = leaf.end - k < MODEL_BLOCK ? leaf.end - k : MODEL_BLOCK;

                if (is_x) {
                    model_quant_activations(from, count, blocks.values + index * MODEL_BLOCK, blocks.scales + index);
                } else {
                    model_quant_weights(model->dtype, from, count, blocks.values + index * MODEL_BLOCK,
                                        blocks.scales + index);
                }
            }
        }
    }
    return blocks;
}

static void blocks_end(struct blocks *blocks)
{
    free(blocks->values);
    free(blocks->scales);
}

/* Nodes of one row and one token. */
static void model_product(const struct model_matrix *model, const struct blocks *weights, uint32_t row,
                          const struct blocks *x, uint32_t token, float *nodes)
{
    size_t w_first = (size_t)row * weights->block_count;
    size_t x_first = (size_t)token * x->block_count;
    float sums[WEFT_LEAF_COUNT_MAX];

    for (uint32_t i = 0; i < leaf_count_of(model); i++) {
        uint32_t count = blocks_of(leaf_of(model, i));

        sums[i] = model_quant_leaf(weights->values + w_first * MODEL_BLOCK, weights->scales + w_first,
                                   x->values + x_first * MODEL_BLOCK, x->scales + x_first, count);
        w_first += count;
        x_first += count;
    }
    model_matrix_combine(model, sums, nodes);
}

static void check_product(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                          const struct model_matrix *model, const struct blocks *weights, uint32_t token_count,
                          bool has_bias)
{
    uint32_t node_count = model_matrix_nodes(model);
    size_t node_size = (size_t)token_count * model->row_count;
    struct check_buffer x = check_floats((size_t)token_count * model->col_count, check_below(check, 16));
    struct check_buffer bias = check_floats(model->row_count, 0);
    struct check_buffer found = check_floats(node_count * node_size, check_below(check, 16));
    float *expected = malloc(node_count * node_size * sizeof(*expected));
    struct blocks x_blocks;

    check_fill(check, CHECK_PLAIN, x.data, (size_t)token_count * model->col_count);
    check_fill(check, CHECK_PLAIN, bias.data, model->row_count);
    for (uint32_t t = 0; t < token_count; t += 1 + check_below(check, 3)) {
        model_quant_fill(check, (float *)x.data + (size_t)t * model->col_count, model->col_count);
    }
    x_blocks = blocks_begin(model, true, x.data, token_count);
    for (uint32_t i = 0; i < node_size; i++) {
        float nodes[WEFT_LEAF_COUNT_MAX];

        model_product(model, weights, i % model->row_count, &x_blocks, i / model->row_count, nodes);
        for (uint32_t j = 0; j < node_count; j++) {
            expected[j * node_size + i] = has_bias ? nodes[j] + ((float *)bias.data)[i % model->row_count] : nodes[j];
        }
    }
    model_matrix_multiply(check, device, matrix, model, token_count, x.data, has_bias ? bias.data : NULL, found.data);
    check_same(check, found.data, expected, node_count * node_size,
               "matmul %s of %s [%u, %u], %u leaves, %u nodes, %u tokens, bias %d, %s", weft_dtype_name(model->dtype),
               weft_dtype_name(model->source), model->row_count, model->col_count, model->leaf_count, node_count,
               token_count, has_bias, weft_device_name(device));
    blocks_end(&x_blocks);
    free(expected);
    check_buffer_end(check, &x, "matmul x");
    check_buffer_end(check, &bias, "matmul bias");
    check_buffer_end(check, &found, "matmul out");
}

/* A row by itself is value times scale. */
static void check_embed(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                        const struct model_matrix *model, const struct blocks *weights)
{
    struct check_buffer found = check_floats(model->col_count, 0);
    float *expected = malloc(model->col_count * sizeof(*expected));

    for (uint32_t row = 0; row < model->row_count; row += 1 + check_below(check, 1 + model->row_count / 2)) {
        size_t block = (size_t)row * weights->block_count;
        float *lent = check_lend(device, found.data, found.size);

        for (uint32_t i = 0; i < leaf_count_of(model); i++) {
            struct weft_range leaf = leaf_of(model, i);

            for (uint32_t k = leaf.begin; k < leaf.end; k++) {
                size_t own = block + (k - leaf.begin) / MODEL_BLOCK;

                expected[k] =
                    (float)weights->values[own * MODEL_BLOCK + (k - leaf.begin) % MODEL_BLOCK] * weights->scales[own];
            }
            block += blocks_of(leaf);
        }
        weft_device_embed(device, matrix, &row, 1, lent);
        check_return(check, device, lent, found.data, found.size);
        check_same(check, found.data, expected, model->col_count, "embed row %u of %u, %s of %s", row, model->row_count,
                   weft_dtype_name(model->dtype), weft_dtype_name(model->source));
    }
    free(expected);
    check_buffer_end(check, &found, "embed out");
}

/*
 * Some leaves alone, and some rows, as another rank would have them: each leaf's sum has the bits that it had in the
 * whole matrix. model has no additions.
 */
static void check_slice(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                        const struct model_matrix *model, uint32_t token_count)
{
    uint32_t first = check_below(check, model->leaf_count);
    uint32_t count = 1 + check_below(check, model->leaf_count - first);
    struct weft_range rows = {check_below(check, model->row_count), model->row_count};
    struct weft_range columns = {model->leaves[first].begin, model->leaves[first + count - 1].end};
    uint32_t width = columns.end - columns.begin;
    float *x = malloc((size_t)token_count * model->col_count * sizeof(*x));
    float *slice_x = malloc((size_t)token_count * width * sizeof(*x) + 1);
    float *whole = malloc((size_t)model->leaf_count * token_count * model->row_count * sizeof(*whole));
    float *found = malloc((size_t)count * token_count * model->row_count * sizeof(*found));
    struct model_matrix slice;
    struct weft_matrix *slice_matrix;

    model_matrix_part(model, rows, columns, &slice);
    slice.leaf_count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct weft_range leaf = model->leaves[first + i];

        slice.leaves[i] = (struct weft_range){leaf.begin - columns.begin, leaf.end - columns.begin};
    }
    model_quant_fill(check, x, (size_t)token_count * model->col_count);
    for (uint32_t t = 0; t < token_count; t++) {
        memcpy(slice_x + (size_t)t * width, x + (size_t)t * model->col_count + columns.begin, width * sizeof(*x));
    }
    slice_matrix = model_matrix_open(check, device, &slice);
    model_matrix_multiply(check, device, matrix, model, token_count, x, NULL, whole);
    model_matrix_multiply(check, device, slice_matrix, &slice, token_count, slice_x, NULL, found);
    for (uint32_t i = 0; i < count * token_count; i++) {
        check_same(check, found + (size_t)i * slice.row_count,
                   whole + ((size_t)first * token_count + i) * model->row_count + rows.begin, slice.row_count,
                   "matmul %s: leaf %u in a slice of %u leaves, rows from %u, token %u of %u",
                   weft_dtype_name(model->dtype), first + i / token_count, count, rows.begin, i % token_count,
                   token_count);
    }
    weft_matrix_close(device, &slice_matrix);
    model_matrix_fini(&slice);
    free(x);
    free(slice_x);
    free(whole);
    free(found);
}

static void check_matrix(struct check *check, struct weft_device *device, struct model_matrix *model,
                         uint32_t token_count)
{
    struct weft_matrix *matrix;
    struct blocks weights;

    model_matrix_init(check, model);
    weights = blocks_begin(model, false, model->values, model->row_count);
    matrix = model_matrix_open(check, device, model);
    check_product(check, device, matrix, model, &weights, token_count, false);
    if (model_matrix_nodes(model) == 1) {
        check_product(check, device, matrix, model, &weights, 1 + check_below(check, 9), true);
    }
    check_embed(check, device, matrix, model, &weights);
    if (model->leaf_count > 0 && model->add_count == 0) {
        check_slice(check, device, matrix, model, 1 + check_below(check, 12));
    }
    weft_matrix_close(device, &matrix);
    blocks_end(&weights);
    model_matrix_fini(model);
}

/* So wide that the CPU device quantises these tokens in several parts. */
static void check_wide(struct check *check, struct weft_device *device)
{
    struct model_matrix model = {.dtype = WEFT_Q4_0, .source = WEFT_BF16, .row_count = 1, .col_count = 40000 * 32 + 6};

    check_matrix(check, device, &model, 8);
}

/*
 * What a GPU does in other ways: more than 64 tokens at a time; as many rows as an emulated GPU wants before it splits
 * columns; activations with and without 16 bytes at a time; more chunk sums than a product of few tokens keeps.
 */
static void check_gpu(struct check *check, struct weft_device *device)
{
    static const uint32_t shapes[][4] = {{520, 530, 70, 0},  {140, 1100, 130, 0}, {150, 640, 66, 8}, {20, 1280, 3, 4},
                                         {530, 192, 130, 3}, {16, 65536, 8, 8},   {33, 96, 8, 0}};

    for (uint32_t i = 0; i < 7 * 2; i++) {
        struct model_matrix model = {.dtype = i % 2 == 0 ? WEFT_Q8_0 : WEFT_Q4_0,
                                     .source = WEFT_BF16,
                                     .row_count = shapes[i / 2][0],
                                     .col_count = shapes[i / 2][1]};

        if (shapes[i / 2][3] > 0) {
            model_matrix_cut(check, &model, shapes[i / 2][3]);
        }
        check_matrix(check, device, &model, shapes[i / 2][2]);
    }
}

void check_device_matmul_quant(struct check *check)
{
    static const uint32_t leaf_counts[] = {0, 0, 1, 2, 3, 8, 64};
    uint32_t device_count = check->module != NULL ? 1 : 3;

    for (uint32_t threads = 1; threads <= device_count; threads++) {
        struct weft_device *device = check_device(check, threads);

        for (uint32_t i = 0; i < 80; i++) { /* 1 to 40 tokens, in both types */
            bool is_large = check_below(check, 8) == 0;
            struct model_matrix model = {.dtype = i % 2 == 0 ? WEFT_Q8_0 : WEFT_Q4_0,
                                         .source = (enum weft_dtype)check_below(check, 3),
                                         .row_count = 1 + check_below(check, is_large ? 200 : 40),
                                         .col_count = 1 + check_below(check, is_large ? 2500 : 400)};
            uint32_t leaf_count = leaf_counts[check_below(check, 7)];

            if (leaf_count > 0) {
                model_matrix_cut(check, &model, leaf_count);
                model.add_count = check_below(check, 2) == 0 ? 0 : model.add_count;
            }
            check_matrix(check, device, &model, i / 2 + 1);
        }
        if (check->module == NULL && threads == 2) {
            check_wide(check, device);
        }
        if (check->module != NULL) {
            check_gpu(check, device);
        }
        weft_device_close(&device);
    }
}
