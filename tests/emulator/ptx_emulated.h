/*
 * The emulated twins of the functions of kernels/cuda/ptx.h, which has their contracts: tensor core products,
 * asynchronous copies, loads with cache hints. Layout: PTX ISA 8, "Matrix fragments for mma.m16n8k16".
 */
#ifndef WEFT_TESTS_EMULATOR_PTX_EMULATED_H
#define WEFT_TESTS_EMULATOR_PTX_EMULATED_H

#include "cuda/numeric_cuda.h"
#include "emulator/grid.h"

/* ---- mma.sync.aligned.m16n8k16.row.col.f32.{bf16,f16}.{bf16,f16}.f32 ---- */

/* Lane l: A holds rows l/4, l/4 + 8 and columns 2 (l%4) + {0, 1, 8, 9}; B rows as A's columns, column l/4; C and D rows
 * as A, columns 2 (l%4) + {0, 1}. */
struct weft_emulated_mma {
    float *d;          /* 4: (row, columns), (row + 8, columns) */
    const uint32_t *a; /* 4: (row, low columns), (row + 8, low), (row, high), (row + 8, high) */
    const uint32_t *b; /* 2: low rows, high rows */
};

template <float (*TO_F32)(uint16_t)> static void weft_emulated_run_mma(void **data, uint32_t lanes)
{
    float a[16][16];
    float b[16][8];

    if (lanes != WEFT_EMULATED_FULL_MASK) {
        weft_emulated_fault("mma.sync of lanes 0x%x: all 32 must take part", lanes);
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        const weft_emulated_mma *own = static_cast<const weft_emulated_mma *>(data[lane]);
        uint32_t row = lane / 4;
        uint32_t column = 2 * (lane % 4);

        for (uint32_t i = 0; i < 2; i++) {
            a[row][column + i] = TO_F32((uint16_t)(own->a[0] >> 16 * i));
            a[row + 8][column + i] = TO_F32((uint16_t)(own->a[1] >> 16 * i));
            a[row][column + 8 + i] = TO_F32((uint16_t)(own->a[2] >> 16 * i));
            a[row + 8][column + 8 + i] = TO_F32((uint16_t)(own->a[3] >> 16 * i));
            b[column + i][row] = TO_F32((uint16_t)(own->b[0] >> 16 * i));
            b[column + 8 + i][row] = TO_F32((uint16_t)(own->b[1] >> 16 * i));
        }
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        weft_emulated_mma *own = static_cast<weft_emulated_mma *>(data[lane]);

        for (uint32_t i = 0; i < 4; i++) {
            uint32_t row = lane / 4 + (i < 2 ? 0 : 8);
            uint32_t column = 2 * (lane % 4) + i % 2;
            double sum = 0; /* products are exact; a GPU adds them in an order of its own, then to the accumulator */

            for (uint32_t k = 0; k < 16; k++) {
                sum += (double)a[row][k] * (double)b[k][column];
            }
            own->d[i] = (float)((double)own->d[i] + sum);
        }
    }
}

static inline void weft_ptx_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    weft_emulated_mma own = {d, a, b};

    weft_emulated_warp(WEFT_EMULATED_FULL_MASK, weft_emulated_run_mma<weft_bf16_to_f32>, &own, "mma.sync bf16");
}

static inline void weft_ptx_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    weft_emulated_mma own = {d, a, b};

    weft_emulated_warp(WEFT_EMULATED_FULL_MASK, weft_emulated_run_mma<weft_f16_to_f32>, &own, "mma.sync f16");
}

/* ---- mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 ---- */

/* Lane l: A holds rows l/4, l/4 + 8 and columns 4 (l%4) + {0..3, 16..19}; B rows as A's columns, column l/4; C and D
 * rows as A, columns 2 (l%4) + {0, 1}. C is one value here. */
struct weft_emulated_mma_s8 {
    int32_t *d;        /* 4: (row, columns), (row + 8, columns) */
    const uint32_t *a; /* 4: (row, low columns), (row + 8, low), (row, high), (row + 8, high) */
    const uint32_t *b; /* 2: low rows, high rows */
    int32_t c;
};

static void weft_emulated_run_mma_s8(void **data, uint32_t lanes)
{
    int8_t a[16][32];
    int8_t b[32][8];

    if (lanes != WEFT_EMULATED_FULL_MASK) {
        weft_emulated_fault("mma.sync of lanes 0x%x: all 32 must take part", lanes);
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        const weft_emulated_mma_s8 *own = static_cast<const weft_emulated_mma_s8 *>(data[lane]);
        uint32_t row = lane / 4;
        uint32_t column = 4 * (lane % 4);

        for (uint32_t i = 0; i < 4; i++) {
            a[row][column + i] = (int8_t)(own->a[0] >> 8 * i);
            a[row + 8][column + i] = (int8_t)(own->a[1] >> 8 * i);
            a[row][column + 16 + i] = (int8_t)(own->a[2] >> 8 * i);
            a[row + 8][column + 16 + i] = (int8_t)(own->a[3] >> 8 * i);
            b[column + i][row] = (int8_t)(own->b[0] >> 8 * i);
            b[column + 16 + i][row] = (int8_t)(own->b[1] >> 8 * i);
        }
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        weft_emulated_mma_s8 *own = static_cast<weft_emulated_mma_s8 *>(data[lane]);

        for (uint32_t i = 0; i < 4; i++) {
            uint32_t row = lane / 4 + (i < 2 ? 0 : 8);
            uint32_t column = 2 * (lane % 4) + i % 2;
            int32_t sum = own->c;

            for (uint32_t k = 0; k < 32; k++) {
                sum += a[row][k] * b[k][column];
            }
            own->d[i] = sum;
        }
    }
}

static inline void weft_ptx_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], int32_t c)
{
    weft_emulated_mma_s8 own = {d, a, b, c};

    weft_emulated_warp(WEFT_EMULATED_FULL_MASK, weft_emulated_run_mma_s8, &own, "mma.sync s8");
}

static inline float2 weft_ptx_unpack_f16(uint32_t word)
{
    return make_float2(weft_f16_to_f32((uint16_t)word), weft_f16_to_f32((uint16_t)(word >> 16)));
}

static inline uint32_t weft_ptx_pack_bf16(float low, float high)
{
    return (uint32_t)weft_f32_to_bf16(low) | (uint32_t)weft_f32_to_bf16(high) << 16;
}

static inline uint32_t weft_ptx_pack_f16(float low, float high)
{
    return (uint32_t)weft_f32_to_f16(low) | (uint32_t)weft_f32_to_f16(high) << 16;
}

static inline uint2 weft_ptx_unpack_e4m3(uint32_t bytes)
{
    uint32_t halves[4];

    for (uint32_t i = 0; i < 4; i++) {
        uint8_t byte = (uint8_t)(bytes >> 8 * i);

        halves[i] = (byte & 0x7f) == 0x7f ? 0x7fff /* NaN */ : weft_f32_to_f16(weft_f8_to_f32(byte)); /* exact */
    }
    return make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
}

static inline uint4 weft_ptx_load_stream(const void *global)
{
    if (reinterpret_cast<uintptr_t>(global) % sizeof(uint4) != 0) {
        weft_emulated_fault("load of 16 bytes from %p", global);
    }
    return *static_cast<const uint4 *>(global);
}

static inline void weft_ptx_copy_async(void *shared, const void *global)
{
    weft_emulated_copy_async(shared, global);
}

static inline void weft_ptx_copy_async_commit()
{
    weft_emulated_copy_async_commit();
}

template <int N> static inline void weft_ptx_copy_async_wait()
{
    weft_emulated_copy_async_wait(N);
}

/* ---- words that others see at once ---- */

static inline void weft_ptx_load_shared_word(const uint32_t *global, uint32_t *value)
{
    *value = __atomic_load_n(global, __ATOMIC_ACQUIRE);
}

static inline void weft_ptx_load_shared_words(const uint32_t *global, uint32_t value[4])
{
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        weft_emulated_fault("load of 16 bytes from %p", static_cast<const void *>(global));
    }
    for (uint32_t i = 0; i < 4; i++) {
        weft_ptx_load_shared_word(global + i, value + i);
    }
}

static inline void weft_ptx_store_shared_word(uint32_t *global, uint32_t value)
{
    __atomic_store_n(global, value, __ATOMIC_RELEASE);
}

static inline void weft_ptx_store_shared_words(uint32_t *global, const uint32_t value[4])
{
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        weft_emulated_fault("store of 16 bytes to %p", static_cast<void *>(global));
    }
    for (uint32_t i = 4; i > 0; i--) { /* in no particular order */
        weft_ptx_store_shared_word(global + i - 1, value[i - 1]);
    }
}

static inline void weft_ptx_poll_pause(void)
{
    weft_emulated_yield();
}
static const uint32_t WEFT_PTX_POLLS = 8;

static inline uint32_t weft_ptx_thread(void)
{
    return threadIdx.x;
}

/* ---- early start: emulated kernels run one after another ---- */

static inline void weft_ptx_wait_for_previous(void)
{
}

static inline void weft_ptx_let_next_start(void)
{
}

#endif
