/*
 * Rows of weights into their places, at load. They are copied as they are into scratch, piece by piece, and a kernel
 * packs them on the GPU, so that the host only copies.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/matrix_f8.h"
#include "cuda/matrix_quant.h"

static const uint32_t BLOCK = 256;        /* threads */
static const size_t PIECE_SIZE = 8 << 20; /* bytes of raw rows packed at a time, at least one row */

/* Bytes of a row to be packed, and how many are packed at a time, at most. */
static size_t raw_row_size(const struct weft_matrix *matrix)
{
    return matrix->dtype == WEFT_F8_E4M3 ? weft_f8_row_size(matrix->col_count, matrix->scale_cols, matrix->scale_phase)
                                         : matrix->col_count * weft_dtype_size(matrix->source);
}

static uint32_t raw_rows_max(const struct weft_matrix *matrix)
{
    size_t rows = raw_row_size(matrix) == 0 ? matrix->row_count : PIECE_SIZE / raw_row_size(matrix);

    return rows < 1 ? 1 : rows < matrix->row_count ? (uint32_t)rows : matrix->row_count;
}

size_t weft_cuda_pack_scratch(const struct weft_matrix *matrix)
{
    return raw_row_size(matrix) * (matrix->row_count > 0 ? raw_rows_max(matrix) : 0);
}

/* A block has one row; threads have its columns. */
static __global__ void pack_32(struct weft_cuda_raw_rows args)
{
    uint32_t row = weft_cuda_row_place(args.row_begin + blockIdx.x, args.gate_count);
    const float *from = (const float *)args.rows + (size_t)blockIdx.x * args.col_count;
    float *to = (float *)args.weights + (size_t)(row / WEFT_CUDA_PANEL) * args.col_count * WEFT_CUDA_PANEL;

    for (uint32_t k = threadIdx.x; k < args.col_count; k += blockDim.x) {
        to[(size_t)k * WEFT_CUDA_PANEL + row % WEFT_CUDA_PANEL] = from[k];
    }
}

/*
 * A block has one row tile and one chunk, a thread the four columns of one row that a lane has. Eight neighbouring
 * threads have the two rows of four lanes, 16 columns each, read and written in whole 32-byte sectors.
 */
static __global__ void pack_16(struct weft_cuda_raw_rows args)
{
    struct weft_cuda_chunk chunk = args.chunks[blockIdx.y];
    uint32_t row_tile = args.row_begin / WEFT_CUDA_TILE + blockIdx.x;

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * 64; i += blockDim.x) {
        uint32_t tile = i / 64;
        uint32_t lane = i % 64 / 2;
        uint32_t row = row_tile * WEFT_CUDA_TILE + lane / 4 + i % 2 * 8;
        uint32_t column = tile * WEFT_CUDA_TILE + lane % 4 * 4;

        if (row >= args.row_begin && row < args.row_begin + args.row_count) {
            const uint16_t *from = (const uint16_t *)args.rows + (size_t)(row - args.row_begin) * args.col_count +
                                   chunk.column_begin + column;
            uint32_t place = weft_cuda_row_place(row, args.gate_count);
            ushort2 *to = (ushort2 *)(args.weights +
                                      ((size_t)(place / WEFT_CUDA_TILE) * args.tile_count + chunk.tile_begin + tile) *
                                          WEFT_CUDA_TILE_SIZE) +
                          (place % 8 * 4 + lane % 4) * 4 + place % WEFT_CUDA_TILE / 8;

            to[0] =
                make_ushort2(column < chunk.column_count ? from[0] : 0, column + 1 < chunk.column_count ? from[1] : 0);
            to[2] = make_ushort2(column + 2 < chunk.column_count ? from[2] : 0,
                                 column + 3 < chunk.column_count ? from[3] : 0);
        }
    }
}

/* Packs rows that lie in device memory. */
static void pack(struct weft_cuda_device *device, const struct weft_matrix *matrix, uint32_t row_begin,
                 uint32_t row_count, const void *rows)
{
    struct weft_cuda_raw_rows args = {};

    args.rows = (const unsigned char *)rows;
    args.weights = matrix->memory;
    args.chunks = matrix->chunks;
    args.tile_count = matrix->tile_count;
    args.col_count = matrix->col_count;
    args.gate_count = matrix->gate_count;
    args.row_begin = row_begin;
    args.row_count = row_count;
    if (weft_dtype_is_quantised(matrix->dtype)) {
        weft_cuda_quantise_rows(device, matrix, &args);
    } else if (matrix->dtype == WEFT_F8_E4M3) {
        weft_cuda_f8_pack(device, matrix, &args);
    } else if (matrix->dtype == WEFT_F32) {
        WEFT_CUDA_LAUNCH(pack_32, dim3(row_count), dim3(BLOCK), 0, device->stream, args);
    } else {
        WEFT_CUDA_LAUNCH(pack_16, dim3(weft_cuda_raw_row_tiles(&args), matrix->chunk_count), dim3(BLOCK), 0,
                         device->stream, args);
    }
    weft_cuda_launched(device, "packing a matrix");
    device->has_fresh_weights = true;
}

/* to[col_count] <- a row of E4M3 as bf16. */
static void convert_row(const struct weft_matrix *matrix, const unsigned char *row, uint16_t *to)
{
    const unsigned char *bytes =
        row + weft_f8_row_size(matrix->col_count, matrix->scale_cols, matrix->scale_phase) - matrix->col_count;

    for (uint32_t k = 0; k < matrix->col_count; k++) {
        float scale;

        memcpy(&scale, row + weft_f8_scale_index(k, matrix->scale_cols, matrix->scale_phase) * sizeof(scale),
               sizeof(scale));
        to[k] = weft_f8_weight(bytes[k], scale);
    }
}

/* to[row_count][row_size], without gaps. */
static void gather_rows(const struct weft_matrix *matrix, unsigned char *to, const unsigned char *rows,
                        size_t row_stride, uint32_t row_count, size_t row_size)
{
    for (uint32_t i = 0; i < row_count && matrix->is_from_f8; i++) {
        convert_row(matrix, rows + i * row_stride, (uint16_t *)(to + i * row_size));
    }
    for (uint32_t i = 0; i < row_count && !matrix->is_from_f8; i++) {
        memcpy(to + i * row_size, rows + i * row_stride, row_size);
    }
}

enum weft_status weft_cuda_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                             uint32_t row_count, const void *rows, size_t row_stride)
{
    struct weft_cuda_device *cuda = weft_cuda_device(device);
    size_t row_size = raw_row_size(matrix);
    uint32_t piece_rows = raw_rows_max(matrix);
    bool is_gathered = row_stride != row_size || matrix->is_from_f8;
    unsigned char *gathered = NULL;
    enum weft_status status = WEFT_OK;
    void *raw;

    assert(row_begin <= matrix->row_count && row_count <= matrix->row_count - row_begin);
    if (row_count == 0 || row_size == 0) {
        return WEFT_OK;
    }
    piece_rows = piece_rows < row_count ? piece_rows : row_count;
    raw = weft_cuda_scratch(cuda, piece_rows * row_size);
    if (is_gathered) {
        gathered = (unsigned char *)malloc(piece_rows * row_size);
    }
    if (raw == NULL || (is_gathered && gathered == NULL)) {
        free(gathered);
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t done = 0; done < row_count && status == WEFT_OK; done += piece_rows) {
        uint32_t count = row_count - done < piece_rows ? row_count - done : piece_rows;
        const unsigned char *from = (const unsigned char *)rows + done * row_stride;

        if (gathered != NULL) {
            gather_rows(matrix, gathered, from, row_stride, count, row_size);
            from = gathered;
        }
        status = weft_cuda_write(device, raw, from, count * row_size);
        if (status == WEFT_OK) {
            pack(cuda, matrix, row_begin + done, count, raw);
        }
    }
    free(gathered);
    return status;
}
