/* Weights kept as E4M3: which matrices can be, their sizes, and packing (matrix_f8.h). */
#include "cuda/matrix_f8.h"

static const uint32_t BLOCK = 256;    /* threads */
static const uint32_t ROW_SHIFT = 31; /* no column is that large: all have scale 0 */

bool weft_cuda_f8_can_keep(const struct weft_matrix_desc *desc)
{
    uint32_t columns = desc->scale_cols;
    bool can_keep = columns == 0 || (columns >= WEFT_CUDA_F8_COLUMNS_MIN && (columns & (columns - 1)) == 0);

    for (uint32_t i = 0; columns != 0 && i < (desc->leaves != NULL ? desc->leaf_count : 1); i++) {
        uint32_t begin = desc->leaves != NULL ? desc->leaves[i].begin : 0;

        can_keep = can_keep && (desc->scale_phase + begin) % WEFT_CUDA_TILE == 0;
    }
    return can_keep;
}

static uint32_t shift_of(uint32_t scale_cols)
{
    uint32_t shift = 0;

    while (scale_cols != 0 && scale_cols >> shift != 1) {
        shift++;
    }
    return scale_cols == 0 ? ROW_SHIFT : shift;
}

struct weft_cuda_scales weft_cuda_f8_scales(const struct weft_matrix_desc *desc)
{
    struct weft_cuda_scales scales = {};
    uint32_t most; /* of a chunk, wherever it begins */

    scales.count = weft_f8_scale_count(desc->col_count, desc->scale_cols, desc->scale_phase);
    scales.phase = desc->scale_cols == 0 ? 0 : desc->scale_phase;
    scales.shift = shift_of(desc->scale_cols);
    most = (WEFT_CUDA_CHUNK_TILES * WEFT_CUDA_TILE >> scales.shift) + 2;
    scales.chunk_count = desc->scale_cols == 0 ? 1 : most < scales.count + 1 ? most : scales.count + 1;
    return scales;
}

size_t weft_cuda_f8_tiles_size(uint32_t row_count, uint32_t tile_count)
{
    return (size_t)weft_cuda_divide_up(row_count, WEFT_CUDA_TILE) * tile_count * WEFT_CUDA_F8_TILE_SIZE;
}

size_t weft_cuda_f8_size(const struct weft_matrix_desc *desc, uint32_t row_count, uint32_t tile_count)
{
    size_t sets = (size_t)weft_cuda_divide_up(row_count, WEFT_CUDA_TILE) *
                      weft_f8_scale_count(desc->col_count, desc->scale_cols, desc->scale_phase) +
                  1;

    return weft_cuda_f8_tiles_size(row_count, tile_count) + sets * WEFT_CUDA_F8_SCALES_SIZE;
}

void weft_cuda_f8_set_columns(const struct weft_matrix_desc *desc, const struct weft_cuda_chunk *chunks,
                              uint32_t chunk_count, uint32_t *columns)
{
    uint32_t phase = weft_cuda_f8_scales(desc).phase;

    for (uint32_t i = 0; i < chunk_count; i++) {
        for (uint32_t tile = 0; tile < chunks[i].tile_count; tile++) {
            columns[chunks[i].tile_begin + tile] = phase + chunks[i].column_begin + tile * WEFT_CUDA_TILE;
        }
    }
}

/* ---- packing ---- */

struct f8_pack_args {
    struct weft_cuda_raw_rows raw;
    size_t row_size;    /* bytes of a row: scales, then weights */
    size_t scales_size; /* bytes of a row before its weights */
    struct weft_cuda_scales scales;
    float *scale_values;
};

/*
 * A block has one row tile and one chunk, a thread four columns of one row. 128 neighbouring threads have a pair, which
 * they write in order but where the matrix is gated; four of them read 16 bytes of a row.
 */
static __global__ void pack_tiles(struct f8_pack_args args)
{
    struct weft_cuda_chunk chunk = args.raw.chunks[blockIdx.y];
    uint32_t row_tile = args.raw.row_begin / WEFT_CUDA_TILE + blockIdx.x;

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * 64; i += blockDim.x) {
        uint32_t tile = i / 128 * WEFT_CUDA_F8_PAIR + i / 2 % WEFT_CUDA_F8_PAIR;
        uint32_t lane = i / 4 % WEFT_CUDA_WARP;
        uint32_t row = lane / 4 + i % 2 * 8;
        uint32_t index = row_tile * WEFT_CUDA_TILE + row - args.raw.row_begin; /* wraps around for rows before it */
        uint32_t column = tile * WEFT_CUDA_TILE + lane % 4 * 4;

        if (index < args.raw.row_count) {
            const unsigned char *from =
                args.raw.rows + index * args.row_size + args.scales_size + chunk.column_begin + column;
            uint32_t place = weft_cuda_row_place(args.raw.row_begin + index, args.raw.gate_count);
            unsigned char *tiles =
                args.raw.weights + (size_t)(place / WEFT_CUDA_TILE) * args.raw.tile_count * WEFT_CUDA_F8_TILE_SIZE;
            uint32_t word = 0;

#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                word |= column + j < chunk.column_count ? (uint32_t)from[j] << 8 * j : 0;
            }
            *(uint32_t *)(tiles + weft_cuda_f8_place(chunk.tile_begin + tile, place % WEFT_CUDA_TILE, lane % 4 * 4)) =
                word;
        }
    }
}

/* A thread has one scale of one row. Rows may begin at any byte. */
static __global__ void pack_scales(struct f8_pack_args args)
{
    uint32_t scale = blockIdx.y * blockDim.x + threadIdx.x;
    uint32_t row = weft_cuda_row_place(args.raw.row_begin + blockIdx.x, args.raw.gate_count);

    if (scale < args.scales.count) {
        const unsigned char *from = args.raw.rows + blockIdx.x * args.row_size + scale * sizeof(float);
        uint32_t bits = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
        float *to = args.scale_values + weft_cuda_f8_scale_place(args.scales.count, 0) * (row / WEFT_CUDA_TILE);

        to[weft_cuda_f8_scale_place(scale, row % WEFT_CUDA_TILE)] = __uint_as_float(bits);
    }
}

void weft_cuda_f8_pack(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                       const struct weft_cuda_raw_rows *raw)
{
    struct f8_pack_args args = {};

    args.raw = *raw;
    args.scales = matrix->scales;
    args.scales_size = args.scales.count * sizeof(float);
    args.row_size = args.scales_size + raw->col_count;
    args.scale_values = const_cast<float *>(matrix->scales.values);
    WEFT_CUDA_LAUNCH(pack_tiles, dim3(weft_cuda_raw_row_tiles(raw), matrix->chunk_count), dim3(BLOCK), 0,
                     device->stream, args);
    WEFT_CUDA_LAUNCH(pack_scales, dim3(raw->row_count, weft_cuda_divide_up(args.scales.count, BLOCK)), dim3(BLOCK), 0,
                     device->stream, args);
    weft_cuda_launched(device, "packing a matrix");
}
