/*
 * Products of many tokens, for prefill and large batches: how they are split over blocks, and what finishes them.
 * Activations are rounded or quantised and put in order beforehand, once. The kernel: matrix_tiles.h.
 */
#include "cuda/matrix_tiles.h"

/* A thread has one row of one token. */
static __global__ void combine(struct weft_cuda_product product, const float *sums, bool has_leaf_sums,
                               uint32_t padded_tokens, uint32_t padded_rows)
{
    uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;

    if (row < product.row_count) {
        weft_cuda_finish(&product, sums + (size_t)blockIdx.y * padded_rows + row, (size_t)padded_tokens * padded_rows,
                         has_leaf_sums, blockIdx.y, row);
    }
}

/* ---- launching ---- */

/* One way of multiplying T tokens. */
struct plan {
    uint32_t warp_rows; /* 4, 2 or 1: 128, 64 or 32 tokens per block */
    uint32_t block_tokens;
    uint32_t grid; /* blocks of multiply_tiles */
    struct tiles_args tiles;
    size_t x_size; /* bytes of scratch, then */
    size_t memory_size;
};

/*
 * A block on every multiprocessor is enough: those of a product bound by memory share it evenly, and for one bound by
 * arithmetic it is all there is. `slots` is how many blocks can work at a time.
 */
static void plan_split(const struct weft_matrix *matrix, uint32_t enough, uint32_t slots, struct plan *plan)
{
    struct tiles_args *tiles = &plan->tiles;
    uint32_t blocks = tiles->row_blocks * tiles->token_blocks;

    if (blocks >= enough || matrix->chunk_count == 1) {
        tiles->split = SPLIT_NONE;
        tiles->part_count = 1;
    } else if (matrix->leaf_count == matrix->chunk_count || blocks * matrix->leaf_count >= enough) {
        tiles->split = SPLIT_LEAVES;
        tiles->part_count = matrix->leaf_count;
    } else {
        tiles->split = SPLIT_CHUNKS;
        tiles->part_count = matrix->chunk_count;
    }
    plan->grid = blocks * tiles->part_count;
    if (tiles->split == SPLIT_NONE) {
        plan->grid = plan->grid < slots ? plan->grid : slots;
        plan->memory_size = (size_t)plan->grid * matrix->stack_depth * plan->block_tokens;
    } else {
        plan->memory_size = (size_t)plan->grid * plan->block_tokens;
    }
    plan->memory_size *= BLOCK_ROW_TILES * WEFT_CUDA_TILE * sizeof(float);
}

static const struct tiles_format *format_of(const struct weft_matrix *matrix)
{
    if (weft_dtype_is_quantised(matrix->dtype)) {
        return weft_cuda_tiles_quant(matrix->dtype == WEFT_Q4_0);
    }
    return matrix->dtype == WEFT_F8_E4M3 ? weft_cuda_tiles_f8() : weft_cuda_tiles_16(matrix->dtype == WEFT_BF16);
}

static struct plan make_plan(const struct weft_cuda_device *device, const struct weft_matrix *matrix,
                             uint32_t token_count)
{
    struct plan plan = {};

    plan.warp_rows = token_count <= 32 ? 1 : token_count <= 64 ? 2 : 4;
    plan.block_tokens = 32 * plan.warp_rows;
    plan.tiles.row_blocks = weft_cuda_divide_up(matrix->row_count, BLOCK_ROW_TILES * WEFT_CUDA_TILE);
    plan.tiles.token_blocks = weft_cuda_divide_up(token_count, plan.block_tokens);
    plan.tiles.stack_depth = matrix->stack_depth;
    plan.x_size = (size_t)plan.tiles.token_blocks * plan.block_tokens / WEFT_CUDA_GROUP * matrix->tile_count *
                  format_of(matrix)->x_size;
    plan_split(matrix, device->sm_count, device->sm_count * (plan.warp_rows == 4 ? 1 : 2), &plan);
    return plan;
}

size_t weft_cuda_tiles_scratch(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    size_t most = 0;

    for (uint32_t tokens = 32; tokens <= WEFT_CUDA_TOKENS_MAX; tokens += 32) {
        struct plan plan = make_plan(device, matrix, tokens);

        most = plan.x_size + plan.memory_size > most ? plan.x_size + plan.memory_size : most;
    }
    return most;
}

void weft_cuda_tiles_init(struct weft_cuda_device *device)
{
    const struct tiles_format *formats[] = {weft_cuda_tiles_16(false), weft_cuda_tiles_16(true), weft_cuda_tiles_f8(),
                                            weft_cuda_tiles_quant(false), weft_cuda_tiles_quant(true)};

    for (uint32_t i = 0; i < 15; i++) {
        cudaError_t error =
            cudaFuncSetAttribute(formats[i / 3]->kernels[i % 3], cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)formats[i / 3]->shared_sizes[i % 3]);

        weft_cuda_check(device, error, "shared memory of the matmul kernel");
    }
}

void weft_cuda_multiply_tiles(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                              const struct weft_cuda_product *product)
{
    struct plan plan = make_plan(device, matrix, product->token_count);
    const struct tiles_format *format = format_of(matrix);
    tiles_kernel *kernel = format->kernels[plan.warp_rows / 2];
    unsigned char *scratch = (unsigned char *)weft_cuda_scratch(device, plan.x_size + plan.memory_size);
    uint32_t groups = plan.tiles.token_blocks * plan.block_tokens / WEFT_CUDA_GROUP;
    uint32_t padded_rows = plan.tiles.row_blocks * BLOCK_ROW_TILES * WEFT_CUDA_TILE;

    if (scratch == NULL) {
        return;
    }
    plan.tiles.x = scratch;
    plan.tiles.memory = (float *)(scratch + plan.x_size);
    format->prepare(device, matrix, product, groups, scratch);
    WEFT_CUDA_LAUNCH(kernel, dim3(plan.grid), dim3(TILES_THREADS), format->shared_sizes[plan.warp_rows / 2],
                     device->stream, *product, plan.tiles);
    if (plan.tiles.split != SPLIT_NONE) {
        WEFT_CUDA_LAUNCH(combine, dim3(weft_cuda_divide_up(product->row_count, TILES_THREADS), product->token_count),
                         dim3(TILES_THREADS), 0, device->stream, *product, (const float *)plan.tiles.memory,
                         plan.tiles.split == SPLIT_LEAVES, plan.tiles.token_blocks * plan.block_tokens, padded_rows);
    }
    weft_cuda_launched(device, "matmul of many tokens");
}
