/* NVML, opened at run time: it comes with the driver, and some containers lack it. Its few types are written out here,
 * as its header is part of no compiler package. */
#include "cuda/nvml.h"

#include <dlfcn.h>
#include <stddef.h>

#include "cuda/port.h"

#ifdef WEFT_CUDA_EMULATED

/* The emulator's GPU is not among those of the driver. */
void weft_cuda_nvml_fill(struct weft_gpu *gpus, uint32_t count)
{
    (void)gpus;
    (void)count;
}

#else

enum { NVML_SUCCESS = 0, P2P_CAPS_NVLINK = 2, P2P_STATUS_OK = 0 };

typedef struct nvml_device *nvml_handle;

struct nvml_memory {
    unsigned long long total;
    unsigned long long free;
    unsigned long long used;
};

struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*handle_by_pci_bus_id)(const char *bus_id, nvml_handle *out);
    int (*memory_info)(nvml_handle device, struct nvml_memory *out);
    int (*p2p_status)(nvml_handle a, nvml_handle b, int caps, int *out);
};

static bool nvml_open(struct nvml *nvml)
{
    const struct {
        const char *name;
        void *member;
    } functions[] = {
        {"nvmlInit_v2", &nvml->init},
        {"nvmlShutdown", &nvml->shutdown},
        {"nvmlDeviceGetHandleByPciBusId_v2", &nvml->handle_by_pci_bus_id},
        {"nvmlDeviceGetMemoryInfo", &nvml->memory_info},
        {"nvmlDeviceGetP2PStatus", &nvml->p2p_status},
    };

    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (nvml->library == NULL) {
        return false;
    }
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *function = dlsym(nvml->library, functions[i].name);
        if (function == NULL) {
            (void)dlclose(nvml->library);
            return false;
        }
        *static_cast<void **>(functions[i].member) = function;
    }
    if (nvml->init() != NVML_SUCCESS) {
        (void)dlclose(nvml->library);
        return false;
    }
    return true;
}

static void fill_links(const struct nvml *nvml, const nvml_handle *handles, uint32_t count, uint32_t index,
                       struct weft_gpu *gpu)
{
    for (uint32_t other = 0; other < count; other++) {
        int status = -1;
        if (other == index || handles[other] == NULL) {
            continue;
        }
        if (nvml->p2p_status(handles[index], handles[other], P2P_CAPS_NVLINK, &status) == NVML_SUCCESS) {
            gpu->has_links = true;
            gpu->nvlink_mask |= status == P2P_STATUS_OK ? 1ULL << other : 0;
        }
    }
}

void weft_cuda_nvml_fill(struct weft_gpu *gpus, uint32_t count)
{
    struct nvml nvml = {};
    nvml_handle handles[WEFT_GPU_COUNT_MAX] = {};

    if (!nvml_open(&nvml)) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct nvml_memory memory = {};
        if (nvml.handle_by_pci_bus_id(gpus[i].pci_bus_id, &handles[i]) != NVML_SUCCESS) {
            handles[i] = NULL;
        } else if (nvml.memory_info(handles[i], &memory) == NVML_SUCCESS) {
            gpus[i].memory_free = memory.free;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (handles[i] != NULL) {
            fill_links(&nvml, handles, count, i, &gpus[i]);
        }
    }
    (void)nvml.shutdown();
    (void)dlclose(nvml.library);
}

#endif
