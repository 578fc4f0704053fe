/* The device table: options, memory, matrices, and the operations on token rows, for several thread counts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "weft/log.h"
#include "weft/numeric.h"

static void drop_line(void *context, enum weft_log_level level, const char *line)
{
    (void)level;
    (void)line;
    ++*(uint32_t *)context;
}

/* Refusals give a status and exactly one line. */
static void expect_refusal(struct check *check, const struct weft_device_options *options, enum weft_status expected)
{
    struct weft_device *device = NULL;
    uint32_t line_count = 0;
    enum weft_status status;

    weft_log_configure(WEFT_LOG_INFO, drop_line, &line_count);
    status = weft_device_open(options, &device);
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    if (status != expected || device != NULL || line_count != 1) {
        check_fail(check, "device open: status %d with %u lines, expected %d with one", status, line_count, expected);
        weft_device_close(&device);
    }
}

void check_device_options(struct check *check)
{
    uint32_t far_core = 1000000;
    struct weft_device_options unknown_kind = {.kind = "abacus", .thread_count = 1};
    struct weft_device_options unknown_level = {.cpu_level = "mmx", .thread_count = 1};
    struct weft_device_options no_thread = {.thread_count = 0};
    struct weft_device_options bad_core = {.thread_count = 1, .cores = &far_core};
    struct weft_device *device = check_device(check, 2);

    expect_refusal(check, &unknown_kind, WEFT_ERR_ARGUMENT);
    expect_refusal(check, &unknown_level, WEFT_ERR_ARGUMENT);
    expect_refusal(check, &no_thread, WEFT_ERR_ARGUMENT);
    expect_refusal(check, &bad_core, WEFT_ERR_ARGUMENT);
    if (strstr(weft_device_name(device), check->level) == NULL) {
        check_fail(check, "device name \"%s\" does not say the level", weft_device_name(device));
    }
    check->compared_count++;
    weft_device_close(&device);
    if (device != NULL) {
        check_fail(check, "device close leaves its pointer");
    }
}

void check_device_memory(struct check *check)
{
    static const size_t sizes[] = {0, 1, 63, 4096, 100000, 9000001, 20 << 20};
    struct weft_device *device = check_device(check, 1);
    uint32_t line_count = 0;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *memory = weft_device_alloc(device, sizes[i]);
        unsigned char sum = 0;

        if (memory == NULL || (uintptr_t)memory % 64 != 0) {
            check_fail(check, "block of %zu bytes at %p", sizes[i], (void *)memory);
            continue;
        }
        for (size_t j = 0; j < sizes[i]; j++) {
            sum |= memory[j];
        }
        if (sum != 0) {
            check_fail(check, "block of %zu bytes is not zeroed", sizes[i]);
        }
        memset(memory, 0xff, sizes[i]);
        weft_device_free(device, memory);
        check->compared_count++;
    }
    weft_device_free(device, NULL);
    weft_log_configure(WEFT_LOG_INFO, drop_line, &line_count);
    if (weft_device_alloc(device, SIZE_MAX) != NULL || weft_device_alloc(device, SIZE_MAX / 4) != NULL) {
        check_fail(check, "a block larger than any memory is handed out");
    }
    weft_log_configure(WEFT_LOG_INFO, NULL, NULL);
    if (line_count != 2) {
        check_fail(check, "two refused blocks gave %u lines", line_count);
    }
    weft_device_close(&device);
}

/* ---- matrices ---- */

/* A matrix with what it was made of. */
struct model_matrix {
    enum weft_dtype dtype;
    uint32_t row_count;
    uint32_t col_count;
    uint32_t leaf_count; /* 0: column-parallel */
    uint32_t add_count;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    unsigned char *rows; /* as in a file, owned */
    float *values;       /* [row_count][col_count] what they mean, owned */
};

/* Random even cuts (some leaves empty), and random merges of neighbours down to a random number of nodes. */
static void make_leaves(struct check *check, struct model_matrix *matrix, uint32_t leaf_count)
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

static void model_matrix_init(struct check *check, struct model_matrix *matrix)
{
    size_t count = (size_t)matrix->row_count * matrix->col_count;

    matrix->rows = malloc(count * weft_dtype_size(matrix->dtype) + 1);
    matrix->values = malloc(count * sizeof(float) + 1);
    for (size_t i = 0; i < count; i++) {
        float value = check_value(check, CHECK_PLAIN);

        if (matrix->dtype == WEFT_F32) {
            ((float *)matrix->rows)[i] = value;
        } else if (matrix->dtype == WEFT_F16) {
            ((uint16_t *)matrix->rows)[i] = weft_f32_to_f16(value);
            value = weft_f16_to_f32(weft_f32_to_f16(value));
        } else {
            ((uint16_t *)matrix->rows)[i] = weft_f32_to_bf16(value);
            value = weft_bf16_to_f32(weft_f32_to_bf16(value));
        }
        matrix->values[i] = value;
    }
}

static void model_matrix_fini(struct model_matrix *matrix)
{
    free(matrix->rows);
    free(matrix->values);
}

/* The contract, word for word: one ascending chain per leaf, then the additions; the nodes that remain, in order. */
static uint32_t model_product(const struct model_matrix *matrix, uint32_t row, const float *x, float *nodes)
{
    struct weft_range all = {0, matrix->col_count};
    uint32_t slots = matrix->leaf_count == 0 ? 1 : matrix->leaf_count;
    bool is_gone[WEFT_LEAF_COUNT_MAX] = {false};
    float sums[WEFT_LEAF_COUNT_MAX];
    uint32_t node_count = 0;

    for (uint32_t i = 0; i < slots; i++) {
        struct weft_range leaf = matrix->leaf_count == 0 ? all : matrix->leaves[i];

        sums[i] = 0.0f;
        for (uint32_t k = leaf.begin; k < leaf.end; k++) {
            sums[i] = __builtin_fmaf(matrix->values[(size_t)row * matrix->col_count + k], x[k], sums[i]);
        }
    }
    for (uint32_t i = 0; i < matrix->add_count; i++) {
        sums[matrix->adds[i].left] += sums[matrix->adds[i].right];
        is_gone[matrix->adds[i].right] = true;
    }
    for (uint32_t i = 0; i < slots; i++) {
        if (!is_gone[i]) {
            nodes[node_count++] = sums[i];
        }
    }
    return node_count;
}

static struct weft_matrix *open_matrix(struct check *check, struct weft_device *device,
                                       const struct model_matrix *model)
{
    struct weft_matrix_desc desc = {.dtype = model->dtype,
                                    .row_count = model->row_count,
                                    .col_count = model->col_count,
                                    .leaves = model->leaf_count > 0 ? model->leaves : NULL,
                                    .leaf_count = model->leaf_count,
                                    .adds = model->adds,
                                    .add_count = model->add_count};
    size_t stride = model->col_count * weft_dtype_size(model->dtype);
    uint32_t cut = check_below(check, model->row_count + 1);
    struct weft_matrix *matrix;

    if (weft_matrix_size(device, &desc) < model->row_count * stride ||
        weft_matrix_open(device, &desc, &matrix) != WEFT_OK ||
        weft_matrix_write_rows(device, matrix, cut, model->row_count - cut, model->rows + cut * stride, stride) !=
            WEFT_OK ||
        weft_matrix_write_rows(device, matrix, 0, cut, model->rows, stride) != WEFT_OK) {
        abort();
    }
    return matrix;
}

static void matmul_case(struct check *check, struct weft_device *device, const struct model_matrix *model,
                        uint32_t token_count, bool has_bias)
{
    struct weft_matrix *matrix = open_matrix(check, device, model);
    uint32_t node_count = model->leaf_count == 0 ? 1 : model->leaf_count - model->add_count;
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
    weft_device_matmul(device, matrix, x.data, token_count, has_bias ? bias.data : NULL, found.data);
    check_same(check, found.data, expected.data, out_count,
               "matmul %s [%u, %u], %u leaves, %u nodes, %u tokens, bias %d, %s", weft_dtype_name(model->dtype),
               model->row_count, model->col_count, model->leaf_count, node_count, token_count, has_bias,
               weft_device_name(device));
    for (uint32_t row = 0; row < model->row_count; row += 1 + check_below(check, model->row_count)) {
        weft_device_embed(device, matrix, &row, 1, x.data);
        if (token_count > 0) {
            check_same(check, x.data, model->values + (size_t)row * model->col_count, model->col_count,
                       "embed row %u of %u, %s", row, model->row_count, weft_dtype_name(model->dtype));
        }
    }
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

    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct weft_device *device = check_device(check, threads);

        for (uint32_t i = 0; i < 6 * 3; i++) {
            struct model_matrix model = {.dtype = (enum weft_dtype)(i % 3),
                                         .row_count = 1 + check_below(check, 200),
                                         .col_count = 1 + check_below(check, 140)};

            if (leaf_counts[i / 3] > 0) {
                make_leaves(check, &model, leaf_counts[i / 3]);
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

/* ---- operations on token rows ---- */

/* Each row must be what the micro-kernel makes of it alone, for any number of rows and threads. */
static void rows_case(struct check *check, struct weft_device *device, uint32_t token_count, uint32_t width)
{
    size_t count = (size_t)token_count * width;
    struct check_buffer x = check_floats(2 * count, 0);
    struct check_buffer weight = check_floats(width, 0);
    struct check_buffer found = check_floats(count, 0);
    struct check_buffer expected = check_floats(count, 0);
    float *in = x.data;
    uint32_t row_count = token_count < 3 ? token_count : 3;
    uint32_t rows[3];

    check_fill(check, CHECK_EDGE, in, 2 * count);
    check_fill(check, CHECK_PLAIN, weight.data, width);
    for (uint32_t t = 0; t < token_count; t++) {
        check->ref->rms_norm(in + t * width, weight.data, width, 1e-6f, (float *)expected.data + t * width);
    }
    weft_device_rms_norm(device, in, weight.data, token_count, width, 1e-6f, found.data);
    check_same(check, found.data, expected.data, count, "rms_norm [%u, %u]", token_count, width);
    for (uint32_t t = 0; t < token_count; t++) {
        const float *gate = in + 2 * t * width;

        check->ref->silu_mul(gate, gate + width, width, (float *)expected.data + t * width);
    }
    weft_device_silu_mul(device, in, token_count, width, found.data);
    check_same(check, found.data, expected.data, count, "silu_mul [%u, %u]", token_count, width);
    for (uint32_t t = 0; t < token_count; t++) {
        check->ref->add((float *)expected.data + t * width, in + t * width, weight.data, width);
    }
    weft_device_add(device, found.data, in, weight.data, token_count, width);
    check_same(check, found.data, expected.data, count, "add [%u, %u]", token_count, width);
    for (uint32_t i = 0; i < row_count; i++) {
        rows[i] = check_below(check, token_count);
        memcpy((float *)expected.data + i * width, in + rows[i] * width, width * sizeof(float));
    }
    weft_device_select_rows(device, in, rows, row_count, width, found.data);
    check_same(check, found.data, expected.data, (size_t)row_count * width, "select_rows [%u, %u]", token_count, width);
    check_buffer_end(check, &x, "rows x");
    check_buffer_end(check, &weight, "rows weight");
    check_buffer_end(check, &found, "rows out");
    check_buffer_end(check, &expected, "rows expected");
}

void check_device_rows(struct check *check)
{
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct weft_device *device = check_device(check, threads);

        rows_case(check, device, 1, 77);
        rows_case(check, device, 3, 128);
        rows_case(check, device, 8, 50);
        weft_device_close(&device);
    }
}

/* ---- rotary embedding ---- */

static void check_angles(struct check *check, struct weft_device *device)
{
    static const uint32_t positions[] = {0, 1, 7, 4095, 131071, 1000000};
    float inv_freq[8];
    float angles[16];

    for (uint32_t i = 0; i < 8; i++) {
        inv_freq[i] = (float)(1.0 / pow(10000.0, i / 8.0));
    }
    for (uint32_t p = 0; p < sizeof(positions) / sizeof(positions[0]); p++) {
        struct weft_batch_sequence sequence = {.token_count = 1, .position = positions[p]};
        struct weft_batch batch = {.token_count = 1, .sequence_count = 1, .sequences = &sequence};

        weft_device_rope_angles(device, &batch, inv_freq, 16, 1.0f, angles);
        for (uint32_t i = 0; i < 8; i++) {
            double angle = (double)((float)positions[p] * inv_freq[i]);

            check_near(check, angles[2 * i], cos(angle), 1.0001 * CHECK_U * fabs(cos(angle)), "cos %g", angle);
            check_near(check, angles[2 * i + 1], sin(angle), 1.0001 * CHECK_U * fabs(sin(angle)), "sin %g", angle);
        }
        check->compared_count++;
    }
}

/* Heads are normalised, then rotated; values are left alone. */
static void check_heads(struct check *check, struct weft_device *device, bool has_norm)
{
    enum { TOKENS = 5, HEADS = 3, KV_HEADS = 2, SIZE = 22, WIDTH = (HEADS + 2 * KV_HEADS) * SIZE };
    float found[TOKENS * WIDTH];
    float expected[TOKENS * WIDTH];
    float angles[TOKENS * SIZE];
    float norm[SIZE];
    struct weft_rope_args args = {.heads = {HEADS, KV_HEADS, SIZE, 0, 2},
                                  .qkv = found,
                                  .angles = angles,
                                  .q_norm = has_norm ? norm : NULL,
                                  .k_norm = has_norm ? norm : NULL,
                                  .eps = 1e-6f,
                                  .token_count = TOKENS};

    check_fill(check, CHECK_PLAIN, found, TOKENS * WIDTH);
    check_fill(check, CHECK_PLAIN, angles, TOKENS * SIZE);
    check_fill(check, CHECK_PLAIN, norm, SIZE);
    memcpy(expected, found, sizeof(found));
    for (uint32_t i = 0; i < TOKENS * (HEADS + KV_HEADS); i++) {
        uint32_t token = i / (HEADS + KV_HEADS);
        float *head = expected + token * WIDTH + i % (HEADS + KV_HEADS) * SIZE;

        if (has_norm) {
            check->ref->rms_norm(head, norm, SIZE, 1e-6f, head);
        }
        check->ref->rope(head, angles + token * SIZE, SIZE / 2);
    }
    weft_device_rope(device, &args);
    check_same(check, found, expected, TOKENS * WIDTH, "rope with norm %d", has_norm);
}

void check_device_rope(struct check *check)
{
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        struct weft_device *device = check_device(check, threads);

        check_angles(check, device);
        check_heads(check, device, false);
        check_heads(check, device, true);
        weft_device_close(&device);
    }
}
