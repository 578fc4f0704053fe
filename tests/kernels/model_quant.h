/*
 * weft/quant.h once more, naively, from its text: in whole numbers and the roundings of libm, for checks to compare
 * with by bits. Shares nothing with kernels/ but the conversion to f16.
 */
#ifndef WEFT_TESTS_KERNELS_MODEL_QUANT_H
#define WEFT_TESTS_KERNELS_MODEL_QUANT_H

#include "check.h"

enum { MODEL_BLOCK = 32 };

/* count values as blocks: plain ones, and every kind of block that is special to quantisation. */
void model_quant_fill(struct check *check, float *x, size_t count);

/* values[32], *scale_out <- x[count], count <= 32; the rest are zeros. */
void model_quant_weights(enum weft_dtype dtype, const float *x, uint32_t count, int8_t *values, float *scale_out);
void model_quant_activations(const float *x, uint32_t count, int8_t *values, float *scale_out);

/* The sum of a leaf: weights and activations [block_count][32], scales [block_count]. */
float model_quant_leaf(const int8_t *weights, const float *weight_scales, const int8_t *x, const float *x_scales,
                       uint32_t block_count);

#endif
