/*
 * Numerics fast: 16-bit weights and E4M3 times many tokens by cuBLASLt, which has them as 16-bit rows. Contract in
 * matrix.h.
 *
 * The weights stay packed as every other kernel wants them. For a product of many tokens a slab of rows at a time is
 * unpacked into scratch, then multiplied with all tokens: 4 bytes moved per weight beside 2 T operations. So there is
 * one form of the weights in memory, and decode is that of exact. Rejected: rows in memory instead of tiles (a second
 * variant of every kernel, and decode, which matters more, would read 64 bytes at a time), and both (twice the memory).
 *
 * A node is one product over all of its columns: leaves are not kept apart, their sums would cost a product each.
 */
#include <stdlib.h>

#include "cuda/blas.h"
#include "cuda/matrix_f8.h"
#include "cuda/matrix_fast.h"
#include "cuda/matrix_tensor.h"

/*
 * Products are made for multiples of UNIT tokens. What is left over, the last UNIT tokens compute once more, which
 * needs no more algorithms and no room behind `out`.
 *
 * TOKENS_MIN: where unpacking (4 bytes at 4.3 TB/s) has been earned by a rate of 650 instead of 400 TFLOP/s, by
 * arithmetic. TOKENS_MAX: unpacking takes 8 % of a product then. SLAB_SIZE: 2048 rows of 16384 columns, so that a slab
 * fills 132 multiprocessors with 128 x 256 tiles at 2048 tokens. WORKSPACE_SIZE: what NVIDIA recommends for Hopper.
 * None of them was measured. The emulator's models are tiny, and to have every case all the same.
 */
#ifdef WEFT_CUDA_EMULATED
static const uint32_t UNIT = 8, TOKENS_MIN = 16, TOKENS_MAX = 48;
static const size_t SLAB_SIZE = 8 << 10, WORKSPACE_SIZE = 4 << 10;
static const uint32_t SLAB_ROWS_MULTIPLE = 16;
#else
static const uint32_t UNIT = 128, TOKENS_MIN = 512, TOKENS_MAX = 4096;
static const size_t SLAB_SIZE = 64 << 20, WORKSPACE_SIZE = 32 << 20;
static const uint32_t SLAB_ROWS_MULTIPLE = 128;
#endif
static const uint32_t PRODUCT_COUNT = TOKENS_MAX / UNIT;
static const size_t ALIGNMENT = 256; /* of the parts of the scratch */

static const uint32_t BLOCK = 256;      /* threads */
static const uint32_t BLOCK_TILES = 64; /* of one row tile, unpacked by a block: 8 per warp */

/* Products that differ in their tokens only; matrices of the same shape share them. */
struct products {
    struct weft_blas_shape shape; /* token_count 0 */
    bool is_complete;
    struct weft_blas_product *of[PRODUCT_COUNT]; /* of (i + 1) UNIT tokens: one unit, and from TOKENS_MIN on */
    struct products *next;
};

struct weft_cuda_fast {
    struct weft_blas *blas;
    struct products *products; /* owned */
};

struct weft_cuda_fast_matrix {
    uint32_t slab_rows;
    /* [node_count][2]: of a whole slab and of the last; borrowed */
    const struct products *products[];
};

/* ---- kernels ---- */

/* A lane's operand of a tile of 16 bits into rows: to the first of its columns of row l / 4. */
static __device__ __forceinline__ void store_operand(uint16_t *to, size_t stride, uint4 four)
{
    *(uint2 *)to = make_uint2(four.x, four.z);
    *(uint2 *)(to + 8 * stride) = make_uint2(four.y, four.w);
}

/* rows [row tiles x 16][columns padded by leaf] <- tiles. A block has one row tile and BLOCK_TILES tiles. */
static __global__ void unpack(const unsigned char *weights, uint32_t row_tile_begin, uint32_t tile_count,
                              uint16_t *rows)
{
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t begin = blockIdx.y * BLOCK_TILES;
    uint32_t end = begin + BLOCK_TILES < tile_count ? begin + BLOCK_TILES : tile_count;
    size_t stride = (size_t)tile_count * WEFT_CUDA_TILE;
    const unsigned char *from =
        weights + (size_t)(row_tile_begin + blockIdx.x) * tile_count * WEFT_CUDA_TILE_SIZE + lane * sizeof(uint4);
    uint16_t *to = rows + ((size_t)blockIdx.x * WEFT_CUDA_TILE + lane / 4) * stride + lane % 4 * 4;

#pragma unroll 4
    for (uint32_t tile = begin + threadIdx.x / WEFT_CUDA_WARP; tile < end; tile += BLOCK / WEFT_CUDA_WARP) {
        store_operand(to + (size_t)tile * WEFT_CUDA_TILE, stride,
                      *(const uint4 *)(from + (size_t)tile * WEFT_CUDA_TILE_SIZE));
    }
}

/* The same of E4M3, as bf16. */
static __global__ void unpack_f8(struct weft_cuda_product product, uint32_t row_tile_begin, uint16_t *rows)
{
    uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
    uint32_t row_tile = row_tile_begin + blockIdx.x;
    uint32_t begin = blockIdx.y * BLOCK_TILES + threadIdx.x / WEFT_CUDA_WARP * WEFT_CUDA_F8_PAIR;
    uint32_t end = min(blockIdx.y * BLOCK_TILES + BLOCK_TILES, product.tile_count);
    size_t stride = (size_t)product.tile_count * WEFT_CUDA_TILE;
    const float *scales = weft_cuda_f8_row_scales(&product.scales, row_tile) + weft_cuda_f8_scale_place(0, lane / 4);
    const unsigned char *from =
        product.weights + (size_t)row_tile * product.tile_count * WEFT_CUDA_F8_TILE_SIZE + lane * sizeof(uint4);
    uint16_t *to = rows + ((size_t)blockIdx.x * WEFT_CUDA_TILE + lane / 4) * stride + lane % 4 * 4;

#pragma unroll 4
    for (uint32_t first = begin; first < end; first += BLOCK / WEFT_CUDA_WARP * WEFT_CUDA_F8_PAIR) {
        uint4 pair = *(const uint4 *)(from + (size_t)first * WEFT_CUDA_F8_TILE_SIZE);

#pragma unroll
        for (uint32_t t = 0; t < WEFT_CUDA_F8_PAIR; t++) {
            uint32_t scale = product.scales.columns[first + t] >> product.scales.shift;
            float2 two = *(const float2 *)(scales + weft_cuda_f8_scale_place(scale, 0));

            store_operand(to + (size_t)(first + t) * WEFT_CUDA_TILE, stride,
                          weft_cuda_f8_operand(weft_cuda_f8_of_pair(pair, t), two));
        }
    }
}

/* rounded [T][columns padded by leaf]. A block has one chunk of one token. */
template <bool IS_BF16>
static __global__ void round_rows(struct weft_cuda_product product, bool is_aligned, uint2 *rounded)
{
    struct weft_cuda_chunk chunk = product.chunks[blockIdx.x];
    const float *x = product.x + (size_t)blockIdx.y * product.col_count + chunk.column_begin;
    uint2 *to = rounded + ((size_t)blockIdx.y * product.tile_count + chunk.tile_begin) * (WEFT_CUDA_TILE / 4);

    for (uint32_t i = threadIdx.x; i < chunk.tile_count * (WEFT_CUDA_TILE / 4); i += blockDim.x) {
        uint32_t column = i * 4;
        float4 four = make_float4(0, 0, 0, 0);

        if (is_aligned && column < chunk.column_count) {
            four = *(const float4 *)(x + column);
        } else {
            four.x = column < chunk.column_count ? x[column] : 0;
            four.y = column + 1 < chunk.column_count ? x[column + 1] : 0;
            four.z = column + 2 < chunk.column_count ? x[column + 2] : 0;
            four.w = column + 3 < chunk.column_count ? x[column + 3] : 0;
        }
        to[i] = weft_cuda_round_four<IS_BF16>(four);
    }
}

/* What comes of the sums [T][2 pair_count] of a slab of a gated matrix whose rows lie from row_begin on. A block has
 * one token. */
static __global__ void finish_gated(struct weft_cuda_product product, const float *sums, uint32_t row_begin,
                                    uint32_t pair_count)
{
    uint32_t half = WEFT_CUDA_TILE / 2;

    for (uint32_t i = threadIdx.x; i < pair_count; i += blockDim.x) {
        uint32_t row = i / half * WEFT_CUDA_TILE + i % half;
        const float *from = sums + (size_t)blockIdx.x * 2 * pair_count + row;

        weft_cuda_store_gated(&product, from[0], from[half], blockIdx.x, row_begin + row);
    }
}

/* A block has one token. */
static __global__ void add_bias(const float *bias, uint32_t row_count, float *out)
{
    for (uint32_t i = threadIdx.x; i < row_count; i += blockDim.x) {
        out[(size_t)blockIdx.x * row_count + i] += bias[i];
    }
}

/* ---- sizes ---- */

/* Bytes of one row as cuBLASLt gets it. */
static size_t row_size(const struct weft_matrix *matrix)
{
    return (size_t)matrix->tile_count * WEFT_CUDA_TILE * sizeof(uint16_t);
}

static uint32_t slab_rows(const struct weft_matrix *matrix)
{
    uint32_t count = (uint32_t)((matrix->row_count * row_size(matrix) + SLAB_SIZE - 1) / SLAB_SIZE);

    return weft_cuda_divide_up(weft_cuda_divide_up(matrix->row_count, count), SLAB_ROWS_MULTIPLE) * SLAB_ROWS_MULTIPLE;
}

static size_t x_size(const struct weft_matrix *matrix)
{
    return weft_cuda_align_up(TOKENS_MAX * row_size(matrix), ALIGNMENT);
}

static size_t slab_size(const struct weft_matrix *matrix)
{
    return weft_cuda_align_up(slab_rows(matrix) * row_size(matrix), ALIGNMENT);
}

/* Of a gated matrix: the sums of all tokens with a slab. Of others they go straight to the output. */
static size_t sums_size(const struct weft_matrix *matrix)
{
    return matrix->gate_count == 0
               ? 0
               : weft_cuda_align_up((size_t)TOKENS_MAX * slab_rows(matrix) * sizeof(float), ALIGNMENT);
}

/* Whether the library takes it: it wants rows of `out` aligned, and a sum over no columns is none of its business. */
static bool is_fit(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    bool is_fit = device->fast != NULL && matrix->dtype != WEFT_F32 && !weft_dtype_is_quantised(matrix->dtype) &&
                  matrix->row_count > 0 && matrix->row_count % (WEFT_BLAS_ALIGNMENT / sizeof(float)) == 0;

    for (uint32_t i = 0; i < matrix->node_count; i++) {
        is_fit = is_fit && matrix->node_tile_ends[i] > (i > 0 ? matrix->node_tile_ends[i - 1] : 0);
    }
    return is_fit;
}

size_t weft_cuda_fast_scratch(const struct weft_cuda_device *device, const struct weft_matrix *matrix)
{
    return is_fit(device, matrix) ? x_size(matrix) + slab_size(matrix) + sums_size(matrix) + WORKSPACE_SIZE : 0;
}

/* ---- products, made once per shape ---- */

/* All or none: a matrix that could be multiplied so for some numbers of tokens only would be a riddle to measure. */
static bool open_products(struct weft_cuda_fast *fast, struct products *products)
{
    for (uint32_t i = 0; i < PRODUCT_COUNT; i++) {
        struct weft_blas_shape shape = products->shape;
        char reason[128];

        shape.token_count = (i + 1) * UNIT;
        if ((i == 0 || shape.token_count >= TOKENS_MIN) &&
            !weft_blas_product_open(fast->blas, &shape, WORKSPACE_SIZE, &products->of[i], reason, sizeof(reason))) {
            weft_cuda_log(WEFT_LOG_WARN,
                          "numerics fast: %s has nothing for %u rows, %u columns and %u tokens (%s): multiplied as in "
                          "exact",
                          weft_blas_name(fast->blas), shape.row_count, shape.column_count, shape.token_count, reason);
            return false;
        }
    }
    return true;
}

static void close_products(struct weft_cuda_fast *fast, struct products *products)
{
    for (uint32_t i = 0; i < PRODUCT_COUNT; i++) {
        weft_blas_product_close(fast->blas, &products->of[i]);
    }
    free(products);
}

static bool is_same(const struct weft_blas_shape *a, const struct weft_blas_shape *b)
{
    return a->row_count == b->row_count && a->column_count == b->column_count && a->in_stride == b->in_stride &&
           a->out_stride == b->out_stride && a->is_bf16 == b->is_bf16;
}

/* NULL: out of memory. */
static const struct products *products_of(struct weft_cuda_fast *fast, const struct weft_blas_shape *shape)
{
    struct products *products = fast->products;

    while (products != NULL && !is_same(&products->shape, shape)) {
        products = products->next;
    }
    if (products == NULL) {
        products = static_cast<struct products *>(calloc(1, sizeof(*products)));
        if (products == NULL) {
            return NULL;
        }
        products->shape = *shape;
        products->is_complete = open_products(fast, products);
        products->next = fast->products;
        fast->products = products;
    }
    return products;
}

enum weft_status weft_cuda_fast_matrix_open(struct weft_cuda_device *device, struct weft_matrix *matrix)
{
    struct weft_cuda_fast_matrix *own;
    uint32_t tile_begin = 0;
    bool is_complete = true;

    if (!is_fit(device, matrix)) {
        return WEFT_OK;
    }
    own = static_cast<struct weft_cuda_fast_matrix *>(
        calloc(1, sizeof(*own) + 2 * matrix->node_count * sizeof(own->products[0])));
    if (own == NULL) {
        return WEFT_ERR_MEMORY;
    }
    own->slab_rows = slab_rows(matrix);
    for (uint32_t i = 0; i < 2 * matrix->node_count; i++) {
        uint32_t rest = matrix->row_count % own->slab_rows;
        struct weft_blas_shape shape = {};

        shape.row_count = own->slab_rows;
        if (rest != 0 && (i % 2 == 1 || matrix->row_count < own->slab_rows)) {
            shape.row_count = rest;
        }
        shape.column_count = (matrix->node_tile_ends[i / 2] - tile_begin) * WEFT_CUDA_TILE;
        shape.in_stride = matrix->tile_count * WEFT_CUDA_TILE;
        shape.out_stride = matrix->gate_count > 0 ? shape.row_count : matrix->row_count;
        shape.is_bf16 = matrix->dtype != WEFT_F16;
        tile_begin = i % 2 == 1 ? matrix->node_tile_ends[i / 2] : tile_begin;
        own->products[i] = products_of(device->fast, &shape);
        if (own->products[i] == NULL) {
            free(own);
            return WEFT_ERR_MEMORY;
        }
        is_complete = is_complete && own->products[i]->is_complete;
    }
    if (!is_complete) {
        free(own);
        return WEFT_OK;
    }
    matrix->fast = own;
    return WEFT_OK;
}

void weft_cuda_fast_matrix_close(struct weft_matrix *matrix)
{
    free(matrix->fast);
    matrix->fast = NULL;
}

/* ---- the device's part ---- */

const char *weft_cuda_fast_open(struct weft_cuda_device *device)
{
    struct weft_cuda_fast *fast = static_cast<struct weft_cuda_fast *>(calloc(1, sizeof(*fast)));
    char reason[192] = "out of memory";

    if (fast == NULL || !weft_blas_open(&fast->blas, reason, sizeof(reason))) {
        free(fast);
        weft_cuda_log(WEFT_LOG_WARN, "GPU %d: numerics fast without cuBLASLt is as exact: %s", device->index, reason);
        return NULL;
    }
    device->fast = fast;
    return weft_blas_name(fast->blas);
}

void weft_cuda_fast_close(struct weft_cuda_device *device)
{
    if (device->fast == NULL || device->is_stuck) { /* closing would wait for the GPU without a deadline */
        return;
    }
    while (device->fast->products != NULL) {
        struct products *products = device->fast->products;

        device->fast->products = products->next;
        close_products(device->fast, products);
    }
    weft_blas_close(&device->fast->blas);
    free(device->fast);
    device->fast = NULL;
}

/* ---- multiplication ---- */

struct work {
    const struct weft_matrix *matrix;
    const struct weft_cuda_product *product; /* of this pass: its token_count tokens */
    uint16_t *x;
    uint16_t *slab;
    float *sums; /* of a gated matrix */
    void *workspace;
};

static void round_all(struct weft_cuda_device *device, const struct work *work)
{
    void (*kernel)(struct weft_cuda_product, bool, uint2 *) =
        work->matrix->dtype != WEFT_F16 ? round_rows<true> : round_rows<false>;
    bool is_aligned = work->matrix->is_aligned && (uintptr_t)work->product->x % sizeof(float4) == 0;

    WEFT_CUDA_LAUNCH(kernel, dim3(work->matrix->chunk_count, work->product->token_count), dim3(BLOCK / 2), 0,
                     device->stream, *work->product, is_aligned, (uint2 *)work->x);
}

static void unpack_slab(struct weft_cuda_device *device, const struct work *work, uint32_t row_begin,
                        uint32_t row_count)
{
    dim3 grid(weft_cuda_divide_up(row_count, WEFT_CUDA_TILE),
              weft_cuda_divide_up(work->matrix->tile_count, BLOCK_TILES));

    if (work->matrix->dtype == WEFT_F8_E4M3) {
        WEFT_CUDA_LAUNCH(unpack_f8, grid, dim3(BLOCK), 0, device->stream, *work->product, row_begin / WEFT_CUDA_TILE,
                         work->slab);
    } else {
        WEFT_CUDA_LAUNCH(unpack, grid, dim3(BLOCK), 0, device->stream, work->product->weights,
                         row_begin / WEFT_CUDA_TILE, work->matrix->tile_count, work->slab);
    }
}

/* Tokens [token, token + those of products->of[index]) of one node and slab. */
static void multiply_node(struct weft_cuda_device *device, const struct work *work, const struct products *products,
                          uint32_t index, uint32_t token, uint32_t tile_begin, float *out)
{
    size_t column = (size_t)tile_begin * WEFT_CUDA_TILE;
    size_t stride = products->shape.in_stride;

    if (device->status == WEFT_OK) {
        const char *problem = weft_blas_multiply(
            device->fast->blas, products->of[index], work->slab + column, work->x + token * stride + column,
            out + (size_t)token * products->shape.out_stride, work->workspace, device->stream);

        if (problem != NULL) {
            weft_cuda_fail(device, WEFT_ERR_IO, "a product by cuBLASLt", problem);
        }
    }
}

static void multiply_slab(struct weft_cuda_device *device, const struct work *work, uint32_t row_begin, bool is_last)
{
    uint32_t tokens = work->product->token_count;
    uint32_t tile_begin = 0;

    for (uint32_t i = 0; i < work->matrix->node_count; i++) {
        const struct products *products = work->matrix->fast->products[2 * i + (is_last ? 1 : 0)];
        float *out =
            work->matrix->gate_count > 0 ? work->sums : work->product->out + i * work->product->node_stride + row_begin;

        multiply_node(device, work, products, tokens / UNIT - 1, 0, tile_begin, out);
        if (tokens % UNIT != 0) {
            multiply_node(device, work, products, 0, tokens - UNIT, tile_begin, out);
        }
        tile_begin = work->matrix->node_tile_ends[i];
    }
}

/* One pass: product->token_count tokens, from TOKENS_MIN to TOKENS_MAX. */
static void multiply_pass(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                          const struct weft_cuda_product *product)
{
    unsigned char *scratch = (unsigned char *)weft_cuda_scratch(device, weft_cuda_fast_scratch(device, matrix));
    struct work work = {matrix, product, (uint16_t *)scratch, NULL, NULL, NULL};

    if (scratch == NULL) {
        return;
    }
    work.slab = (uint16_t *)(scratch + x_size(matrix));
    work.sums = (float *)(scratch + x_size(matrix) + slab_size(matrix));
    work.workspace = scratch + x_size(matrix) + slab_size(matrix) + sums_size(matrix);
    round_all(device, &work);
    for (uint32_t row = 0; row < matrix->row_count; row += matrix->fast->slab_rows) {
        uint32_t rest = matrix->row_count - row;
        uint32_t rows = rest < matrix->fast->slab_rows ? rest : matrix->fast->slab_rows;

        unpack_slab(device, &work, row, rows);
        multiply_slab(device, &work, row, rows == rest);
        if (matrix->gate_count > 0) {
            WEFT_CUDA_LAUNCH(finish_gated, dim3(product->token_count), dim3(BLOCK), 0, device->stream, *product,
                             (const float *)work.sums, row, rows / 2);
        }
    }
    if (product->bias != NULL && matrix->gate_count == 0) {
        WEFT_CUDA_LAUNCH(add_bias, dim3(product->token_count), dim3(BLOCK), 0, device->stream, product->bias,
                         matrix->row_count, product->out);
    }
    weft_cuda_launched(device, "matmul by cuBLASLt");
}

uint32_t weft_cuda_multiply_fast(struct weft_cuda_device *device, const struct weft_matrix *matrix,
                                 const struct weft_cuda_product *product)
{
    uint32_t done = 0;

    if (matrix->fast == NULL || (uintptr_t)product->out % WEFT_BLAS_ALIGNMENT != 0) {
        return 0;
    }
    while (product->token_count - done >= TOKENS_MIN) {
        struct weft_cuda_product pass = *product;

        pass.token_count = product->token_count - done < TOKENS_MAX ? product->token_count - done : TOKENS_MAX;
        pass.x = product->x + (size_t)done * matrix->col_count;
        pass.out = product->out + (size_t)done * weft_cuda_out_width(matrix);
        multiply_pass(device, matrix, &pass);
        done += pass.token_count;
    }
    return done;
}
