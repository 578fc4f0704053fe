/*
 * fake_device.h over the emulated GPUs of tests/emulator: instead of fake_device.c in programs that check sums through
 * the peers' memory. Seed s has GPU s - 1; its stream is none for NCCL.
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "../emulator/handle.h"
#include "fake_device.h"
#include "model/seat.h"

struct fake_device {
    struct weft_device *device;
    struct weft_comm_device seat;
};

static struct weft_emulated_handle gpus;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int open_count;

static void configure(void)
{
    struct weft_emulated_config config;

    if (!weft_emulated_open(&gpus)) {
        fprintf(stderr, "no weft_cuda_emulated.so beside this program\n");
        abort();
    }
    gpus.config_init(&config);
    config.device_count = WEFT_EMULATED_DEVICES_MAX;
    gpus.configure(&config);
    (void)
        gpus.live_count(); /* makes what it has once, where a thread sanitizer sees that it is made before it is used */
}

struct fake_device *fake_device_open(uint32_t seed, bool has_stream)
{
    struct fake_device *device = calloc(1, sizeof(*device));
    enum weft_status status;
    bool is_usable;

    (void)has_stream;
    assert(device != NULL && seed > 0);
    pthread_once(&once, configure);
    const struct weft_device_options options = {.kind = "cuda",
                                                .thread_count = 1,
                                                .gpu_index = (seed - 1) % WEFT_EMULATED_DEVICES_MAX,
                                                .wait = WEFT_WAIT_YIELD,
                                                .module = gpus.path,
                                                .timeout_ms = 3000};
    pthread_mutex_lock(&lock);
    open_count++; /* before anything is there that somebody could take for left */
    pthread_mutex_unlock(&lock);
    status = weft_device_open(&options, &device->device);
    is_usable = status == WEFT_OK && weft_seat_init(device->device, &device->seat);
    assert(is_usable);
    return device;
}

/* The last of the process sees what all have left. */
bool fake_device_close(struct fake_device **pointer)
{
    struct fake_device *device = *pointer;
    bool is_clean = true;

    weft_device_close(&device->device);
    free(device);
    *pointer = NULL;
    pthread_mutex_lock(&lock);
    open_count--;
    if (open_count == 0 && (gpus.live_count() != 0 || gpus.report()[0] != '\0')) {
        fprintf(stderr, "emulated GPUs: %u things left; %s\n", gpus.live_count(), gpus.report());
        is_clean = false;
    }
    pthread_mutex_unlock(&lock);
    return is_clean;
}

const struct weft_comm_device *fake_device_seat(struct fake_device *device)
{
    return &device->seat;
}

void fake_device_share(struct fake_device *device)
{
    (void)device; /* it always can */
}

void fake_device_put(struct fake_device *device, void *to, const void *from_host, size_t size)
{
    enum weft_status status = weft_device_write(device->device, to, from_host, size);

    assert(status == WEFT_OK);
}

void fake_device_get(struct fake_device *device, void *to_host, const void *from, size_t size)
{
    enum weft_status status = size > 0 ? weft_device_read(device->device, to_host, from, size) : WEFT_OK;

    assert(status == WEFT_OK);
}

/* Both strike the next operation of the process: for ranks that are processes. */
static void fail_next(uint32_t hang_operation, uint32_t fault_launch)
{
    struct weft_emulated_config config;

    gpus.config_init(&config);
    config.device_count = WEFT_EMULATED_DEVICES_MAX;
    config.hang_operation = hang_operation;
    config.fault_launch = fault_launch;
    gpus.configure(&config);
}

void fake_device_hang(struct fake_device *device)
{
    (void)device;
    fail_next(1, 0);
}

void fake_device_break(struct fake_device *device)
{
    (void)device;
    fail_next(0, 1);
}
