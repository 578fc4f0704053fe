/*
 * The UCX library, opened at run time when somebody wants it: loading it installs its own handlers for SIGSEGV and the
 * like, which a program that never uses UCX must not inherit; and the same binary starts on hosts without UCX.
 */
#ifndef WEFT_COMM_UCX_API_H
#define WEFT_COMM_UCX_API_H

#include <stdbool.h>
#include <stddef.h>
#include <ucp/api/ucp.h>

/* The functions used, by name. */
#define UCX_FUNCTIONS(X)                                                                                               \
    X(ucp_config_read)                                                                                                 \
    X(ucp_config_modify)                                                                                               \
    X(ucp_config_release)                                                                                              \
    X(ucp_init_version)                                                                                                \
    X(ucp_cleanup)                                                                                                     \
    X(ucp_worker_create)                                                                                               \
    X(ucp_worker_destroy)                                                                                              \
    X(ucp_worker_get_address)                                                                                          \
    X(ucp_worker_release_address)                                                                                      \
    X(ucp_worker_progress)                                                                                             \
    X(ucp_worker_flush_nbx)                                                                                            \
    X(ucp_ep_create)                                                                                                   \
    X(ucp_ep_close_nbx)                                                                                                \
    X(ucp_tag_send_nbx)                                                                                                \
    X(ucp_tag_recv_nbx)                                                                                                \
    X(ucp_tag_recv_request_test)                                                                                       \
    X(ucp_request_check_status)                                                                                        \
    X(ucp_request_cancel)                                                                                              \
    X(ucp_request_free)                                                                                                \
    X(ucs_status_string)                                                                                               \
    X(ucs_debug_disable_signals)

/* In <ucs/debug/debug.h>, which cannot be included from C11 without the rest of its internals. */
void ucs_debug_disable_signals(void);

struct ucx_api {
#define UCX_MEMBER(name) __typeof__(&name) name;
    UCX_FUNCTIONS(UCX_MEMBER)
#undef UCX_MEMBER
};

/* Fills *api; false with one phrase in reason_out when the library is missing or too old. */
bool weft_ucx_load(struct ucx_api *api, char *reason_out, size_t reason_size);

#endif
