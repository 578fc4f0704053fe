/* What libweft sees of the module: the table, the list of GPUs, opening one. */
#include "cuda/module.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/blas.h"
#include "cuda/device_cuda.h"
#include "cuda/nvml.h"

#ifndef WEFT_CUDA_ARCHITECTURES
#define WEFT_CUDA_ARCHITECTURES "emulated"
#endif

/* Copied once, before anything else of the module runs. */
static struct weft_cuda_host host;

/* Declared in weft/device.h; libweft's own is not visible here. */
size_t weft_dtype_size(enum weft_dtype dtype)
{
    return dtype == WEFT_F32 ? 4 : dtype == WEFT_F8_E4M3 ? 1 : 2;
}

bool weft_dtype_is_quantised(enum weft_dtype dtype)
{
    return dtype == WEFT_Q8_0 || dtype == WEFT_Q4_0;
}

void weft_cuda_log(enum weft_log_level level, const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    host.log(level, "kernels/cuda", text);
}

/* ---- GPUs ---- */

static void say_version(int version, char text[16])
{
    snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

/* One phrase about an error of cudaGetDeviceCount(). */
static void say_why_none(cudaError_t error, char *reason_out, size_t reason_size)
{
    int driver = 0;
    int runtime = 0;
    char texts[2][16];

    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    say_version(driver, texts[0]);
    say_version(runtime, texts[1]);
    if (driver == 0) {
        snprintf(reason_out, reason_size, "no NVIDIA driver on this host (libcuda.so.1)");
    } else if (error == cudaErrorInsufficientDriver) {
        snprintf(reason_out, reason_size, "the NVIDIA driver is too old: it is for CUDA %s, this build needs %s",
                 texts[0], texts[1]);
    } else if (error == cudaErrorNoDevice || error == cudaSuccess) {
        snprintf(reason_out, reason_size, "a driver for CUDA %s, but no GPU that this process may use", texts[0]);
    } else {
        snprintf(reason_out, reason_size, "%s (driver for CUDA %s, this build is for %s)", cudaGetErrorString(error),
                 texts[0], texts[1]);
    }
}

static void fill_gpu(int index, int count, struct weft_gpu *gpu)
{
    cudaDeviceProp properties;

    *gpu = weft_gpu{};
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
        (void)cudaGetLastError();
        snprintf(gpu->name, sizeof(gpu->name), "GPU that does not answer");
        return;
    }
    snprintf(gpu->name, sizeof(gpu->name), "%.63s", properties.name);
    snprintf(gpu->pci_bus_id, sizeof(gpu->pci_bus_id), "%04x:%02x:%02x.0", properties.pciDomainID & 0xffff,
             properties.pciBusID & 0xff, properties.pciDeviceID & 0xff);
    memcpy(gpu->uuid, &properties.uuid, sizeof(gpu->uuid));
    gpu->memory_total = properties.totalGlobalMem;
    gpu->compute_major = static_cast<uint32_t>(properties.major);
    gpu->compute_minor = static_cast<uint32_t>(properties.minor);
    gpu->sm_count = static_cast<uint32_t>(properties.multiProcessorCount);
    for (int other = 0; other < count; other++) {
        int can = 0;
        if (other != index && cudaDeviceCanAccessPeer(&can, index, other) == cudaSuccess && can != 0) {
            gpu->peer_mask |= 1ULL << other;
        }
    }
}

/*
 * Where NVML could not say. Asking CUDA makes a context, some 300 MB on the GPU, which is only fair when there is just
 * the one that will be used; of several GPUs everything is taken to be free. A slice of a GPU (MIG) has no more than
 * its own memory, whatever NVML says of the whole.
 */
static void fill_free_memory(int index, int count, struct weft_gpu *gpu)
{
    size_t free_size = 0;
    size_t total_size = 0;

    if (gpu->memory_free == 0 && count == 1 && cudaSetDevice(index) == cudaSuccess &&
        cudaMemGetInfo(&free_size, &total_size) == cudaSuccess) {
        gpu->memory_free = free_size;
    }
    (void)cudaGetLastError();
    if (gpu->memory_free == 0 || gpu->memory_free > gpu->memory_total) {
        gpu->memory_free = gpu->memory_total;
    }
}

/* Whether one of the architectures "80,90a,100" was made for this GPU: the same generation and not newer; with PTX,
 * which all but "a" and "f" have, any newer generation too. */
static bool has_code(const struct weft_gpu *gpu)
{
    const uint32_t own = gpu->compute_major * 10 + gpu->compute_minor;
    const char *text = WEFT_CUDA_ARCHITECTURES;

    while (*text >= '0' && *text <= '9') {
        char *end;
        uint32_t architecture = static_cast<uint32_t>(strtoul(text, &end, 10));
        bool is_specific = *end == 'a' || *end == 'f';
        if (is_specific ? own == architecture : own >= architecture) {
            return true;
        }
        text = end + strcspn(end, ",");
        text += *text == ',';
    }
    return strcmp(WEFT_CUDA_ARCHITECTURES, "emulated") == 0;
}

/* One phrase when none of the GPUs can run this build. */
static bool check_code(const struct weft_gpu *gpus, uint32_t count, char *reason_out, size_t reason_size)
{
    for (uint32_t i = 0; i < count; i++) {
        if (has_code(&gpus[i])) {
            return true;
        }
    }
    snprintf(reason_out, reason_size, "%s has compute capability %u.%u, this build is for %s", gpus[0].name,
             gpus[0].compute_major, gpus[0].compute_minor, WEFT_CUDA_ARCHITECTURES);
    return false;
}

static uint32_t list(struct weft_gpu *gpus_out, char *reason_out, size_t reason_size)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);

    if (error != cudaSuccess || count <= 0) {
        say_why_none(error, reason_out, reason_size);
        return 0;
    }
    count = count < WEFT_GPU_COUNT_MAX ? count : WEFT_GPU_COUNT_MAX;
    for (int i = 0; i < count; i++) {
        fill_gpu(i, count, &gpus_out[i]);
    }
    if (!check_code(gpus_out, static_cast<uint32_t>(count), reason_out, reason_size)) {
        return 0;
    }
    weft_cuda_nvml_fill(gpus_out, static_cast<uint32_t>(count));
    for (int i = 0; i < count; i++) {
        fill_free_memory(i, count, &gpus_out[i]);
    }
    return static_cast<uint32_t>(count);
}

/* ---- the table of operations ---- */

static const struct weft_device_ops ops = {
    .close = weft_cuda_close,
    .sync = weft_cuda_sync,
    .id = weft_cuda_id,
    .alloc = weft_cuda_alloc,
    .free = weft_cuda_free,
    .write = weft_cuda_write,
    .read = weft_cuda_read,
    .alloc_host = weft_cuda_alloc_host,
    .free_host = weft_cuda_free_host,
    .begin_read = weft_cuda_begin_read,
    .begin_write = weft_cuda_begin_write,
    .copy = weft_cuda_copy,
    .mark = weft_cuda_mark,
    .wait = weft_cuda_wait_mark,
    .reserve = weft_cuda_reserve,
    .own_size = weft_cuda_transfer_size,
    .alloc_shared = weft_cuda_alloc_shared,
    .free_shared = weft_cuda_free_shared,
    .peer_open = weft_cuda_peer_open,
    .peer_close = weft_cuda_peer_close,
    .peer_sum = weft_cuda_peer_sum,
    .matrix_size = weft_cuda_matrix_size,
    .matrix_scratch_size = weft_cuda_matrix_scratch_size,
    .matrix_open = weft_cuda_matrix_open,
    .matrix_close = weft_cuda_matrix_close,
    .matrix_write_rows = weft_cuda_matrix_write_rows,
    .kv_cache_size = weft_cuda_kv_cache_size,
    .kv_cache_scratch_size = weft_cuda_kv_cache_scratch_size,
    .kv_cache_open = weft_cuda_kv_cache_open,
    .kv_cache_close = weft_cuda_kv_cache_close,
    .graphs_size = weft_cuda_graphs_size,
    .graphs_open = weft_cuda_graphs_open,
    .graphs_close = weft_cuda_graphs_close,
    .graphs_seal = weft_cuda_graphs_seal,
    .graphs_begin = weft_cuda_graphs_begin,
    .graphs_pause = weft_cuda_graphs_pause,
    .graphs_resume = weft_cuda_graphs_resume,
    .graphs_end = weft_cuda_graphs_end,
    .embed = weft_cuda_embed,
    .rms_norm = weft_cuda_rms_norm,
    .matmul = weft_cuda_matmul,
    .rope_angles = weft_cuda_rope_angles,
    .rope_append = weft_cuda_rope_append,
    .attention = weft_cuda_attention,
    .add_norm = weft_cuda_add_norm,
    .tree_add = weft_cuda_tree_add,
    .select_rows = weft_cuda_select_rows,
    .penalize = weft_cuda_penalize,
    .candidates = weft_cuda_candidates,
    .candidates_scratch_size = weft_cuda_candidates_scratch_size,
};

static enum weft_status open(const struct weft_device_options *options, int index, struct weft_device **out)
{
    int count = 0;
    char reason[256];
    cudaError_t error = cudaGetDeviceCount(&count);

    if (error != cudaSuccess || count <= 0) {
        say_why_none(error, reason, sizeof(reason));
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: %s", index, reason);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (index < 0 || index >= count) {
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: no such GPU, this process may use %d", index, count);
        return WEFT_ERR_ARGUMENT;
    }
    struct weft_gpu gpu;
    fill_gpu(index, 0, &gpu);
    if (!check_code(&gpu, 1, reason, sizeof(reason))) {
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: %s", index, reason);
        return WEFT_ERR_UNSUPPORTED;
    }
    return weft_cuda_open(options, index, &ops, out);
}

static struct weft_cuda_module make_table(const struct weft_cuda_host *given)
{
    struct weft_cuda_module table = {};
    int driver = 0;
    int runtime = 0;

    host = *given;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess) {
        (void)cudaGetLastError();
    }
    table.abi = WEFT_CUDA_MODULE_ABI;
    table.driver_version = static_cast<uint32_t>(driver);
    table.runtime_version = static_cast<uint32_t>(runtime);
    table.architecture_names = WEFT_CUDA_ARCHITECTURES;
    table.list = list;
    table.library = weft_blas_find;
    table.open = open;
    return table;
}

extern "C" __attribute__((visibility("default"))) const struct weft_cuda_module *
weft_cuda_module(const struct weft_cuda_host *given);

extern "C" const struct weft_cuda_module *weft_cuda_module(const struct weft_cuda_host *given)
{
    static const struct weft_cuda_module table = make_table(given); /* once, whatever the number of threads */

    return &table;
}
