/*
 * The border between libweft and the CUDA module (weft_cuda.so), a library of its own that is loaded when a GPU is
 * asked for or present, so that the one binary starts on hosts without GPU, driver or toolkit.
 *
 * One exported function, weft_cuda_module(). The module links the CUDA runtime statically, opens cuBLASLt at run time,
 * never links libcuda; it calls back only through weft_cuda_host. The emulator builds the same sources into
 * weft_cuda_emulated.so, a GPU in software, for tests.
 */
#ifndef WEFT_CUDA_MODULE_H
#define WEFT_CUDA_MODULE_H

#include "device_ops.h"
#include "weft/gpu.h"
#include "weft/log.h"

/* Raised whenever anything that crosses the border changes: the structs of weft/device.h and weft/gpu.h included. The
 * sizes of the two that change most catch a module that was left over from before. */
#define WEFT_CUDA_MODULE_ABI                                                                                           \
    (4u << 16 | (uint32_t)(sizeof(struct weft_device_ops) + sizeof(struct weft_device_options)))

/* What the module may call. */
struct weft_cuda_host {
    /* One line, as weft_log(). */
    void (*log)(enum weft_log_level level, const char *area, const char *text);
};

struct weft_cuda_module {
    uint32_t abi;                   /* WEFT_CUDA_MODULE_ABI; the only member whose place is promised */
    uint32_t driver_version;        /* CUDA version that the driver is for, 13000 for 13.0; 0: no driver */
    uint32_t runtime_version;       /* that the module was built with */
    const char *architecture_names; /* that it has machine code for: "80,90a,100" */
    /* As weft_gpu_list(). */
    uint32_t (*list)(struct weft_gpu *gpus_out, char *reason_out, size_t reason_size);
    /* As weft_gpu_library(). */
    bool (*library)(char *name_out, size_t name_size, char *reason_out, size_t reason_size);
    /* GPU `index`; the rest as weft_device_open(). */
    enum weft_status (*open)(const struct weft_device_options *options, int index, struct weft_device **out);
};

/* The exported function's type; its name is "weft_cuda_module". The table lives as long as the process; `host` is
 * copied. */
typedef const struct weft_cuda_module *weft_cuda_module_function(const struct weft_cuda_host *host);

#endif
