/*
 * The NCCL library, opened at run time when somebody wants it: it takes 200 MB and needs a driver, and the same binary
 * starts on hosts without it.
 */
#ifndef WEFT_COMM_NCCL_API_H
#define WEFT_COMM_NCCL_API_H

#include <nccl.h>
#include <stdbool.h>
#include <stddef.h>

/* The functions used, by name. */
#define NCCL_FUNCTIONS(X)                                                                                              \
    X(ncclGetVersion)                                                                                                  \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclCommInitRankConfig)                                                                                          \
    X(ncclCommFinalize)                                                                                                \
    X(ncclCommDestroy)                                                                                                 \
    X(ncclCommAbort)                                                                                                   \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)                                                                                                \
    X(ncclGroupStart)                                                                                                  \
    X(ncclGroupEnd)                                                                                                    \
    X(ncclSend)                                                                                                        \
    X(ncclRecv)

struct nccl_api {
#define NCCL_MEMBER(name) __typeof__(&name) name;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
};

/* Fills *api; false with one phrase in reason_out when the library is missing or too old. */
bool weft_nccl_load(struct nccl_api *api, char *reason_out, size_t reason_size);

#endif
