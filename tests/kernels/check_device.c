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

        unsigned char *copy = malloc(sizes[i] + 1);

        if (memory == NULL || (uintptr_t)memory % 64 != 0 ||
            weft_device_read(device, copy, memory, sizes[i]) != WEFT_OK) {
            check_fail(check, "block of %zu bytes at %p", sizes[i], (void *)memory);
            free(copy);
            continue;
        }
        for (size_t j = 0; j < sizes[i]; j++) {
            sum |= copy[j];
            copy[j] = (unsigned char)(j * 31);
        }
        if (sum != 0) {
            check_fail(check, "block of %zu bytes is not zeroed", sizes[i]);
        }
        if (weft_device_write(device, memory, copy, sizes[i]) != WEFT_OK) {
            check_fail(check, "cannot write %zu bytes", sizes[i]);
        }
        memset(copy, 0, sizes[i]);
        if (weft_device_read(device, copy, memory, sizes[i]) != WEFT_OK) {
            check_fail(check, "cannot read %zu bytes", sizes[i]);
        }
        for (size_t j = 0; j < sizes[i]; j++) {
            if (copy[j] != (unsigned char)(j * 31)) {
                check_fail(check, "byte %zu of %zu is not what was written", j, sizes[i]);
                break;
            }
        }
        free(copy);
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

/* ---- operations on token rows ---- */

/* Shapes of the checks: rows [token_count, width], `offset` floats past a multiple of 64 bytes. */
struct check_rows {
    uint32_t token_count;
    uint32_t width;
    size_t offset;
};

/* found[count] <- what the device holds now. */
static void fetch(struct check *check, struct weft_device *device, float *found, const float *lent, size_t count)
{
    if (!weft_device_is_host(device) && weft_device_read(device, found, lent, count * sizeof(float)) != WEFT_OK) {
        check_fail(check, "%s: cannot read %zu floats", weft_device_name(device), count);
    }
}

/* The additions that make inputs [first, first + count) one, halving recursively; returns how many. */
static uint32_t halve(uint32_t first, uint32_t count, struct weft_tree_add *adds)
{
    uint32_t left = (count + 1) / 2, used;

    if (count == 1) {
        return 0;
    }
    used = halve(first, left, adds);
    used += halve(first + left, count - left, adds + used);
    adds[used] = (struct weft_tree_add){(uint8_t)first, (uint8_t)(first + left)};
    return used + 1;
}

/* y <- the sum of `count` elements of the inputs, by the contract. */
static void add_inputs(const struct weft_tree_add_args *sum, const float *inputs, float *y)
{
    float slots[WEFT_LEAF_COUNT_MAX];

    for (size_t i = 0; i < sum->count; i++) {
        for (uint32_t n = 0; n < sum->input_count; n++) {
            slots[n] = inputs[n * sum->count + i];
        }
        for (uint32_t a = 0; a + 1 < sum->input_count; a++) {
            slots[sum->adds[a].left] += slots[sum->adds[a].right];
        }
        y[i] = slots[0];
    }
}

/* Row t of x and of y's inputs is added, then normalised, as the micro-kernel does it alone. */
static void add_norm_case(struct check *check, struct weft_device *device, enum check_values values,
                          const struct check_rows *rows, uint32_t input_count, bool has_bias)
{
    size_t width = rows->width, count = rows->token_count * width;
    struct check_buffer x = check_floats(count, rows->offset);
    struct check_buffer inputs = check_floats(input_count * count, rows->offset + (size_t)has_bias);
    struct check_buffer vectors = check_floats(2 * width, rows->offset); /* bias, weight */
    struct check_buffer found = check_floats(count, rows->offset);
    struct check_buffer expected = check_floats(count, 0);
    struct check_buffer sums = check_floats(count, 0);
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    const float *lent_inputs[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add_args y = {
        .inputs = lent_inputs, .input_count = input_count, .adds = adds, .count = count, .out = NULL};

    check_fill(check, values, x.data, count);
    check_fill(check, values, inputs.data, input_count * count);
    check_fill(check, CHECK_PLAIN, vectors.data, 2 * width);
    memcpy(sums.data, x.data, count * sizeof(float));
    (void)halve(0, input_count, adds);
    add_inputs(&y, inputs.data, found.data);
    for (size_t t = 0; t < rows->token_count; t++) {
        check->ref->add_norm((float *)sums.data + t * width, (float *)found.data + t * width,
                             has_bias ? vectors.data : NULL, (float *)vectors.data + width, rows->width, 1e-6f,
                             (float *)expected.data + t * width);
    }
    float *lent = check_lend(device, inputs.data, input_count * count * sizeof(float));
    float *lent_vectors = check_lend(device, vectors.data, 2 * width * sizeof(float));
    for (uint32_t n = 0; n < input_count; n++) {
        lent_inputs[n] = lent + n * count;
    }
    struct weft_add_norm_args args = {.x = check_lend(device, x.data, count * sizeof(float)),
                                      .y = &y,
                                      .bias = has_bias ? lent_vectors : NULL,
                                      .weight = lent_vectors + width,
                                      .out = check_lend(device, found.data, count * sizeof(float)),
                                      .eps = 1e-6f,
                                      .token_count = rows->token_count,
                                      .width = rows->width};
    weft_device_add_norm(device, &args);
    check_return(check, device, lent_vectors, vectors.data, 2 * width * sizeof(float));
    check_return(check, device, lent, inputs.data, input_count * count * sizeof(float));
    check_return(check, device, args.x, x.data, count * sizeof(float));
    check_return(check, device, args.out, found.data, count * sizeof(float));
    check_same(check, x.data, sums.data, count, "add_norm [%u, %u] of %u, bias %d: x", rows->token_count, rows->width,
               input_count, has_bias);
    check_same(check, found.data, expected.data, count, "add_norm [%u, %u] of %u, bias %d", rows->token_count,
               rows->width, input_count, has_bias);
    check_buffer_end(check, &x, "add_norm x");
    check_buffer_end(check, &inputs, "add_norm y");
    check_buffer_end(check, &vectors, "add_norm bias and weight");
    check_buffer_end(check, &found, "add_norm out");
    check_buffer_end(check, &expected, "add_norm expected");
    check_buffer_end(check, &sums, "add_norm sums");
}

/* Each row must be what the micro-kernel makes of it alone, for any number of rows and threads. */
static void rows_case(struct check *check, struct weft_device *device, enum check_values values, uint32_t token_count,
                      uint32_t width, size_t offset)
{
    size_t count = (size_t)token_count * width;
    struct check_buffer x = check_floats(2 * count, offset);
    struct check_buffer weight = check_floats(width, offset);
    struct check_buffer found = check_floats(count, offset);
    struct check_buffer expected = check_floats(count, 0);
    float *in = x.data;
    uint32_t row_count = token_count < 3 ? token_count : 3;
    uint32_t rows[3];

    check_fill(check, values, in, 2 * count);
    check_fill(check, CHECK_PLAIN, weight.data, width);
    float *lent = check_lend(device, in, 2 * count * sizeof(float));
    float *lent_weight = check_lend(device, weight.data, width * sizeof(float));
    float *lent_found = check_lend(device, found.data, count * sizeof(float));
    for (uint32_t t = 0; t < token_count; t++) {
        check->ref->rms_norm(in + t * width, weight.data, width, 1e-6f, (float *)expected.data + t * width);
    }
    weft_device_rms_norm(device, lent, lent_weight, token_count, width, 1e-6f, lent_found);
    fetch(check, device, found.data, lent_found, count);
    check_same(check, found.data, expected.data, count, "rms_norm [%u, %u]", token_count, width);
    for (uint32_t i = 0; i < row_count; i++) {
        rows[i] = check_below(check, token_count);
        memcpy((float *)expected.data + i * width, in + rows[i] * width, width * sizeof(float));
    }
    weft_device_select_rows(device, lent, rows, row_count, width, lent_found);
    check_return(check, device, lent_found, found.data, count * sizeof(float));
    check_return(check, device, lent_weight, weight.data, width * sizeof(float));
    check_return(check, device, lent, in, 2 * count * sizeof(float));
    check_same(check, found.data, expected.data, (size_t)row_count * width, "select_rows [%u, %u]", token_count, width);
    check_buffer_end(check, &x, "rows x");
    check_buffer_end(check, &weight, "rows weight");
    check_buffer_end(check, &found, "rows out");
    check_buffer_end(check, &expected, "rows expected");
}

void check_device_rows(struct check *check)
{
    static const struct check_rows shapes[] = {{1, 77, 0},   {3, 128, 0},  {3, 128, 5}, {8, 50, 0},
                                               {2, 4096, 0}, {2, 4100, 0}, {1, 8195, 1}};
    static const uint32_t input_counts[] = {1, 2, 3, 8, 13, 64};

    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct weft_device *device = check_device(check, threads);

        for (size_t i = 0; i < 2 * sizeof(shapes) / sizeof(shapes[0]); i++) {
            const struct check_rows *rows = &shapes[i / 2];
            enum check_values values = i % 2 == 0 ? CHECK_PLAIN : CHECK_EDGE; /* a NaN would hide an order of sums */

            rows_case(check, device, values, rows->token_count, rows->width, rows->offset);
            for (size_t n = 0; n < sizeof(input_counts) / sizeof(input_counts[0]); n++) {
                add_norm_case(check, device, values, rows, input_counts[n], n % 2 != 0);
                add_norm_case(check, device, values, rows, input_counts[n], n % 2 == 0);
            }
        }
        weft_device_close(&device);
    }
}

/* ---- angles of the rotary embedding ---- */

static void check_angles(struct check *check, struct weft_device *device)
{
    static const uint32_t positions[] = {0, 1, 7, 4095, 131071, 1000000};
    float inv_freq[8];
    float angles[16] = {0};

    for (uint32_t i = 0; i < 8; i++) {
        inv_freq[i] = (float)(1.0 / pow(10000.0, i / 8.0));
    }
    for (uint32_t p = 0; p < sizeof(positions) / sizeof(positions[0]); p++) {
        struct weft_batch_sequence sequence = {.token_count = 1, .position = positions[p]};
        struct weft_batch batch = {.token_count = 1, .sequence_count = 1, .sequences = &sequence};

        float *lent = check_lend(device, angles, sizeof(angles));
        weft_device_rope_angles(device, &batch, inv_freq, 16, 1.0f, lent);
        check_return(check, device, lent, angles, sizeof(angles));
        for (uint32_t i = 0; i < 8; i++) {
            double angle = (double)((float)positions[p] * inv_freq[i]);

            check_near(check, angles[2 * i], cos(angle), 1.0001 * CHECK_U * fabs(cos(angle)), "cos %g", angle);
            check_near(check, angles[2 * i + 1], sin(angle), 1.0001 * CHECK_U * fabs(sin(angle)), "sin %g", angle);
        }
        check->compared_count++;
    }
}

/* A step of many sequences, some of them empty: each token's angles are those of the CPU for its position alone. */
static void check_step_angles(struct check *check, struct weft_device *device)
{
    enum { SEQUENCES = 300, SIZE = 10, TOKENS_MAX = SEQUENCES * 3 };
    struct weft_batch_sequence *sequences = calloc(SEQUENCES, sizeof(*sequences));
    float *found = calloc(TOKENS_MAX * SIZE, sizeof(*found));
    struct weft_batch batch = {.sequence_count = SEQUENCES, .sequences = sequences};
    const float inv_freq[SIZE / 2] = {1.0f, 0.3f, 0.09f, 0.027f, 0.0081f};
    size_t size;

    for (uint32_t i = 0; i < SEQUENCES; i++) {
        sequences[i] = (struct weft_batch_sequence){.token_begin = batch.token_count,
                                                    .token_count = check_below(check, 4),
                                                    .position = check_below(check, 100000)};
        batch.token_count += sequences[i].token_count;
    }
    size = (size_t)batch.token_count * SIZE * sizeof(*found);
    float *lent = check_lend(device, found, size);
    weft_device_rope_angles(device, &batch, inv_freq, SIZE, 1.25f, lent);
    check_return(check, device, lent, found, size);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        for (uint32_t t = 0; t < sequences[i].token_count; t++) {
            float expected[SIZE];

            for (uint32_t j = 0; j < SIZE / 2; j++) {
                weft_cos_sin((float)(sequences[i].position + t) * inv_freq[j], &expected[2 * j], &expected[2 * j + 1]);
                expected[2 * j] *= 1.25f;
                expected[2 * j + 1] *= 1.25f;
            }
            check_same(check, found + (size_t)(sequences[i].token_begin + t) * SIZE, expected, SIZE,
                       "angles of token %u of sequence %u", t, i);
        }
    }
    free(sequences);
    free(found);
}

void check_device_angles(struct check *check)
{
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        struct weft_device *device = check_device(check, threads);

        check_angles(check, device);
        check_step_angles(check, device);
        weft_device_close(&device);
    }
}
