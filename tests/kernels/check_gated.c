/*
 * Gated matrices of the device table: the bits of the same rows as any matrix, and silu and product by the reference
 * afterwards, on whatever multiplies.
 */
#include <stdlib.h>

#include "model_matrix.h"

static void gated_case(struct check *check, struct weft_device *device, struct model_matrix *model,
                       uint32_t token_count, bool has_bias)
{
    uint32_t width = model->row_count / 2;
    size_t count = (size_t)token_count * width;
    struct check_buffer x = check_floats((size_t)token_count * model->col_count, check_below(check, 2) * 4);
    struct check_buffer bias = check_floats(model->row_count, 0);
    struct check_buffer plain = check_floats(2 * count, 0);
    struct check_buffer found = check_floats(count, check_below(check, 16));
    struct check_buffer expected = check_floats(count, 0);
    struct weft_matrix *matrix = model_matrix_open(check, device, model);

    check_fill(check, CHECK_PLAIN, x.data, (size_t)token_count * model->col_count);
    check_fill(check, CHECK_PLAIN, bias.data, model->row_count);
    model_matrix_multiply(check, device, matrix, model, token_count, x.data, has_bias ? bias.data : NULL, plain.data);
    weft_matrix_close(device, &matrix);
    for (size_t i = 0; i < count; i++) {
        const float *gate = (float *)plain.data + i / width * 2 * width + i % width;
        float pair[WEFT_LANES + 1] = {gate[0], [WEFT_LANES] = gate[width]};

        check->ref->silu_mul(pair, 1, (float *)expected.data + i);
    }
    model->is_gated = true;
    matrix = model_matrix_open(check, device, model);
    model_matrix_multiply(check, device, matrix, model, token_count, x.data, has_bias ? bias.data : NULL, found.data);
    model->is_gated = false;
    weft_matrix_close(device, &matrix);
    check_same(check, found.data, expected.data, count, "gated %s [2 * %u, %u], %u tokens, bias %d, %s",
               weft_dtype_name(model->dtype), width, model->col_count, token_count, has_bias, weft_device_name(device));
    check_buffer_end(check, &x, "gated x");
    check_buffer_end(check, &bias, "gated bias");
    check_buffer_end(check, &plain, "gated plain out");
    check_buffer_end(check, &found, "gated out");
    check_buffer_end(check, &expected, "gated expected");
}

void check_device_gated(struct check *check)
{
    /* Pairs and columns: parts of tiles and panels; enough rows for blocks that need not split columns; several chunks.
     */
    static const uint32_t shapes[][2] = {{1, 1}, {8, 16}, {9, 40}, {24, 64}, {100, 130}, {275, 32}, {70, 1100}};
    static const uint32_t token_counts[] = {1, 3, 7, 8, 33, 70};
    static const enum weft_dtype dtypes[] = {WEFT_F32, WEFT_F16, WEFT_BF16, WEFT_Q8_0, WEFT_Q4_0};

    for (uint32_t threads = 1; threads <= (check->module != NULL ? 1 : 3); threads++) {
        struct weft_device *device = check_device(check, threads);

        for (uint32_t i = 0; i < 7 * 5; i++) {
            struct model_matrix model = {.dtype = dtypes[i % 5],
                                         .source = (enum weft_dtype)check_below(check, 3),
                                         .row_count = 2 * shapes[i / 5][0],
                                         .col_count = shapes[i / 5][1]};

            model_matrix_init(check, &model);
            for (uint32_t t = 0; t < 3; t++) {
                gated_case(check, device, &model, token_counts[2 * t + check_below(check, 2)], t % 2 != 0);
            }
            model_matrix_fini(&model);
        }
        weft_device_close(&device);
    }
}
