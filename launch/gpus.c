/* The GPUs of this host, as `weft info` shows them. */
#include "gpus.h"

#include <stdio.h>
#include <string.h>

#include "base/size_text.h"
#include "weft/gpu.h"

static uint32_t list(const struct weft_settings *settings, struct weft_gpu *gpus, char *reason, size_t size)
{
    if (settings->device != NULL && strcmp(settings->device, "cpu") == 0) {
        (void)snprintf(reason, size, "not looked for");
        return 0;
    }
    return weft_gpu_list(settings->cuda_module, gpus, reason, size);
}

/* "NVLink", "PCIe", ...: what is known of the way from one GPU to another. */
static const char *link_name(const struct weft_gpu *gpu, uint32_t other)
{
    if ((gpu->nvlink_mask >> other & 1) != 0) {
        return "NVLink";
    }
    if ((gpu->peer_mask >> other & 1) == 0) {
        return "through the host";
    }
    return gpu->has_links ? "PCIe, direct" : "direct, NVLink or PCIe (no NVML to ask)";
}

static void links_print(const struct weft_gpu *gpus, uint32_t count, uint32_t index)
{
    const char *separator = "  to ";

    for (uint32_t other = 0; other < count; other++) {
        if (other != index) {
            printf("%s%u: %s", separator, other, link_name(&gpus[index], other));
            separator = ", ";
        }
    }
    if (count > 1) {
        putchar('\n');
    }
}

static void library_print(const struct weft_settings *settings)
{
    char name[512];
    char reason[512];

    if (weft_gpu_library(settings->cuda_module, name, sizeof(name), reason, sizeof(reason))) {
        printf("\nfast numerics %s\n", name);
    } else {
        printf("\nfast numerics no cuBLASLt, --numerics fast is as exact: %s\n", reason);
    }
}

static json_t *library_json(const struct weft_settings *settings)
{
    char name[512];
    char reason[512];

    if (weft_gpu_library(settings->cuda_module, name, sizeof(name), reason, sizeof(reason))) {
        return json_pack("{s:s, s:n}", "library", name, "none_because");
    }
    return json_pack("{s:n, s:s}", "library", "none_because", reason);
}

void weft_gpus_print(const struct weft_settings *settings)
{
    struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
    char reason[512] = "";
    char text[2][WEFT_SIZE_TEXT_SIZE];
    uint32_t count = list(settings, gpus, reason, sizeof(reason));

    if (count == 0) {
        printf("\nGPUs          none: %s\n", reason);
    } else {
        printf("\n%3s  %-28s %10s %10s %10s %5s  %s\n", "GPU", "name", "free", "memory", "capability", "SMs", "PCI");
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct weft_gpu *gpu = &gpus[i];
        char capability[16];

        (void)snprintf(capability, sizeof(capability), "%u.%u", gpu->compute_major, gpu->compute_minor);
        printf("%3u  %-28s %10s %10s %10s %5u  %s\n", i, gpu->name, weft_size_text(gpu->memory_free, text[0]),
               weft_size_text(gpu->memory_total, text[1]), capability, gpu->sm_count, gpu->pci_bus_id);
    }
    for (uint32_t i = 0; i < count && count > 1; i++) {
        printf("%sGPU %u", i == 0 ? "\n" : "", i);
        links_print(gpus, count, i);
    }
    if (count > 0) {
        library_print(settings);
    }
}

static json_t *gpu_json(const struct weft_gpu *gpus, uint32_t count, uint32_t index)
{
    const struct weft_gpu *gpu = &gpus[index];
    json_t *links = json_object();

    for (uint32_t other = 0; other < count; other++) {
        char key[16];

        (void)snprintf(key, sizeof(key), "%u", other);
        if (other != index) {
            json_object_set_new(links, key, json_string(link_name(gpu, other)));
        }
    }
    return json_pack("{s:s, s:I, s:I, s:[ii], s:i, s:s, s:o}", "name", gpu->name, "memory_free_bytes",
                     (json_int_t)gpu->memory_free, "memory_bytes", (json_int_t)gpu->memory_total, "compute_capability",
                     (int)gpu->compute_major, (int)gpu->compute_minor, "sm_count", (int)gpu->sm_count, "pci_bus_id",
                     gpu->pci_bus_id, "links", links);
}

json_t *weft_gpus_json(const struct weft_settings *settings)
{
    struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
    char reason[512] = "";
    uint32_t count = list(settings, gpus, reason, sizeof(reason));
    json_t *array = json_array();

    for (uint32_t i = 0; i < count; i++) {
        json_array_append_new(array, gpu_json(gpus, count, i));
    }
    return json_pack("{s:o, s:o, s:o}", "list", array, "none_because", count == 0 ? json_string(reason) : json_null(),
                     "fast_numerics", count > 0 ? library_json(settings) : json_null());
}
