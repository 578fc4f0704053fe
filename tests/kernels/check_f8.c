/*
 * Weights kept as E4M3: unpacking of every byte by levels, against double precision, and the device's products against
 * those of the same weights as bf16, by bits.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "model_matrix.h"
#include "weft/numeric.h"

enum { LANES = 16, PAIRS_MAX = 40, NAN_BITS = 0x7f };

/* Bytes are numbers: the two that are NaN become their neighbours. */
static uint8_t number_byte(uint32_t byte)
{
    return (byte & NAN_BITS) == NAN_BITS ? (uint8_t)(byte ^ 1) : (uint8_t)byte;
}

/*
 * Ordinary ones, half of them as short as bf16, whose products often lie midway between two of bf16; and those whose
 * products are denormal, zero or almost too large.
 */
static float random_scale(struct check *check)
{
    static const float special[] = {0.0f,
                                    -0.0f,
                                    0x1p-149f,
                                    -0x1.8p-120f,
                                    0x1.234567p-126f,
                                    0x1p-119f,
                                    0x1.fffffep-120f,
                                    -0x1.fffffep-119f,
                                    0x1.fffffep+118f,
                                    -0x1.2492p+119f,
                                    1.0f,
                                    -3.5f};
    enum { SPECIAL_COUNT = sizeof(special) / sizeof(special[0]) };
    uint32_t i = check_below(check, 3 * SPECIAL_COUNT), bits = check_below(check, 1 << 23);

    bits &= check_below(check, 2) == 0 ? 0x7f0000U : UINT32_MAX;
    return i < SPECIAL_COUNT ? special[i] : ldexpf(1.0f + (float)bits * 0x1p-23f, (int)i - 30);
}

/* bf16 nearest to the f32 that is nearest to byte x scale, from the format's definition. */
static uint16_t model_weight(uint8_t byte, float scale)
{
    int exponent = byte >> 3 & 15, fraction = byte & 7;
    double value = exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10);
    float product = (float)((byte & 0x80 ? -value : value) * (double)scale); /* exact in f64: 4 bits x 24 */
    uint32_t bits = weft_f32_bits(product), rest = bits & 0xffff, half = bits >> 16;

    return (uint16_t)(rest > 0x8000 || (rest == 0x8000 && half % 2 != 0) ? half + 1 : half);
}

/* Rows of f8 pairs by where they are: the definition of cpu/f8_pairs.h written out. */
static uint32_t model_place(uint32_t lane)
{
    static const uint8_t places[LANES] = {0, 2, 4, 6, 16, 18, 20, 22, 8, 10, 12, 14, 24, 26, 28, 30};

    return places[lane];
}

/* Scales of rows in odd rounds, one for all in even ones; each second time every byte, 32 to a pair of columns. */
void check_unpack_f8(struct check *check)
{
    for (uint32_t i = 0; i < 800; i++) {
        bool has_all = i % 4 < 2;
        uint32_t pair_count = has_all ? 8 + check_below(check, 4) : check_below(check, PAIRS_MAX + 1);
        uint32_t first = check_below(check, 256);
        struct check_buffer bytes = check_buffer((size_t)pair_count * 2 * LANES, check_below(check, 64));
        struct check_buffer scales = check_floats(LANES, check_below(check, 16));
        struct check_buffer pairs = check_floats((size_t)pair_count * LANES, check_below(check, 16));

        for (uint32_t k = 0; k < pair_count * 2 * LANES; k++) {
            ((uint8_t *)bytes.data)[k] = number_byte(has_all ? (first + k) & 255 : check_below(check, 256));
        }
        for (uint32_t k = 0; k < LANES; k++) {
            ((float *)scales.data)[k] = i % 2 != 0 || k == 0 ? random_scale(check) : ((float *)scales.data)[0];
        }
        check->kernels->unpack_f8(bytes.data, scales.data, pair_count, pairs.data);
        for (uint32_t k = 0; k < pair_count * 2 * LANES; k++) {
            uint32_t column = k / LANES, lane = k % LANES;
            uint8_t byte = ((uint8_t *)bytes.data)[column / 2 * 2 * LANES + model_place(lane) + column % 2];
            uint16_t half = ((uint16_t *)pairs.data)[(column / 2 * LANES + lane) * 2 + column % 2];
            float found = half;
            float expected = model_weight(byte, ((float *)scales.data)[lane]);

            check_same(check, &found, &expected, 1, "unpack_f8: byte %02x times %a", byte,
                       (double)((float *)scales.data)[lane]);
        }
        check_buffer_end(check, &bytes, "unpack_f8 bytes");
        check_buffer_end(check, &scales, "unpack_f8 scales");
        check_buffer_end(check, &pairs, "unpack_f8 pairs");
    }
}

/* ---- the device's products ---- */

/* Columns and rows that have a scale. */
struct blocks {
    uint32_t cols; /* 0: one for all */
    uint32_t phase;
    uint32_t rows;
    uint32_t row_phase;
};

static uint32_t scale_count_of(const struct model_matrix *model, struct blocks blocks)
{
    return blocks.cols == 0 || model->col_count == 0 ? 1 : (blocks.phase + model->col_count - 1) / blocks.cols + 1;
}

/* rows [row][scales, bytes] of random FP8; the model's rows become the same as bf16. */
static unsigned char *make_rows(struct check *check, struct model_matrix *model, struct blocks blocks)
{
    uint32_t scale_count = scale_count_of(model, blocks);
    size_t stride = scale_count * sizeof(float) + model->col_count;
    unsigned char *rows = malloc(model->row_count * stride + 1);
    float scales[64] = {0};

    for (uint32_t row = 0; row < model->row_count; row++) {
        for (uint32_t s = 0; s < scale_count && (row == 0 || (row + blocks.row_phase) % blocks.rows == 0); s++) {
            scales[s] = ldexpf(1.0f + (float)check_below(check, 1 << 23) * 0x1p-23f, (int)check_below(check, 8) - 9);
        }
        memcpy(rows + row * stride, scales, scale_count * sizeof(float));
        for (uint32_t k = 0; k < model->col_count; k++) {
            uint8_t byte = number_byte(check_below(check, 256));
            float scale = scales[blocks.cols == 0 ? 0 : (blocks.phase + k) / blocks.cols];

            rows[row * stride + scale_count * sizeof(float) + k] = byte;
            ((uint16_t *)model->rows)[(size_t)row * model->col_count + k] = model_weight(byte, scale);
        }
    }
    return rows;
}

static struct weft_matrix_desc desc_of(const struct model_matrix *model, struct blocks blocks)
{
    struct weft_matrix_desc desc = model_matrix_desc(model);

    desc.dtype = WEFT_F8_E4M3;
    desc.scale_cols = blocks.cols;
    desc.scale_phase = blocks.phase;
    return desc;
}

static struct weft_matrix *open_f8(struct check *check, struct weft_device *device, const struct model_matrix *model,
                                   struct blocks blocks, const unsigned char *rows)
{
    struct weft_matrix_desc desc = desc_of(model, blocks);
    size_t stride = scale_count_of(model, blocks) * sizeof(float) + model->col_count;

    return model_matrix_open_as(check, device, &desc, rows, stride);
}

/* Both matrices: products of token_count tokens, and a row as an embedding unless they are gated. */
static void compare(struct check *check, struct weft_device *device, const struct model_matrix *model,
                    struct weft_matrix *const matrices[2], uint32_t token_count)
{
    size_t out_count = (size_t)model_matrix_nodes(model) * token_count * model->row_count;
    float *x = malloc(((size_t)token_count * model->col_count + 1) * sizeof(*x));
    float *outs[2], *rows[2];
    uint32_t row = check_below(check, model->row_count);

    check_fill(check, CHECK_PLAIN, x, (size_t)token_count * model->col_count);
    for (int i = 0; i < 2; i++) {
        outs[i] = calloc(out_count + 1, sizeof(float));
        rows[i] = calloc(model->col_count + 1, sizeof(float));
        model_matrix_multiply(check, device, matrices[i], model, token_count, x, NULL, outs[i]);
        if (!model->is_gated) {
            float *lent = check_lend(device, rows[i], model->col_count * sizeof(float));
            weft_device_embed(device, matrices[i], &row, 1, lent);
            check_return(check, device, lent, rows[i], model->col_count * sizeof(float));
        }
    }
    check_same(check, outs[0], outs[1], out_count, "f8 [%u, %u], %u leaves, gated %d, %u tokens", model->row_count,
               model->col_count, model->leaf_count, model->is_gated, token_count);
    check_same(check, rows[0], rows[1], model->col_count, "f8 row %u of [%u, %u]", row, model->row_count,
               model->col_count);
    for (int i = 0; i < 2; i++) {
        free(outs[i]);
        free(rows[i]);
    }
    free(x);
}

/* Leaves that begin at multiples of 16 columns of the blocks, as those of real models do: a GPU keeps them as they are.
 */
static void align_leaves(struct model_matrix *model, struct blocks blocks)
{
    for (uint32_t i = 1; i < model->leaf_count; i++) {
        uint32_t begin = (model->leaves[i].begin + blocks.phase) / 16 * 16;

        model->leaves[i].begin = begin > blocks.phase ? begin - blocks.phase : 0;
        model->leaves[i - 1].end = model->leaves[i].begin;
    }
}

/* A byte for each weight on the GPU, where the blocks allow it, and never more than bf16 would take. */
static void check_size(struct check *check, struct weft_device *device, const struct model_matrix *model,
                       struct blocks blocks, bool is_kept)
{
    struct weft_matrix_desc desc = desc_of(model, blocks);
    size_t f8 = weft_matrix_size(device, &desc);

    desc.dtype = WEFT_BF16;
    if (check->module != NULL && model->col_count >= 600 && is_kept != (f8 < weft_matrix_size(device, &desc))) {
        check_fail(check, "f8 [%u, %u], %u leaves, blocks of %u from %u on takes %zu bytes", model->row_count,
                   model->col_count, model->leaf_count, blocks.cols, blocks.phase, f8);
    }
}

/* Numbers of tokens that take every kernel, and every split of its work. */
static void check_case(struct check *check, struct weft_device *device, const struct model_matrix *model,
                       struct blocks blocks, const unsigned char *rows)
{
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 70, 130};
    struct weft_matrix *matrices[2] = {open_f8(check, device, model, blocks, rows),
                                       model_matrix_open(check, device, model)};
    uint32_t first = check_below(check, 3); /* not all for all: four of each */

    for (uint32_t i = first; i < sizeof(tokens) / sizeof(tokens[0]); i += 3) {
        compare(check, device, model, matrices, tokens[i]);
    }
    weft_matrix_close(device, &matrices[0]);
    weft_matrix_close(device, &matrices[1]);
}

void check_device_matmul_f8(struct check *check)
{
    static const uint32_t widths[] = {1, 2, 31, 128, 255, 256, 257, 600, 1032};
    static const struct {
        struct blocks blocks;
        bool can_keep; /* as E4M3 on a GPU, with leaves that fit */
    } forms[] = {{{0, 0, 1, 0}, true},      {{128, 0, 128, 0}, true},   {{128, 96, 128, 100}, true},
                 {{40, 7, 1, 0}, false},    {{33, 32, 24, 5}, false},   {{64, 48, 33, 30}, true},
                 {{2048, 16, 16, 0}, true}, {{128, 5, 16, 0}, false},   {{1024, 32, 1, 0}, true},
                 {{0, 0, 1000, 0}, true},   {{128, 127, 16, 0}, false}, {{64, 62, 33, 30}, false}};
    enum { FORM_COUNT = sizeof(forms) / sizeof(forms[0]) };
    struct weft_device *device = check_device(check, 2);

    for (uint32_t i = 0; i < 9 * FORM_COUNT; i++) {
        struct model_matrix model = {.dtype = WEFT_BF16, .row_count = 1 + check_below(check, 90)};
        struct blocks blocks = forms[i % FORM_COUNT].blocks;
        bool is_cut = check_below(check, 2) == 0;
        bool is_aligned = blocks.phase % 2 == 0 && check_below(check, 4) > 0; /* of leaves anywhere not all fit */

        model.col_count = widths[i / FORM_COUNT];
        if (i % 4 == 0 && model.col_count >= 600) {
            model.row_count = 530; /* as many blocks as an emulated GPU wants before it splits columns */
        }
        if (is_cut) {
            model_matrix_cut(check, &model, 1 + check_below(check, 12));
            if (is_aligned) {
                align_leaves(&model, blocks);
            }
        } else if (check_below(check, 2) == 1) {
            model.is_gated = true;
            model.row_count += model.row_count % 2;
        }
        model_matrix_init(check, &model);
        unsigned char *rows = make_rows(check, &model, blocks);
        check_case(check, device, &model, blocks, rows);
        if (is_aligned || !is_cut) {
            check_size(check, device, &model, blocks, forms[i % FORM_COUNT].can_keep);
        }
        free(rows);
        model_matrix_fini(&model);
    }
    weft_device_close(&device);
}
