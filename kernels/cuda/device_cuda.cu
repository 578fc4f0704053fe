/* Opening and closing a GPU, its first error, waiting with a deadline, scratch memory. */
#include "cuda/device_cuda.h"
#include "cuda/matrix_fast.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint32_t TIMEOUT_MS_DEFAULT = 30000;

/* A query takes about a microsecond, so this is some milliseconds: a decode step is over by then. */
static const uint32_t SPIN_QUERIES = 4000;
static const uint32_t YIELD_QUERIES = 50;

enum { SLEEP_NS = 50000 };

/* What cudaSetDevice() last said in this thread; asked in every operation, so a call into CUDA would be felt. */
static thread_local int current_index = -1;

void weft_cuda_enter(const struct weft_cuda_device *device)
{
    if (current_index != device->index && cudaSetDevice(device->index) == cudaSuccess) {
        current_index = device->index;
    }
}

void weft_cuda_fail(struct weft_cuda_device *device, enum weft_status status, const char *what, const char *text)
{
    if (device->status == WEFT_OK) {
        device->status = status;
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: %s: %s", device->index, what, text);
    }
}

bool weft_cuda_check(struct weft_cuda_device *device, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) {
        return true;
    }
    (void)cudaGetLastError(); /* errors that do not stick would be found again by the next launch */
    weft_cuda_fail(device, error == cudaErrorMemoryAllocation ? WEFT_ERR_MEMORY : WEFT_ERR_IO, what,
                   cudaGetErrorString(error));
    return false;
}

bool weft_cuda_launched(struct weft_cuda_device *device, const char *kernel)
{
    return weft_cuda_check(device, cudaPeekAtLastError(), kernel);
}

static int64_t now_ms(void)
{
    struct timespec time;

    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<int64_t>(time.tv_sec) * 1000 + time.tv_nsec / 1000000;
}

enum weft_status weft_cuda_poll(struct weft_cuda_device *device, cudaEvent_t event, uint32_t timeout_ms)
{
    const uint32_t spins = device->wait == WEFT_WAIT_SPIN ? SPIN_QUERIES : YIELD_QUERIES;
    int64_t deadline = 0;

    if (device->is_stuck) {
        return device->status;
    }
    for (uint32_t i = 0;; i++) {
        cudaError_t error = event != NULL ? cudaEventQuery(event) : cudaStreamQuery(device->stream);
        if (error != cudaErrorNotReady) {
            (void)weft_cuda_check(device, error, "waiting for its operations");
            return device->status;
        }
        int64_t now = now_ms();
        deadline = deadline == 0 ? now + timeout_ms : deadline;
        if (now >= deadline) {
            return WEFT_ERR_TIMEOUT;
        }
        if (i >= spins) {
            const struct timespec pause = {0, SLEEP_NS};
            (void)(device->wait == WEFT_WAIT_SPIN ? 0 : sched_yield());
            (void)nanosleep(&pause, NULL);
        }
    }
}

enum weft_status weft_cuda_wait(struct weft_cuda_device *device, cudaEvent_t event)
{
    const bool is_stuck = device->is_stuck;
    enum weft_status status = weft_cuda_poll(device, event, device->timeout_ms);

    if (is_stuck || status != WEFT_ERR_TIMEOUT) {
        return status;
    }
    device->is_stuck = true;
    if (device->status == WEFT_OK) {
        device->status = WEFT_ERR_TIMEOUT;
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: not done after %u ms; given up", device->index, device->timeout_ms);
    }
    return device->status;
}

void *weft_cuda_scratch(struct weft_cuda_device *device, size_t size)
{
    if (size > device->scratch_size) {
        void *scratch = NULL;
        if (weft_cuda_wait(device, NULL) != WEFT_OK ||
            !weft_cuda_check(device, cudaMalloc(&scratch, size), "scratch memory")) {
            return NULL;
        }
        if (device->is_scratch_recorded) {
            assert(device->kept_scratch_count < KEPT_SCRATCH_MAX);
            device->kept_scratch[device->kept_scratch_count++] = device->scratch;
            device->is_scratch_recorded = false;
        } else {
            (void)weft_cuda_check(device, cudaFree(device->scratch), "freeing scratch memory");
        }
        device->scratch = scratch;
        device->scratch_size = size;
    }
    return device->status == WEFT_OK ? device->scratch : NULL;
}

enum weft_status weft_cuda_reserve(struct weft_device *base, size_t size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    return weft_cuda_scratch(device, size) == NULL && size > 0 ? device->status : WEFT_OK;
}

/* ---- opening ---- */

static enum weft_status numerics_parse(const char *text, enum weft_cuda_numerics *out)
{
    static const char *const names[] = {"exact", "reference", "fast"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(text == NULL ? names[0] : text, names[i]) == 0) {
            *out = static_cast<enum weft_cuda_numerics>(i);
            return WEFT_OK;
        }
    }
    weft_cuda_log(WEFT_LOG_ERROR, "numerics \"%s\": expected exact, reference or fast", text);
    return WEFT_ERR_ARGUMENT;
}

static enum weft_status open_stream(struct weft_cuda_device *device)
{
    cudaDeviceProp properties;

    current_index = -1; /* whatever was current, an error of this GPU is to be seen here */
    if (!weft_cuda_check(device, cudaSetDevice(device->index), "opening it")) {
        return device->status;
    }
    current_index = device->index;
    if (!weft_cuda_check(device, cudaGetDeviceProperties(&properties, device->index), "asking for its properties") ||
        !weft_cuda_check(device, cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking), "a stream")) {
        return device->status;
    }
    device->base.stream = WEFT_CUDA_STREAM_FOR_NCCL(device->stream);
    device->sm_count = static_cast<uint32_t>(properties.multiProcessorCount);
    const char *library = device->numerics == WEFT_CUDA_FAST ? weft_cuda_fast_open(device) : NULL;
    snprintf(device->base.name, sizeof(device->base.name), "cuda:%d %.40s%s%s", device->index, properties.name,
             library != NULL ? ", " : "", library != NULL ? library : "");
    return weft_cuda_transfer_open(device);
}

enum weft_status weft_cuda_open(const struct weft_device_options *options, int index, const struct weft_device_ops *ops,
                                struct weft_device **out)
{
    enum weft_cuda_numerics numerics;

    WEFT_TRY(numerics_parse(options->numerics, &numerics));
    struct weft_cuda_device *device = static_cast<struct weft_cuda_device *>(calloc(1, sizeof(*device)));
    if (device == NULL) {
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: out of memory", index);
        return WEFT_ERR_MEMORY;
    }
    device->base.ops = ops;
    device->index = index;
    device->numerics = numerics;
    device->timeout_ms = options->timeout_ms == 0 ? TIMEOUT_MS_DEFAULT : options->timeout_ms;
    device->wait = options->wait;
    enum weft_status status = open_stream(device);
    if (status != WEFT_OK) {
        weft_cuda_close(&device->base);
        return status;
    }
    *out = &device->base;
    return WEFT_OK;
}

void weft_cuda_close(struct weft_device *base)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (device->stream != NULL) {
        (void)weft_cuda_wait(device, NULL);
    }
    weft_cuda_transfer_close(device);
    weft_cuda_fast_close(device);
    if (!device->is_stuck) { /* freeing would wait for the GPU without a deadline */
        (void)cudaFree(device->scratch);
        for (uint32_t i = 0; i < device->kept_scratch_count; i++) {
            (void)cudaFree(device->kept_scratch[i]);
        }
        for (int i = 0; i < WEFT_DEVICE_MARK_COUNT; i++) {
            if (device->marks[i] != NULL) {
                (void)cudaEventDestroy(device->marks[i]);
            }
        }
        if (device->stream != NULL) {
            (void)cudaStreamDestroy(device->stream);
        }
    }
    free(device);
}
