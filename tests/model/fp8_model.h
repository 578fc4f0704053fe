/*
 * FP8 checkpoints made from the golden models, and beside each what it must be the same as: a checkpoint without FP8
 * that holds the weights as this folder's own arithmetic, not the loader's, takes them from bytes and scales.
 */
#ifndef TESTS_MODEL_FP8_MODEL_H
#define TESTS_MODEL_FP8_MODEL_H

#include <stdbool.h>
#include <stdint.h>

enum fp8_damage {
    FP8_WHOLE,
    FP8_NO_SCALE,    /* of the second layer's o_proj, as all below */
    FP8_SCALE_SHAPE, /* one row of scales more */
    FP8_SCALE_TYPE,  /* I32 */
    FP8_SCALE_INFINITE,
    FP8_SCALE_HUGE, /* finite, but 448 times it is not */
    FP8_NAN,        /* weight [3, 5] */
    FP8_MINUS_NAN,
    FP8_E5M2, /* the other FP8 */
    FP8_NORM, /* a vector as FP8 */
};

struct fp8_form {
    const char *name;
    const char *golden;  /* model to take */
    const char *config;  /* quantization_config; NULL: none */
    const char *ending;  /* of the scales' names: "_scale_inv" */
    uint32_t block_rows; /* of one scale; 0: all */
    uint32_t block_cols;
    const char *scale_type; /* "F32", "BF16" */
    uint32_t scale_dims;    /* of a scale per tensor or row: 0: [], 1: [N], 2: [N, 1] */
    bool has_ends;          /* embedding and head are FP8 too */
    bool is_mixed;          /* k_proj stays F32, so that q, k, v are kept as F32 */
    bool is_f32;            /* the reference is F32 everywhere: what is quantised */
    enum fp8_damage damage;
};

/* New folders below /tmp, paths into fp8[4096] and reference[4096] (NULL: not wanted). */
void fp8_model_make(const struct fp8_form *form, char *fp8, char *reference);

#endif
