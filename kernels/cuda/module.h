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
#include "weft/log.h"

/* Raised whenever anything that crosses the border changes: the structs of weft/device.h included. */
#define WEFT_CUDA_MODULE_ABI 1

/* What the module may call. */
struct weft_cuda_host {
    /* One line, as weft_log(). */
    void (*log)(enum weft_log_level level, const char *area, const char *text);
};

/* One GPU, as `weft info` and the memory table show it. */
struct weft_cuda_gpu {
    char name[64];          /* "NVIDIA H100 80GB HBM3" */
    char pci_bus_id[16];    /* "0000:1b:00.0" */
    unsigned char uuid[16]; /* the same GPU seen from two processes or containers has the same */
    uint64_t memory_total;  /* bytes */
    uint64_t memory_free;
    uint32_t compute_major; /* 9 of sm_90 */
    uint32_t compute_minor;
    uint32_t sm_count;
    uint64_t peer_mask; /* bit i: can reach GPU i's memory directly */
};

struct weft_cuda_module {
    uint32_t abi; /* WEFT_CUDA_MODULE_ABI; the only member whose place is promised */
    uint32_t driver_version;  /* 13000 for 13.0; 0: no driver */
    uint32_t runtime_version; /* that the module was built with */
    /* Number of usable GPUs, up to 64 of them into gpus_out[64]. 0 with one phrase in reason_out: no driver, driver too
     * old (both versions), no GPU. Never fails a process that only asks. */
    uint32_t (*list)(struct weft_cuda_gpu *gpus_out, char *reason_out, size_t reason_size);
    /* GPU `index`; the rest as weft_device_open(). */
    enum weft_status (*open)(const struct weft_device_options *options, int index, struct weft_device **out);
};

/* The exported function's type; its name is "weft_cuda_module". The table lives as long as the process; `host` is
 * copied. */
typedef const struct weft_cuda_module *weft_cuda_module_function(const struct weft_cuda_host *host);

#endif
