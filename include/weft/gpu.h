/* The GPUs of this host, as ranks choose them and `weft info` shows them. Implemented by kernels/. */
#ifndef WEFT_GPU_H
#define WEFT_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WEFT_GPU_COUNT_MAX 64
#define WEFT_GPU_UUID_SIZE 16

struct weft_gpu {
    char name[64];                    /* "NVIDIA H100 80GB HBM3" */
    char pci_bus_id[16];              /* "0000:1b:00.0" */
    uint8_t uuid[WEFT_GPU_UUID_SIZE]; /* the same GPU seen from two processes or containers has the same */
    uint64_t memory_total;            /* bytes */
    uint64_t memory_free;             /* memory_total too when nobody could say */
    uint32_t compute_major;           /* 9 of sm_90 */
    uint32_t compute_minor;
    uint32_t sm_count;
    uint64_t peer_mask;   /* bit i: can reach GPU i's memory directly */
    uint64_t nvlink_mask; /* bit i: over NVLink; 0 too when nobody could say */
    bool has_links;       /* nvlink_mask was asked for and answered */
};

/*
 * Number of usable GPUs; up to WEFT_GPU_COUNT_MAX of them into gpus_out. 0 with one phrase in reason_out[reason_size]:
 * no CUDA module in this build, no driver, driver too old (both versions), no GPU, none that this build has machine
 * code for.
 *
 * module  file of the CUDA module, NULL: weft_cuda.so beside this program or library.
 *
 * Starts the driver in this process: not to be called before a fork whose children use a GPU. Some 100 ms.
 */
uint32_t weft_gpu_list(const char *module, struct weft_gpu *gpus_out, char *reason_out, size_t reason_size);

/*
 * The library behind --numerics fast and its file, where the module finds it: "cuBLASLt 13.1.0, /usr/lib/...". False
 * with one phrase why not.
 * Loads some hundred MB for as long as the process lives.
 */
bool weft_gpu_library(const char *module, char *name_out, size_t name_size, char *reason_out, size_t reason_size);

#endif
