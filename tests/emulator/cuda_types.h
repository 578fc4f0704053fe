/* dim3, the vector types and the small arithmetic of CUDA C++, as plain C++. */
#ifndef WEFT_TESTS_EMULATOR_CUDA_TYPES_H
#define WEFT_TESTS_EMULATOR_CUDA_TYPES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(size) __attribute__((aligned(size)))
/* One copy per worker thread: an emulated GPU runs one block at a time on one worker. */
#define __shared__ static thread_local

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_count = 1, unsigned int y_count = 1, unsigned int z_count = 1)
        : x(x_count), y(y_count), z(z_count)
    {
    }
};

#define WEFT_EMULATED_VECTORS(element, name)                                                                           \
    struct name##2                                                                                                     \
    {                                                                                                                  \
        element x, y;                                                                                                  \
    }                                                                                                                  \
    __attribute__((aligned(2 * sizeof(element))));                                                                     \
    struct name##4                                                                                                     \
    {                                                                                                                  \
        element x, y, z, w;                                                                                            \
    }                                                                                                                  \
    __attribute__((aligned(4 * sizeof(element) < 16 ? 4 * sizeof(element) : 16)));                                     \
    static inline name##2 make_##name##2(element x, element y)                                                         \
    {                                                                                                                  \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    static inline name##4 make_##name##4(element x, element y, element z, element w)                                   \
    {                                                                                                                  \
        return {x, y, z, w};                                                                                           \
    }
WEFT_EMULATED_VECTORS(float, float)
WEFT_EMULATED_VECTORS(double, double)
WEFT_EMULATED_VECTORS(int, int)
WEFT_EMULATED_VECTORS(unsigned int, uint)
WEFT_EMULATED_VECTORS(short, short)
WEFT_EMULATED_VECTORS(unsigned short, ushort)
WEFT_EMULATED_VECTORS(unsigned char, uchar)
#undef WEFT_EMULATED_VECTORS

template <typename T> static inline T __ldg(const T *address)
{
    return *address;
}

template <typename To, typename From> static inline To weft_emulated_bits(From from)
{
    To to;

    static_assert(sizeof(To) == sizeof(From), "same size");
    memcpy(&to, &from, sizeof(to));
    return to;
}

static inline unsigned int __float_as_uint(float x)
{
    return weft_emulated_bits<unsigned int>(x);
}

static inline int __float_as_int(float x)
{
    return weft_emulated_bits<int>(x);
}

static inline float __uint_as_float(unsigned int x)
{
    return weft_emulated_bits<float>(x);
}

static inline float __int_as_float(int x)
{
    return weft_emulated_bits<float>(x);
}

static inline float __fmaf_rn(float x, float y, float z)
{
    return __builtin_fmaf(x, y, z);
}

static inline float __fadd_rn(float x, float y)
{
    return x + y;
}

static inline float __fmul_rn(float x, float y)
{
    return x * y;
}

static inline float __fdiv_rn(float x, float y)
{
    return x / y;
}

static inline float __fsqrt_rn(float x)
{
    return __builtin_sqrtf(x);
}

static inline int __popc(unsigned int x)
{
    return __builtin_popcount(x);
}

static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned int)x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

#define WEFT_EMULATED_MIN_MAX(type)                                                                                    \
    static inline type min(type a, type b)                                                                             \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    static inline type max(type a, type b)                                                                             \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
WEFT_EMULATED_MIN_MAX(int)
WEFT_EMULATED_MIN_MAX(unsigned int)
WEFT_EMULATED_MIN_MAX(long)
WEFT_EMULATED_MIN_MAX(unsigned long)
WEFT_EMULATED_MIN_MAX(long long)
WEFT_EMULATED_MIN_MAX(unsigned long long)
#undef WEFT_EMULATED_MIN_MAX

#endif
