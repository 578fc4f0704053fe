/* The avx512 level. */
#include "cpu/elementwise.h"

void weft_cpu_kernels_fill_avx512(struct weft_cpu_kernels *kernels)
{
    fill_elementwise(kernels);
}
