/*
 * What bounds this GPU, as one JSON object: copying and reading its own memory, and copying from and to pinned host
 * memory. gpu_probe [GPU]; medians of 9. A program of its own, not part of Weft.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <cuda_runtime.h>

static const size_t SIZE = size_t(2) << 30;
static const int ROUNDS = 9;

static void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "gpu_probe: %s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}

/* Every thread takes 16-byte words far apart; the sum keeps the reads alive. */
__global__ void read_all(const uint4 *data, size_t count, unsigned *out)
{
    unsigned sum = 0;
    size_t stride = size_t(gridDim.x) * blockDim.x;

    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        uint4 word = __ldg(data + i);
        sum ^= word.x ^ word.y ^ word.z ^ word.w;
    }
    if (sum == 0x12345678) {
        *out = sum;
    }
}

template <typename Work> static double seconds(Work work)
{
    cudaEvent_t begin, end;
    float times[ROUNDS];

    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    work();
    for (float &time : times) {
        check(cudaEventRecord(begin), "record");
        work();
        check(cudaEventRecord(end), "record");
        check(cudaEventSynchronize(end), "synchronize");
        check(cudaEventElapsedTime(&time, begin, end), "time");
    }
    std::sort(times, times + ROUNDS);
    return times[ROUNDS / 2] / 1000;
}

int main(int argument_count, char **arguments)
{
    int gpu = argument_count > 1 ? atoi(arguments[1]) : 0;
    cudaDeviceProp properties;
    unsigned char *from, *to, *host;
    int driver = 0;

    check(cudaSetDevice(gpu), "GPU");
    check(cudaGetDeviceProperties(&properties, gpu), "properties");
    check(cudaDriverGetVersion(&driver), "driver");
    check(cudaMalloc(&from, SIZE), "memory");
    check(cudaMalloc(&to, SIZE), "memory");
    check(cudaMallocHost(&host, SIZE / 4), "pinned memory");
    check(cudaMemset(from, 1, SIZE), "memset");

    double copy = seconds([&] { check(cudaMemcpyAsync(to, from, SIZE, cudaMemcpyDeviceToDevice), "copy"); });
    double read = seconds([&] {
        read_all<<<properties.multiProcessorCount * 8, 512>>>(reinterpret_cast<uint4 *>(from), SIZE / 16,
                                                              reinterpret_cast<unsigned *>(to));
        check(cudaPeekAtLastError(), "launch");
    });
    double up = seconds([&] { check(cudaMemcpyAsync(to, host, SIZE / 4, cudaMemcpyHostToDevice), "copy"); });
    double down = seconds([&] { check(cudaMemcpyAsync(host, from, SIZE / 4, cudaMemcpyDeviceToHost), "copy"); });
    printf("{\"gpu\": \"%s\", \"sms\": %d, \"driver\": %d, \"copy_gb_s\": %.1f, \"read_gb_s\": %.1f, "
           "\"to_gpu_gb_s\": %.1f, \"from_gpu_gb_s\": %.1f}\n",
           properties.name, properties.multiProcessorCount, driver, 2 * SIZE / copy * 1e-9, SIZE / read * 1e-9,
           SIZE / 4 / up * 1e-9, SIZE / 4 / down * 1e-9);
    return 0;
}
