/*
 * What bounds this GPU, as one JSON object: copying and reading its own memory, copying from and to pinned host
 * memory, and cuBLASLt on the matrices of Llama-3-8B with a prompt of 4096 tokens, asked as matrix_fast.cu asks it: f32
 * out, 32 MiB of workspace, the first algorithm of its heuristics. gpu_probe [GPU]; medians of 9. A program of its own,
 * not part of Weft. Built for the emulator, too, with everything small: that shows that it works, and no figure.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/blas.h"
#include "cuda/port.h"
#include "kernels/llama_8b.h"

#ifdef WEFT_CUDA_EMULATED
static const size_t SIZE = size_t(1) << 20;
static const uint32_t DIVISOR = 32, TOKENS = 16; /* of rows and columns; instead of LLAMA_8B_PROMPT */
#else
static const size_t SIZE = size_t(2) << 30;
static const uint32_t DIVISOR = 1, TOKENS = LLAMA_8B_PROMPT;
#endif
static const size_t WORKSPACE_SIZE = size_t(32) << 20;
static const int ROUNDS = 9;
static const unsigned THREADS = 512;

static cudaStream_t stream;

static void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "gpu_probe: %s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}

/* Every thread takes 16-byte words far apart; the sum keeps the reads alive. */
static __global__ void read_all(const uint4 *data, size_t count, unsigned *out)
{
    unsigned sum = 0;
    size_t stride = size_t(gridDim.x) * blockDim.x;

    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        uint4 word = data[i];
        sum ^= word.x ^ word.y ^ word.z ^ word.w;
    }
    if (sum == 0x12345678) {
        *out = sum;
    }
}

/* Pairs of bf16 of either sign, 1/16 to 4: zeros would be multiplied faster than anybody's weights. */
static __global__ void fill(unsigned *data, size_t count)
{
    size_t stride = size_t(gridDim.x) * blockDim.x;

    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        unsigned hash = unsigned(i) * 2654435761u;

        hash = (hash ^ hash >> 15) * 2246822519u;
        hash ^= hash >> 13;
        unsigned low = 0x3d80 + (hash & 0xffff) % 0x300;
        unsigned high = 0x3d80 + (hash >> 16) % 0x300;
        data[i] = (low | (hash << 3 & 0x8000)) | (high | (hash >> 3 & 0x8000)) << 16;
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
        check(cudaEventRecord(begin, stream), "record");
        work();
        check(cudaEventRecord(end, stream), "record");
        check(cudaEventSynchronize(end), "synchronize");
        check(cudaEventElapsedTime(&time, begin, end), "time");
    }
    check(cudaEventDestroy(begin), "event");
    check(cudaEventDestroy(end), "event");
    std::sort(times, times + ROUNDS);
    return times[ROUNDS / 2] / 1000;
}

static void *allocate(size_t size)
{
    void *memory = NULL;

    check(cudaMalloc(&memory, size), "memory");
    return memory;
}

static void *random_matrix(size_t count, unsigned blocks)
{
    unsigned *memory = static_cast<unsigned *>(allocate(count * 2));

    WEFT_CUDA_LAUNCH(fill, dim3(blocks), dim3(THREADS), 0, stream, memory, count / 2);
    check(cudaPeekAtLastError(), "launch");
    return memory;
}

/* T/s of one matrix, or the reason why there is none. */
static double product_rate(struct weft_blas *blas, const struct llama_8b_matrix *matrix, void *workspace,
                           unsigned blocks, const char **problem)
{
    static char reason[128];
    struct weft_blas_product *product = NULL;
    const struct weft_blas_shape shape = {matrix->rows / DIVISOR,    matrix->columns / DIVISOR, TOKENS,
                                          matrix->columns / DIVISOR, matrix->rows / DIVISOR,    true};
    double time = 0;

    if (!weft_blas_product_open(blas, &shape, WORKSPACE_SIZE, &product, reason, sizeof(reason))) {
        *problem = reason;
        return 0;
    }
    void *weights = random_matrix(size_t(shape.row_count) * shape.column_count, blocks);
    void *x = random_matrix(size_t(shape.token_count) * shape.column_count, blocks);
    float *out = static_cast<float *>(allocate(sizeof(float) * shape.token_count * shape.row_count));
    time = seconds([&] {
        const char *failure = weft_blas_multiply(blas, product, weights, x, out, workspace, stream);
        *problem = failure != NULL ? failure : *problem;
    });
    weft_blas_product_close(blas, &product);
    check(cudaFree(weights), "free");
    check(cudaFree(x), "free");
    check(cudaFree(out), "free");
    return 2.0 * shape.row_count * shape.column_count * shape.token_count / time * 1e-12;
}

/* "cublaslt": name, null; T/s by matrix, or what was wrong instead. */
static void print_cublaslt(unsigned blocks)
{
    struct weft_blas *blas = NULL;
    char reason[192] = "";

    if (!weft_blas_open(&blas, reason, sizeof(reason))) {
        printf("\"cublaslt\": null, \"problem\": \"%s\"", reason);
        return;
    }
    void *workspace = allocate(WORKSPACE_SIZE);
    const char *problem = NULL;
    printf("\"cublaslt\": \"%s\", \"tokens\": %u, \"products\": {", weft_blas_name(blas), TOKENS);
    for (int i = 0; i < LLAMA_8B_MATRIX_COUNT && problem == NULL; i++) {
        double rate = product_rate(blas, &llama_8b_matrices[i], workspace, blocks, &problem);

        printf("%s\"%s\": %.4g", i > 0 ? ", " : "", llama_8b_matrices[i].name, rate);
    }
    printf("}, \"problem\": %s%s%s", problem != NULL ? "\"" : "", problem != NULL ? problem : "null",
           problem != NULL ? "\"" : "");
    weft_blas_close(&blas);
    check(cudaFree(workspace), "free");
}

int main(int argument_count, char **arguments)
{
    int gpu = argument_count > 1 ? atoi(arguments[1]) : 0;
    cudaDeviceProp properties;
    int driver = 0;

    check(cudaSetDevice(gpu), "GPU");
    check(cudaGetDeviceProperties(&properties, gpu), "properties");
    check(cudaDriverGetVersion(&driver), "driver");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    unsigned blocks = unsigned(properties.multiProcessorCount) * (DIVISOR > 1 ? 1 : 8);
    void *from = random_matrix(SIZE / 2, blocks);
    void *to = allocate(SIZE);
    void *host = NULL;
    check(cudaMallocHost(&host, SIZE / 4), "pinned memory");

    double copy = seconds([&] { check(cudaMemcpyAsync(to, from, SIZE, cudaMemcpyDeviceToDevice, stream), "copy"); });
    double read = seconds([&] {
        WEFT_CUDA_LAUNCH(read_all, dim3(blocks), dim3(THREADS), 0, stream, static_cast<const uint4 *>(from), SIZE / 16,
                         static_cast<unsigned *>(to));
        check(cudaPeekAtLastError(), "launch");
    });
    double up = seconds([&] { check(cudaMemcpyAsync(to, host, SIZE / 4, cudaMemcpyHostToDevice, stream), "copy"); });
    double down =
        seconds([&] { check(cudaMemcpyAsync(host, from, SIZE / 4, cudaMemcpyDeviceToHost, stream), "copy"); });
    check(cudaFree(from), "free");
    check(cudaFree(to), "free");
    printf("{\"gpu\": \"%s\", \"sms\": %d, \"driver\": %d, \"copy_gb_s\": %.4g, \"read_gb_s\": %.4g, "
           "\"to_gpu_gb_s\": %.4g, \"from_gpu_gb_s\": %.4g, ",
           properties.name, properties.multiProcessorCount, driver, 2 * SIZE / copy * 1e-9, SIZE / read * 1e-9,
           SIZE / 4 / up * 1e-9, SIZE / 4 / down * 1e-9);
    print_cublaslt(blocks);
    printf("}\n");
    return 0;
}
