/*
 * What the parts of kernels_check share: seeded values, buffers with guard bytes, comparison, counting of failures.
 *
 * A comparison is by bits; any NaN equals any NaN, because payloads are not part of the numerics contract.
 */
#ifndef WEFT_TESTS_KERNELS_CHECK_H
#define WEFT_TESTS_KERNELS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/kernels.h"
#include "weft/device.h"

/* Half an ulp of f32, relative: one rounding. */
#define CHECK_U 0x1p-24
/* One rounding in the denormal range, absolute. */
#define CHECK_TINY 0x1p-149

struct check {
    const struct weft_cpu_kernels *ref;
    const struct weft_cpu_kernels *kernels; /* of the level under test */
    const char *level;                      /* of the CPU, or "cuda" */
    const char *module;                     /* NULL: the device is the CPU; else the file of the CUDA module */
    const char *numerics;                   /* with a module: "exact" or "reference" */
    uint64_t random;                        /* state */
    uint64_t compared_count;                /* floats compared: a part that compares nothing has failed */
    uint32_t failure_count;
};

/* ---- values ---- */

uint64_t check_random(struct check *check);
/* Uniform in [0, count). */
uint32_t check_below(struct check *check, uint32_t count);

enum check_values {
    CHECK_PLAIN, /* about normal, mixed magnitudes */
    CHECK_EDGE,  /* zeros, denormals, largest and smallest, infinities, NaN, among plain ones */
};
float check_value(struct check *check, enum check_values values);
void check_fill(struct check *check, enum check_values values, float *x, size_t count);

/* ---- guarded buffers ---- */

/* `size` bytes between guard bytes, at an address that is `offset` bytes past a multiple of 64. */
struct check_buffer {
    unsigned char *base;
    size_t size;
    size_t offset;
    void *data;
};
struct check_buffer check_buffer(size_t size, size_t offset);
/* count floats, offset in floats. */
struct check_buffer check_floats(size_t count, size_t offset);
/* Fails the check when a guard byte changed; frees. */
void check_buffer_end(struct check *check, struct check_buffer *buffer, const char *what);

/* ---- device memory ---- */

/*
 * Device memory in place of `size` bytes at `host`, with their contents: on the CPU the same memory, on a GPU a copy
 * that is as far from a multiple of 64 as the host's. NULL for NULL.
 */
void *check_lend(struct weft_device *device, const void *host, size_t size);
/* Waits for the device, copies back and frees. */
void check_return(struct check *check, struct weft_device *device, void *lent, void *host, size_t size);

/* ---- verdicts ---- */

/* Prints "LEVEL WHAT: ..." and counts; only the first few are printed. */
void check_fail(struct check *check, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* found and expected are the same bits (NaN: both NaN). */
bool check_same(struct check *check, const float *found, const float *expected, size_t count, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* |found - exact| <= bound; NaN on either side or in the bound fails. */
bool check_near(struct check *check, float found, double exact, double bound, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* One function per kernel of the table: the level against the reference, and the reference against double precision. */
#define CHECK_DECLARE(name) void check_##name(struct check *check);
WEFT_CPU_KERNEL_LIST(CHECK_DECLARE)
#undef CHECK_DECLARE

/* check_numeric.c: weft/numeric.h. check_pool.c: the thread pool. check_device.c, check_matmul.c,
 * check_quant_matmul.c, check_f8.c, check_attention.c, check_candidates.c, check_ordered.c: the device table. */
void check_numeric(struct check *check);
void check_pool(struct check *check);
void check_device_options(struct check *check);
void check_device_memory(struct check *check);
void check_device_matmul(struct check *check);
/* Quantised weights. */
void check_device_matmul_quant(struct check *check);
/* 16-bit weights on tensor cores: near the exact product, and the same bits whatever a token is computed with. */
void check_device_matmul_exact(struct check *check);
/* check_gated.c: gated matrices. */
void check_device_gated(struct check *check);
void check_device_rows(struct check *check);
void check_device_matmul_f8(struct check *check);
void check_device_angles(struct check *check);
void check_device_attention(struct check *check);
void check_device_candidates(struct check *check);
void check_device_tree_add(struct check *check);
void check_device_ordered(struct check *check);

/* An open device of the level under test, or the GPU; aborts the program when that fails. */
struct weft_device *check_device(const struct check *check, uint32_t thread_count);

/* bench.c: times every kernel of every level, and the device's matmul; only != NULL: those whose name contains it. */
void bench_run(enum weft_cpu_level best, const char *only);
/* bench_gpu.c: times the large operations of the device table on a GPU. */
void bench_gpu_run(const char *module);

#endif
