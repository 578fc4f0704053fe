/*
 * The functions of cuBLASLt that kernels/cuda/blas.cu uses, with NVIDIA's own header as their contract, over the
 * emulator's memory: a library of its own that the loader finds in place of libcublasLt.so.13.
 *
 * What it takes care to imitate: descriptors are read when a product is issued, it happens later, in the stream's
 * order; an algorithm serves the shape it was asked for and no other; leading dimensions, alignment and workspace
 * count. Sums are in f32 from the last column to the first, so that they have other bits than ours. Anything that
 * blas.cu does not ask for is refused.
 */
#include <cublasLt.h>

#include <assert.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cublaslt_stub.h"
#include "weft/numeric.h"

struct layout {
    cudaDataType type;
    uint64_t row_count;
    uint64_t col_count;
    int64_t stride;
};

/* Behind the library's opaque pointers. */
struct description {
    bool is_transposed; /* A */
};

struct preference {
    uint64_t workspace_size;
    uint32_t alignments[4]; /* of A, B, C, D */
};

enum { MARK = 0x5eed, WORKSPACE_SIZE = 1024 };

struct product {
    struct layout a, b, d;
    const uint16_t *weights;
    const uint16_t *x;
    float *out;
    void *workspace;
    struct product *next;
};

struct handle {
    struct product *products; /* graphs may run them again, until the handle is destroyed */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cublaslt_stub_config config;
static bool is_configured;
static struct cublaslt_stub_counts counts;
static uint32_t creates;

/* ---- settings ---- */

static uint32_t word(const char *text, const char *name)
{
    const char *found = text != NULL ? strstr(text, name) : NULL;

    return found != NULL ? (uint32_t)strtoul(found + strlen(name), NULL, 10) : 0;
}

static void configure_once(void)
{
    if (!is_configured) {
        const char *text = getenv("CUBLASLT_STUB");

        config = (struct cublaslt_stub_config){.version = word(text, "version="),
                                               .fail_create = word(text, "create="),
                                               .fail_heuristic = word(text, "heuristic="),
                                               .fail_matmul = word(text, "matmul=")};
        is_configured = true;
    }
}

void cublaslt_stub_configure(const struct cublaslt_stub_config *given)
{
    pthread_mutex_lock(&lock);
    config = *given;
    is_configured = true;
    counts.heuristics = 0;
    counts.matmuls = 0;
    creates = 0;
    pthread_mutex_unlock(&lock);
}

void cublaslt_stub_count(struct cublaslt_stub_counts *out)
{
    pthread_mutex_lock(&lock);
    *out = counts;
    pthread_mutex_unlock(&lock);
}

/* Counts a call; true when it is the one to fail. */
static bool counted(uint32_t *count, const uint32_t *fail)
{
    bool is_failing;

    pthread_mutex_lock(&lock);
    configure_once();
    (*count)++;
    is_failing = *count == *fail;
    pthread_mutex_unlock(&lock);
    return is_failing;
}

/* ---- objects ---- */

static void *make(size_t size)
{
    void *object = calloc(1, size);

    assert(object != NULL);
    pthread_mutex_lock(&lock);
    counts.live++;
    pthread_mutex_unlock(&lock);
    return object;
}

static cublasStatus_t unmake(void *object)
{
    pthread_mutex_lock(&lock);
    counts.live--;
    pthread_mutex_unlock(&lock);
    free(object);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    size_t version;

    pthread_mutex_lock(&lock);
    configure_once();
    version = config.version != 0 ? config.version : 130100;
    pthread_mutex_unlock(&lock);
    return version;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED     ? "CUBLAS_STATUS_NOT_SUPPORTED"
           : status == CUBLAS_STATUS_NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED"
           : status == CUBLAS_STATUS_INVALID_VALUE   ? "CUBLAS_STATUS_INVALID_VALUE"
                                                     : "CUBLAS_STATUS_EXECUTION_FAILED";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    if (counted(&creates, &config.fail_create)) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    *handle = make(sizeof(struct handle));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    struct handle *own = (struct handle *)handle;

    while (own->products != NULL) {
        struct product *next = own->products->next;

        free(own->products);
        own->products = next;
    }
    return unmake(own);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t compute,
                                        cudaDataType scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    *description = make(sizeof(**description));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description)
{
    return unmake(description);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size)
{
    if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || size != sizeof(cublasOperation_t)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    ((struct description *)(void *)description)->is_transposed = *(const cublasOperation_t *)value == CUBLAS_OP_T;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride)
{
    if (stride < (int64_t)rows || rows == 0 || columns == 0) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    *layout = make(sizeof(**layout));
    *(struct layout *)(void *)*layout = (struct layout){type, rows, columns, stride};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return unmake(layout);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = make(sizeof(**preference));
    *(struct preference *)(void *)*preference = (struct preference){.alignments = {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return unmake(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t size)
{
    struct preference *own = (struct preference *)(void *)preference;

    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && size == sizeof(uint64_t)) {
        own->workspace_size = *(const uint64_t *)value;
    } else if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
               attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && size == sizeof(uint32_t)) {
        own->alignments[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] = *(const uint32_t *)value;
    } else {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- products ---- */

static size_t element_size(cudaDataType type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

static bool is_aligned(const struct layout *layout, uint32_t alignment)
{
    return (size_t)layout->stride * element_size(layout->type) % alignment == 0;
}

/* A [K, N], transposed; B [K, T]; D [N, T]. */
static bool fits(const struct description *description, const struct layout *a, const struct layout *b,
                 const struct layout *d)
{
    return description->is_transposed && (a->type == CUDA_R_16BF || a->type == CUDA_R_16F) && b->type == a->type &&
           d->type == CUDA_R_32F && a->row_count == b->row_count && a->col_count == d->row_count &&
           b->col_count == d->col_count;
}

static uint32_t fold(const struct layout *layout)
{
    return (uint32_t)(layout->row_count * 31 + layout->col_count * 1009 + (uint64_t)layout->stride * 7 + layout->type);
}

/* The eight words of an algorithm: what it is for. */
static void describe_algorithm(const struct layout *a, const struct layout *b, const struct layout *d,
                               uint32_t alignment, cublasLtMatmulAlgo_t *out)
{
    memset(out, 0, sizeof(*out));
    out->data[0] = MARK;
    out->data[1] = fold(a);
    out->data[2] = fold(b);
    out->data[3] = fold(d);
    out->data[4] = alignment;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    const struct layout *layouts[] = {(struct layout *)(void *)a, (struct layout *)(void *)b,
                                      (struct layout *)(void *)d};
    const struct preference *own = (struct preference *)(void *)preference;

    (void)handle;
    *found = 0;
    if (c != d || wanted != 1 || !fits((struct description *)(void *)description, layouts[0], layouts[1], layouts[2])) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (counted(&counts.heuristics, &config.fail_heuristic) || own->workspace_size < WORKSPACE_SIZE) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    for (int i = 0; i < 3; i++) {
        uint32_t alignment = own->alignments[i == 2 ? 3 : i];

        if (alignment != own->alignments[0] || !is_aligned(layouts[i], alignment)) {
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    }
    describe_algorithm(layouts[0], layouts[1], layouts[2], own->alignments[0], &results[0].algo);
    results[0].workspaceSize = WORKSPACE_SIZE;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static float value(uint16_t bits, cudaDataType type)
{
    return type == CUDA_R_16BF ? weft_bf16_to_f32(bits) : weft_f16_to_f32(bits);
}

static void multiply(void *context)
{
    const struct product *product = context;
    cudaDataType type = product->a.type;

    memset(product->workspace, 0x5a, WORKSPACE_SIZE); /* whatever somebody else had there is lost */
    for (uint64_t t = 0; t < product->d.col_count; t++) {
        const uint16_t *x = product->x + t * (uint64_t)product->b.stride;

        for (uint64_t n = 0; n < product->d.row_count; n++) {
            const uint16_t *weights = product->weights + n * (uint64_t)product->a.stride;
            float sum = 0;

            for (uint64_t k = product->a.row_count; k-- > 0;) {
                sum += value(weights[k], type) * value(x[k], type);
            }
            product->out[t * (uint64_t)product->d.stride + n] = sum;
        }
    }
}

/* The emulated module that is loaded in this process, whatever opened it. */
static int find_module(struct dl_phdr_info *info, size_t size, void *path_out)
{
    const char *name = strrchr(info->dlpi_name, '/');

    (void)size;
    if (name != NULL && strcmp(name, "/weft_cuda_emulated.so") == 0) {
        snprintf(path_out, 4096, "%s", info->dlpi_name);
        return 1;
    }
    return 0;
}

static bool enqueue(void *stream, struct product *product)
{
    int (*host_function)(void *, void (*)(void *), void *) = NULL;
    char path[4096] = "";
    void *module;
    void *symbol = dlsym(RTLD_DEFAULT, "weft_emulated_host_function"); /* a program that is the emulator */

    if (symbol == NULL && dl_iterate_phdr(find_module, path) != 0) {
        module = dlopen(path, RTLD_NOLOAD | RTLD_NOW);
        symbol = module != NULL ? dlsym(module, "weft_emulated_host_function") : NULL;
        if (module != NULL) {
            (void)dlclose(module);
        }
    }
    if (symbol == NULL) {
        fprintf(stderr, "cublaslt_stub: no emulated GPU in this process\n");
        return false;
    }
    memcpy(&host_function, &symbol, sizeof(symbol));
    return host_function(stream, multiply, product) == 0;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_size,
                              cudaStream_t stream)
{
    struct handle *own = (struct handle *)handle;
    struct product *product;
    cublasLtMatmulAlgo_t wanted;

    if (*(const float *)alpha != 1 || *(const float *)beta != 0 || c != d || c_layout != d_layout ||
        workspace == NULL || (uintptr_t)workspace % 256 != 0 || workspace_size < WORKSPACE_SIZE) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    product = calloc(1, sizeof(*product));
    assert(product != NULL);
    product->a = *(struct layout *)(void *)a_layout;
    product->b = *(struct layout *)(void *)b_layout;
    product->d = *(struct layout *)(void *)d_layout;
    product->weights = a;
    product->x = b;
    product->out = d;
    product->workspace = workspace;
    product->next = own->products;
    own->products = product;
    describe_algorithm(&product->a, &product->b, &product->d, (uint32_t)algorithm->data[4], &wanted);
    if (memcmp(&wanted, algorithm, sizeof(wanted)) != 0 || wanted.data[4] == 0 || (uintptr_t)a % wanted.data[4] != 0 ||
        (uintptr_t)b % wanted.data[4] != 0 || (uintptr_t)d % wanted.data[4] != 0 ||
        !fits((struct description *)(void *)description, &product->a, &product->b, &product->d)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (counted(&counts.matmuls, &config.fail_matmul)) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    return enqueue(stream, product) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
