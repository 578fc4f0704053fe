/*
 * Numerics fast: products of many tokens by cuBLASLt, on a GPU, or on the emulated one over the stub of the library.
 *
 *     fast_check [--device cuda:0] [--module FILE] [--tokens MIN,MAX] [--without]
 *
 * Weights, activations and bias are multiples of 1/8, so that every sum is exact in whatever order and precision of
 * additions: all of it is compared with integers, without tolerance. MIN, MAX: TOKENS_MIN and TOKENS_MAX of
 * matrix_fast.cu, around which the tokens are chosen. With the stub its failures are tried as well. --without: there is
 * no library that will do, which is to be said in one line, and all is as with exact.
 */
#include <dlfcn.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator/cublaslt_stub.h"
#include "weft/device.h"
#include "weft/f8.h"
#include "weft/log.h"
#include "weft/numeric.h"

struct shape {
    enum weft_dtype dtype;
    uint32_t rows;
    uint32_t columns;
    uint32_t leaf_count; /* 0: column-parallel */
    uint32_t add_count;
    bool has_bias;
};

/* The last three are for GPUs: several slabs of 64 MiB. */
static const struct shape shapes[] = {{WEFT_BF16, 100, 200, 0, 0, true},        {WEFT_F16, 36, 64, 0, 0, false},
                                      {WEFT_BF16, 64, 90, 4, 3, false},         {WEFT_F16, 112, 150, 4, 1, false},
                                      {WEFT_BF16, 33, 64, 0, 0, true},          {WEFT_BF16, 20, 48, 2, 0, false},
                                      {WEFT_BF16, 4, 8, 0, 0, false},           {WEFT_F16, 48, 1030, 4, 3, false},
                                      {WEFT_F8_E4M3, 100, 200, 0, 0, true},     {WEFT_F8_E4M3, 112, 160, 4, 1, false},
                                      {WEFT_F8_E4M3, 4096, 14400, 4, 3, false}, {WEFT_BF16, 9100, 8192, 0, 0, true},
                                      {WEFT_F16, 4096, 14336, 4, 3, false}};
enum { SHAPE_COUNT = sizeof(shapes) / sizeof(shapes[0]), FOR_GPUS = 3 };

static const char *kind = "cuda:0";
static const char *module;
static uint32_t tokens_min = 512;
static uint32_t tokens_max = 4096;
static bool is_without;

static void (*stub_configure)(const struct cublaslt_stub_config *config);
static void (*stub_count)(struct cublaslt_stub_counts *out);

static char lines[4096]; /* logged since the last reset */
static uint32_t line_count;
static uint32_t failures;

static void keep_line(void *context, enum weft_log_level level, const char *line)
{
    size_t used = strlen(lines);

    (void)context;
    if (level <= WEFT_LOG_WARN) {
        snprintf(lines + used, sizeof(lines) - used, "%s\n", line);
        line_count++;
    }
}

static void forget_lines(void)
{
    lines[0] = '\0';
    line_count = 0;
}

static bool expect(bool is_well, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool expect(bool is_well, const char *format, ...)
{
    va_list arguments;

    if (!is_well) {
        va_start(arguments, format);
        printf("FAILED: ");
        vprintf(format, arguments);
        printf("\n%s", lines);
        va_end(arguments);
        failures++;
    }
    return is_well;
}

/* ---- values: numerators over 8, from -16 to 16 ---- */

static int32_t numerator(uint32_t seed, size_t index)
{
    uint32_t x = (uint32_t)index * 2654435761u + seed * 40503u;

    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return (int32_t)(x % 33) - 16;
}

static void *floats(uint32_t seed, size_t count)
{
    float *values = malloc(count * sizeof(float));

    for (size_t i = 0; i < count && values != NULL; i++) {
        values[i] = (float)numerator(seed, i) / 8;
    }
    return values;
}

static void *halves(enum weft_dtype dtype, uint32_t seed, size_t count)
{
    uint16_t *values = malloc(count * sizeof(uint16_t));

    for (size_t i = 0; i < count && values != NULL; i++) {
        float value = (float)numerator(seed, i) / 8;

        values[i] = dtype == WEFT_BF16 ? weft_f32_to_bf16(value) : weft_f32_to_f16(value);
    }
    return values;
}

/* Blocks of scales of E4M3. All leaves here begin at multiples of 16 columns of them, so it is kept as it is. */
enum { F8_COLUMNS = 64, F8_PHASE = 48 };

/* The E4M3 byte of a number of up to 4 significant bits, at most 448. */
static uint8_t f8_byte(int32_t number)
{
    uint32_t size = (uint32_t)abs(number);
    uint32_t exponent = size == 0 ? 0 : 31 - (uint32_t)__builtin_clz(size);
    uint32_t fraction = exponent >= 3 ? size >> (exponent - 3) : size << (3 - exponent);

    return (uint8_t)((number < 0 ? 0x80U : 0) | (size == 0 ? 0 : (exponent + 7) << 3 | (fraction & 7)));
}

/* Rows as weft/f8.h has them; a scale is another power of two in every row and block. */
static void *f8_rows(const struct shape *shape, uint32_t seed)
{
    uint32_t scale_count = weft_f8_scale_count(shape->columns, F8_COLUMNS, F8_PHASE);
    size_t row_size = weft_f8_row_size(shape->columns, F8_COLUMNS, F8_PHASE);
    unsigned char *rows = malloc(shape->rows * row_size);

    for (uint32_t row = 0; row < shape->rows && rows != NULL; row++) {
        for (uint32_t i = 0; i < scale_count; i++) {
            float scale = 1.0f / (float)(8 << (row + i) % 4);

            memcpy(rows + row * row_size + i * sizeof(scale), &scale, sizeof(scale));
        }
        for (uint32_t k = 0; k < shape->columns; k++) {
            uint32_t shift = (row + weft_f8_scale_index(k, F8_COLUMNS, F8_PHASE)) % 4;

            rows[row * row_size + scale_count * sizeof(float) + k] =
                f8_byte(numerator(seed, (size_t)row * shape->columns + k) * (1 << shift));
        }
    }
    return rows;
}

/* ---- products ---- */

struct matrix {
    const struct shape *shape;
    struct weft_range leaves[4];
    struct weft_tree_add adds[4];
    uint32_t node_count;
    uint32_t node_ends[4]; /* columns */
    struct weft_matrix *own;
};

/* Leaves of uneven widths that begin at even columns; the first add_count neighbours are added, from the left. */
static struct weft_matrix_desc describe(const struct shape *shape, struct matrix *matrix)
{
    uint32_t leaf_count = shape->leaf_count;

    matrix->shape = shape;
    matrix->node_count = leaf_count == 0 ? 1 : leaf_count - shape->add_count;
    for (uint32_t i = 0; i < leaf_count; i++) {
        uint32_t end = (shape->columns * (i + 1) * (i + 2) / (leaf_count * (leaf_count + 1)) + 1) / 2 * 2;

        matrix->leaves[i] = (struct weft_range){i > 0 ? matrix->leaves[i - 1].end : 0, end};
        matrix->adds[i] = (struct weft_tree_add){0, i + 1};
        matrix->node_ends[i >= shape->add_count ? i - shape->add_count : 0] = end;
    }
    if (leaf_count == 0) {
        matrix->node_ends[0] = shape->columns;
    } else {
        matrix->leaves[leaf_count - 1].end = shape->columns;
        matrix->node_ends[matrix->node_count - 1] = shape->columns;
    }
    return (struct weft_matrix_desc){.dtype = shape->dtype,
                                     .source = shape->dtype,
                                     .scale_cols = shape->dtype == WEFT_F8_E4M3 ? F8_COLUMNS : 0,
                                     .scale_phase = shape->dtype == WEFT_F8_E4M3 ? F8_PHASE : 0,
                                     .row_count = shape->rows,
                                     .col_count = shape->columns,
                                     .leaves = leaf_count > 0 ? matrix->leaves : NULL,
                                     .leaf_count = leaf_count,
                                     .adds = matrix->adds,
                                     .add_count = shape->add_count};
}

static bool open_matrix(struct weft_device *device, const struct shape *shape, struct matrix *matrix)
{
    struct weft_matrix_desc desc = describe(shape, matrix);
    bool is_f8 = shape->dtype == WEFT_F8_E4M3;
    void *rows = is_f8 ? f8_rows(shape, 1) : halves(shape->dtype, 1, (size_t)shape->rows * shape->columns);
    size_t stride = is_f8 ? weft_f8_row_size(shape->columns, F8_COLUMNS, F8_PHASE) : shape->columns * sizeof(uint16_t);
    bool is_open = rows != NULL && weft_matrix_open(device, &desc, &matrix->own) == WEFT_OK &&
                   weft_matrix_write_rows(device, matrix->own, 0, shape->rows, rows, stride) == WEFT_OK;

    free(rows);
    return is_open;
}

/* 64 times what out[node, token, row] must be. */
static int64_t expected(const struct matrix *matrix, uint32_t node, uint32_t token, uint32_t row)
{
    uint32_t columns = matrix->shape->columns;
    int64_t sum = matrix->shape->has_bias ? 8 * (int64_t)numerator(3, row) : 0;

    for (uint32_t k = node > 0 ? matrix->node_ends[node - 1] : 0; k < matrix->node_ends[node]; k++) {
        sum += (int64_t)numerator(1, (size_t)row * columns + k) * numerator(2, (size_t)token * columns + k);
    }
    return sum;
}

/* All of a small product, some 20000 elements of a large one: the last tokens and rows among them. */
static void compare(const struct matrix *matrix, uint32_t token_count, const float *out)
{
    size_t count = (size_t)matrix->node_count * token_count * matrix->shape->rows;
    size_t step = count / 20000 + 1;

    for (size_t i = count - 1 - (count - 1) / step * step; i < count; i += step) {
        uint32_t row = (uint32_t)(i % matrix->shape->rows);
        uint32_t token = (uint32_t)(i / matrix->shape->rows % token_count);
        uint32_t node = (uint32_t)(i / matrix->shape->rows / token_count);
        int64_t wanted = expected(matrix, node, token, row);

        if (!expect((double)out[i] * 64 == (double)wanted,
                    "%s [%u, %u], %u tokens: node %u, token %u, row %u: %g, not %g",
                    weft_dtype_name(matrix->shape->dtype), matrix->shape->rows, matrix->shape->columns, token_count,
                    node, token, row, out[i], (double)wanted / 64)) {
            return;
        }
    }
}

/* The device's status after the product. A guard behind `out` sees what is written there. */
static enum weft_status multiply(struct weft_device *device, const struct matrix *matrix, uint32_t token_count,
                                 bool is_compared)
{
    enum { GUARD = 64 };
    const struct shape *shape = matrix->shape;
    size_t x_count = (size_t)token_count * shape->columns;
    size_t out_count = (size_t)matrix->node_count * token_count * shape->rows;
    float *x_host = floats(2, x_count);
    float *bias_host = floats(3, shape->rows);
    float *out_host = floats(4, out_count + GUARD);
    float *x = weft_device_alloc(device, x_count * sizeof(float));
    float *bias = weft_device_alloc(device, shape->rows * sizeof(float));
    float *out = weft_device_alloc(device, (out_count + GUARD) * sizeof(float));
    enum weft_status status = WEFT_ERR_MEMORY;

    if (x_host != NULL && bias_host != NULL && out_host != NULL && x != NULL && bias != NULL && out != NULL) {
        status = weft_device_write(device, x, x_host, x_count * sizeof(float));
        status = status == WEFT_OK ? weft_device_write(device, bias, bias_host, shape->rows * sizeof(float)) : status;
        status =
            status == WEFT_OK ? weft_device_write(device, out, out_host, (out_count + GUARD) * sizeof(float)) : status;
        weft_device_matmul(device, matrix->own, x, token_count, shape->has_bias ? bias : NULL, out);
        status =
            status == WEFT_OK ? weft_device_read(device, out_host, out, (out_count + GUARD) * sizeof(float)) : status;
    }
    for (size_t i = 0; status == WEFT_OK && i < GUARD; i++) {
        expect(out_host[out_count + i] == (float)numerator(4, out_count + i) / 8, "written behind the product");
    }
    if (status == WEFT_OK && is_compared) {
        compare(matrix, token_count, out_host);
    }
    weft_device_free(device, x);
    weft_device_free(device, bias);
    weft_device_free(device, out);
    free(x_host);
    free(bias_host);
    free(out_host);
    return status;
}

static struct weft_device *open_device(void)
{
    const struct weft_device_options options = {.kind = kind, .thread_count = 1, .module = module, .numerics = "fast"};
    struct weft_device *device = NULL;

    if (weft_device_open(&options, &device) != WEFT_OK) {
        printf("FAILED: %s", lines);
        exit(1);
    }
    return device;
}

static struct cublaslt_stub_counts counts(void)
{
    struct cublaslt_stub_counts found = {0};

    if (stub_count != NULL) {
        stub_count(&found);
    }
    return found;
}

static void configure(struct cublaslt_stub_config config)
{
    if (stub_configure != NULL) {
        stub_configure(&config);
    }
    forget_lines();
}

/* ---- checks ---- */

/* Rows that are no multiple of 4 are none of the library's. */
static bool is_fast(const struct shape *shape, uint32_t token_count)
{
    return !is_without && shape->rows % 4 == 0 && token_count >= tokens_min;
}

static void check_shape(struct weft_device *device, const struct shape *shape)
{
    const uint32_t tokens[] = {1,
                               tokens_min - 1,
                               tokens_min,
                               tokens_min + 1,
                               tokens_max - 1,
                               tokens_max,
                               tokens_max + 1,
                               2 * tokens_max + tokens_min + 3};
    struct matrix matrix = {0};
    uint32_t matmuls = counts().matmuls;

    if (!expect(open_matrix(device, shape, &matrix), "no matrix")) {
        return;
    }
    uint32_t heuristics = counts().heuristics;
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        expect(multiply(device, &matrix, tokens[i], true) == WEFT_OK, "%u tokens", tokens[i]);
        bool has_run = counts().matmuls != matmuls;
        expect(stub_count == NULL || has_run == is_fast(shape, tokens[i]), "[%u, %u], %u tokens: cuBLASLt %s",
               shape->rows, shape->columns, tokens[i], has_run ? "was used" : "was not used");
        matmuls = counts().matmuls;
    }
    expect(counts().heuristics == heuristics, "the heuristics were asked again in a step");
    weft_matrix_close(device, &matrix.own);
}

static void check_products(void)
{
    uint32_t count = tokens_min < 512 ? SHAPE_COUNT - FOR_GPUS : SHAPE_COUNT;
    struct weft_device *device;

    configure((struct cublaslt_stub_config){0});
    device = open_device();
    printf("%s\n", weft_device_name(device));
    expect((strstr(weft_device_name(device), "cuBLASLt") == NULL) == is_without, "the name says something else");
    expect(line_count == (is_without ? 1 : 0), "%u lines at opening", line_count);
    expect(!is_without || strstr(lines, "numerics fast without cuBLASLt is as exact: ") != NULL, "no reason");
    printf("%s", lines);
    for (uint32_t i = 0; i < count; i++) {
        check_shape(device, &shapes[i]);
    }
    uint32_t heuristics = counts().heuristics;
    struct matrix again = {0};
    expect(open_matrix(device, &shapes[0], &again) && counts().heuristics == heuristics,
           "a shape that is known was asked for again");
    weft_matrix_close(device, &again.own);
    weft_device_close(&device);
    expect(counts().live == 0, "%u objects of cuBLASLt were not given back", counts().live);
}

/* A library that is there and does not do. */
static void check_refusal(struct cublaslt_stub_config config, const char *text)
{
    struct matrix matrix = {0};

    configure(config);
    struct weft_device *device = open_device();
    expect(open_matrix(device, &shapes[0], &matrix) && multiply(device, &matrix, tokens_max, true) == WEFT_OK,
           "no product");
    expect(line_count == 1 && strstr(lines, text) != NULL, "%u lines, expected one with \"%s\"", line_count, text);
    expect(counts().matmuls == 0, "cuBLASLt was used");
    weft_matrix_close(device, &matrix.own);
    weft_device_close(&device);
    expect(counts().live == 0, "%u objects of cuBLASLt were not given back", counts().live);
}

/* A product that fails is the device's error, like any other. */
static void check_failure(uint32_t call)
{
    struct matrix matrix = {0};

    configure((struct cublaslt_stub_config){.fail_matmul = call});
    struct weft_device *device = open_device();
    expect(open_matrix(device, &shapes[0], &matrix) && multiply(device, &matrix, tokens_max, true) == WEFT_ERR_IO,
           "call %u: no error", call);
    expect(line_count == 1 && strstr(lines, "a product by cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED") != NULL,
           "call %u: %u lines", call, line_count);
    expect(counts().matmuls == call, "%u products after the one that failed", counts().matmuls - call);
    weft_matrix_close(device, &matrix.own);
    weft_device_close(&device);
    expect(counts().live == 0, "%u objects of cuBLASLt were not given back", counts().live);
}

static bool parse(int count, char **arguments)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"module", required_argument, NULL, 'm'},
                                            {"tokens", required_argument, NULL, 't'},
                                            {"without", no_argument, NULL, 'w'},
                                            {NULL, 0, NULL, 0}};
    int option;

    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        if (option == 'd') {
            kind = optarg;
        } else if (option == 'm') {
            module = optarg;
        } else if (option == 'w') {
            is_without = true;
        } else if (option != 't' || sscanf(optarg, "%u,%u", &tokens_min, &tokens_max) != 2) {
            return false;
        }
    }
    return optind == count;
}

int main(int count, char **arguments)
{
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW);

    if (!parse(count, arguments)) {
        fprintf(stderr, "usage: fast_check [--device cuda:0] [--module FILE] [--tokens MIN,MAX] [--without]\n");
        return 2;
    }
    weft_log_configure(WEFT_LOG_WARN, keep_line, NULL);
    if (library != NULL && !is_without) {
        *(void **)&stub_configure = dlsym(library, "cublaslt_stub_configure");
        *(void **)&stub_count = dlsym(library, "cublaslt_stub_count");
    }
    check_products();
    if (stub_configure != NULL) {
        check_refusal((struct cublaslt_stub_config){.version = 120304},
                      "says it is version 120304, expected one of 13");
        check_refusal((struct cublaslt_stub_config){.fail_create = 1}, "does not start: CUBLAS_STATUS_NOT_INITIALIZED");
        check_refusal((struct cublaslt_stub_config){.fail_heuristic = 1}, "has nothing for");
        check_refusal((struct cublaslt_stub_config){.fail_heuristic = 4}, "has nothing for");
        check_failure(1);
        check_failure(3);
    }
    printf("%s\n", failures == 0 ? "ok" : "FAILED");
    return failures == 0 ? 0 : 1;
}
