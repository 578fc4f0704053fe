/*
 * What the two kernels of 16-bit weights share: the one instruction that both are made of.
 *
 * A chunk is one chain of mma.sync.m16n8k16 from zero, tile by tile, weights as the M operand: a row's sum depends on
 * nothing but its weights and one token's activations. Both kernels compute these chunks, hence the same bits.
 */
#ifndef WEFT_CUDA_MATRIX_TENSOR_H
#define WEFT_CUDA_MATRIX_TENSOR_H

#include "cuda/matrix.h"
#include "cuda/ptx.h"

/* Tokens of one mma: N. Bytes of the rounded activations of one tile and group of tokens. */
static const uint32_t WEFT_CUDA_GROUP = 8;
static const uint32_t WEFT_CUDA_GROUP_SIZE = 256;
static const uint32_t WEFT_CUDA_WARP = 32;

/* d += one tile of one lane's weights (matrix.h) with four columns of its token; by the whole warp. */
template <bool IS_BF16>
static __device__ __forceinline__ void weft_cuda_multiply_tile(float d[4], uint4 weights, uint2 x)
{
    const uint32_t a[4] = {weights.x, weights.y, weights.z, weights.w};
    const uint32_t b[2] = {x.x, x.y};

    if (IS_BF16) {
        weft_ptx_mma_bf16(d, a, b);
    } else {
        weft_ptx_mma_f16(d, a, b);
    }
}

/* Four activations, rounded to the weights' type. */
template <bool IS_BF16> static __device__ __forceinline__ uint2 weft_cuda_round_four(float4 x)
{
    if (IS_BF16) {
        return make_uint2(weft_ptx_pack_bf16(x.x, x.y), weft_ptx_pack_bf16(x.z, x.w));
    }
    return make_uint2(weft_ptx_pack_f16(x.x, x.y), weft_ptx_pack_f16(x.z, x.w));
}

#endif
