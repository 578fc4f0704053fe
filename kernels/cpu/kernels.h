/*
 * The CPU micro-kernel table: single-thread functions without state. kernels_ref.c fills it with the reference, which
 * is the specification; every higher level overwrites what it has and must give the same bits (tests/kernels compares
 * with memcmp; only NaN payloads are free). Threads, tiling and memory are the callers' business.
 *
 * A panel is 16 rows of a matrix stored column by column, so that SIMD lanes are rows:
 *   f32           [column][16] float
 *   f16, bf16     [column][16] uint16_t
 *   bf16 pairs    [column / 2][16] uint32_t: even column in the low half, odd column in the high half
 *   f8 pairs      [column / 2][32] uint8_t: both columns of 16 rows, in the order of f8_pairs.h
 * An odd last column of a pair panel has an unspecified high half that is never used.
 *
 * A quantised panel (weft/quant.h) is chunk after chunk, leaf after leaf. A chunk of n blocks is the scales of all its
 * blocks, then their values, unsigned by an offset, in *quads* of four columns, so that a vector has 16 rows of a quad:
 *   scales        [n][16] f16, padded with zeros to a multiple of 64 bytes
 *   q8_0 values   [n][8 quads][16][4] uint8_t: value + 128
 *   q4_0 values   [n][4 pairs of quads][16][4] uint8_t: value + 8 of the even quad in the low nibble, of the odd quad
 *                 in the high nibble
 */
#ifndef WEFT_CPU_KERNELS_H
#define WEFT_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/quant.h"
#include "weft/status.h"
#include "weft/tree.h"

enum {
    WEFT_LANES = 16,          /* rows of a panel; lanes of every horizontal sum */
    WEFT_DOT_PANELS_MAX = 4,  /* panels of one dot call */
    WEFT_DOT_VECTORS_MAX = 8, /* vectors of one dot call */
};

/*
 * out[v][16 p + i] <- start + sum over k of panels[p][k][i] * x[v][k], one fmaf per k in ascending order; start is
 * +0.0, or what out holds when is_continued.
 */
struct weft_cpu_dot {
    const void *const *panels; /* [panel_count], each 4-byte aligned at least, at the first column of the sum */
    uint32_t panel_count;      /* 1 .. WEFT_DOT_PANELS_MAX */
    uint32_t vector_count;     /* 1 .. WEFT_DOT_VECTORS_MAX */
    const float *const *x;     /* [vector_count][col_count] */
    uint32_t col_count;        /* may be 0 */
    bool is_continued;
    float *out;        /* [vector_count], rows of 16 * panel_count */
    size_t out_stride; /* elements from one vector to the next */
    /*
     * A hint, free to ignore: memory that the caller will need next, [ahead_count] blocks of the size of one panel's
     * part in this sum. Prefetched where multiplying leaves time for it. Need not be readable.
     */
    const void *const *ahead;
    uint32_t ahead_count; /* at most WEFT_DOT_PANELS_MAX */
};
typedef void weft_cpu_dot_fn(const struct weft_cpu_dot *args);

/* Activations of one block. */
struct weft_cpu_quant_x {
    int8_t values[WEFT_QUANT_BLOCK];
    float scale;
    int32_t start; /* -offset * sum of values: an integer sum over values + offset that begins here is exact */
};

/* out[v][16 p + i] <- the sum of one leaf as weft/quant.h says. */
struct weft_cpu_dot_quant {
    const void *const *panels;               /* [panel_count], each 64-byte aligned, at the first chunk of the leaf */
    uint32_t panel_count;                    /* 1 .. WEFT_DOT_PANELS_MAX */
    uint32_t vector_count;                   /* 1 .. WEFT_DOT_VECTORS_MAX */
    const struct weft_cpu_quant_x *const *x; /* [vector_count][block_count] */
    uint32_t block_count;                    /* may be 0 */
    float *out;                              /* [vector_count], rows of 16 * panel_count */
    size_t out_stride;                       /* elements from one vector to the next */
    bool is_stream;                          /* a hint: the panels come from memory, not from a cache */
    const void *const *ahead;                /* as in struct weft_cpu_dot */
    uint32_t ahead_count;
};
typedef void weft_cpu_dot_quant_fn(const struct weft_cpu_dot_quant *args);

/*
 * Horizontal sums and maxima use 16 lanes: lane i takes elements i, i + 16, ... in ascending order; then lane i <- lane
 * i op lane (i + 8), then + 4, + 2, + 1.
 */
struct weft_cpu_kernels {
    weft_cpu_dot_fn *dot_f32;
    weft_cpu_dot_fn *dot_f16;
    weft_cpu_dot_fn *dot_bf16;
    weft_cpu_dot_fn *dot_bf16_pairs;
    weft_cpu_dot_quant_fn *dot_q8_0;
    weft_cpu_dot_quant_fn *dot_q4_0;

    /* pairs[pair_count][16] <- the weights of bytes[pair_count][32], f8 pairs, with scales[16], as weft/f8.h has them:
     * a bf16 pair panel. */
    void (*unpack_f8)(const uint8_t *bytes, const float *scales, size_t pair_count, uint32_t *pairs);

    /* blocks[ceil(count / 32)] <- x[count], a short last block filled up with zeros. offset: 128 for q8_0, 8 for q4_0.
     */
    void (*quantise_x)(const float *x, uint32_t count, int32_t offset, struct weft_cpu_quant_x *blocks);

    /* values[32], *scale_out <- the weights x[32] of one block (zeros where a block is short). */
    void (*quantise_q8_0)(const float *x, int8_t *values, uint16_t *scale_out);
    void (*quantise_q4_0)(const float *x, int8_t *values, uint16_t *scale_out);

    /* out[i] <- x[i] * (1 / sqrt(sum of squares / width + eps)) * weight[i]; out may be x. */
    void (*rms_norm)(const float *x, const float *weight, uint32_t width, float eps, float *out);

    /* x[i] <- x[i] + y[i] */
    void (*add)(float *x, const float *y, size_t count);

    /* x[i] <- x[i] + y[i], or x[i] + (y[i] + bias[i]) when bias is not NULL; then out as rms_norm() has it of x. out
     * may be y, not one of the others. */
    void (*add_norm)(float *x, const float *y, const float *bias, const float *weight, uint32_t width, float eps,
                     float *out);

    /* Rotates the pairs (x[i], x[i + half]), i < half, by angles[i] = (cos, sin). */
    void (*rope)(float *x, const float *angles, uint32_t half);

    /* out[i] <- gate[i] / (1 + exp(-gate[i])) * up[i]; pairs [ceil(count / 16)][2][16]: 16 gates, 16 of what they let
     * through, the next 16 gates and so on; what is beyond the last of both need not exist. */
    void (*silu_mul)(const float *pairs, size_t count, float *out);

    /*
     * scores[p] <- exp(scores[p] * scale - max) for valid.begin <= p < valid.end (not empty), *max_out the largest
     * scaled score and *sum_out the 16-lane sum. scores has room up to the next multiple of 16; elements outside
     * `valid` are overwritten with unspecified values.
     */
    void (*softmax)(float *scores, struct weft_range valid, float scale, float *max_out, float *sum_out);

    /* out[i] <- fmaf(out[i], a, piece[i] * b) */
    void (*merge)(float *out, const float *piece, uint32_t count, float a, float b);

    /* out[i] <- x[i] / divisor */
    void (*divide)(const float *x, uint32_t count, float divisor, float *out);

    /* Largest of x[count], -infinity for none; NaN when any is NaN. */
    float (*max)(const float *x, size_t count);

    /* 16-lane sum of exp((x[i] - max) * factor); lanes without an element count +0.0. */
    float (*exp_sum)(const float *x, size_t count, float max, float factor);
};

/* Every member of the table, once. tests/kernels expands it into checks: a kernel without one does not link. */
#define WEFT_CPU_KERNEL_LIST(X)                                                                                        \
    X(dot_f32)                                                                                                         \
    X(dot_f16)                                                                                                         \
    X(dot_bf16)                                                                                                        \
    X(dot_bf16_pairs)                                                                                                  \
    X(dot_q8_0)                                                                                                        \
    X(dot_q4_0)                                                                                                        \
    X(unpack_f8)                                                                                                       \
    X(quantise_x)                                                                                                      \
    X(quantise_q8_0)                                                                                                   \
    X(quantise_q4_0)                                                                                                   \
    X(rms_norm)                                                                                                        \
    X(add)                                                                                                             \
    X(add_norm)                                                                                                        \
    X(rope)                                                                                                            \
    X(silu_mul)                                                                                                        \
    X(softmax)                                                                                                         \
    X(merge)                                                                                                           \
    X(divide)                                                                                                          \
    X(max)                                                                                                             \
    X(exp_sum)

/* Ascending: each level includes those before it. */
enum weft_cpu_level {
    WEFT_CPU_REF = 0,
    WEFT_CPU_AVX2 = 1,   /* avx2, fma, f16c */
    WEFT_CPU_AVX512 = 2, /* avx512 f, bw, vl, dq */
    WEFT_CPU_AVX512VNNI = 3,
    WEFT_CPU_LEVEL_COUNT
};

/* "ref", "avx2", "avx512", "avx512vnni". */
const char *weft_cpu_level_name(enum weft_cpu_level level);

/* Highest level of this machine and build. *reason_out (may be NULL): why not the next one, static text. */
enum weft_cpu_level weft_cpu_level_detect(const char **reason_out);

/* Level called `name`, or the best for NULL. ERR_ARGUMENT: unknown; ERR_UNSUPPORTED: not on this machine; logged. */
WEFT_MUST_CHECK enum weft_status weft_cpu_level_parse(const char *name, enum weft_cpu_level *level_out);

/* Fills the whole table for `level`, which must not exceed weft_cpu_level_detect(). */
void weft_cpu_kernels_init(struct weft_cpu_kernels *kernels, enum weft_cpu_level level);

/* One per level file; called in ascending order by weft_cpu_kernels_init() only. */
void weft_cpu_kernels_fill_ref(struct weft_cpu_kernels *kernels);
void weft_cpu_kernels_fill_avx2(struct weft_cpu_kernels *kernels);
void weft_cpu_kernels_fill_avx512(struct weft_cpu_kernels *kernels);
void weft_cpu_kernels_fill_avx512vnni(struct weft_cpu_kernels *kernels);

#endif
