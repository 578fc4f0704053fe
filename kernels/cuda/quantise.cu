/*
 * Quantising to blocks of 32 (weft/quant.h): weights as they are loaded, activations before a product of many tokens.
 * (Products of one or two tokens quantise their own: matrix_quant_few.cu.)
 */
#include "cuda/matrix_quant.h"

static const uint32_t BLOCK = 256; /* threads */

/* ---- activations ---- */

/* A block of threads has one chunk of one group, four neighbouring threads one block of one token. */
static __global__ void quantise_activations(struct weft_cuda_product product, bool is_aligned, unsigned char *to)
{
    struct weft_cuda_chunk chunk = product.chunks[blockIdx.x];
    unsigned char *pairs =
        to + ((size_t)blockIdx.y * product.tile_count + chunk.tile_begin) / WEFT_CUDA_PAIR * WEFT_CUDA_PAIR_X_SIZE;

    weft_ptx_let_next_start(); /* a matmul, which has weights to read */
    weft_ptx_wait_for_previous();
    for (uint32_t i = threadIdx.x; i < chunk.tile_count * WEFT_CUDA_WARP; i += BLOCK) { /* whole warps */
        uint32_t tile = i / 4 % chunk.tile_count;
        uint32_t in_group = i / 4 / chunk.tile_count;
        uint32_t token = blockIdx.y * WEFT_CUDA_GROUP + in_group;
        float scale;
        uint2 bytes = weft_cuda_quantise_columns(&product, &chunk, token, tile * WEFT_QUANT_BLOCK + i % 4 * 8,
                                                 token < product.token_count, is_aligned, &scale);

        weft_cuda_pair_store_x(pairs + (size_t)(tile / WEFT_CUDA_PAIR) * WEFT_CUDA_PAIR_X_SIZE, tile % WEFT_CUDA_PAIR,
                               in_group, i % 4, bytes, scale);
    }
}

void weft_cuda_quantise(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                        const struct weft_cuda_product *product, uint32_t group_count, unsigned char *to)
{
    bool is_aligned = matrix->is_aligned && (uintptr_t)product->x % sizeof(float4) == 0;

    WEFT_CUDA_LAUNCH_EARLY(device->can_start_early, quantise_activations, dim3(matrix->chunk_count, group_count),
                           dim3(BLOCK), 0, device->stream, *product, is_aligned, to);
    weft_cuda_launched(device, "quantising activations");
}

/* ---- weights ---- */

template <enum weft_dtype SOURCE>
static __device__ __forceinline__ float source_element(const unsigned char *rows, size_t index)
{
    if (SOURCE == WEFT_F32) {
        return ((const float *)rows)[index];
    }
    return SOURCE == WEFT_BF16 ? weft_bf16_to_f32(((const uint16_t *)rows)[index])
                               : weft_f16_to_f32(((const uint16_t *)rows)[index]);
}

/* The element of largest magnitude of the block that four lanes, two apart, have; of equal ones the first. By the whole
 * warp. */
static __device__ __forceinline__ float most_of_block(const float x[8], uint32_t part)
{
    uint64_t most = 0; /* magnitude, then what is larger in earlier columns, then the sign */

#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t bits = __float_as_uint(x[i]);
        uint64_t key = (uint64_t)(bits & 0x7fffffffU) << 32 | (31 - part * 8 - i) << 1 | bits >> 31;

        most = key > most ? key : most;
    }
#pragma unroll
    for (int distance = 2; distance <= 4; distance *= 2) {
        uint64_t other = __shfl_xor_sync(0xffffffffU, most, distance);

        most = other > most ? other : most;
    }
    return __uint_as_float((uint32_t)(most >> 32) | (uint32_t)most << 31);
}

/* Eight columns of one row of a pair. */
template <bool IS_Q4>
static __device__ __forceinline__ void store_eight(unsigned char *to, const float x[8], uint16_t scale)
{
    uint32_t values[8];
    uint32_t low;
    uint32_t high;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        values[i] = IS_Q4 ? (uint32_t)weft_quant_w_value(x[i], scale, -8, 7) & 0xfU
                          : (uint32_t)weft_quant_w_value(x[i], scale, -127, 127) & 0xffU;
    }
    low = values[0] | values[1] << 8 | values[2] << 16 | values[3] << 24;
    high = values[4] | values[5] << 8 | values[6] << 16 | values[7] << 24;
    if (IS_Q4) {
        *(uint32_t *)to = low | high << 4;
    } else {
        *(uint32_t *)to = low;
        *(uint32_t *)(to + 8) = high;
    }
}

/*
 * A block of threads has one row tile and one chunk, a thread eight columns of one row. Eight neighbouring threads have
 * two rows, 32 columns each, whose values lie together.
 */
template <bool IS_Q4, enum weft_dtype SOURCE> static __global__ void quantise_rows(struct weft_cuda_raw_rows args)
{
    struct weft_cuda_chunk chunk = args.chunks[blockIdx.y];
    uint32_t row_tile = args.row_begin / WEFT_CUDA_TILE + blockIdx.x;

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * 64; i += BLOCK) { /* whole warps */
        uint32_t tile = i / 64;
        uint32_t part = i / 2 % 4;
        uint32_t row = i % 64 / 8 + i % 2 * 8;
        uint32_t index = row_tile * WEFT_CUDA_TILE + row - args.row_begin; /* wraps around for rows before it */
        uint32_t column = tile * WEFT_QUANT_BLOCK + part * 8;
        bool is_there = index < args.row_count;
        uint32_t count = is_there && column < chunk.column_count ? chunk.column_count - column : 0;
        size_t first = (size_t)index * args.col_count + chunk.column_begin + column;
        float x[8];
        float most;

#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            x[j] = j < count ? source_element<SOURCE>(args.rows, first + j) : 0;
        }
        most = most_of_block(x, part);
        if (is_there) {
            uint16_t scale = IS_Q4 ? weft_quant_w_scale(most, -8) : weft_quant_w_scale(fabsf(most), 127);
            uint32_t place = weft_cuda_row_place(args.row_begin + index, args.gate_count);
            uint32_t in_tile = place % WEFT_CUDA_TILE;
            unsigned char *pair =
                args.weights + ((size_t)(place / WEFT_CUDA_TILE) * args.tile_count + chunk.tile_begin + tile) /
                                   WEFT_CUDA_PAIR * weft_cuda_pair_size(IS_Q4);

            store_eight<IS_Q4>(pair + weft_cuda_pair_place(IS_Q4, in_tile, tile % WEFT_CUDA_PAIR, part), x, scale);
            if (part == 0) {
                *(uint16_t *)(pair + weft_cuda_pair_values(IS_Q4) +
                              weft_cuda_pair_scale_place(in_tile, tile % WEFT_CUDA_PAIR)) = scale;
            }
        }
    }
}

typedef void rows_kernel(struct weft_cuda_raw_rows);

static rows_kernel *rows_kernel_of(bool is_q4, enum weft_dtype source)
{
    static rows_kernel *const kernels[2][3] = {
        {quantise_rows<false, WEFT_F32>, quantise_rows<false, WEFT_F16>, quantise_rows<false, WEFT_BF16>},
        {quantise_rows<true, WEFT_F32>, quantise_rows<true, WEFT_F16>, quantise_rows<true, WEFT_BF16>}};

    return kernels[is_q4][source];
}

void weft_cuda_quantise_rows(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                             const struct weft_cuda_raw_rows *raw)
{
    rows_kernel *kernel = rows_kernel_of(matrix->dtype == WEFT_Q4_0, matrix->source);

    WEFT_CUDA_LAUNCH(kernel, dim3(weft_cuda_raw_row_tiles(raw), matrix->chunk_count), dim3(BLOCK), 0, device->stream,
                     *raw);
    weft_cuda_launched(device, "quantising a matrix");
}
