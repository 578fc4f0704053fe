/*
 * Numerics fast: products of many tokens by cuBLASLt.
 *
 * A result then depends on the rank count (a node is summed as a whole, not leaf by leaf), on the batch and on how a
 * prompt is cut, within the rounding of f32 sums; activations are rounded to the weights' type as in exact. Fewer
 * tokens, decode above all, quantised matrices and those in f32 are multiplied as in exact; E4M3 as the bf16 that it
 * stands for.
 */
#ifndef WEFT_CUDA_MATRIX_FAST_H
#define WEFT_CUDA_MATRIX_FAST_H

#include "cuda/matrix.h"

/* Opens the library for the device, with numerics fast: its name; NULL, logged as a warning, when all is to be as in
 * exact. */
const char *weft_cuda_fast_open(struct weft_cuda_device *device);
void weft_cuda_fast_close(struct weft_cuda_device *device);

/* Bytes of scratch that such products of the matrix take; 0 when there will be none. Needs node_tile_ends only. */
size_t weft_cuda_fast_scratch(const struct weft_cuda_device *device, const struct weft_matrix *matrix);

/* Makes matrix->fast, when the library will multiply it: asks for the algorithms of its shape, once per shape. */
WEFT_MUST_CHECK enum weft_status weft_cuda_fast_matrix_open(struct weft_cuda_device *device,
                                                            struct weft_matrix *matrix);
void weft_cuda_fast_matrix_close(struct weft_matrix *matrix);

/* Multiplies the first tokens of the product, as many as it returns: 0 when there are too few of them, or when the
 * matrix is none of the library's. */
uint32_t weft_cuda_multiply_fast(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                 const struct weft_cuda_product *product);

#endif
