/* The emulator's device side: barriers, warp operations, atomics, tensor core products, and the rules it enforces. */
#include "test_emulator.h"

#include <string.h>

#include "cuda/ptx.h"

static const uint32_t FULL = 0xffffffffU;

uint32_t *device_words(size_t count)
{
    uint32_t *words = nullptr;

    assert_cuda(cudaMalloc(&words, count * sizeof(uint32_t)));
    assert_cuda(cudaMemset(words, 0, count * sizeof(uint32_t)));
    return words;
}

void read_words(uint32_t *to, const uint32_t *from, size_t count)
{
    assert_cuda(cudaMemcpy(to, from, count * sizeof(uint32_t), cudaMemcpyDeviceToHost));
}

void configure_order(uint32_t order)
{
    weft_emulated_config config;

    weft_emulated_config_init(&config);
    config.order = order;
    weft_emulated_configure(&config);
}

/* Every order gives the same result. */
static const uint32_t orders[] = {0, 1, 2, 99};

static __global__ void number_threads(uint32_t *out)
{
    uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    uint32_t index = block * blockDim.x * blockDim.y * blockDim.z + thread;

    out[index] = out[index] + 1 + index;
}

static void test_grid(void **)
{
    const uint32_t count = 2 * 3 * 4 * 5 * 2 * 3;
    uint32_t found[count];

    for (uint32_t order : orders) {
        configure_order(order);
        uint32_t *out = device_words(count);
        WEFT_CUDA_LAUNCH(number_threads, dim3(2, 3, 4), dim3(5, 2, 3), 0, 0, out);
        read_words(found, out, count);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(found[i], i + 1);
        }
        assert_cuda(cudaFree(out));
    }
}

/* Each round every thread reads what another wrote in the round before. */
static __global__ void rotate(uint32_t rounds, uint32_t *out)
{
    __shared__ uint32_t fixed[256];
    WEFT_CUDA_SHARED(uint32_t, moving);

    fixed[threadIdx.x] = threadIdx.x;
    moving[threadIdx.x] = threadIdx.x;
    for (uint32_t i = 0; i < rounds; i++) {
        __syncthreads();
        uint32_t value = moving[(threadIdx.x + 1) % blockDim.x];
        uint32_t other = fixed[(threadIdx.x + 7) % blockDim.x];
        __syncthreads();
        moving[threadIdx.x] = value;
        fixed[threadIdx.x] = other;
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = moving[threadIdx.x] * 1000 + fixed[threadIdx.x];
}

static void test_barrier(void **)
{
    static const uint32_t block_sizes[] = {1, 31, 32, 33, 100, 256};
    uint32_t found[3 * 256];

    for (uint32_t order : orders) {
        configure_order(order);
        uint32_t *out = device_words(3 * 256);
        for (uint32_t size : block_sizes) {
            WEFT_CUDA_LAUNCH(rotate, 3, size, size * sizeof(uint32_t), 0, 5, out);
            read_words(found, out, 3 * size);
            for (uint32_t i = 0; i < 3 * size; i++) {
                assert_int_equal(found[i], (i % size + 5) % size * 1000 + (i % size + 35) % size);
            }
        }
        assert_cuda(cudaFree(out));
    }
}

static __global__ void count_votes(uint32_t *out)
{
    uint32_t count = (uint32_t)__syncthreads_count(threadIdx.x % 3 == 0);
    uint32_t any = (uint32_t)__syncthreads_or(threadIdx.x == 40);
    uint32_t none = (uint32_t)__syncthreads_or(false);
    uint32_t all = (uint32_t)__syncthreads_and(threadIdx.x < 100);
    uint32_t ballot = __ballot_sync(FULL, threadIdx.x % 2);
    uint32_t warp_all = (uint32_t)__all_sync(FULL, threadIdx.x < 64);
    uint32_t warp_any = (uint32_t)__any_sync(FULL, threadIdx.x == 70);

    out[threadIdx.x] = count | any << 8 | none << 9 | all << 10 | warp_all << 11 | warp_any << 12;
    out[96 + threadIdx.x] = ballot;
}

static void test_votes(void **)
{
    uint32_t found[192];

    for (uint32_t order : orders) {
        configure_order(order);
        uint32_t *out = device_words(192);
        WEFT_CUDA_LAUNCH(count_votes, 1, 96, 0, 0, out);
        read_words(found, out, 192);
        for (uint32_t i = 0; i < 96; i++) {
            assert_int_equal(found[i], 32 | 1 << 8 | 0 << 9 | 1 << 10 | (i < 64) << 11 | (i >= 64) << 12);
            assert_int_equal(found[96 + i], 0xaaaaaaaaU);
        }
        assert_cuda(cudaFree(out));
    }
}

static __global__ void shuffle(uint32_t *out)
{
    uint32_t thread = threadIdx.x;
    uint64_t wide = __shfl_xor_sync(FULL, (uint64_t)thread << 40, 3);

    out[thread] = __shfl_sync(FULL, thread, 5);
    out[64 + thread] = __shfl_xor_sync(FULL, thread, 16);
    out[128 + thread] = __shfl_down_sync(FULL, thread, 4, 8);
    out[192 + thread] = __shfl_up_sync(FULL, thread, 1);
    out[256 + thread] = (uint32_t)(wide >> 40);
    out[320 + thread] = __float_as_uint(__shfl_sync(FULL, (float)thread, (int)thread + 1, 4));
    if (thread % 32 < 8) { /* some lanes of a warp alone */
        out[384 + thread] = __shfl_xor_sync(0xff, thread, 1);
    }
}

static void test_shuffles(void **)
{
    uint32_t found[448];

    for (uint32_t order : orders) {
        configure_order(order);
        uint32_t *out = device_words(448);
        WEFT_CUDA_LAUNCH(shuffle, 1, 64, 0, 0, out);
        read_words(found, out, 448);
        for (uint32_t i = 0; i < 64; i++) {
            float expected = (float)(i / 4 * 4 + (i + 1) % 4);

            assert_int_equal(found[i], i / 32 * 32 + 5);
            assert_int_equal(found[64 + i], i ^ 16);
            assert_int_equal(found[128 + i], i % 8 + 4 < 8 ? i + 4 : i);
            assert_int_equal(found[192 + i], i % 32 > 0 ? i - 1 : i);
            assert_int_equal(found[256 + i], i ^ 3);
            assert_int_equal(found[320 + i], __float_as_uint(expected));
            assert_int_equal(found[384 + i], i % 32 < 8 ? i ^ 1 : 0);
        }
        assert_cuda(cudaFree(out));
    }
}

/* Lanes that have left are no longer waited for. */
static __global__ void leave_early(uint32_t *out)
{
    if (threadIdx.x >= 16) {
        return;
    }
    __syncwarp();
    out[threadIdx.x] = __ballot_sync(FULL, 1);
}

static __global__ void count_up(uint32_t *out, float *sum)
{
    atomicAdd(&out[0], 1U);
    atomicMax(&out[1], threadIdx.x + blockIdx.x);
    atomicMin(&out[2], 1000 - threadIdx.x);
    atomicOr(&out[3], 1U << threadIdx.x % 32);
    if (atomicCAS(&out[4], 0U, threadIdx.x + 1) == 0) {
        atomicExch(&out[5], 77U);
    }
    atomicAdd(sum, 0.5f);
}

static void test_atomics(void **)
{
    uint32_t found[16];

    for (uint32_t order : orders) {
        configure_order(order);
        uint32_t *out = device_words(16);
        WEFT_CUDA_LAUNCH(leave_early, 1, 32, 0, 0, out);
        read_words(found, out, 16);
        for (uint32_t i = 0; i < 16; i++) {
            assert_int_equal(found[i], 0xffff);
        }
        assert_cuda(cudaMemset(out, 0, 64));
        WEFT_CUDA_LAUNCH(count_up, 10, 100, 0, 0, out, reinterpret_cast<float *>(out + 8));
        read_words(found, out, 9);
        assert_int_equal(found[0], 1000);
        assert_int_equal(found[1], 108);
        assert_int_equal(found[2], 0);
        assert_int_equal(found[3], FULL);
        assert_in_range(found[4], 1, 100);
        assert_int_equal(found[5], 77);
        assert_true(__uint_as_float(found[8]) == 500.0f);
        assert_cuda(cudaFree(out));
    }
}

/* ---- tensor core product ---- */

struct product {
    uint16_t a[16][16];
    uint16_t b[16][8]; /* [k][column] */
    float d[16][8];
};

/* Fragments as PTX documents them, gathered here independently of the emulator. */
static __global__ void multiply(product *p, int is_bf16)
{
    uint32_t r = threadIdx.x / 4;
    uint32_t q = threadIdx.x % 4;
    uint32_t a[4];
    uint32_t b[2];
    float d[4];

    for (uint32_t i = 0; i < 4; i++) {
        const uint16_t *pair = &p->a[r + (i % 2) * 8][2 * q + i / 2 * 8];

        a[i] = pair[0] | (uint32_t)pair[1] << 16;
        d[i] = p->d[r + i / 2 * 8][2 * q + i % 2];
    }
    for (uint32_t i = 0; i < 2; i++) {
        b[i] = p->b[2 * q + i * 8][r] | (uint32_t)p->b[2 * q + i * 8 + 1][r] << 16;
    }
    if (is_bf16 != 0) {
        weft_ptx_mma_bf16(d, a, b);
    } else {
        weft_ptx_mma_f16(d, a, b);
    }
    for (uint32_t i = 0; i < 4; i++) {
        p->d[r + i / 2 * 8][2 * q + i % 2] = d[i];
    }
}

static void test_mma(void **)
{
    product *device = nullptr;
    product before;
    product after;

    assert_cuda(cudaMalloc(&device, sizeof(product)));
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
        auto encode = [&](float x) { return is_bf16 != 0 ? weft_f32_to_bf16(x) : weft_f32_to_f16(x); };

        for (uint32_t i = 0; i < 256; i++) { /* small integers: every order of additions is exact */
            before.a[i / 16][i % 16] = encode((float)((int)(i * 7 % 31) - 15));
            before.b[i % 128 / 8][i % 8] = encode((float)((int)(i * 5 % 23) - 11) * 0.5f);
            before.d[i % 128 / 8][i % 8] = (float)(i % 11);
        }
        assert_cuda(cudaMemcpy(device, &before, sizeof(before), cudaMemcpyHostToDevice));
        WEFT_CUDA_LAUNCH(multiply, 1, 32, 0, 0, device, is_bf16);
        assert_cuda(cudaMemcpy(&after, device, sizeof(after), cudaMemcpyDeviceToHost));
        for (uint32_t i = 0; i < 128; i++) {
            float sum = before.d[i / 8][i % 8];

            for (uint32_t k = 0; k < 16; k++) {
                float a = (is_bf16 != 0 ? weft_bf16_to_f32 : weft_f16_to_f32)(before.a[i / 8][k]);
                float b = (is_bf16 != 0 ? weft_bf16_to_f32 : weft_f16_to_f32)(before.b[k][i % 8]);

                sum += a * b;
            }
            assert_true(after.d[i / 8][i % 8] == sum);
        }
    }
    assert_cuda(cudaFree(device));
}

struct product_s8 {
    int8_t a[16][32];
    int8_t b[32][8]; /* [k][column] */
    int32_t d[16][8];
};

/* Fragments as PTX documents them ("Matrix fragments for mma.m16n8k32"): element i of a lane's 16 of A, 8 of B and 4 of
 * D, gathered here independently of the emulator. */
static __global__ void multiply_s8(product_s8 *p, int32_t c)
{
    uint32_t group = threadIdx.x >> 2;
    uint32_t in_group = threadIdx.x % 4;
    uint32_t a[4] = {};
    uint32_t b[2] = {};
    int32_t d[4] = {77, 77, 77, 77};

    for (uint32_t i = 0; i < 16; i++) {
        uint32_t row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
        uint32_t column = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);

        a[i / 4] |= (uint32_t)(uint8_t)p->a[row][column] << 8 * (i % 4);
    }
    for (uint32_t i = 0; i < 8; i++) {
        b[i / 4] |= (uint32_t)(uint8_t)p->b[in_group * 4 + (i & 3) + (i < 4 ? 0 : 16)][group] << 8 * (i % 4);
    }
    weft_ptx_mma_s8(d, a, b, c);
    for (uint32_t i = 0; i < 4; i++) {
        p->d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = d[i];
    }
}

static void test_mma_s8(void **)
{
    const int32_t c = 0x4b400000;
    product_s8 *device = nullptr;
    product_s8 before = {};
    product_s8 after;

    for (uint32_t i = 0; i < 512; i++) { /* the extremes are among them */
        before.a[i / 32][i % 32] = (int8_t)(i * 37 % 256);
        before.b[i % 256 / 8][i % 8] = (int8_t)(i * 11 % 256);
    }
    assert_cuda(cudaMalloc(&device, sizeof(product_s8)));
    assert_cuda(cudaMemcpy(device, &before, sizeof(before), cudaMemcpyHostToDevice));
    WEFT_CUDA_LAUNCH(multiply_s8, 1, 32, 0, 0, device, c);
    assert_cuda(cudaMemcpy(&after, device, sizeof(after), cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < 128; i++) {
        int32_t sum = c;

        for (uint32_t k = 0; k < 32; k++) {
            sum += before.a[i / 8][k] * before.b[k][i % 8];
        }
        assert_int_equal(after.d[i / 8][i % 8], sum);
    }
    assert_cuda(cudaFree(device));
}

/* Two groups of copies in flight: only what was waited for is there. */
static __global__ void copy_ahead(const uint4 *from, uint32_t *out)
{
    __shared__ __align__(16) uint4 stage[2][32];
    uint32_t i = threadIdx.x;

    weft_ptx_copy_async(&stage[0][i], &from[i]);
    weft_ptx_copy_async_commit();
    weft_ptx_copy_async(&stage[1][i], &from[32 + i]);
    weft_ptx_copy_async_commit();
    weft_ptx_copy_async_wait<1>();
    out[i] = stage[0][i].y;
    out[32 + i] = stage[1][i].y;
    weft_ptx_copy_async_wait<0>();
    out[64 + i] = stage[1][i].y;
    out[96 + i] = weft_ptx_load_stream(&from[i]).x;
}

static void test_copies(void **)
{
    uint32_t source[256];
    uint32_t found[128];
    uint32_t *from = device_words(256);
    uint32_t *out = device_words(128);

    for (uint32_t i = 0; i < 256; i++) {
        source[i] = i;
    }
    assert_cuda(cudaMemcpy(from, source, sizeof(source), cudaMemcpyHostToDevice));
    WEFT_CUDA_LAUNCH(copy_ahead, 1, 32, 0, 0, reinterpret_cast<const uint4 *>(from), out);
    read_words(found, out, 128);
    for (uint32_t i = 0; i < 32; i++) {
        assert_int_equal(found[i], 4 * i + 1);
        assert_int_equal(found[32 + i], FULL); /* too early */
        assert_int_equal(found[64 + i], 128 + 4 * i + 1);
        assert_int_equal(found[96 + i], 4 * i);
    }
    assert_cuda(cudaFree(from));
    assert_cuda(cudaFree(out));
}

/* ---- broken rules: one line, and the GPU is dead until it is configured anew ---- */

static __global__ void diverge(uint32_t *out, uint32_t kind)
{
    uint32_t thread = threadIdx.x;

    if (kind == 0 && thread < 48) {
        __syncthreads(); /* the others leave */
    } else if (kind == 1) {
        if (thread % 2 == 0) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    } else if (kind == 2 && thread != 37) {
        out[thread] = __shfl_xor_sync(FULL, thread, 1); /* lane 5 of warp 1 has left or leaves: nobody to read from */
    } else if (kind == 3) {
        out[thread] = thread % 2 == 0 ? __ballot_sync(FULL, 1) : __shfl_sync(FULL, thread, 0);
    } else if (kind == 4) {
        if (thread == 3) {
            __syncthreads();
        } else {
            __syncwarp();
        }
    } else if (kind == 5) {
        __syncwarp(0xf0);
    }
}

static void test_rules(void **)
{
    static const char *const expected[] = {
        "__syncthreads at test_emulator.cpp:",
        "while others are at that of test_emulator.cpp:",
        "shuffles from lane 5, which does not take part",
        "while lane",
        "__syncwarp of warp 0 waits for threads 3",
        "which is none of them",
    };

    for (uint32_t order : orders) {
        for (uint32_t kind = 0; kind < 6; kind++) {
            configure_order(order);
            uint32_t *out = device_words(64);
            WEFT_CUDA_LAUNCH(diverge, dim3(1), dim3(64), 0, 0, out, kind);
            assert_int_equal(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
            assert_non_null(strstr(weft_emulated_report(), expected[kind]));
            assert_non_null(strstr(weft_emulated_report(), "GPU 0: kernel diverge, block (0, 0, 0) of (1, 1, 1)"));
            if (kind == 0) {
                assert_non_null(strstr(weft_emulated_report(), "waits for threads 48..63 (left the kernel: 48..63)"));
            }
            assert_int_equal(cudaPeekAtLastError(), cudaErrorLaunchFailure);
            configure_order(order);
            assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
            assert_cuda(cudaFree(out));
        }
    }
    test_barrier(nullptr); /* and all is well again */
}

int main(int argument_count, char **arguments)
{
    if (argument_count > 1) {
        return visit(arguments);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),     cmocka_unit_test(test_barrier), cmocka_unit_test(test_votes),
        cmocka_unit_test(test_shuffles), cmocka_unit_test(test_atomics), cmocka_unit_test(test_mma),
        cmocka_unit_test(test_mma_s8),   cmocka_unit_test(test_copies),  cmocka_unit_test(test_rules),
    };
    int failed = cmocka_run_group_tests(tests, nullptr, nullptr);

    return failed + run_peer_tests() + run_runtime_tests();
}
