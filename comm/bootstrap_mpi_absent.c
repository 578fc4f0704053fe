/* In place of bootstrap_mpi.c when built without MPI. */
#include "weft/bootstrap.h"
#include "weft/log.h"

enum weft_status weft_bootstrap_open_mpi(const char *interface, uint32_t timeout_ms, struct weft_bootstrap **out)
{
    (void)interface;
    (void)timeout_ms;
    (void)out;
    weft_log(WEFT_LOG_ERROR, "comm/bootstrap_mpi", "this build of Weft has no MPI; use --ranks or the tcp bootstrap");
    return WEFT_ERR_UNSUPPORTED;
}
