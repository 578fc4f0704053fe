/* Writing FP8 checkpoints, and by other arithmetic than the loader's what they are worth. */
#include "fp8_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/tensors.h"
#include "support.h"
#include "weft/log.h"

enum { HEADER_MAX = 65536, DATA_MAX = 4 << 20 };

/* A safetensors file in the making. */
struct writer {
    char header[HEADER_MAX];
    size_t header_size;
    unsigned char *data;
    size_t size;
};

static void writer_begin(struct writer *writer)
{
    memset(writer, 0, sizeof(*writer));
    writer->data = malloc(DATA_MAX);
    assert_non_null(writer->data);
    writer->header[writer->header_size++] = '{';
}

static void writer_add(struct writer *writer, const char *name, const char *type, const char *shape, const void *bytes,
                       size_t size)
{
    assert_true(writer->size + size <= DATA_MAX);
    memcpy(writer->data + writer->size, bytes, size);
    writer->header_size +=
        (size_t)snprintf(writer->header + writer->header_size, HEADER_MAX - writer->header_size,
                         "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                         writer->size == 0 ? "" : ",", name, type, shape, writer->size, writer->size + size);
    assert_true(writer->header_size < HEADER_MAX - 1);
    writer->size += size;
}

static void writer_end(struct writer *writer, const char *folder)
{
    char path[4200];
    unsigned char *file;

    writer->header[writer->header_size++] = '}';
    file = malloc(8 + writer->header_size + writer->size);
    assert_non_null(file);
    for (size_t i = 0; i < 8; i++) {
        file[i] = (unsigned char)(writer->header_size >> 8 * i);
    }
    memcpy(file + 8, writer->header, writer->header_size);
    memcpy(file + 8 + writer->header_size, writer->data, writer->size);
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    file_write(path, file, 8 + writer->header_size + writer->size);
    free(file);
    free(writer->data);
}

/* ---- E4M3 and bf16, from their definitions ---- */

static double e4m3_value(unsigned code)
{
    unsigned exponent = code >> 3 & 15, fraction = code & 7;
    double magnitude =
        exponent == 0 ? fraction / 8.0 * pow(2, -6) : (1 + fraction / 8.0) * pow(2, (double)exponent - 7);

    return code & 0x80 ? -magnitude : magnitude;
}

/* The nearest code; of two equally near ones the even. */
static unsigned char e4m3_code(double x)
{
    unsigned best = 0;

    for (unsigned code = 0; code < 0x7f; code++) {
        double far = fabs(e4m3_value(code) - fabs(x)), least = fabs(e4m3_value(best) - fabs(x));
        if (far < least || (far == least && code % 2 == 0)) {
            best = code;
        }
    }
    return (unsigned char)(best | (x < 0 ? 0x80 : 0));
}

static uint16_t bf16_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float bf16_value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* ---- one tensor ---- */

struct making {
    const struct fp8_form *form;
    const struct weft_checkpoint *checkpoint;
    struct writer fp8;
    struct writer reference;
    bool is_damaged; /* this tensor is the one to damage */
};

/* All elements as f32, from malloc. */
static float *tensor_values(const struct making *making, const struct weft_tensor *tensor, size_t *count_out)
{
    enum weft_element element;
    uint64_t calls = 0;

    assert_int_equal(weft_tensor_element(tensor, &element), 0);
    size_t size = weft_element_size(element), count = tensor->size / size;
    unsigned char *bytes = malloc(tensor->size);
    float *values = malloc(count * sizeof(*values));
    assert_true(bytes != NULL && values != NULL);
    assert_int_equal(
        weft_checkpoint_read(making->checkpoint, tensor->file, tensor->offset, bytes, tensor->size, &calls), WEFT_OK);
    for (size_t i = 0; i < count; i++) {
        values[i] = weft_element_value(bytes + i * size, element);
    }
    free(bytes);
    *count_out = count;
    return values;
}

static void shape_text(const struct weft_tensor *tensor, char *text)
{
    (void)weft_tensor_shape(tensor, text, 64);
}

static void add_values(struct writer *writer, const char *name, const char *shape, const float *values, size_t count,
                       bool is_f32)
{
    uint16_t *halves = malloc(count * sizeof(*halves));

    assert_non_null(halves);
    for (size_t i = 0; i < count; i++) {
        halves[i] = bf16_of(values[i]);
    }
    if (is_f32) {
        writer_add(writer, name, "F32", shape, values, count * sizeof(*values));
    } else {
        writer_add(writer, name, "BF16", shape, halves, count * sizeof(*halves));
    }
    free(halves);
}

/* Stays what it is, in both checkpoints. */
static void keep(struct making *making, const char *name, const struct weft_tensor *tensor)
{
    const struct fp8_form *form = making->form;
    bool is_vector = tensor->dim_count == 1;
    bool is_f32 = is_vector || (form->is_mixed && strstr(name, "k_proj") != NULL);
    char shape[64];
    size_t count;
    float *values = tensor_values(making, tensor, &count);

    shape_text(tensor, shape);
    if (form->damage == FP8_NORM && making->is_damaged) {
        writer_add(&making->fp8, name, "F8_E4M3", shape, values, count);
    } else {
        add_values(&making->fp8, name, shape, values, count, is_f32);
    }
    if (!is_f32) {
        for (size_t i = 0; i < count; i++) { /* the reference holds what the checkpoint does */
            values[i] = bf16_value(bf16_of(values[i]));
        }
    }
    add_values(&making->reference, name, shape, values, count, is_f32 || form->is_f32);
    free(values);
}

/* Scales [rows of blocks][columns of blocks], as numbers that their type holds. */
struct scales {
    float *values;
    uint32_t rows;
    uint32_t cols;
    uint32_t block_rows;
    uint32_t block_cols;
};

static struct scales scales_make(const struct fp8_form *form, const float *values, uint32_t rows, uint32_t cols)
{
    struct scales s = {.block_rows = form->block_rows == 0 ? rows : form->block_rows,
                       .block_cols = form->block_cols == 0 ? cols : form->block_cols};

    s.rows = (rows + s.block_rows - 1) / s.block_rows;
    s.cols = (cols + s.block_cols - 1) / s.block_cols;
    s.values = calloc((size_t)(s.rows + 1) * s.cols, sizeof(float));
    assert_non_null(s.values);
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < cols; j++) {
            float *scale = &s.values[i / s.block_rows * s.cols + j / s.block_cols];
            *scale = fmaxf(*scale, fabsf(values[(size_t)i * cols + j]) / 448);
        }
    }
    for (uint32_t i = 0; i < s.rows * s.cols && strcmp(form->scale_type, "BF16") == 0; i++) {
        s.values[i] = bf16_value(bf16_of(s.values[i]));
    }
    return s;
}

static void add_scales(struct making *making, const char *name, const struct scales *s)
{
    const struct fp8_form *form = making->form;
    enum fp8_damage damage = making->is_damaged ? form->damage : FP8_WHOLE;
    uint32_t rows = s->rows + (damage == FP8_SCALE_SHAPE);
    bool is_f32 = strcmp(form->scale_type, "F32") == 0;
    char scale_name[200], shape[64];

    snprintf(scale_name, sizeof(scale_name), "%s%s", name, form->ending);
    if (form->block_cols != 0 || form->scale_dims == 2) {
        snprintf(shape, sizeof(shape), "[%u,%u]", rows, s->cols);
    } else {
        snprintf(shape, sizeof(shape), form->scale_dims == 1 ? "[%u]" : "[]", rows);
    }
    if (damage == FP8_SCALE_INFINITE || damage == FP8_SCALE_HUGE) {
        s->values[0] = damage == FP8_SCALE_HUGE ? 1e36f : INFINITY;
    }
    if (damage == FP8_SCALE_TYPE) {
        writer_add(&making->fp8, scale_name, "I32", shape, s->values, (size_t)rows * s->cols * 4);
    } else if (damage != FP8_NO_SCALE) {
        add_values(&making->fp8, scale_name, shape, s->values, (size_t)rows * s->cols, is_f32);
    }
}

/* FP8 and its scales; their products in the reference. */
static void convert(struct making *making, const char *name, const struct weft_tensor *tensor)
{
    const struct fp8_form *form = making->form;
    uint32_t rows = (uint32_t)tensor->dims[0], cols = (uint32_t)tensor->dims[1];
    bool is_f32 =
        form->is_f32 || (form->is_mixed && (strstr(name, "q_proj") != NULL || strstr(name, "v_proj") != NULL));
    char shape[64];
    size_t count;
    float *values = tensor_values(making, tensor, &count);
    struct scales s = scales_make(form, values, rows, cols);
    unsigned char *codes = malloc(count);

    assert_non_null(codes);
    for (size_t i = 0; i < count; i++) {
        double scale = s.values[i / cols / s.block_rows * s.cols + i % cols / s.block_cols];
        codes[i] = scale > 0 ? e4m3_code(values[i] / scale) : 0;
        values[i] = (float)(e4m3_value(codes[i]) * scale); /* the product is exact in f64 */
    }
    if (making->is_damaged && (form->damage == FP8_NAN || form->damage == FP8_MINUS_NAN)) {
        codes[3 * cols + 5] = form->damage == FP8_NAN ? 0x7f : 0xff;
    }
    shape_text(tensor, shape);
    writer_add(&making->fp8, name, making->is_damaged && form->damage == FP8_E5M2 ? "F8_E5M2" : "F8_E4M3", shape, codes,
               count);
    add_scales(making, name, &s);
    add_values(&making->reference, name, shape, values, count, is_f32);
    free(s.values);
    free(values);
    free(codes);
}

/* ---- the model ---- */

static void make_layer(struct making *making, const struct weft_part_list *list, uint32_t layer)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const struct weft_part *part = &list->parts[i];
        char name[WEFT_TENSOR_NAME_SIZE], full[WEFT_TENSOR_NAME_SIZE + 8];
        weft_tensor_layer_name(layer, part->suffix, name);
        snprintf(full, sizeof(full), "model.%s", name);
        const struct weft_tensor *tensor = weft_tensor_find(making->checkpoint, name);
        assert_non_null(tensor);
        making->is_damaged =
            layer == 1 && strstr(name, making->form->damage == FP8_NORM ? "input_layernorm" : "o_proj.weight") != NULL;
        if (part->matrix < 0 || (making->form->is_mixed && strstr(name, "k_proj") != NULL)) {
            keep(making, full, tensor);
        } else {
            convert(making, full, tensor);
        }
    }
    making->is_damaged = false;
}

static void make_ends(struct making *making)
{
    static const char *const names[] = {"embed_tokens.weight", "norm.weight", "lm_head.weight"};

    for (size_t i = 0; i < 3; i++) {
        const struct weft_tensor *tensor = weft_tensor_find(making->checkpoint, names[i]);
        char full[64];
        snprintf(full, sizeof(full), "%s%s", i == 2 ? "" : "model.", names[i]);
        if (tensor != NULL && making->form->has_ends && i != 1) {
            convert(making, full, tensor);
        } else if (tensor != NULL) {
            keep(making, full, tensor);
        }
    }
}

/* The golden config.json, with quantization_config when there is one. */
static void write_config(const char *golden, const char *quantization, const char *folder)
{
    char path[4200], text[8192];
    size_t size;

    snprintf(path, sizeof(path), "%s/config.json", golden);
    char *config = (char *)file_bytes(path, &size);
    config[size] = '\0';
    int used = quantization == NULL ? snprintf(text, sizeof(text), "%s", config)
                                    : snprintf(text, sizeof(text), "{\"quantization_config\": %s,%s", quantization,
                                               strchr(config, '{') + 1);
    assert_true(used > 0 && (size_t)used < sizeof(text));
    snprintf(path, sizeof(path), "%s/config.json", folder);
    file_write(path, text, (size_t)used);
    free(config);
}

void fp8_model_make(const struct fp8_form *form, char *fp8, char *reference)
{
    struct making *making = calloc(1, sizeof(*making));
    struct weft_model_config *config = malloc(sizeof(*config));
    struct weft_checkpoint *checkpoint = NULL;
    struct weft_part_list list;
    struct weft_slice whole;
    char golden[4096], unwanted[4096];

    assert_true(making != NULL && config != NULL);
    snprintf(golden, sizeof(golden), "%s/%s", GOLDEN_FOLDER, form->golden);
    assert_int_equal(weft_model_config_read(golden, config), WEFT_OK);
    assert_int_equal(weft_checkpoint_open(golden, &checkpoint), WEFT_OK);
    making->form = form;
    making->checkpoint = checkpoint;
    writer_begin(&making->fp8);
    writer_begin(&making->reference);
    weft_slice_init(config, 1, (struct weft_range){0, 1}, &whole);
    weft_part_list_layer(config, &whole, &list);
    make_ends(making);
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        make_layer(making, &list, layer);
    }
    folder_copy(NULL, fp8);
    folder_copy(NULL, reference != NULL ? reference : unwanted);
    writer_end(&making->fp8, fp8);
    writer_end(&making->reference, reference != NULL ? reference : unwanted);
    write_config(golden, form->config, fp8);
    if (reference != NULL) {
        write_config(golden, NULL, reference);
    } else {
        folder_remove(unwanted);
    }
    weft_checkpoint_close(&checkpoint);
    free(config);
    free(making);
}
