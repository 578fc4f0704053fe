/* Finds the emulated module and its settings. */
#include "handle.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A symbol that the module has by its own header. */
static void find(void *library, const char *name, void *function_out)
{
    void *symbol = dlsym(library, name);

    if (symbol == NULL) {
        fprintf(stderr, "weft_cuda_emulated.so: no %s\n", name);
        abort();
    }
    memcpy(function_out, &symbol, sizeof(symbol)); /* ISO C has no cast from object to function pointers */
}

bool weft_emulated_open(struct weft_emulated_handle *handle)
{
    ssize_t length = readlink("/proc/self/exe", handle->path, sizeof(handle->path) - 64);
    void *library;

    if (length <= 0) {
        return false;
    }
    handle->path[length] = '\0';
    strcpy(strrchr(handle->path, '/') + 1, "weft_cuda_emulated.so");
    if (access(handle->path, R_OK) != 0) {
        return false;
    }
    library = dlopen(handle->path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
    find(library, "weft_emulated_config_init", &handle->config_init);
    find(library, "weft_emulated_configure", &handle->configure);
    find(library, "weft_emulated_call_count", &handle->call_count);
    find(library, "weft_emulated_launch_count", &handle->launch_count);
    find(library, "weft_emulated_count", &handle->count);
    find(library, "weft_emulated_live_count", &handle->live_count);
    find(library, "weft_emulated_taken", &handle->taken);
    find(library, "weft_emulated_report", &handle->report);
    return true;
}
