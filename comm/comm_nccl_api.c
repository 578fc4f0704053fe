/* Opening the NCCL library. Contract in comm_nccl_api.h. */
#include "comm_nccl_api.h"

#include <dlfcn.h>
#include <stdio.h>

#define LIBRARY "libnccl.so.2"
/* The first in which the non-blocking mode covers all that is used here. */
#define VERSION_MIN NCCL_VERSION(2, 18, 1)

bool weft_nccl_load(struct nccl_api *api, char *reason_out, size_t reason_size)
{
    /* Never unloaded: its threads may outlive a communicator that was given up. */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const char *missing = NULL;
    int version = 0;

    if (library == NULL) {
        snprintf(reason_out, reason_size, "cannot load " LIBRARY);
        return false;
    }
#define NCCL_LOAD(name)                                                                                                \
    *(void **)&api->name = dlsym(library, #name);                                                                      \
    missing = api->name == NULL ? #name : missing;
    NCCL_FUNCTIONS(NCCL_LOAD)
#undef NCCL_LOAD
    if (missing != NULL) {
        snprintf(reason_out, reason_size, LIBRARY " lacks %s", missing);
        return false;
    }
    if (api->ncclGetVersion(&version) != ncclSuccess || version < VERSION_MIN) {
        snprintf(reason_out, reason_size, LIBRARY " is version %d, older than %d", version, VERSION_MIN);
        return false;
    }
    return true;
}
