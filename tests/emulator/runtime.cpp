/* Devices, errors and settings of the emulated runtime. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "emulator/machine.h"

static thread_local cudaError_t thread_error = cudaSuccess;
static thread_local int thread_device = 0;

weft_emulated_world &weft_emulated_the_world()
{
    static weft_emulated_world *world = new weft_emulated_world(); /* workers may outlive the end of main() */

    return *world;
}

/* ---- settings ---- */

void weft_emulated_config_init(struct weft_emulated_config *config)
{
    *config = weft_emulated_config();
    config->device_count = 1;
    config->memory_size = 1ULL << 30;
    config->driver_version = CUDART_VERSION;
}

/* "devices=2 fail=cudaMalloc:3": see control.h. The text lives as long as the process. */
static void parse(char *text, weft_emulated_config *config)
{
    char *rest = nullptr;

    for (char *word = strtok_r(text, " ", &rest); word != nullptr; word = strtok_r(nullptr, " ", &rest)) {
        char *value = strchr(word, '=');
        unsigned long long number = value != nullptr ? strtoull(value + 1, nullptr, 0) : 0;

        if (value == nullptr) {
            fprintf(stderr, "emulated GPU: WEFT_EMULATED_GPU: \"%s\" has no value\n", word);
            continue;
        }
        *value++ = '\0';
        if (strcmp(word, "devices") == 0) {
            config->device_count = (uint32_t)number;
        } else if (strcmp(word, "memory") == 0) {
            config->memory_size = number;
        } else if (strcmp(word, "driver") == 0) {
            config->driver_version = (uint32_t)number;
        } else if (strcmp(word, "order") == 0) {
            config->order = (uint32_t)number;
        } else if (strcmp(word, "fault") == 0) {
            config->fault_launch = (uint32_t)number;
        } else if (strcmp(word, "hang") == 0) {
            config->hang_operation = (uint32_t)number;
        } else if (strcmp(word, "nccl") == 0) {
            config->has_nccl = (uint32_t)number;
        } else if (strcmp(word, "fail") == 0) {
            char *colon = strchr(value, ':');

            config->fail_call = colon != nullptr ? (uint32_t)strtoul(colon + 1, nullptr, 0) : (uint32_t)number;
            config->fail_name = colon != nullptr ? value : nullptr;
            *(colon != nullptr ? colon : value) = '\0';
        } else {
            fprintf(stderr, "emulated GPU: WEFT_EMULATED_GPU: unknown word \"%s\"\n", word);
        }
    }
}

static void configure_once(weft_emulated_world &world)
{
    const char *text = getenv("WEFT_EMULATED_GPU");

    if (world.is_configured) {
        return;
    }
    world.is_configured = true;
    weft_emulated_config_init(&world.config);
    if (text != nullptr) {
        static char *copy = strdup(text);

        parse(copy, &world.config);
    }
}

void weft_emulated_configure(const struct weft_emulated_config *config)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    world.is_configured = true;
    world.config = *config;
    world.calls = 0;
    world.named_calls.clear();
    world.matching_calls = 0;
    world.launches = 0;
    world.run_launches = 0;
    world.run_operations = 0;
    world.hang_generation++;
    world.report.clear();
    for (weft_emulated_device &device : world.devices) {
        device.error = cudaSuccess;
    }
}

uint32_t weft_emulated_call_count()
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.calls;
}

uint32_t weft_emulated_launch_count()
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.launches;
}

uint32_t weft_emulated_count(const char *name)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.named_calls[name];
}

uint64_t weft_emulated_taken(uint32_t index)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.devices[index].used;
}

uint32_t weft_emulated_live_count()
{
    uint32_t blocks = weft_emulated_block_count();
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);
    uint32_t streams = (uint32_t)world.streams.size();

    for (const weft_emulated_device &device : world.devices) {
        streams -= device.null_stream != nullptr ? 1 : 0;
    }
    return blocks + streams + (uint32_t)(world.events.size() + world.graphs.size());
}

const char *weft_emulated_report()
{
    static thread_local char text[600];
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    snprintf(text, sizeof(text), "%s", world.report.c_str());
    return text;
}

void weft_emulated_tell(const std::string &line)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    fprintf(stderr, "emulated GPU: %s\n", line.c_str());
    world.report = line;
}

/* ---- the beginning and the end of every call ---- */

/* The driver does not survive a fork: a child of a process that has used it can do nothing with it. */
static cudaError_t check_owner(weft_emulated_world &world, const char *name)
{
    if (strstr(name, "Version") != nullptr) {
        return cudaSuccess; /* asked without starting the driver */
    }
    world.owner = world.owner == 0 ? getpid() : world.owner;
    return world.owner == getpid() ? cudaSuccess : cudaErrorInitializationError;
}

static bool gives_back(const char *name)
{
    return strncmp(name, "cudaFree", 8) == 0 || strstr(name, "Destroy") != nullptr;
}

cudaError_t weft_emulated_enter(const char *name)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);
    const weft_emulated_config &config = world.config;

    configure_once(world);
    world.calls++;
    world.named_calls[name]++;
    if (config.fail_name == nullptr ? !gives_back(name) : strcmp(config.fail_name, name) == 0) {
        world.matching_calls++;
        if (config.fail_call != 0 && world.matching_calls == config.fail_call) {
            return config.fail_error != 0 ? (cudaError_t)config.fail_error : cudaErrorUnknown;
        }
    }
    if (config.driver_version < CUDART_VERSION / 1000 * 1000) { /* minor versions are compatible */
        return cudaErrorInsufficientDriver;
    }
    return config.device_count == 0 ? cudaErrorNoDevice : check_owner(world, name);
}

cudaError_t weft_emulated_leave(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        thread_error = error;
    }
    return error;
}

int weft_emulated_current_device()
{
    return thread_device;
}

cudaError_t weft_emulated_device_error(int device)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.devices[device].error;
}

static int device_count()
{
    return (int)weft_emulated_the_world().config.device_count;
}

/* ---- errors ---- */

cudaError_t cudaPeekAtLastError()
{
    cudaError_t sticky = weft_emulated_device_error(thread_device);

    return sticky != cudaSuccess ? sticky : thread_error;
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = cudaPeekAtLastError();

    thread_error = cudaSuccess;
    return error;
}

struct error_text {
    cudaError_t error;
    const char *name;
    const char *text;
};

static const error_text error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorDeviceUninitialized, "cudaErrorDeviceUninitialized", "invalid device context"},
    {cudaErrorMapBufferObjectFailed, "cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorPeerAccessNotEnabled, "cudaErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

static const error_text &find_error(cudaError_t error)
{
    static const error_text unknown = {cudaErrorUnknown, "unrecognized error code", "unrecognized error code"};

    for (const error_text &entry : error_texts) {
        if (entry.error == error) {
            return entry;
        }
    }
    return unknown;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return find_error(error).text;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return find_error(error).name;
}

/* ---- devices ---- */

cudaError_t cudaDriverGetVersion(int *version)
{
    (void)weft_emulated_enter("cudaDriverGetVersion"); /* answers without driver too */
    *version = (int)weft_emulated_the_world().config.driver_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER("cudaGetDeviceCount");
    *count = device_count();
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    ENTER("cudaSetDevice");
    if (device < 0 || device >= device_count()) {
        return weft_emulated_leave(cudaErrorInvalidDevice);
    }
    thread_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    ENTER("cudaGetDevice");
    *device = thread_device;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned int)
{
    ENTER("cudaSetDeviceFlags");
    return cudaSuccess;
}

/* An invented GPU like an H100, but with the shared memory of the smallest GPUs since sm_80 (sm_86, sm_89, sm_120), few
 * multiprocessors (grids stay small) and its own uuid. */
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    ENTER("cudaGetDeviceProperties");
    if (device < 0 || device >= device_count()) {
        return weft_emulated_leave(cudaErrorInvalidDevice);
    }
    *properties = cudaDeviceProp();
    snprintf(properties->name, sizeof(properties->name), "Weft emulated GPU");
    memcpy(properties->uuid.bytes, "weft emulated 0", sizeof(properties->uuid.bytes));
    properties->uuid.bytes[14] = (char)('0' + device);
    properties->totalGlobalMem = weft_emulated_the_world().config.memory_size;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = WEFT_EMULATED_SHARED_MAX;
    properties->sharedMemPerMultiprocessor = 100 << 10;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->major = 9;
    properties->multiProcessorCount = 4;
    properties->canMapHostMemory = 1;
    properties->concurrentKernels = 1;
    properties->pciBusID = 0x10 + device;
    properties->asyncEngineCount = 2;
    properties->unifiedAddressing = 1;
    properties->memoryBusWidth = 5120;
    properties->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);

    if (error != cudaSuccess) {
        return error;
    }
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)properties.sharedMemPerBlock; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)properties.sharedMemPerBlockOptin; return cudaSuccess;
    case cudaDevAttrWarpSize: *value = properties.warpSize; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; return cudaSuccess;
    case cudaDevAttrIntegrated: *value = 0; return cudaSuccess;
    case cudaDevAttrClockRate: *value = 1000000; return cudaSuccess;
    case cudaDevAttrMemoryClockRate: *value = 1000000; return cudaSuccess;
    case cudaDevAttrGlobalMemoryBusWidth: *value = properties.memoryBusWidth; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = properties.l2CacheSize; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; return cudaSuccess;
    }
    return weft_emulated_leave(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device)
{
    ENTER("cudaDeviceGetPCIBusId");
    if (device < 0 || device >= device_count()) {
        return weft_emulated_leave(cudaErrorInvalidDevice);
    }
    snprintf(text, (size_t)size, "0000:%02x:00.0", 0x10 + device);
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can_access, int device, int peer)
{
    ENTER("cudaDeviceCanAccessPeer");
    if (device < 0 || device >= device_count() || peer < 0 || peer >= device_count()) {
        return weft_emulated_leave(cudaErrorInvalidDevice);
    }
    *can_access = device != peer;
    return cudaSuccess;
}

static cudaError_t set_peer(int peer, bool is_enabled)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);
    uint64_t &peers = world.devices[thread_device].peers;

    if (peer < 0 || peer >= device_count() || peer == thread_device) {
        return cudaErrorInvalidDevice;
    }
    if ((peers >> peer & 1) == (is_enabled ? 1 : 0)) {
        return is_enabled ? cudaErrorPeerAccessAlreadyEnabled : cudaErrorPeerAccessNotEnabled;
    }
    peers ^= 1ULL << peer;
    return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int)
{
    ENTER("cudaDeviceEnablePeerAccess");
    return weft_emulated_leave(set_peer(peer, true));
}

cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    ENTER("cudaDeviceDisablePeerAccess");
    return weft_emulated_leave(set_peer(peer, false));
}

cudaError_t cudaDeviceSynchronize()
{
    ENTER("cudaDeviceSynchronize");
    if (weft_emulated_is_capturing()) {
        return weft_emulated_leave(cudaErrorStreamCaptureUnsupported);
    }
    return weft_emulated_leave(weft_emulated_drain(thread_device, true));
}

cudaError_t cudaMemGetInfo(size_t *free_size, size_t *total_size)
{
    weft_emulated_world &world = weft_emulated_the_world();

    ENTER("cudaMemGetInfo");
    std::lock_guard<std::mutex> guard(world.lock);
    *total_size = world.config.memory_size;
    *free_size = world.config.memory_size > world.devices[thread_device].used
                     ? world.config.memory_size - world.devices[thread_device].used
                     : 0;
    return cudaSuccess;
}
