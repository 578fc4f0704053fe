/* Matrices of the device table: packing, multiplication leaf by leaf, rows as embeddings. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_matrix.h"
#include "weft/numeric.h"

/* The contract, word for word: one ascending chain per leaf, then the additions; the nodes that remain, in order. */
static uint32_t model_product(const struct model_matrix *matrix, uint32_t row, const float *x, float *nodes)
{
    struct weft_range all = {0, matrix->col_count};
    uint32_t slots = matrix->leaf_count == 0 ? 1 : matrix->leaf_count;
    float sums[WEFT_LEAF_COUNT_MAX];

    for (uint32_t i = 0; i < slots; i++) {
        struct weft_range leaf = matrix->leaf_count == 0 ? all : matrix->leaves[i];

        sums[i] = 0.0f;
        for (uint32_t k = leaf.begin; k < leaf.end; k++) {
            sums[i] = __builtin_fmaf(matrix->values[(size_t)row * matrix->col_count + k], x[k], sums[i]);
        }
    }
    return model_matrix_combine(matrix, sums, nodes);
}

/* Rows, rows that are not there, rows: what stands before is overwritten, in either case. */
static void check_no_row(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                         const struct model_matrix *model)
{
    const uint32_t rows[] = {WEFT_NO_ROW, model->row_count - 1, WEFT_NO_ROW};
    size_t width = model->col_count;
    struct check_buffer found = check_floats(3 * width, check_below(check, 16));
    struct check_buffer expected = check_floats(3 * width, 0);

    check_fill(check, CHECK_PLAIN, found.data, 3 * width);
    for (size_t k = 0; k < width; k++) {
        ((float *)expected.data)[k] = -0.0f;
        ((float *)expected.data)[width + k] = model->values[(model->row_count - 1) * width + k];
        ((float *)expected.data)[2 * width + k] = -0.0f;
    }
    float *lent = check_lend(device, found.data, 3 * width * sizeof(float));
    weft_device_embed(device, matrix, rows, 3, lent);
    check_return(check, device, lent, found.data, 3 * width * sizeof(float));
    check_same(check, found.data, expected.data, 3 * width, "embed no row, %s", weft_dtype_name(model->dtype));
    check_buffer_end(check, &found, "embed out");
    check_buffer_end(check, &expected, "embed expected");
}

static void matmul_case(struct check *check, struct weft_device *device, const struct model_matrix *model,
                        uint32_t token_count, bool has_bias)
{
    struct weft_matrix *matrix = model_matrix_open(check, device, model);
    uint32_t node_count = model_matrix_nodes(model);
    size_t out_count = (size_t)node_count * token_count * model->row_count;
    struct check_buffer x = check_floats((size_t)token_count * model->col_count, check_below(check, 16));
    struct check_buffer bias = check_floats(model->row_count, 0);
    struct check_buffer found = check_floats(out_count, check_below(check, 16));
    struct check_buffer expected = check_floats(out_count, 0);

    check_fill(check, CHECK_PLAIN, x.data, (size_t)token_count * model->col_count);
    check_fill(check, CHECK_PLAIN, bias.data, model->row_count);
    for (uint32_t i = 0; i < token_count * model->row_count; i++) {
        float nodes[WEFT_LEAF_COUNT_MAX];

        model_product(model, i % model->row_count, (float *)x.data + (size_t)(i / model->row_count) * model->col_count,
                      nodes);
        for (uint32_t j = 0; j < node_count; j++) {
            ((float *)expected.data)[(size_t)j * token_count * model->row_count + i] =
                has_bias ? nodes[j] + ((float *)bias.data)[i % model->row_count] : nodes[j];
        }
    }
    model_matrix_multiply(check, device, matrix, model, token_count, x.data, has_bias ? bias.data : NULL, found.data);
    check_same(check, found.data, expected.data, out_count,
               "matmul %s [%u, %u], %u leaves, %u nodes, %u tokens, bias %d, %s", weft_dtype_name(model->dtype),
               model->row_count, model->col_count, model->leaf_count, node_count, token_count, has_bias,
               weft_device_name(device));
    for (uint32_t row = 0; row < model->row_count; row += 1 + check_below(check, model->row_count)) {
        float *lent = check_lend(device, x.data, model->col_count * sizeof(float));

        weft_device_embed(device, matrix, &row, 1, lent);
        check_return(check, device, lent, x.data, model->col_count * sizeof(float));
        if (token_count > 0) {
            check_same(check, x.data, model->values + (size_t)row * model->col_count, model->col_count,
                       "embed row %u of %u, %s", row, model->row_count, weft_dtype_name(model->dtype));
        }
    }
    check_no_row(check, device, matrix, model);
    weft_matrix_close(device, &matrix);
    check_buffer_end(check, &x, "matmul x");
    check_buffer_end(check, &bias, "matmul bias");
    check_buffer_end(check, &found, "matmul out");
    check_buffer_end(check, &expected, "matmul expected");
}

void check_device_matmul(struct check *check)
{
    static const uint32_t leaf_counts[] = {0, 1, 2, 3, 8, 64};
    static const uint32_t token_counts[] = {1, 2, 3, 7, 8, 9, 33};

    for (uint32_t threads = 1; threads <= (check->module != NULL ? 1 : 3); threads++) {
        struct weft_device *device = check_device(check, threads);

        for (uint32_t i = 0; i < 6 * 3; i++) {
            struct model_matrix model = {.dtype = (enum weft_dtype)(i % 3),
                                         .row_count = 1 + check_below(check, 200),
                                         .col_count = 1 + check_below(check, 140)};

            if (leaf_counts[i / 3] > 0) {
                model_matrix_cut(check, &model, leaf_counts[i / 3]);
            }
            model_matrix_init(check, &model);
            matmul_case(check, device, &model, token_counts[check_below(check, 7)], false);
            if (model.leaf_count <= model.add_count + 1) {
                matmul_case(check, device, &model, token_counts[check_below(check, 7)], true);
            }
            model_matrix_fini(&model);
        }
        weft_device_close(&device);
    }
}

/* ---- tensor cores: an order of their own inside 16 columns, the same for everybody ---- */

/* Half an ulp, relative, of what activations are rounded to; and absolute, where f16 becomes denormal. */
static double rounding_of(enum weft_dtype dtype)
{
    return dtype == WEFT_BF16 ? 0x1p-8 : 0x1p-11; /* 8 and 11 significant bits */
}

static double tiny_of(enum weft_dtype dtype)
{
    return dtype == WEFT_BF16 ? 0 : 0x1p-25;
}

/*
 * |error| <= sum |w x| (u16 + 2 K u): activations are rounded once; products are exact; of the K - 1 additions and
 * those of the tree, in whatever order, each errs by 2 u of a partial sum at most, twice a rounding, because tensor
 * cores may cut instead of rounding. The partial sums are at most sum |w x|.
 */
static void check_bound(struct check *check, const struct model_matrix *model, uint32_t token_count, const float *x,
                        const float *found)
{
    uint32_t node_count = model_matrix_nodes(model);

    for (uint32_t i = 0; i < token_count * model->row_count; i++) {
        const float *w = model->values + (size_t)(i % model->row_count) * model->col_count;
        const float *own_x = x + (size_t)(i / model->row_count) * model->col_count;
        double exact = 0;
        double size = 0;
        double weight_size = 0;
        double sum = 0;

        for (uint32_t k = 0; k < model->col_count; k++) {
            exact += (double)w[k] * (double)own_x[k];
            size += fabs((double)w[k] * (double)own_x[k]);
            weight_size += fabs((double)w[k]);
        }
        for (uint32_t j = 0; j < node_count; j++) {
            sum += (double)found[(size_t)j * token_count * model->row_count + i];
        }
        check_near(check, (float)sum, exact,
                   size * (rounding_of(model->dtype) * 1.01 + 2 * (model->col_count + 8) * CHECK_U) +
                       weight_size * tiny_of(model->dtype) + CHECK_U * fabs(sum),
                   "matmul %s [%u, %u] on tensor cores, element %u", weft_dtype_name(model->dtype), model->row_count,
                   model->col_count, i);
    }
}

/* Some rows of one leaf, as a matrix of another rank would have them, give the bits they had in the whole. */
static void check_part(struct check *check, struct weft_device *device, const struct model_matrix *whole,
                       uint32_t token_count, const float *x, const float *found)
{
    uint32_t leaf = check_below(check, whole->leaf_count);
    struct weft_range columns = whole->leaves[leaf];
    struct weft_range rows = {check_below(check, whole->row_count), whole->row_count};
    uint32_t width = weft_range_count(columns);
    struct model_matrix part;
    struct weft_matrix *matrix;
    float *part_x;
    float *out;

    if (width == 0) {
        return;
    }
    model_matrix_part(whole, rows, columns, &part);
    matrix = model_matrix_open(check, device, &part);
    part_x = malloc((size_t)token_count * width * sizeof(*part_x));
    out = malloc((size_t)token_count * part.row_count * sizeof(*out));
    for (uint32_t t = 0; t < token_count; t++) {
        memcpy(part_x + (size_t)t * width, x + (size_t)t * whole->col_count + columns.begin, width * sizeof(*x));
    }
    model_matrix_multiply(check, device, matrix, &part, token_count, part_x, NULL, out);
    for (uint32_t t = 0; t < token_count; t++) {
        check_same(check, out + (size_t)t * part.row_count,
                   found + ((size_t)leaf * token_count + t) * whole->row_count + rows.begin, part.row_count,
                   "matmul %s: leaf %u alone, rows from %u, token %u of %u", weft_dtype_name(whole->dtype), leaf,
                   rows.begin, t, token_count);
    }
    weft_matrix_close(device, &matrix);
    model_matrix_fini(&part);
    free(part_x);
    free(out);
}

/* A token's bits are the same alone, and in a batch of any size at any place. */
static void check_batches(struct check *check, struct weft_device *device, const struct weft_matrix *matrix,
                          const struct model_matrix *model, uint32_t token_count, float *x, const float *found)
{
    static const uint32_t sizes[] = {1, 2, 8, 9, 16, 17, 64, 65, 100};
    uint32_t node_count = model_matrix_nodes(model);
    uint32_t token = check_below(check, token_count);

    for (uint32_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint32_t size = sizes[s];
        uint32_t place = check_below(check, size);
        float *batch = malloc((size_t)size * model->col_count * sizeof(*batch));
        float *out = malloc((size_t)node_count * size * model->row_count * sizeof(*out));

        check_fill(check, CHECK_EDGE, batch, (size_t)size * model->col_count); /* neighbours may hold NaN */
        memcpy(batch + (size_t)place * model->col_count, x + (size_t)token * model->col_count,
               model->col_count * sizeof(*x));
        model_matrix_multiply(check, device, matrix, model, size, batch, NULL, out);
        for (uint32_t j = 0; j < node_count; j++) {
            check_same(check, out + ((size_t)j * size + place) * model->row_count,
                       found + ((size_t)j * token_count + token) * model->row_count, model->row_count,
                       "matmul %s [%u, %u]: token %u of %u as token %u of %u, node %u", weft_dtype_name(model->dtype),
                       model->row_count, model->col_count, token, token_count, place, size, j);
        }
        free(batch);
        free(out);
    }
}

void check_device_matmul_exact(struct check *check)
{
    /* 520 rows: as many blocks as an emulated GPU wants before it splits columns. More than 512 columns: several chunks
     * in a leaf. */
    static const uint32_t shapes[][2] = {{1, 1},    {16, 16},  {17, 33},   {70, 140},
                                         {130, 64}, {64, 200}, {520, 530}, {140, 1100}};
    static const uint32_t token_counts[] = {1, 3, 8, 33};
    struct weft_device *device = check_device(check, 1);

    for (uint32_t i = 0; i < 8 * 4 * 2; i++) {
        struct model_matrix model = {
            .dtype = i % 2 == 0 ? WEFT_BF16 : WEFT_F16, .row_count = shapes[i / 8][0], .col_count = shapes[i / 8][1]};
        uint32_t token_count = token_counts[i / 2 % 4];
        struct weft_matrix *matrix;
        float *x = malloc((size_t)token_count * model.col_count * sizeof(*x));
        float *out;

        if (i % 3 > 0) {
            model_matrix_cut(check, &model, 1 + check_below(check, 8));
            model.add_count = i % 3 == 1 ? 0 : model.add_count; /* every leaf a node of its own */
        }
        model_matrix_init(check, &model);
        matrix = model_matrix_open(check, device, &model);
        out = malloc((size_t)model_matrix_nodes(&model) * token_count * model.row_count * sizeof(*out));
        check_fill(check, CHECK_PLAIN, x, (size_t)token_count * model.col_count);
        model_matrix_multiply(check, device, matrix, &model, token_count, x, NULL, out);
        check_bound(check, &model, token_count, x, out);
        check_batches(check, device, matrix, &model, token_count, x, out);
        if (i % 3 == 1) {
            check_part(check, device, &model, token_count, x, out);
        }
        weft_matrix_close(device, &matrix);
        model_matrix_fini(&model);
        free(x);
        free(out);
    }
    weft_device_close(&device);
}
