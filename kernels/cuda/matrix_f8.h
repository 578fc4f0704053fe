/*
 * Weights kept as E4M3 on the GPU (weft/f8.h): where bytes and scales lie, and how they become the bf16 that is
 * multiplied. From there on all is as with bf16 weights: the same tiles, chunks and instruction, hence the same bits.
 *
 *   tiles    [row tile][pair][lane][tile of the pair][row / 8][4 bytes], 512 bytes: lane l has of rows l / 4 and
 *            l / 4 + 8 the four columns from 4 (l % 4) on of two tiles, 16 bytes. Chunks are padded to whole pairs with
 *            zeros; a tile of zeros leaves every sum as it is.
 *   scales   [row tile][scale][row % 8][row / 8] f32, 64 bytes, behind the tiles; one set more at the end, which the
 *            padding of a last chunk may ask for.
 *   columns  [tile] u32, in the program: scale_phase + the tile's first column.
 *
 * Kept so are matrices of whose scales each is for a power of two of columns, at least WEFT_CUDA_F8_COLUMNS_MIN, or for
 * the row; and whose leaves begin at multiples of 16 columns of such a block, so that the columns of a tile share a
 * scale. Others are kept as bf16.
 */
#ifndef WEFT_CUDA_MATRIX_F8_H
#define WEFT_CUDA_MATRIX_F8_H

#include "cuda/matrix.h"
#include "cuda/matrix_tensor.h"

/* Tiles of a pair; bytes of a tile, and of the scales of its rows. */
static const uint32_t WEFT_CUDA_F8_PAIR = 2;
static const uint32_t WEFT_CUDA_F8_TILE_SIZE = 256;
static const uint32_t WEFT_CUDA_F8_SCALES_SIZE = 64;
/* So that 64 columns, a stage of matrix_tiles.h, have two scales of a row at most. */
static const uint32_t WEFT_CUDA_F8_COLUMNS_MIN = 64;

/* ---- sizes and packing: matrix_f8.cu ---- */

/* Whether a matrix of E4M3 can be kept as that. */
bool weft_cuda_f8_can_keep(const struct weft_matrix_desc *desc);
/* How the scales of a kept matrix lie, but for pointers. */
struct weft_cuda_scales weft_cuda_f8_scales(const struct weft_matrix_desc *desc);
/* Bytes of tiles, and of these and scales, for rows as they lie. */
size_t weft_cuda_f8_tiles_size(uint32_t row_count, uint32_t tile_count);
size_t weft_cuda_f8_size(const struct weft_matrix_desc *desc, uint32_t row_count, uint32_t tile_count);
/* columns[tile_count] from the chunks of the program. */
void weft_cuda_f8_set_columns(const struct weft_matrix_desc *desc, const struct weft_cuda_chunk *chunks,
                              uint32_t chunk_count, uint32_t *columns);
/* Packs rows of [scales, bytes]. */
void weft_cuda_f8_pack(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                       const struct weft_cuda_raw_rows *raw);

/* ---- places ---- */

/* Bytes from a row tile's tiles to the four columns of its row `row` that begin at column `column` of tile `tile`. */
static __device__ __forceinline__ size_t weft_cuda_f8_place(uint32_t tile, uint32_t row, uint32_t column)
{
    return (size_t)(tile / WEFT_CUDA_F8_PAIR) * (WEFT_CUDA_F8_PAIR * WEFT_CUDA_F8_TILE_SIZE) +
           (row % 8 * 4 + column / 4) * 16 + tile % WEFT_CUDA_F8_PAIR * 8 + row / 8 * 4;
}

/* Floats from the scales of a row tile to scale `scale` of its row `row`. */
static __device__ __forceinline__ size_t weft_cuda_f8_scale_place(uint32_t scale, uint32_t row)
{
    return (size_t)scale * (WEFT_CUDA_F8_SCALES_SIZE / sizeof(float)) + row % 8 * 2 + row / 8;
}

/* The scales of a row tile. */
static __device__ __forceinline__ const float *weft_cuda_f8_row_scales(const struct weft_cuda_scales *scales,
                                                                       uint32_t row_tile)
{
    return scales->values + weft_cuda_f8_scale_place(scales->count, 0) * row_tile;
}

/* Element (row, column of the chunk), a bf16, as f32. */
static __device__ __forceinline__ float weft_cuda_f8_weight(const struct weft_cuda_product *product,
                                                            const struct weft_cuda_chunk *chunk, uint32_t row,
                                                            uint32_t column)
{
    uint32_t row_tile = row / WEFT_CUDA_TILE;
    uint32_t scale = (product->scales.phase + chunk->column_begin + column) >> product->scales.shift;
    const unsigned char *tiles = product->weights + (size_t)row_tile * product->tile_count * WEFT_CUDA_F8_TILE_SIZE;
    size_t place =
        weft_cuda_f8_place(chunk->tile_begin + column / WEFT_CUDA_TILE, row % WEFT_CUDA_TILE, column % WEFT_CUDA_TILE);

    return weft_bf16_to_f32(weft_f8_weight(
        tiles[place + column % 4],
        weft_cuda_f8_row_scales(&product->scales, row_tile)[weft_cuda_f8_scale_place(scale, row % WEFT_CUDA_TILE)]));
}

/* ---- the step ---- */

/* Two words of bf16, the first two bytes in the first: values times the scale, rounded to f32, then to bf16. */
static __device__ __forceinline__ uint2 weft_cuda_f8_four(uint32_t bytes, float scale)
{
    uint2 halves = weft_ptx_unpack_e4m3(bytes);
    float2 low = weft_ptx_unpack_f16(halves.x);
    float2 high = weft_ptx_unpack_f16(halves.y);

    return make_uint2(weft_ptx_pack_bf16(low.x * scale, low.y * scale),
                      weft_ptx_pack_bf16(high.x * scale, high.y * scale));
}

/* A lane's operand of a bf16 tile (matrix.h) from its bytes of both rows, and the scales of these. */
static __device__ __forceinline__ uint4 weft_cuda_f8_operand(uint2 bytes, float2 scales)
{
    uint2 upper = weft_cuda_f8_four(bytes.x, scales.x);
    uint2 lower = weft_cuda_f8_four(bytes.y, scales.y);

    return make_uint4(upper.x, lower.x, upper.y, lower.y);
}

/* Tile 0 or 1 of the 16 bytes that a lane has of a pair. */
static __device__ __forceinline__ uint2 weft_cuda_f8_of_pair(uint4 pair, int tile)
{
    return tile == 0 ? make_uint2(pair.x, pair.y) : make_uint2(pair.z, pair.w);
}

#endif
