/* The matrices of Llama-3-8B as a rank alone has them: what GPUs are timed with, by us and through cuBLASLt. C and C++.
 */
#ifndef WEFT_TESTS_KERNELS_LLAMA_8B_H
#define WEFT_TESTS_KERNELS_LLAMA_8B_H

#include <stdbool.h>
#include <stdint.h>

struct llama_8b_matrix {
    const char *name;
    uint32_t rows;
    uint32_t columns;
    bool is_row_parallel; /* its columns are cut into leaves */
    bool is_gated;        /* half of the rows are gates */
};

static const struct llama_8b_matrix llama_8b_matrices[] = {{"QKV", 6144, 4096, false, false},
                                                           {"attention output", 4096, 4096, true, false},
                                                           {"gate and up", 28672, 4096, false, true},
                                                           {"down", 4096, 14336, true, false},
                                                           {"head", 128256, 4096, false, false}};
enum { LLAMA_8B_MATRIX_COUNT = 5, LLAMA_8B_PROMPT = 4096 /* tokens of a long prompt */ };

#endif
