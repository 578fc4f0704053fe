/* Opening the UCX library. Contract in comm_ucx_api.h. */
#include "comm_ucx_api.h"

#include <dlfcn.h>
#include <stdio.h>

#define LIBRARY "libucp.so.0"

bool weft_ucx_load(struct ucx_api *api, char *reason_out, size_t reason_size)
{
    /* Never unloaded: UCX has its own destructors, and MPI may be using it as well. */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const char *missing = NULL;

    if (library == NULL) {
        snprintf(reason_out, reason_size, "cannot load %s", LIBRARY);
        return false;
    }
#define UCX_LOAD(name)                                                                                                 \
    *(void **)&api->name = dlsym(library, #name);                                                                      \
    missing = api->name == NULL ? #name : missing;
    UCX_FUNCTIONS(UCX_LOAD)
#undef UCX_LOAD
    if (missing != NULL) {
        snprintf(reason_out, reason_size, "%s lacks %s", LIBRARY, missing);
        return false;
    }
    api->ucs_debug_disable_signals();
    return true;
}
