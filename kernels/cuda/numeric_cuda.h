/* weft/numeric.h, weft/quant.h and weft/f8.h for kernels: the same functions and the same bits, callable on the GPU
 * too. Never include those headers before this one. */
#ifndef WEFT_CUDA_NUMERIC_CUDA_H
#define WEFT_CUDA_NUMERIC_CUDA_H

#include <stdint.h>
#include <string.h>

#include "cuda/port.h"

#if defined(WEFT_NUMERIC_H) && !defined(WEFT_CUDA_EMULATED)
#error "weft/numeric.h was included as host code before"
#endif

#define inline inline __host__ __device__
#include "weft/f8.h"
#include "weft/numeric.h"
#include "weft/quant.h"
#undef inline

#endif
