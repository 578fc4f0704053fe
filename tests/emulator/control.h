/*
 * What a test may ask of the emulated GPUs: how many there are, how large, in what order threads run, what fails when.
 * Plain C; in weft_cuda_emulated.so these are exported functions, found with dlsym(). A program that cannot call them
 * sets WEFT_EMULATED_GPU instead, words as "devices=2 memory=67108864 driver=0 fail=cudaMalloc:3 fault=10 hang=5
 * order=7 nccl=1", read before the first call of the runtime.
 */
#ifndef WEFT_TESTS_EMULATOR_CONTROL_H
#define WEFT_TESTS_EMULATOR_CONTROL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_EMULATED_API __attribute__((visibility("default")))

enum { WEFT_EMULATED_DEVICES_MAX = 8 };

struct weft_emulated_config {
    uint32_t device_count;   /* 0: a driver without GPU */
    uint64_t memory_size;    /* bytes of each GPU */
    uint32_t driver_version; /* 13000 for 13.0; 0: no driver */
    /* Order in which the threads of a block and the blocks of a grid run: 0 ascending, 1 descending, else a seed for
     * another order in every block. A kernel without races has the same bits in all of them. */
    uint32_t order;
    /* The fail_call-th call from now on (1: the next) of runtime function fail_name (NULL: of any that gives nothing
     * back, as cudaFree does) returns fail_error and does nothing else; later ones work again. 0: none. */
    uint32_t fail_call;
    const char *fail_name; /* borrowed */
    int fail_error;        /* a cudaError_t; 0: cudaErrorUnknown */
    /* The fault_launch-th kernel from now on dies when it runs, as a kernel with a bad address does: everything later
     * on that GPU fails with cudaErrorLaunchFailure. 0: none. */
    uint32_t fault_launch;
    /* The hang_operation-th stream operation from now on, and what follows it in its stream, never completes. 0: none.
     */
    uint32_t hang_operation;
    uint32_t
        has_nccl; /* streams can be given to NCCL's stub (tests/comm/nccl_stub.c), the only one that could use them */
};

/* One GPU of 1 GiB, driver as new as the runtime, ascending order, nothing fails. */
WEFT_EMULATED_API void weft_emulated_config_init(struct weft_emulated_config *config);
/* From now on. Counts begin anew, dead GPUs live again, a hang is let go. Streams and memory stay. */
WEFT_EMULATED_API void weft_emulated_configure(const struct weft_emulated_config *config);

/* Runtime calls and kernel launches since the last weft_emulated_configure(), to walk fail_call through all of them. */
WEFT_EMULATED_API uint32_t weft_emulated_call_count(void);
WEFT_EMULATED_API uint32_t weft_emulated_launch_count(void);
/* Calls of one function of the runtime ("cudaGraphLaunch"; kernels: "launch") since then. */
WEFT_EMULATED_API uint32_t weft_emulated_count(const char *name);
/* Blocks of device and pinned memory, streams, events and graphs that have not been given back. */
WEFT_EMULATED_API uint32_t weft_emulated_live_count(void);
/* Bytes of device memory of GPU `index` that have not been given back. */
WEFT_EMULATED_API uint64_t weft_emulated_taken(uint32_t index);
/* What went wrong last in a kernel or with memory, "" when nothing did since the last weft_emulated_configure(). Each
 * such line also goes to standard error. Valid until the calling thread asks again. */
WEFT_EMULATED_API const char *weft_emulated_report(void);
/* Puts function(context) into the order of a stream, or into the graph that it records; context must live as long. For
 * stubs of libraries that take a stream. 0, or a cudaError_t. */
WEFT_EMULATED_API int weft_emulated_host_function(void *stream, void (*function)(void *context), void *context);

#ifdef __cplusplus
}
#endif

#endif
