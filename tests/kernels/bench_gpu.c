/*
 * Times the device table's large operations on a GPU, in the shapes of Llama-3-8B: what kernels/cuda/README.md
 * predicts. Operations are issued one after another and waited for at the end, so a figure is what each adds to a step;
 * the median of several such rows of calls. Weights and activations are random: of zeros a GPU multiplies more.
 * tests/gpu/speed.py reads the table. On the emulated GPU shapes are small and times mean nothing: it shows that this
 * program works.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "llama_8b.h"
#include "weft/f8.h"
#include "weft/numeric.h"

enum {
    COPIES_MAX = 16,
    EMULATED_DIVISOR = 32, /* of every size */
    EMULATED_TOKENS_MAX = 16,
    LEAVES = 8,
    ROUNDS = 5,      /* whose median counts */
    ROW_COUNT = 64,  /* random rows, which a matrix repeats */
    F8_COLUMNS = 128 /* that share a scale */
};
/* Matrices and caches are walked in turns over this much, so that they come from memory: an L2 has 50 MB. */
static const double walked_bytes = 400e6;
static const double least_seconds = 0.01; /* of a round */

struct bench {
    struct weft_device *device;
    uint32_t divisor;
    const char *suffix; /* of the operations' names */
};

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void expect_ok(enum weft_status status, const char *what)
{
    if (status != WEFT_OK) {
        fprintf(stderr, "kernels_check: %s: %s\n", what, weft_status_name(status));
        exit(1);
    }
}

static void *allocate(const struct bench *bench, size_t size)
{
    void *memory = weft_device_alloc(bench->device, size);

    expect_ok(memory == NULL ? WEFT_ERR_MEMORY : WEFT_OK, "device memory");
    return memory;
}

static uint32_t spread(size_t index)
{
    uint32_t x = (uint32_t)index * 2654435761u;

    x = (x ^ x >> 15) * 2246822519u;
    return x ^ x >> 13;
}

/* Device memory with `count` floats of either sign, below 1. */
static float *random_floats(const struct bench *bench, size_t count)
{
    float *host = malloc(count * sizeof(float));
    float *memory = allocate(bench, count * sizeof(float));

    expect_ok(host == NULL ? WEFT_ERR_MEMORY : WEFT_OK, "host memory");
    for (size_t i = 0; i < count; i++) {
        host[i] = (float)((int32_t)spread(i) >> 8) / (1 << 23);
    }
    expect_ok(weft_device_write(bench->device, memory, host, count * sizeof(float)), "copying");
    free(host);
    return memory;
}

static double seconds_of(const struct bench *bench, void (*run)(void *context, uint32_t index), void *context,
                         uint32_t count)
{
    double begin = now();

    for (uint32_t i = 0; i < count; i++) {
        run(context, i);
    }
    expect_ok(weft_device_sync(bench->device), "waiting");
    return now() - begin;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

/* Seconds per call of run(context, i), i = 0, 1, ...: one warm round over all copies, then the median of ROUNDS. */
static double time_of(const struct bench *bench, void (*run)(void *context, uint32_t index), void *context)
{
    double warm = seconds_of(bench, run, context, bench->divisor > 1 ? 1 : COPIES_MAX) / COPIES_MAX;
    double times[ROUNDS];
    uint32_t count = warm < least_seconds ? (uint32_t)(least_seconds / warm) + 1 : 1;

    if (bench->divisor > 1) {
        return warm * COPIES_MAX;
    }
    for (uint32_t i = 0; i < ROUNDS; i++) {
        times[i] = seconds_of(bench, run, context, count) / count;
    }
    qsort(times, ROUNDS, sizeof(times[0]), compare);
    return times[ROUNDS / 2];
}

/* ---- products ---- */

struct product {
    const struct bench *bench;
    struct weft_matrix *copies[COPIES_MAX];
    uint32_t copy_count;
    uint32_t token_count;
    const float *x;
    float *out;
};

static void run_product(void *context, uint32_t index)
{
    const struct product *product = context;

    weft_device_matmul(product->bench->device, product->copies[index % product->copy_count], product->x,
                       product->token_count, NULL, product->out);
}

/* Bytes of a weight in memory, its part of a block's scale included. */
static double weight_size(enum weft_dtype dtype)
{
    switch (dtype) {
    case WEFT_Q8_0: return 34.0 / 32;
    case WEFT_Q4_0: return 18.0 / 32;
    case WEFT_F8_E4M3: return 1 + 4.0 / F8_COLUMNS;
    default: return 2.0;
    }
}

/* ROW_COUNT rows as a matrix takes them; bytes of one into *stride_out. */
static unsigned char *random_rows(enum weft_dtype dtype, uint32_t columns, size_t *stride_out)
{
    bool is_f8 = dtype == WEFT_F8_E4M3;
    size_t scales = is_f8 ? weft_f8_scale_count(columns, F8_COLUMNS, 0) : 0;
    size_t stride = is_f8 ? weft_f8_row_size(columns, F8_COLUMNS, 0) : columns * sizeof(uint16_t);
    unsigned char *rows = malloc(ROW_COUNT * stride);

    expect_ok(rows == NULL ? WEFT_ERR_MEMORY : WEFT_OK, "host memory");
    for (size_t i = 0; i < (size_t)ROW_COUNT * columns; i++) {
        unsigned char *row = rows + i / columns * stride;
        uint16_t half = weft_f32_to_bf16((float)((int32_t)spread(i) >> 8) / (1 << 28));

        if (is_f8) {
            row[scales * sizeof(float) + i % columns] = (unsigned char)(spread(i) & 0xbf); /* below 2 */
        } else {
            memcpy(row + i % columns * sizeof(half), &half, sizeof(half));
        }
    }
    for (size_t i = 0; i < ROW_COUNT * scales; i++) {
        float scale = 0.01f;

        memcpy(rows + i / scales * stride + i % scales * sizeof(scale), &scale, sizeof(scale));
    }
    *stride_out = stride;
    return rows;
}

/* Row-parallel: eight equal leaves that are added up to one node. */
static void open_copies(struct product *product, enum weft_dtype dtype, uint32_t rows, uint32_t columns,
                        bool is_row_parallel, bool is_gated)
{
    static const struct weft_tree_add adds[LEAVES - 1] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {4, 6}, {0, 4}};
    struct weft_range leaves[LEAVES];
    struct weft_matrix_desc desc = {.dtype = dtype, .source = WEFT_BF16, .row_count = rows, .col_count = columns};
    double size = weight_size(dtype) * rows * columns;
    size_t stride;
    unsigned char *random = random_rows(dtype, columns, &stride);

    desc.scale_cols = dtype == WEFT_F8_E4M3 ? F8_COLUMNS : 0;
    for (uint32_t i = 0; i < LEAVES; i++) {
        leaves[i] = (struct weft_range){columns / LEAVES * i, columns / LEAVES * (i + 1)};
    }
    if (is_row_parallel) {
        desc.leaves = leaves;
        desc.leaf_count = LEAVES;
        desc.adds = adds;
        desc.add_count = LEAVES - 1;
    }
    desc.is_gated = is_gated;
    product->copy_count = 1 + (uint32_t)(walked_bytes / size);
    product->copy_count = product->copy_count < COPIES_MAX ? product->copy_count : COPIES_MAX;
    for (uint32_t i = 0; i < product->copy_count; i++) {
        expect_ok(weft_matrix_open(product->bench->device, &desc, &product->copies[i]), "a matrix");
        for (uint32_t row = 0; row < rows; row += ROW_COUNT) {
            uint32_t count = rows - row < ROW_COUNT ? rows - row : ROW_COUNT;

            expect_ok(weft_matrix_write_rows(product->bench->device, product->copies[i], row, count, random, stride),
                      "rows");
        }
    }
    free(random);
}

/* From token_min tokens on. */
static void bench_product(const struct bench *bench, const struct llama_8b_matrix *shape, enum weft_dtype dtype,
                          uint32_t token_min)
{
    static const uint32_t token_counts[] = {1, 8, 16, 32, 64, 128, 512, LLAMA_8B_PROMPT};
    struct product product = {.bench = bench};
    uint32_t token_max = bench->divisor > 1 ? EMULATED_TOKENS_MAX : LLAMA_8B_PROMPT;
    uint32_t rows = shape->rows / bench->divisor;
    uint32_t columns = shape->columns / bench->divisor;

    product.x = random_floats(bench, (size_t)token_max * columns);
    product.out = allocate(bench, sizeof(float) * token_max * rows);
    open_copies(&product, dtype, rows, columns, shape->is_row_parallel, shape->is_gated);
    for (uint32_t i = 0; i < sizeof(token_counts) / sizeof(token_counts[0]); i++) {
        double seconds;

        product.token_count = token_counts[i];
        if (product.token_count < token_min || product.token_count > token_max) {
            continue;
        }
        seconds = time_of(bench, run_product, &product);
        printf("| %s %s%s [%u, %u], %u tokens | %.1f us | %.0f GB/s | %.1f T/s |\n", shape->name,
               weft_dtype_name(dtype), bench->suffix, rows, columns, product.token_count, seconds * 1e6,
               weight_size(dtype) * rows * columns / seconds * 1e-9,
               2.0 * rows * columns * product.token_count / seconds * 1e-12);
    }
    for (uint32_t i = 0; i < product.copy_count; i++) {
        weft_matrix_close(bench->device, &product.copies[i]);
    }
    weft_device_free(bench->device, (void *)product.x);
    weft_device_free(bench->device, product.out);
}

/* ---- attention ---- */

struct attention {
    const struct bench *bench;
    struct weft_kv_cache *cache;
    struct weft_batch batch;
    struct weft_attention_args args;
    uint32_t layer_count;
};

static void run_attention(void *context, uint32_t index)
{
    struct attention *attention = context;

    attention->args.layer = index % attention->layer_count;
    weft_device_attention(attention->bench->device, attention->cache, &attention->batch, &attention->args);
}

/* sequence_count sequences of token_count tokens after position: 32 query heads of 128 on 8 KV heads. */
static void bench_attention(const struct bench *bench, uint32_t sequence_count, uint32_t token_count, uint32_t position)
{
    enum { HEADS = 32, KV_HEADS = 8, HEAD_SIZE = 128 };
    uint32_t page_count = (position + token_count) / WEFT_PAGE_POSITIONS + 1;
    double read = 2.0 * 2 * KV_HEADS * HEAD_SIZE * sequence_count * (position + token_count);
    double products = 2.0 * HEADS * HEAD_SIZE * sequence_count * token_count * (position + (token_count + 1) / 2.0);
    struct attention attention = {.bench = bench, .layer_count = 1 + (uint32_t)(walked_bytes / read)};
    struct weft_kv_desc desc = {.dtype = WEFT_BF16, .kv_head_count = KV_HEADS, .head_size = HEAD_SIZE};
    struct weft_batch_sequence *sequences = calloc(sequence_count, sizeof(*sequences));
    uint32_t *pages = malloc((size_t)sequence_count * page_count * sizeof(*pages));
    size_t tokens = (size_t)sequence_count * token_count;
    double seconds;

    attention.layer_count = bench->divisor > 1                   ? 1
                            : attention.layer_count < COPIES_MAX ? attention.layer_count
                                                                 : COPIES_MAX;
    desc.layer_count = attention.layer_count;
    desc.page_count = sequence_count * page_count;
    for (uint32_t i = 0; i < desc.page_count; i++) {
        pages[i] = (uint32_t)((uint64_t)i * 7919 % desc.page_count); /* anywhere, like a cache in use */
    }
    for (uint32_t i = 0; i < sequence_count; i++) {
        sequences[i] = (struct weft_batch_sequence){i * token_count, token_count, position, page_count,
                                                    pages + (size_t)i * page_count};
    }
    expect_ok(weft_kv_cache_open(bench->device, &desc, &attention.cache), "a KV cache");
    attention.batch = (struct weft_batch){(uint32_t)tokens, sequence_count, sequences};
    attention.args =
        (struct weft_attention_args){.heads = {HEADS, KV_HEADS, HEAD_SIZE, 0, HEADS / KV_HEADS}, .scale = 0.1f};
    attention.args.qkv = random_floats(bench, tokens * (HEADS + 2 * KV_HEADS) * HEAD_SIZE);
    attention.args.out = allocate(bench, tokens * HEADS * HEAD_SIZE * sizeof(float));
    seconds = time_of(bench, run_attention, &attention);
    printf("| attention, %u x %u tokens after %u | %.1f us | %.0f GB/s | %.1f T fmaf/s |\n", sequence_count,
           token_count, position, seconds * 1e6, read / seconds * 1e-9, products / seconds * 1e-12);
    weft_kv_cache_close(bench->device, &attention.cache);
    weft_device_free(bench->device, (void *)attention.args.qkv);
    weft_device_free(bench->device, attention.args.out);
    free(sequences);
    free(pages);
}

static void open_device(struct bench *bench, const char *module, const char *numerics)
{
    struct weft_device_options options = {.kind = "cuda", .module = module, .thread_count = 1, .numerics = numerics};

    expect_ok(weft_device_open(&options, &bench->device), "the GPU");
    bench->divisor = strstr(weft_device_name(bench->device), "emulated") != NULL ? EMULATED_DIVISOR : 1;
}

/* Long prompts by cuBLASLt, unpacking included. */
static void bench_fast(const char *module)
{
    struct bench bench = {.suffix = " fast"};

    open_device(&bench, module, "fast");
    if (strstr(weft_device_name(bench.device), "cuBLASLt") == NULL) {
        printf("numerics fast is not timed: no cuBLASLt\n");
    } else {
        for (uint32_t i = 0; i < LLAMA_8B_MATRIX_COUNT; i++) {
            bench_product(&bench, &llama_8b_matrices[i], WEFT_BF16,
                          bench.divisor > 1 ? EMULATED_TOKENS_MAX : LLAMA_8B_PROMPT);
        }
    }
    weft_device_close(&bench.device);
}

void bench_gpu_run(const char *module)
{
    static const enum weft_dtype others[] = {WEFT_Q8_0, WEFT_Q4_0, WEFT_F8_E4M3};
    struct bench bench = {.suffix = ""};

    open_device(&bench, module, NULL);
    printf("%s\n| operation | time | weights or cache | arithmetic |\n|---|---|---|---|\n",
           weft_device_name(bench.device));
    for (uint32_t i = 0; i < LLAMA_8B_MATRIX_COUNT; i++) {
        bench_product(&bench, &llama_8b_matrices[i], WEFT_BF16, 1);
    }
    for (uint32_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        bench_product(&bench, &llama_8b_matrices[2], others[i], 1); /* the two that most of a step goes into */
        bench_product(&bench, &llama_8b_matrices[3], others[i], 1);
    }
    bench_attention(&bench, 1, 1, 1024 / bench.divisor - 1);
    bench_attention(&bench, 32 / bench.divisor, 1, 1024 / bench.divisor - 1);
    bench_attention(&bench, 1, 1, 32768 / bench.divisor - 1);
    bench_attention(&bench, 1, 2048 / bench.divisor, 2048 / bench.divisor);
    weft_device_close(&bench.device);
    bench_fast(module);
}
