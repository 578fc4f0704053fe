/*
 * cuBLASLt, opened at run time and never linked: one kind of product of 16-bit matrices as NVIDIA's library makes it,
 * for numerics fast. blas.cu is the only file that sees cublasLt.h and sees nothing else of CUDA, so that the emulated
 * module has it as well, over a stub of the library (tests/emulator).
 *
 * Rejected: leaving the choice of the algorithm to cublasLtMatmul(), which then asks its heuristics in every call.
 */
#ifndef WEFT_CUDA_BLAS_H
#define WEFT_CUDA_BLAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

struct weft_blas;
struct weft_blas_product;

/*
 * The library and a handle for the GPU that is current. False with one phrase in reason_out: no library
 * (libcublasLt.so.13 or .12), not the version its name promises, a function missing, or no handle to be had; also when
 * this was built without its header.
 */
bool weft_blas_open(struct weft_blas **out, char *reason_out, size_t reason_size);
/* All products are closed. May wait for the GPU. */
void weft_blas_close(struct weft_blas **blas);
/* "cuBLASLt 13.1.0". */
const char *weft_blas_name(const struct weft_blas *blas);
/* The name, and the file, without a handle and without a GPU, for `weft info`: "cuBLASLt 13.1.0, /usr/lib/...". */
bool weft_blas_find(char *name_out, size_t name_size, char *reason_out, size_t reason_size);

/* Addresses of weights, x and out are multiples of this, and so are both strides in bytes. */
static const uint32_t WEFT_BLAS_ALIGNMENT = 16;

/* out[t, n] <- sum over k < column_count of weights[n, k] * x[t, k], in f32; in what order is the library's affair. */
struct weft_blas_shape {
    uint32_t row_count;    /* n */
    uint32_t column_count; /* k */
    uint32_t token_count;  /* t */
    uint32_t in_stride;    /* elements from one row of weights to the next, and of x */
    uint32_t out_stride;   /* elements from one row of out to the next */
    bool is_bf16;          /* weights and x; else f16 */
};

/* Asks the library for its best algorithm within workspace_size bytes, once; what it allocates is host memory. False
 * with one phrase. */
bool weft_blas_product_open(struct weft_blas *blas, const struct weft_blas_shape *shape, size_t workspace_size,
                            struct weft_blas_product **out, char *reason_out, size_t reason_size);
void weft_blas_product_close(struct weft_blas *blas, struct weft_blas_product **product);

/* In the order of the stream (a cudaStream_t), or recorded where it is being captured. workspace: 256-byte aligned, of
 * the size given at opening. NULL, or what the library says. */
const char *weft_blas_multiply(struct weft_blas *blas, const struct weft_blas_product *product, const void *weights,
                               const void *x, float *out, void *workspace, void *stream);

#endif
