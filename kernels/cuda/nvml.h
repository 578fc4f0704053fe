/* What only NVML, the driver's management library, can say without making a context on every GPU. */
#ifndef WEFT_CUDA_NVML_H
#define WEFT_CUDA_NVML_H

#include "weft/gpu.h"

/* Fills memory_free, nvlink_mask and has_links of gpus[count], found by pci_bus_id; leaves what NVML cannot say. */
void weft_cuda_nvml_fill(struct weft_gpu *gpus, uint32_t count);

#endif
