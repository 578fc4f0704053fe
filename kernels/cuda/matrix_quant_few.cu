/*
 * Quantised weights times up to 8 tokens, for decode: bound by memory.
 *
 * A block has one row tile and all its chunks, dealt to its warps, so that 4096 rows make 256 blocks of eight warps.
 * Weights go straight to registers, several loads in flight per lane. One or two tokens are quantised here, each chunk
 * by the warp that multiplies it: a kernel of its own would take longer than that. More are quantised beforehand. Chunk
 * sums meet in shared memory, where the program runs. Weights are read before the kernel that makes the activations has
 * ended.
 */
#include "cuda/matrix_quant.h"

static const uint32_t FEW_TOKENS = 8;
static const uint32_t FEW_TOKENS_OWN = 2; /* of them quantised here, at most */
static const uint32_t FEW_WARPS = 8;      /* per block, at most */
/* Bytes for chunk sums; real models need 0.5 to 30 KiB. */
static const size_t FEW_SUMS_MAX = 56 << 10;
/* Bytes of a chunk's activations of one warp. */
static const uint32_t FEW_STAGE_SIZE = WEFT_CUDA_CHUNK_PAIRS * WEFT_CUDA_PAIR_X_SIZE;

/*
 * What one lane has of a pair of one row tile; and how many pairs of a warp are in flight, about 4 KiB: with two blocks
 * per multiprocessor 64 KiB. 5 TB/s and 800 ns of latency ask for 30 KiB of each of 132.
 */
template <bool IS_Q4> struct few_pair {
    static const uint32_t depth = IS_Q4 ? WEFT_CUDA_CHUNK_PAIRS : WEFT_CUDA_CHUNK_PAIRS / 2;
    uint4 values[IS_Q4 ? 1 : 2];
    uint2 scales;
};

template <bool IS_Q4>
static __device__ __forceinline__ void few_load(const unsigned char *weights, uint32_t index, uint32_t lane,
                                                struct few_pair<IS_Q4> *pair)
{
    const unsigned char *from = weights + (size_t)index * weft_cuda_pair_size(IS_Q4);

#pragma unroll
    for (uint32_t i = 0; i < (IS_Q4 ? 1 : 2); i++) {
        pair->values[i] = weft_ptx_load_stream(from + i * 512 + lane * sizeof(uint4));
    }
    pair->scales = *(const uint2 *)(from + weft_cuda_pair_values(IS_Q4) + lane / 4 * sizeof(uint2));
}

template <bool IS_Q4>
static __device__ __forceinline__ void few_multiply(const struct few_pair<IS_Q4> *pair, const unsigned char *x,
                                                    uint32_t lane, float sums[4])
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint2 bytes = *(const uint2 *)(x + i * 256 + lane * sizeof(uint2));
        float2 scales = *(const float2 *)(x + WEFT_CUDA_PAIR_X_VALUES + i * 32 + lane % 4 * sizeof(float2));
        uint32_t a[4];

        weft_cuda_quant_operand<IS_Q4>(pair->values[IS_Q4 ? 0 : i], i, a);
        weft_cuda_quant_add<IS_Q4>(sums, a, bytes, weft_ptx_unpack_f16(i == 0 ? pair->scales.x : pair->scales.y),
                                   scales);
    }
}

/* stage <- the chunk's activations by one warp, for its own eyes. Places of tokens that do not exist keep what they
 * have: sums of such tokens go nowhere. */
static __device__ __forceinline__ void few_quantise(const struct weft_cuda_product *product,
                                                    const struct weft_cuda_chunk *chunk, uint32_t lane, bool is_aligned,
                                                    unsigned char *stage)
{
    __syncwarp(); /* the last chunk's have been read */
    for (uint32_t token = 0; token < product->token_count; token++) {
#pragma unroll 2
        for (uint32_t first = 0; first < chunk->tile_count; first += 8) {
            uint32_t tile = first + lane / 4;
            float scale;
            uint2 bytes = weft_cuda_quantise_columns(product, chunk, token, tile * WEFT_QUANT_BLOCK + lane % 4 * 8,
                                                     tile < chunk->tile_count, is_aligned, &scale);

            if (tile < chunk->tile_count) {
                weft_cuda_pair_store_x(stage + tile / WEFT_CUDA_PAIR * WEFT_CUDA_PAIR_X_SIZE, tile % WEFT_CUDA_PAIR,
                                       token, lane % 4, bytes, scale);
            }
        }
    }
    __syncwarp();
}

/* Where the activations are: [pair] of one group, or NULL to quantise them here. */
struct few_args {
    const unsigned char *x;
    bool is_aligned;
};

/* sums <- one chunk, by one warp. A ring of registers keeps pairs of weights on their way. */
template <bool IS_Q4, bool IS_OWN>
static __device__ __forceinline__ void few_chunk(const struct weft_cuda_product *product, const struct few_args *args,
                                                 const struct weft_cuda_chunk *chunk, uint32_t row_tile, uint32_t lane,
                                                 unsigned char *stage, float sums[4])
{
    static const uint32_t depth = few_pair<IS_Q4>::depth;
    const unsigned char *weights = product->weights + ((size_t)row_tile * product->tile_count + chunk->tile_begin) /
                                                          WEFT_CUDA_PAIR * weft_cuda_pair_size(IS_Q4);
    const unsigned char *x =
        IS_OWN ? stage : args->x + (size_t)(chunk->tile_begin / WEFT_CUDA_PAIR) * WEFT_CUDA_PAIR_X_SIZE;
    uint32_t count = chunk->tile_count / WEFT_CUDA_PAIR;
    struct few_pair<IS_Q4> pairs[depth];

#pragma unroll
    for (uint32_t i = 0; i < depth; i++) {
        if (i < count) {
            few_load<IS_Q4>(weights, i, lane, &pairs[i]);
        }
    }
    weft_ptx_wait_for_previous(); /* from here on activations can be read */
    if (IS_OWN) {
        few_quantise(product, chunk, lane, args->is_aligned, stage);
    }
    for (uint32_t first = 0; first < count; first += depth) {
#pragma unroll
        for (uint32_t i = 0; i < depth; i++) {
            if (first + i < count) {
                few_multiply<IS_Q4>(&pairs[i], x + (first + i) * WEFT_CUDA_PAIR_X_SIZE, lane, sums);
            }
            if (first + i + depth < count) {
                few_load<IS_Q4>(weights, first + i + depth, lane, &pairs[i]);
            }
        }
    }
}

/* partial[chunk][token][row] in shared memory. */
static __device__ __forceinline__ void few_store(float *partial, uint32_t chunk, uint32_t token_count, uint32_t lane,
                                                 const float sums[4])
{
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t token = lane % 4 * 2 + i;
        float *to = partial + ((size_t)chunk * token_count + token) * WEFT_CUDA_TILE + lane / 4;

        if (token < token_count) {
            to[0] = sums[i];
            to[8] = sums[2 + i];
        }
    }
}

template <bool IS_Q4, bool IS_OWN>
static __global__ void __launch_bounds__(FEW_WARPS *WEFT_CUDA_WARP, 2)
    multiply_few(struct weft_cuda_product product, struct few_args args)
{
    WEFT_CUDA_SHARED(unsigned char, shared);
    __shared__ struct weft_cuda_leaf leaves[WEFT_LEAF_COUNT_MAX]; /* nobody waits for them in the end */
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t warp = threadIdx.x / WEFT_CUDA_WARP;
    uint32_t warps = blockDim.x / WEFT_CUDA_WARP;
    float *partial = (float *)(shared + (IS_OWN ? warps * FEW_STAGE_SIZE : 0));

    for (uint32_t i = threadIdx.x; i < product.leaf_count; i += blockDim.x) {
        leaves[i] = product.leaves[i];
    }
    for (uint32_t i = warp; i < product.chunk_count; i += warps) {
        struct weft_cuda_chunk chunk = product.chunks[i];
        float sums[4] = {};

        few_chunk<IS_Q4, IS_OWN>(&product, &args, &chunk, blockIdx.x, lane, shared + warp * FEW_STAGE_SIZE, sums);
        few_store(partial, i, product.token_count, lane, sums);
    }
    weft_ptx_let_next_start(); /* the first warp here has read its weights, the others nearly */
    __syncthreads();
    product.leaves = leaves;
    for (uint32_t i = threadIdx.x; i < product.token_count * WEFT_CUDA_TILE; i += blockDim.x) {
        uint32_t row = blockIdx.x * WEFT_CUDA_TILE + i % WEFT_CUDA_TILE;

        if (row < product.row_count) {
            weft_cuda_finish(&product, partial + i, (size_t)product.token_count * WEFT_CUDA_TILE, false,
                             i / WEFT_CUDA_TILE, row);
        }
    }
}

/* ---- launching ---- */

static size_t few_sums_size(const struct weft_matrix *matrix, uint32_t token_count)
{
    return (size_t)matrix->chunk_count * token_count * WEFT_CUDA_TILE * sizeof(float);
}

bool weft_cuda_is_quant_few(const struct weft_matrix *matrix, uint32_t token_count)
{
    return token_count <= FEW_TOKENS && few_sums_size(matrix, token_count) <= FEW_SUMS_MAX;
}

typedef void few_kernel(struct weft_cuda_product, struct few_args);

static few_kernel *few_kernel_of(bool is_q4, bool is_own)
{
    static few_kernel *const kernels[2][2] = {{multiply_few<false, false>, multiply_few<false, true>},
                                              {multiply_few<true, false>, multiply_few<true, true>}};

    return kernels[is_q4][is_own];
}

void weft_cuda_quant_few_init(struct weft_cuda_device *device)
{
    for (uint32_t i = 0; i < 4; i++) {
        cudaError_t error =
            cudaFuncSetAttribute(few_kernel_of(i / 2 != 0, i % 2 != 0), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)(FEW_SUMS_MAX + FEW_WARPS * FEW_STAGE_SIZE));

        weft_cuda_check(device, error, "shared memory of the matmul kernel");
    }
}

size_t weft_cuda_quant_few_scratch(const struct weft_matrix *matrix)
{
    return (size_t)(matrix->tile_count / WEFT_CUDA_PAIR) * WEFT_CUDA_PAIR_X_SIZE;
}

void weft_cuda_multiply_quant_few(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                  const struct weft_cuda_product *product)
{
    bool is_own = product->token_count <= FEW_TOKENS_OWN;
    few_kernel *kernel = few_kernel_of(matrix->dtype == WEFT_Q4_0, is_own);
    uint32_t blocks = (product->row_count + WEFT_CUDA_TILE - 1) / WEFT_CUDA_TILE;
    uint32_t warps = matrix->chunk_count < FEW_WARPS ? matrix->chunk_count : FEW_WARPS;
    size_t shared_size = few_sums_size(matrix, product->token_count) + (is_own ? warps * FEW_STAGE_SIZE : 0);
    struct few_args args = {};

    args.is_aligned = matrix->is_aligned && (uintptr_t)product->x % sizeof(float4) == 0;
    if (!is_own) {
        unsigned char *x = (unsigned char *)weft_cuda_scratch(device, weft_cuda_quant_few_scratch(matrix));

        if (x == NULL) {
            return;
        }
        weft_cuda_quantise(device, matrix, product, 1, x);
        args.x = x;
    }
    WEFT_CUDA_LAUNCH_EARLY(device->can_start_early && !device->has_fresh_weights, kernel, dim3(blocks),
                           dim3(warps * WEFT_CUDA_WARP), shared_size, device->stream, *product, args);
    device->has_fresh_weights = false;
    weft_cuda_launched(device, "matmul of a few tokens");
}
