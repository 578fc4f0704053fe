/*
 * E4M3 times up to 8 tokens: the format of matrix_few.h. Weights go straight to registers, several loads in flight per
 * lane, and become bf16 there. What a warp needs of a chunk besides lies in shared memory before it begins: the scales,
 * which would otherwise be one more latency every 128 columns, and the activations, rounded. Instructions count here:
 * README.md.
 */
#include "cuda/matrix_f8.h"
#include "cuda/matrix_few.h"

/* Pairs of tiles in flight per warp: 4 KiB, as in matrix_few.cu. */
static const int PAIRS = 8;
static const uint32_t PAIR_SIZE = WEFT_CUDA_F8_PAIR * WEFT_CUDA_F8_TILE_SIZE;
static const uint32_t X_SIZE = WEFT_CUDA_TILE * sizeof(uint16_t); /* of a token's tile, rounded */
static const uint32_t SET_FLOATS = WEFT_CUDA_F8_SCALES_SIZE / sizeof(float);

/*
 * What a warp has in shared memory: scales [ROW_TILES][set][16] f32, then activations [token][tile and one more][4
 * lanes] [4] bf16; the one more keeps tokens in banks of their own. Of one row tile each tile has its set, so that
 * nothing is left to compute; of two the sets are as in memory, which takes less room.
 */
static __device__ __host__ __forceinline__ uint32_t set_count(const struct weft_cuda_product *product,
                                                              uint32_t row_tiles)
{
    return row_tiles == 1 ? product->chunk_tiles : product->scales.chunk_count;
}

static __device__ __host__ __forceinline__ uint32_t token_size(const struct weft_cuda_product *product)
{
    return (product->chunk_tiles + 1) * X_SIZE;
}

/* One lane's place in a chunk. */
struct few_place {
    const unsigned char *weights;
    size_t row_tile_stride; /* bytes */
    const unsigned char *x; /* in shared memory, as are the scales of its rows */
    const float *scales;
    uint32_t row_tile_floats; /* of scales */
    uint32_t column;          /* from the chunk's first set on, of the lane's first tile */
    uint32_t shift;
};

/* scales <- those of the chunk. */
template <int ROW_TILES>
static __device__ __forceinline__ void stage_scales(const struct weft_cuda_product *product,
                                                    const struct weft_cuda_chunk *chunk, uint32_t row_tile,
                                                    bool has_second, uint32_t lane, float *scales)
{
    uint32_t begin = product->scales.phase + chunk->column_begin;
    uint32_t first = begin >> product->scales.shift;
    uint32_t sets = set_count(product, ROW_TILES);
    /* there is one behind the last */
    uint32_t count = ROW_TILES == 1 ? chunk->tile_count : min(sets, product->scales.count + 1 - first);

#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const float *from = weft_cuda_f8_row_scales(&product->scales, row_tile + (has_second ? r : 0));

        for (uint32_t i = lane; i < count * (SET_FLOATS / 4); i += WEFT_CUDA_WARP) {
            uint32_t entry = i / (SET_FLOATS / 4);
            uint32_t set = ROW_TILES == 1 ? (begin + entry * WEFT_CUDA_TILE) >> product->scales.shift : first + entry;

            ((float4 *)scales)[r * sets * (SET_FLOATS / 4) + i] =
                ((const float4 *)(from + weft_cuda_f8_scale_place(set, 0)))[i % (SET_FLOATS / 4)];
        }
    }
}

/* x <- the chunk's activations; columns beyond its own are zeros. */
static __device__ __forceinline__ void stage_x(const struct weft_cuda_product *product,
                                               const struct weft_cuda_chunk *chunk, uint32_t lane, unsigned char *x)
{
    for (uint32_t token = 0; token < product->token_count; token++) {
        const float *from = product->x + (size_t)token * product->col_count + chunk->column_begin;
        uint2 *to = (uint2 *)(x + token * token_size(product));

#pragma unroll 4
        for (uint32_t i = lane; i < chunk->tile_count * 4; i += WEFT_CUDA_WARP) {
            to[i] = weft_cuda_round_four<true>(i * 4 < chunk->column_count ? *(const float4 *)(from + i * 4)
                                                                           : make_float4(0, 0, 0, 0));
        }
    }
}

template <int ROW_TILES>
static __device__ __forceinline__ void load_pair(const struct few_place *place, uint32_t pair, uint4 to[ROW_TILES])
{
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        to[r] = weft_ptx_load_stream(place->weights + r * place->row_tile_stride + (size_t)pair * PAIR_SIZE);
    }
}

template <int ROW_TILES>
static __device__ __forceinline__ void multiply_pair(const struct few_place *place, uint32_t pair,
                                                     const uint4 weights[ROW_TILES], float sums[ROW_TILES][4])
{
#pragma unroll
    for (uint32_t t = 0; t < WEFT_CUDA_F8_PAIR; t++) {
        uint32_t tile = pair * WEFT_CUDA_F8_PAIR + t;
        uint32_t set = ROW_TILES == 1 ? tile : (place->column + tile * WEFT_CUDA_TILE) >> place->shift;
        uint2 x = *(const uint2 *)(place->x + tile * X_SIZE);

#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            float2 scales = *(const float2 *)(place->scales + r * place->row_tile_floats + set * SET_FLOATS);

            weft_cuda_multiply_tile<true>(sums[r], weft_cuda_f8_operand(weft_cuda_f8_of_pair(weights[r], t), scales),
                                          x);
        }
    }
}

/* The ring's pairs from `first` on, all of them there when IS_FULL; what takes their place is on its way. */
template <int ROW_TILES, bool IS_FULL>
static __device__ __forceinline__ void multiply_ring(const struct few_place *place, uint32_t first, uint32_t count,
                                                     uint4 ring[PAIRS / ROW_TILES][ROW_TILES], float sums[ROW_TILES][4])
{
    static constexpr int depth = PAIRS / ROW_TILES;

#pragma unroll
    for (int i = 0; i < depth; i++) {
        if (IS_FULL || first + i < count) {
            multiply_pair<ROW_TILES>(place, first + i, ring[i], sums);
        }
        if (IS_FULL && first + i + depth < count) {
            load_pair<ROW_TILES>(place, first + i + depth, ring[i]);
        }
    }
}

struct few_f8 {
    static const uint32_t blocks = 2;

    static __device__ __host__ size_t stage_size(const struct weft_cuda_product *product, uint32_t row_tiles)
    {
        return (size_t)set_count(product, row_tiles) * row_tiles * WEFT_CUDA_F8_SCALES_SIZE +
               (size_t)product->token_count * token_size(product);
    }

    template <int ROW_TILES>
    static __device__ __forceinline__ void chunk(const struct weft_cuda_product *product,
                                                 const struct weft_cuda_chunk *chunk, uint32_t row_tile,
                                                 unsigned char *stage, float sums[ROW_TILES][4])
    {
        static constexpr int depth = PAIRS / ROW_TILES;
        uint32_t lane = threadIdx.x % WEFT_CUDA_WARP;
        uint32_t begin = product->scales.phase + chunk->column_begin;
        uint32_t count = chunk->tile_count / WEFT_CUDA_F8_PAIR;
        uint32_t first = 0;
        unsigned char *x;
        uint4 ring[depth][ROW_TILES];
        struct few_place place;

        place.weights = product->weights +
                        ((size_t)row_tile * product->tile_count + chunk->tile_begin) * WEFT_CUDA_F8_TILE_SIZE +
                        lane * sizeof(uint4);
        place.row_tile_stride = few_row_tile_stride(product, row_tile, WEFT_CUDA_F8_TILE_SIZE);
        place.row_tile_floats = set_count(product, ROW_TILES) * SET_FLOATS;
        place.scales = (const float *)stage + lane / 4 * 2;
        place.shift = product->scales.shift;
        place.column = begin - (begin >> place.shift << place.shift);
        x = stage + ROW_TILES * place.row_tile_floats * sizeof(float);
        place.x = x + min(lane / 4, product->token_count - 1) * token_size(product) + lane % 4 * sizeof(uint2);
#pragma unroll
        for (int i = 0; i < depth; i++) {
            if ((uint32_t)i < count) {
                load_pair<ROW_TILES>(&place, (uint32_t)i, ring[i]);
            }
        }
        __syncwarp(); /* the last chunk's stage has been read */
        stage_scales<ROW_TILES>(product, chunk, row_tile, place.row_tile_stride > 0, lane, (float *)stage);
        weft_ptx_wait_for_previous(); /* from here on activations can be read */
        stage_x(product, chunk, lane, x);
        __syncwarp();
        for (; first + depth <= count; first += depth) {
            multiply_ring<ROW_TILES, true>(&place, first, count, ring, sums);
        }
        if (first < count) {
            multiply_ring<ROW_TILES, false>(&place, first, count, ring, sums);
        }
    }
};

const struct few_format *weft_cuda_few_f8(void)
{
    static const struct few_format format = few_format_of<few_f8>();

    return &format;
}
