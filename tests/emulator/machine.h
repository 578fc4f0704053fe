/*
 * Between the emulator's own files: a machine runs grids on one worker thread; the world holds devices, memory and
 * settings of the process, behind one lock.
 */
#ifndef WEFT_TESTS_EMULATOR_MACHINE_H
#define WEFT_TESTS_EMULATOR_MACHINE_H

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "emulator/control.h"
#include "emulator/cuda_emulated.h"

/* ---- grid.cpp ---- */

struct weft_emulated_machine;
weft_emulated_machine *weft_emulated_machine_open();
void weft_emulated_machine_close(weft_emulated_machine *machine);
/* All blocks of the grid, in the order of the seed; false with a line when a thread broke a rule. `is_stopped` is asked
 * by threads that yield. */
bool weft_emulated_machine_run(weft_emulated_machine *machine, const weft_emulated_grid &grid, uint32_t order,
                               const std::function<bool()> &is_stopped, std::string &report_out);

/* ---- runtime.cpp ---- */

struct weft_emulated_device {
    cudaError_t error = cudaSuccess; /* of a kernel that died: sticky */
    uint64_t used = 0;               /* bytes */
    uint64_t peers = 0;              /* bit i: access to GPU i is enabled */
    cudaStream_t null_stream = nullptr;
};

struct weft_emulated_world {
    std::mutex lock;
    bool is_configured = false;
    int owner = 0; /* process that began to use the driver; 0: nobody */
    weft_emulated_config config;
    weft_emulated_device devices[WEFT_EMULATED_DEVICES_MAX];
    std::vector<std::shared_ptr<weft_emulated_stream>> streams;
    uint32_t calls = 0; /* all */
    std::map<std::string, uint32_t> named_calls;
    uint32_t matching_calls = 0; /* of config.fail_name */
    uint32_t launches = 0;       /* issued */
    uint32_t run_launches = 0;
    uint32_t run_operations = 0;
    uint32_t hang_generation = 0; /* a hang ends when this changes */
    /* live; those of a GPU that hangs are never given back, but must stay reachable */
    std::set<cudaEvent_t> events;
    std::set<weft_emulated_graph *> graphs;
    std::string report;
};
weft_emulated_world &weft_emulated_the_world();

/* Begins every runtime call: counts it, and says what it must return at once (injected, no driver), or cudaSuccess. */
cudaError_t weft_emulated_enter(const char *name);
/* Keeps `error` as the thread's last one and returns it. */
cudaError_t weft_emulated_leave(cudaError_t error);
/* How every runtime call begins: returns from the caller with what weft_emulated_enter() says it must. */
#define ENTER(name)                                                                                                    \
    do {                                                                                                               \
        cudaError_t entered = weft_emulated_enter(name);                                                               \
        if (entered != cudaSuccess) {                                                                                  \
            return weft_emulated_leave(entered);                                                                       \
        }                                                                                                              \
    } while (0)
/* The calling thread's current GPU. */
int weft_emulated_current_device();
/* The sticky error of a GPU. */
cudaError_t weft_emulated_device_error(int device);
/* Logs the line, keeps it for weft_emulated_report(). */
void weft_emulated_tell(const std::string &line);

/* ---- memory.cpp ---- */

enum weft_emulated_place { WEFT_EMULATED_PAGEABLE, WEFT_EMULATED_PINNED, WEFT_EMULATED_DEVICE };

/* Where [memory, memory + size) lies. False: it begins in a known block and ends outside it, or was freed. */
bool weft_emulated_find(const void *memory, size_t size, weft_emulated_place &place_out, int &device_out);
/* One line about a block of `device` that was written outside its bounds or after it was freed, "" when all are well.
 */
std::string weft_emulated_check_memory(int device);
uint32_t weft_emulated_block_count();

/* ---- shareable.cpp: device memory in a file that other processes can map ---- */

/* `size` bytes, with at least 256 bytes of the block's own before and after; nullptr: none left. */
void *weft_emulated_shareable_open(size_t size, int device);
/* No process can open it any more. True when one that lives has it open still. */
bool weft_emulated_shareable_end(void *memory);
void weft_emulated_shareable_close(void *memory);
void weft_emulated_shareable_handle(void *memory, cudaIpcMemHandle_t *handle_out);
/* As cudaIpcOpenMemHandle(); device: the owner's, whose GPUs have the same numbers. */
cudaError_t weft_emulated_import(const cudaIpcMemHandle_t *handle, void **memory_out, size_t *size_out,
                                 int *device_out);
void weft_emulated_import_close(void *memory);

/* ---- streams.cpp ---- */

/* Puts an operation into the stream (NULL: the default one, which waits for all others and is waited for). */
cudaError_t weft_emulated_enqueue(cudaStream_t stream, const char *name, std::function<cudaError_t(cudaStream_t)> run);
/* Waits until everything issued to blocking streams of the GPU is done. `is_all`: non-blocking ones as well. */
cudaError_t weft_emulated_drain(int device, bool is_all);
/* A capture in progress forbids this call to the thread; also marks the capture as failed. */
bool weft_emulated_is_capturing();
cudaError_t weft_emulated_stream_wait(cudaStream_t stream);
int weft_emulated_stream_device(cudaStream_t stream);
bool weft_emulated_stream_captures(cudaStream_t stream);

#endif
