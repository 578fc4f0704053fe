/* Opening cuBLASLt and calling it. Contract in blas.h. */
#include "cuda/blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__has_include) && __has_include(<cublasLt.h>)
#include <cublasLt.h>

/* All that is used of the library. */
#define BLAS_FUNCTIONS(X)                                                                                              \
    X(cublasLtGetVersion)                                                                                              \
    X(cublasLtGetStatusString)                                                                                         \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutDestroy)                                                                                     \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmul)

struct api {
#define BLAS_MEMBER(name) decltype(::name) *name;
    BLAS_FUNCTIONS(BLAS_MEMBER)
#undef BLAS_MEMBER
};

struct weft_blas {
    struct api api;
    char name[48];
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation; /* of all products */
};

struct weft_blas_product {
    cublasLtMatrixLayout_t weights;
    cublasLtMatrixLayout_t x;
    cublasLtMatrixLayout_t out;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_size;
};

static bool load(const char *library, int major, struct api *api, char *name_out, size_t name_size, char *reason_out,
                 size_t reason_size)
{
    /* Never unloaded: what it registered with the driver may outlive a GPU that was given up. */
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const char *missing = NULL;

    if (handle == NULL) {
        snprintf(reason_out, reason_size, "cannot load %s", library);
        return false;
    }
#define BLAS_LOAD(function)                                                                                            \
    api->function = reinterpret_cast<decltype(api->function)>(dlsym(handle, #function));                               \
    missing = api->function == NULL ? #function : missing;
    BLAS_FUNCTIONS(BLAS_LOAD)
#undef BLAS_LOAD
    if (missing != NULL) {
        snprintf(reason_out, reason_size, "%s lacks %s", library, missing);
        return false;
    }
#ifdef WEFT_CUDA_EMULATED
    if (dlsym(handle, "cublaslt_stub_count") == NULL) {
        snprintf(reason_out, reason_size, "%s is for GPUs, not for the emulator", library);
        return false;
    }
#endif
    /* 130100: 13.1.0; as of CUDA 12 with two digits for the last two parts. */
    int version = static_cast<int>(api->cublasLtGetVersion());
    if (version / 10000 != major) {
        snprintf(reason_out, reason_size, "%s says it is version %d, expected one of %d", library, version, major);
        return false;
    }
    snprintf(name_out, name_size, "cuBLASLt %d.%d.%d", major, version / 100 % 100, version % 100);
    return true;
}

/* The newer first; when neither will do, what the newer one lacks counts if it is there. */
static bool find(struct api *api, char *name_out, size_t name_size, char *reason_out, size_t reason_size)
{
    char older[128];

    return load("libcublasLt.so.13", 13, api, name_out, name_size, reason_out, reason_size) ||
           load("libcublasLt.so.12", 12, api, name_out, name_size, older, sizeof(older));
}

bool weft_blas_find(char *name_out, size_t name_size, char *reason_out, size_t reason_size)
{
    struct api api;
    char name[48];
    Dl_info where;

    if (!find(&api, name, sizeof(name), reason_out, reason_size)) {
        return false;
    }
    bool has_file = dladdr(reinterpret_cast<void *>(api.cublasLtGetVersion), &where) != 0 && where.dli_fname != NULL;
    snprintf(name_out, name_size, "%s%s%s", name, has_file ? ", " : "", has_file ? where.dli_fname : "");
    return true;
}

/* Row-major [n, k] is the library's column-major [k, n]: weights are transposed, x is not, out is [n, t] to it. */
static cublasStatus_t open_operation(struct weft_blas *blas)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status = blas->api.cublasLtMatmulDescCreate(&blas->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->api.cublasLtMatmulDescSetAttribute(blas->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                          sizeof(transposed));
    }
    return status;
}

bool weft_blas_open(struct weft_blas **out, char *reason_out, size_t reason_size)
{
    struct weft_blas *blas = static_cast<struct weft_blas *>(calloc(1, sizeof(*blas)));

    if (blas == NULL) {
        snprintf(reason_out, reason_size, "out of memory");
        return false;
    }
    if (!find(&blas->api, blas->name, sizeof(blas->name), reason_out, reason_size)) {
        free(blas);
        return false;
    }
    cublasStatus_t status = blas->api.cublasLtCreate(&blas->handle);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = open_operation(blas);
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        snprintf(reason_out, reason_size, "%s does not start: %s", blas->name,
                 blas->api.cublasLtGetStatusString(status));
        weft_blas_close(&blas);
        return false;
    }
    *out = blas;
    return true;
}

void weft_blas_close(struct weft_blas **blas)
{
    if (*blas != NULL) {
        if ((*blas)->operation != NULL) {
            (void)(*blas)->api.cublasLtMatmulDescDestroy((*blas)->operation);
        }
        if ((*blas)->handle != NULL) {
            (void)(*blas)->api.cublasLtDestroy((*blas)->handle);
        }
        free(*blas);
        *blas = NULL;
    }
}

const char *weft_blas_name(const struct weft_blas *blas)
{
    return blas->name;
}

/* ---- products ---- */

static cublasStatus_t open_layouts(struct weft_blas *blas, const struct weft_blas_shape *shape,
                                   struct weft_blas_product *product)
{
    const cudaDataType type = shape->is_bf16 ? CUDA_R_16BF : CUDA_R_16F;
    cublasStatus_t status = blas->api.cublasLtMatrixLayoutCreate(&product->weights, type, shape->column_count,
                                                                 shape->row_count, shape->in_stride);

    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->api.cublasLtMatrixLayoutCreate(&product->x, type, shape->column_count, shape->token_count,
                                                      shape->in_stride);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->api.cublasLtMatrixLayoutCreate(&product->out, CUDA_R_32F, shape->row_count, shape->token_count,
                                                      shape->out_stride);
    }
    return status;
}

static cublasStatus_t limit(struct weft_blas *blas, cublasLtMatmulPreference_t preference, size_t workspace_size)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint64_t workspace = workspace_size;
    cublasStatus_t status = blas->api.cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));

    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++) {
        status = blas->api.cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &WEFT_BLAS_ALIGNMENT,
                                                                sizeof(WEFT_BLAS_ALIGNMENT));
    }
    return status;
}

static cublasStatus_t choose(struct weft_blas *blas, struct weft_blas_product *product, size_t workspace_size)
{
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    cublasStatus_t status = blas->api.cublasLtMatmulPreferenceCreate(&preference);

    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    status = limit(blas, preference, workspace_size);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->api.cublasLtMatmulAlgoGetHeuristic(blas->handle, blas->operation, product->weights, product->x,
                                                          product->out, product->out, preference, 1, &result, &count);
    }
    (void)blas->api.cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = count < 1 || result.workspaceSize > workspace_size ? CUBLAS_STATUS_NOT_SUPPORTED : result.state;
    }
    product->algorithm = result.algo;
    product->workspace_size = workspace_size;
    return status;
}

bool weft_blas_product_open(struct weft_blas *blas, const struct weft_blas_shape *shape, size_t workspace_size,
                            struct weft_blas_product **out, char *reason_out, size_t reason_size)
{
    struct weft_blas_product *product = static_cast<struct weft_blas_product *>(calloc(1, sizeof(*product)));

    if (product == NULL) {
        snprintf(reason_out, reason_size, "out of memory");
        return false;
    }
    cublasStatus_t status = open_layouts(blas, shape, product);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = choose(blas, product, workspace_size);
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        snprintf(reason_out, reason_size, "%s", blas->api.cublasLtGetStatusString(status));
        weft_blas_product_close(blas, &product);
        return false;
    }
    *out = product;
    return true;
}

void weft_blas_product_close(struct weft_blas *blas, struct weft_blas_product **product)
{
    if (*product != NULL) {
        const cublasLtMatrixLayout_t layouts[] = {(*product)->weights, (*product)->x, (*product)->out};

        for (int i = 0; i < 3; i++) {
            if (layouts[i] != NULL) {
                (void)blas->api.cublasLtMatrixLayoutDestroy(layouts[i]);
            }
        }
        free(*product);
        *product = NULL;
    }
}

const char *weft_blas_multiply(struct weft_blas *blas, const struct weft_blas_product *product, const void *weights,
                               const void *x, float *out, void *workspace, void *stream)
{
    const float one = 1;
    const float zero = 0;
    cublasStatus_t status = blas->api.cublasLtMatmul(
        blas->handle, blas->operation, &one, weights, product->weights, x, product->x, &zero, out, product->out, out,
        product->out, &product->algorithm, workspace, product->workspace_size, static_cast<cudaStream_t>(stream));

    return status == CUBLAS_STATUS_SUCCESS ? NULL : blas->api.cublasLtGetStatusString(status);
}

#else

bool weft_blas_find(char *name_out, size_t name_size, char *reason_out, size_t reason_size)
{
    (void)name_out;
    (void)name_size;
    snprintf(reason_out, reason_size, "this build is without it: there was no cublasLt.h");
    return false;
}

bool weft_blas_open(struct weft_blas **out, char *reason_out, size_t reason_size)
{
    (void)out;
    return weft_blas_find(NULL, 0, reason_out, reason_size);
}

/* There is none to be given to these. */
void weft_blas_close(struct weft_blas **blas)
{
    *blas = NULL;
}

const char *weft_blas_name(const struct weft_blas *blas)
{
    (void)blas;
    return "";
}

bool weft_blas_product_open(struct weft_blas *blas, const struct weft_blas_shape *shape, size_t workspace_size,
                            struct weft_blas_product **out, char *reason_out, size_t reason_size)
{
    (void)blas;
    (void)shape;
    (void)workspace_size;
    (void)out;
    return weft_blas_find(NULL, 0, reason_out, reason_size);
}

void weft_blas_product_close(struct weft_blas *blas, struct weft_blas_product **product)
{
    (void)blas;
    *product = NULL;
}

const char *weft_blas_multiply(struct weft_blas *blas, const struct weft_blas_product *product, const void *weights,
                               const void *x, float *out, void *workspace, void *stream)
{
    (void)blas;
    (void)product;
    (void)weights;
    (void)x;
    (void)out;
    (void)workspace;
    (void)stream;
    return "this build is without cuBLASLt";
}

#endif
