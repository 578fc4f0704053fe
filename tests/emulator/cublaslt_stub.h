/*
 * What a test may ask of the stub of cuBLASLt (cublaslt_stub.c): exported by the library that the loader finds as
 * libcublasLt.so.13. A program that cannot call it sets CUBLASLT_STUB instead: "version=120000", "create=1",
 * "heuristic=3", "matmul=2".
 */
#ifndef WEFT_TESTS_CUBLASLT_STUB_H
#define WEFT_TESTS_CUBLASLT_STUB_H

#include <stdint.h>

struct cublaslt_stub_config {
    uint32_t version;        /* that it says it is; 0: 130100 */
    uint32_t fail_create;    /* the n-th call from now on fails; 0: none */
    uint32_t fail_heuristic; /* finds nothing */
    uint32_t fail_matmul;
};

struct cublaslt_stub_counts {
    uint32_t heuristics; /* calls since cublaslt_stub_configure() */
    uint32_t matmuls;
    uint32_t live; /* handles, descriptors, layouts and preferences that were not given back */
};

/* Counts begin anew, except for what is live. */
void cublaslt_stub_configure(const struct cublaslt_stub_config *config);
void cublaslt_stub_count(struct cublaslt_stub_counts *out);

#endif
