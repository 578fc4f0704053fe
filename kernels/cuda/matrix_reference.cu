/*
 * Multiplication in the CPU's order: one chain of fused multiply-adds per row and leaf, then the tree. The CPU's bits.
 *
 * f32 weights are always multiplied like this; 16-bit weights when the device's numerics ask for it. A warp has a panel
 * of 32 rows and a few tokens, a lane one row: nothing is shared, so any shape of the grid gives the same bits.
 */
#include "cuda/matrix_f8.h"

static const uint32_t WARPS = 4;  /* per block */
static const int TOKENS_MOST = 4; /* per warp: independent chains, one load of each weight for all of them */
static const uint32_t BLOCK = WARPS * WEFT_CUDA_PANEL;

/* sums[t] <- continued over one chunk. */
template <enum weft_dtype DTYPE, int TOKENS>
static __device__ __forceinline__ void add_chunk(const struct weft_cuda_product *product, uint32_t index, uint32_t row,
                                                 uint32_t token_first, float sums[TOKENS])
{
    struct weft_cuda_chunk chunk = product->chunks[index];
    const float *x = product->x + (size_t)token_first * product->col_count + chunk.column_begin;

    for (uint32_t k = 0; k < chunk.column_count; k++) {
        float weight = DTYPE == WEFT_F8_E4M3 ? weft_cuda_f8_weight(product, &chunk, row, k)
                                             : weft_cuda_weight(product, DTYPE, &chunk, row, k);

#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            sums[t] = fmaf(weight, x[(size_t)t * product->col_count + k], sums[t]);
        }
    }
}

template <enum weft_dtype DTYPE, int TOKENS>
static __device__ __forceinline__ void multiply_row(const struct weft_cuda_product *product, uint32_t row,
                                                    uint32_t token_first)
{
    float *out = product->out + (size_t)token_first * product->row_count + row;
    float stack[WEFT_CUDA_STACK_MAX][TOKENS];
    uint32_t lanes = row / WEFT_CUDA_PANEL < product->row_count / WEFT_CUDA_PANEL ? 0xffffffffU : 0xffffU;
    uint32_t depth = 0;

    for (uint32_t i = 0; i < product->leaf_count; i++) {
        struct weft_cuda_leaf leaf = product->leaves[i];
        float sums[TOKENS] = {};

        for (uint32_t j = 0; j < leaf.chunk_count; j++) {
            add_chunk<DTYPE, TOKENS>(product, leaf.chunk_begin + j, row, token_first, sums);
        }
        for (; leaf.add_count > 0; leaf.add_count--) {
            depth--;
            for (int t = 0; t < TOKENS; t++) {
                sums[t] = stack[depth][t] + sums[t];
            }
        }
        for (int t = 0; t < TOKENS; t++) {
            if (product->gate_count > 0) { /* whole tiles are here, and the other half is 8 lanes away */
                float up = __shfl_xor_sync(lanes, sums[t], WEFT_CUDA_TILE / 2);

                weft_cuda_store_gated(product, sums[t], up, token_first + t, row);
            } else if (leaf.node < 0) {
                stack[depth][t] = sums[t];
            } else {
                out[(size_t)leaf.node * product->node_stride + (size_t)t * product->row_count] =
                    product->bias != NULL ? sums[t] + product->bias[row] : sums[t];
            }
        }
        depth += leaf.node < 0 ? 1 : 0;
    }
}

template <enum weft_dtype DTYPE, int TOKENS>
static __global__ void __launch_bounds__(BLOCK) multiply(struct weft_cuda_product product, uint32_t token_begin)
{
    uint32_t row = blockIdx.x * WEFT_CUDA_PANEL + threadIdx.x % WEFT_CUDA_PANEL;
    uint32_t token = token_begin + (blockIdx.y * WARPS + threadIdx.x / WEFT_CUDA_PANEL) * TOKENS;

    if (row < product.row_count && token < product.token_count) {
        multiply_row<DTYPE, TOKENS>(&product, row, token);
    }
}

/* Tokens by fours, what is left one by one. */
template <enum weft_dtype DTYPE>
static void launch(struct weft_cuda_device *device, const struct weft_cuda_product *product)
{
    uint32_t panels = (product->row_count + WEFT_CUDA_PANEL - 1) / WEFT_CUDA_PANEL;
    uint32_t fours = product->token_count / TOKENS_MOST;
    uint32_t rest = product->token_count % TOKENS_MOST;
    struct weft_cuda_product whole = *product;
    void (*by_four)(struct weft_cuda_product, uint32_t) = multiply<DTYPE, TOKENS_MOST>;
    void (*one_by_one)(struct weft_cuda_product, uint32_t) = multiply<DTYPE, 1>;

    whole.token_count = fours * TOKENS_MOST;
    if (fours > 0) {
        WEFT_CUDA_LAUNCH(by_four, dim3(panels, (fours + WARPS - 1) / WARPS), dim3(BLOCK), 0, device->stream, whole, 0U);
    }
    if (rest > 0) {
        WEFT_CUDA_LAUNCH(one_by_one, dim3(panels, 1), dim3(BLOCK), 0, device->stream, *product, whole.token_count);
    }
    weft_cuda_launched(device, "matmul in the CPU's order");
}

void weft_cuda_multiply_reference(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                  const struct weft_cuda_product *product)
{
    if (matrix->dtype == WEFT_F32) {
        launch<WEFT_F32>(device, product);
    } else if (matrix->dtype == WEFT_F16) {
        launch<WEFT_F16>(device, product);
    } else if (matrix->dtype == WEFT_F8_E4M3) {
        launch<WEFT_F8_E4M3>(device, product);
    } else {
        launch<WEFT_BF16>(device, product);
    }
}
