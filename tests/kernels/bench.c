/*
 * Times every micro-kernel at every level, and the device's matmul. Figures are the best of several rounds: on a shared
 * machine the best is what the code can do, the median what the neighbours left.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bandwidth.h"
#include "check.h"

enum {
    ROUNDS = 15,
    COLUMNS = 2048,
    COUNT = 4096, /* floats of an elementwise kernel: in L1 */
    HEAD_PAIRS = 64,
    TIME_MAX = 1, /* seconds per figure; at least one round */
};

static const uint64_t stream_size = (uint64_t)256 << 20; /* 8 times the last-level cache of the machine at hand */

struct bench {
    struct weft_cpu_kernels kernels;
    unsigned char *stream; /* stream_size bytes of panels */
    float *a;              /* [8][COLUMNS] */
    float *b;
    float *out;
    struct weft_cpu_quant_x *quant_x; /* [8][COLUMNS / 32] */
    volatile float sink;
};

/* One timed unit of work; bytes it reads, for GB/s. */
typedef void bench_fn(struct bench *bench);

/* Of this thread's CPU time: what neighbours take from the core does not count, what they take from memory does. */
static double seconds_of(struct bench *bench, bench_fn *run, uint32_t repeat_count)
{
    double best = 1e9;
    double start = bench_now();

    for (uint32_t round = 0; round < ROUNDS && bench_now() - start < TIME_MAX; round++) {
        double begin = bench_cpu_now();
        double seconds;

        for (uint32_t i = 0; i < repeat_count; i++) {
            run(bench);
        }
        seconds = (bench_cpu_now() - begin) / repeat_count;
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* ---- dot: one vector over panels from memory, eight vectors over panels in L2 ---- */

static void run_dot(struct bench *bench, weft_cpu_dot_fn *dot, size_t panel_size, uint64_t size, uint32_t vectors)
{
    const void *panels[WEFT_DOT_PANELS_MAX];
    const float *x[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot args = {.panels = panels,
                                .panel_count = WEFT_DOT_PANELS_MAX,
                                .vector_count = vectors,
                                .x = x,
                                .col_count = COLUMNS,
                                .out = bench->out,
                                .out_stride = 64};

    for (uint32_t v = 0; v < vectors; v++) {
        x[v] = bench->a + (size_t)v * COLUMNS;
    }
    for (uint64_t offset = 0; offset + 4 * panel_size <= size; offset += 4 * panel_size) {
        for (uint32_t p = 0; p < WEFT_DOT_PANELS_MAX; p++) {
            panels[p] = bench->stream + offset + p * panel_size;
        }
        dot(&args);
    }
}

static void stream_f32(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_f32, COLUMNS * 64, stream_size, 1);
}

static void stream_f16(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_f16, COLUMNS * 32, stream_size, 1);
}

static void stream_bf16(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_bf16, COLUMNS * 32, stream_size, 1);
}

static void stream_bf16_pairs(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_bf16_pairs, COLUMNS * 32, stream_size, 1);
}

static void tile_f32(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_f32, COLUMNS * 64, (size_t)4 * COLUMNS * 64, 8);
}

static void tile_f16(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_f16, COLUMNS * 32, (size_t)4 * COLUMNS * 32, 8);
}

static void tile_bf16(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_bf16, COLUMNS * 32, (size_t)4 * COLUMNS * 32, 8);
}

static void tile_bf16_pairs(struct bench *bench)
{
    run_dot(bench, bench->kernels.dot_bf16_pairs, COLUMNS * 32, (size_t)4 * COLUMNS * 32, 8);
}

/* ---- the same of quantised panels: chunks of 16 blocks, 16 rows of a block in 544 or 288 bytes ---- */

static void run_dot_quant(struct bench *bench, weft_cpu_dot_quant_fn *dot, size_t block_size, uint64_t size,
                          uint32_t vectors)
{
    const size_t panel_size = COLUMNS / WEFT_QUANT_BLOCK * block_size;
    const void *panels[WEFT_DOT_PANELS_MAX];
    const void *ahead[WEFT_DOT_PANELS_MAX];
    const struct weft_cpu_quant_x *x[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot_quant args = {.panels = panels,
                                      .is_stream = vectors == 1,
                                      .ahead = ahead,
                                      .ahead_count = WEFT_DOT_PANELS_MAX,
                                      .panel_count = WEFT_DOT_PANELS_MAX,
                                      .vector_count = vectors,
                                      .x = x,
                                      .block_count = COLUMNS / WEFT_QUANT_BLOCK,
                                      .out = bench->out,
                                      .out_stride = 64};

    for (uint32_t v = 0; v < vectors; v++) {
        x[v] = bench->quant_x + (size_t)v * (COLUMNS / WEFT_QUANT_BLOCK);
    }
    for (uint64_t offset = 0; offset + 4 * panel_size <= size; offset += 4 * panel_size) {
        for (uint32_t p = 0; p < WEFT_DOT_PANELS_MAX; p++) {
            panels[p] = bench->stream + offset + p * panel_size;
            ahead[p] = bench->stream + offset + (4 + p) * panel_size;
        }
        dot(&args);
    }
}

enum { Q8_0_SIZE = 544, Q4_0_SIZE = 288 };

static void stream_q8_0(struct bench *bench)
{
    run_dot_quant(bench, bench->kernels.dot_q8_0, Q8_0_SIZE, stream_size, 1);
}

static void stream_q4_0(struct bench *bench)
{
    run_dot_quant(bench, bench->kernels.dot_q4_0, Q4_0_SIZE, stream_size, 1);
}

static void tile_q8_0(struct bench *bench)
{
    run_dot_quant(bench, bench->kernels.dot_q8_0, Q8_0_SIZE, (size_t)COLUMNS / 8 * Q8_0_SIZE, 8);
}

static void tile_q4_0(struct bench *bench)
{
    run_dot_quant(bench, bench->kernels.dot_q4_0, Q4_0_SIZE, (size_t)COLUMNS / 8 * Q4_0_SIZE, 8);
}

/* ---- E4M3, unpacked 64 columns at a time as few tokens are multiplied ---- */

static void run_unpack_f8(struct bench *bench, float step)
{
    enum { PAIRS = 32 };
    float scales[WEFT_LANES];

    for (uint32_t i = 0; i < WEFT_LANES; i++) {
        scales[i] = 0.01f + (float)i * step;
    }
    for (uint32_t i = 0; i < COUNT / 2 / WEFT_LANES; i += PAIRS) {
        bench->kernels.unpack_f8(bench->stream + (size_t)i * 2 * WEFT_LANES, scales, PAIRS, (uint32_t *)bench->out);
    }
}

static void bench_unpack_f8(struct bench *bench)
{
    run_unpack_f8(bench, 0);
}

static void bench_unpack_f8_rows(struct bench *bench)
{
    run_unpack_f8(bench, 0.001f);
}

static void bench_quantise_x(struct bench *bench)
{
    bench->kernels.quantise_x(bench->a, COUNT, 128, bench->quant_x);
}

static void bench_quantise_q8_0(struct bench *bench)
{
    for (uint32_t i = 0; i < COUNT; i += WEFT_QUANT_BLOCK) {
        uint16_t scale;

        bench->kernels.quantise_q8_0(bench->b + i, (int8_t *)bench->out, &scale);
    }
}

static void bench_quantise_q4_0(struct bench *bench)
{
    for (uint32_t i = 0; i < COUNT; i += WEFT_QUANT_BLOCK) {
        uint16_t scale;

        bench->kernels.quantise_q4_0(bench->b + i, (int8_t *)bench->out, &scale);
    }
}

/* ---- the rest ---- */

static void bench_rms_norm(struct bench *bench)
{
    bench->kernels.rms_norm(bench->a, bench->b, COUNT, 1e-5f, bench->out);
}

static void bench_rope(struct bench *bench)
{
    memcpy(bench->out, bench->a, 2 * HEAD_PAIRS * sizeof(float));
    for (uint32_t i = 0; i < COUNT / 2 / HEAD_PAIRS; i++) {
        bench->kernels.rope(bench->out, bench->b, HEAD_PAIRS);
    }
}

static void bench_silu_mul(struct bench *bench)
{
    bench->kernels.silu_mul(bench->a, COUNT / 2, bench->out);
}

static void bench_add(struct bench *bench)
{
    bench->kernels.add(bench->out, bench->b, COUNT);
}

static void bench_add_norm(struct bench *bench)
{
    bench->kernels.add_norm(bench->out, bench->b, NULL, bench->a, COUNT, 1e-5f, bench->out + COUNT);
}

static void bench_softmax(struct bench *bench)
{
    for (uint32_t i = 0; i < COUNT; i += 256) {
        float max;
        float sum;

        memcpy(bench->out + i, bench->a + i, 256 * sizeof(float));
        bench->kernels.softmax(bench->out + i, (struct weft_range){0, 256}, 0.125f, &max, &sum);
    }
}

static void bench_merge(struct bench *bench)
{
    bench->kernels.merge(bench->out, bench->b, COUNT, 0.5f, 0.25f);
}

static void bench_divide(struct bench *bench)
{
    bench->kernels.divide(bench->a, COUNT, 3.0f, bench->out);
}

static void bench_max(struct bench *bench)
{
    bench->sink = bench->kernels.max(bench->a, COUNT);
}

static void bench_exp_sum(struct bench *bench)
{
    bench->sink = bench->kernels.exp_sum(bench->a, COUNT, 4.0f, 1.0f);
}

struct entry {
    const char *name;
    bench_fn *run;
    uint32_t repeat_count;
    double bytes; /* read per run, 0: in cache, GB/s says nothing */
    double work;  /* multiply-adds or elements per run */
    const char *unit;
};

#define TILE_WORK (8.0 * 64 * COLUMNS)

static const struct entry entries[] = {
    {"dot_f32 stream", stream_f32, 1, 256 << 20, (256 << 20) / 4.0, "Gmac/s"},
    {"dot_f16 stream", stream_f16, 1, 256 << 20, (256 << 20) / 2.0, "Gmac/s"},
    {"dot_bf16 stream", stream_bf16, 1, 256 << 20, (256 << 20) / 2.0, "Gmac/s"},
    {"dot_bf16_pairs stream", stream_bf16_pairs, 1, 256 << 20, (256 << 20) / 2.0, "Gmac/s"},
    {"dot_q8_0 stream", stream_q8_0, 1, 256 << 20, (256 << 20) / (544.0 / 512), "Gmac/s"},
    {"dot_q4_0 stream", stream_q4_0, 1, 256 << 20, (256 << 20) / (288.0 / 512), "Gmac/s"},
    {"dot_f32 8 vectors", tile_f32, 10, 0, TILE_WORK, "Gmac/s"},
    {"dot_f16 8 vectors", tile_f16, 10, 0, TILE_WORK, "Gmac/s"},
    {"dot_bf16 8 vectors", tile_bf16, 10, 0, TILE_WORK, "Gmac/s"},
    {"dot_bf16_pairs 8 vectors", tile_bf16_pairs, 10, 0, TILE_WORK, "Gmac/s"},
    {"dot_q8_0 8 vectors", tile_q8_0, 10, 0, TILE_WORK, "Gmac/s"},
    {"dot_q4_0 8 vectors", tile_q4_0, 10, 0, TILE_WORK, "Gmac/s"},
    {"unpack_f8, blocks", bench_unpack_f8, 50, 0, COUNT, "Gelem/s"},
    {"unpack_f8, rows", bench_unpack_f8_rows, 50, 0, COUNT, "Gelem/s"},
    {"quantise_x", bench_quantise_x, 50, 0, COUNT, "Gelem/s"},
    {"quantise_q8_0", bench_quantise_q8_0, 20, 0, COUNT, "Gelem/s"},
    {"quantise_q4_0", bench_quantise_q4_0, 20, 0, COUNT, "Gelem/s"},
    {"rms_norm", bench_rms_norm, 50, 0, COUNT, "Gelem/s"},
    {"add", bench_add, 50, 0, COUNT, "Gelem/s"},
    {"add_norm", bench_add_norm, 50, 0, COUNT, "Gelem/s"},
    {"rope", bench_rope, 50, 0, COUNT, "Gelem/s"},
    {"silu_mul", bench_silu_mul, 20, 0, COUNT / 2, "Gelem/s"},
    {"softmax", bench_softmax, 20, 0, COUNT, "Gelem/s"},
    {"merge", bench_merge, 50, 0, COUNT, "Gelem/s"},
    {"divide", bench_divide, 50, 0, COUNT, "Gelem/s"},
    {"max", bench_max, 50, 0, COUNT, "Gelem/s"},
    {"exp_sum", bench_exp_sum, 20, 0, COUNT, "Gelem/s"},
};

static bool is_wanted(const char *only, const char *name)
{
    return only == NULL || strstr(name, only) != NULL;
}

static void bench_kernels(struct bench *bench, enum weft_cpu_level best, const char *only, double peak)
{
    printf("%-26s", "kernel, one thread");
    for (int level = 0; level <= (int)best; level++) {
        printf(" %24s", weft_cpu_level_name((enum weft_cpu_level)level));
    }
    printf("\n");
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        const struct entry *entry = &entries[i];
        double reference = 0;

        if (!is_wanted(only, entry->name)) {
            continue;
        }
        printf("%-26s", entry->name);
        for (int level = 0; level <= (int)best; level++) {
            double seconds;

            weft_cpu_kernels_init(&bench->kernels, (enum weft_cpu_level)level);
            seconds = seconds_of(bench, entry->run, entry->repeat_count);
            reference = level == 0 ? seconds : reference;
            if (entry->bytes > 0) {
                printf(" %6.1f GB/s %3.0f%% %6.1fx", entry->bytes / seconds * 1e-9, entry->bytes / seconds / peak * 100,
                       reference / seconds);
            } else {
                printf(" %8.2f %s %6.1fx", entry->work / seconds * 1e-9, entry->unit, reference / seconds);
            }
        }
        printf("\n");
    }
}

/* ---- the device: decode and prefill of one large matrix ---- */

struct weights {
    const char *name;
    enum weft_dtype dtype;
    uint32_t scale_cols; /* of E4M3 */
    uint32_t row_stride; /* bytes: 0 makes every row the same */
};

static const struct weights all_weights[] = {{"bf16", WEFT_BF16, 0, 0},
                                             {"q8_0", WEFT_Q8_0, 0, 0},
                                             {"q4_0", WEFT_Q4_0, 0, 0},
                                             {"f8", WEFT_F8_E4M3, 128, 0},
                                             {"f8 rows", WEFT_F8_E4M3, 0, sizeof(float)}};

static void bench_matmul(const struct weights *weights, enum weft_cpu_level level, uint32_t threads, double peak)
{
    enum { ROWS = 131072, TOKENS = 128, PREFILL_ROWS = 4096 };
    struct weft_device_options options = {.cpu_level = weft_cpu_level_name(level), .thread_count = threads};
    struct weft_matrix_desc desc = {.dtype = weights->dtype,
                                    .source = WEFT_BF16,
                                    .scale_cols = weights->scale_cols,
                                    .row_count = ROWS,
                                    .col_count = COLUMNS};
    double bytes;
    struct weft_device *device;
    struct weft_matrix *large;
    struct weft_matrix *small;
    float *x;
    float *out;
    double decode = 1e9;
    double few[3] = {1e9, 1e9, 1e9};
    double prefill = 1e9;

    if (weft_device_open(&options, &device) != WEFT_OK || weft_matrix_open(device, &desc, &large) != WEFT_OK) {
        exit(1);
    }
    bytes = (double)weft_matrix_size(device, &desc);
    desc.row_count = PREFILL_ROWS;
    x = weft_device_alloc(device, (size_t)TOKENS * COLUMNS * sizeof(float));
    out = weft_device_alloc(device, (size_t)TOKENS * ROWS * sizeof(float));
    if (weft_matrix_open(device, &desc, &small) != WEFT_OK || x == NULL || out == NULL) {
        exit(1);
    }
    /* Any small numbers, of each type that reads them; what counts is that the pages are real. */
    for (uint32_t i = 0; i < TOKENS * COLUMNS; i++) {
        x[i] = 0.01f + (float)(i % 1000) * 0.0001f;
    }
    if (weft_matrix_write_rows(device, large, 0, ROWS, x, weights->row_stride) != WEFT_OK ||
        weft_matrix_write_rows(device, small, 0, PREFILL_ROWS, x, weights->row_stride) != WEFT_OK) {
        exit(1);
    }
    for (uint32_t round = 0; round < (level == WEFT_CPU_REF ? 1 : ROUNDS); round++) {
        double begin = bench_now();
        double middle;

        weft_device_matmul(device, large, x, 1, NULL, out);
        decode = bench_now() - begin < decode ? bench_now() - begin : decode;
        for (uint32_t i = 0; i < 3; i++) {
            begin = bench_now();
            weft_device_matmul(device, large, x, 2u << i, NULL, out);
            few[i] = bench_now() - begin < few[i] ? bench_now() - begin : few[i];
        }
        middle = bench_now();
        weft_device_matmul(device, small, x, TOKENS, NULL, out);
        prefill = bench_now() - middle < prefill ? bench_now() - middle : prefill;
    }
    printf("%-7s %-26s decode %7.2f ms %6.1f GB/s %3.0f%%   x 2, 4, 8 %5.2f %5.2f %5.2f   prefill %8.1f Gmac/s\n",
           weights->name, weft_device_name(device), decode * 1e3, bytes / decode * 1e-9, bytes / decode / peak * 100,
           few[0] / decode, few[1] / decode, few[2] / decode, (double)TOKENS * PREFILL_ROWS * COLUMNS / prefill * 1e-9);
    weft_matrix_close(device, &large);
    weft_matrix_close(device, &small);
    weft_device_free(device, x);
    weft_device_free(device, out);
    weft_device_close(&device);
}

void bench_run(enum weft_cpu_level best, const char *only)
{
    struct bench_bandwidth peaks[2] = {bench_read_bandwidth(1, (uint64_t)1 << 30, 10),
                                       bench_read_bandwidth(2, (uint64_t)1 << 30, 10)};
    struct bench bench = {.stream = aligned_alloc(64, stream_size)};
    struct check check = {.random = 1};

    bench.a = malloc(8 * COLUMNS * sizeof(float));
    bench.b = malloc(8 * COLUMNS * sizeof(float));
    bench.out = malloc(8 * COLUMNS * sizeof(float));
    bench.quant_x = calloc(8 * COLUMNS / WEFT_QUANT_BLOCK, sizeof(*bench.quant_x));
    if (bench.quant_x == NULL || bench.stream == NULL || bench.a == NULL || bench.b == NULL || bench.out == NULL) {
        fprintf(stderr, "kernels_check: no memory for the benchmark\n");
        exit(1);
    }
    memset(bench.stream, 0x3c, stream_size);
    memset(bench.out, 0, 8 * COLUMNS * sizeof(float));
    check_fill(&check, CHECK_PLAIN, bench.a, (size_t)8 * COLUMNS);
    check_fill(&check, CHECK_PLAIN, bench.b, (size_t)8 * COLUMNS);
    printf("read bandwidth, 1 thread: %.1f GB/s by CPU time: percentages of kernels are of this\n",
           peaks[0].cpu * 1e-9);
    bench_kernels(&bench, best, only, peaks[0].cpu);
    printf("\nread bandwidth by the clock: %.1f GB/s with 1 thread, %.1f GB/s with 2\n", peaks[0].wall * 1e-9,
           peaks[1].wall * 1e-9);
    printf("matmul, %d columns: decode from memory, the time of 2, 4 and 8 tokens at once by that of one, prefill of "
           "128\n",
           COLUMNS);
    for (int level = 0; level <= (int)best && is_wanted(only, "matmul"); level++) {
        for (uint32_t threads = 1; threads <= 2; threads++) {
            for (size_t i = 0; i < sizeof(all_weights) / sizeof(all_weights[0]); i++) {
                bench_matmul(&all_weights[i], (enum weft_cpu_level)level, threads, peaks[threads - 1].wall);
            }
        }
    }
    free(bench.stream);
    free(bench.a);
    free(bench.b);
    free(bench.out);
    free(bench.quant_x);
}
