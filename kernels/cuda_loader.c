/*
 * Opens the CUDA module. Nothing is kept between calls: dlopen() hands out the same library again, and the module is
 * marked as one that stays, because the driver starts threads that would lose their code.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/module.h"
#include "weft/gpu.h"

enum { PATH_SIZE = 4096 };

static const char module_file[] = "weft_cuda.so";

static void log_for_module(enum weft_log_level level, const char *area, const char *text)
{
    weft_log(level, area, "%s", text);
}

/* Beside the program or library that this code is part of, or where the install step puts it from there. */
static bool find_file(char path[PATH_SIZE])
{
    static const char *const places[] = {"", "../" WEFT_LIBDIR "/weft/", "../lib/weft/", "weft/"};
    static const char own_symbol = 0;
    char folder[PATH_SIZE] = ""; /* realpath() writes up to PATH_MAX, which this is */
    Dl_info info;

    /* A program's own name may be relative to a folder that was left since. */
    bool is_absolute = dladdr(&own_symbol, &info) != 0 && info.dli_fname != NULL && info.dli_fname[0] == '/';
    if (realpath(is_absolute ? info.dli_fname : "/proc/self/exe", folder) == NULL) {
        return false;
    }
    char *slash = strrchr(folder, '/');
    if (slash == NULL) {
        return false;
    }
    slash[1] = '\0';
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        int size = snprintf(path, PATH_SIZE, "%s%s%s", folder, places[i], module_file);
        if (size > 0 && size < PATH_SIZE && access(path, R_OK) == 0) {
            return true;
        }
    }
    return false;
}

/* NULL with one phrase in reason_out. */
static const struct weft_cuda_module *load(const char *file, char *reason_out, size_t reason_size)
{
    static const struct weft_cuda_host host = {.log = log_for_module};
    char path[PATH_SIZE];

    if (file == NULL && !find_file(path)) {
        (void)snprintf(reason_out, reason_size, "no CUDA module (%s) beside this program: it was built without CUDA",
                       module_file);
        return NULL;
    }
    void *library = dlopen(file != NULL ? file : path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        (void)snprintf(reason_out, reason_size, "the CUDA module cannot be loaded: %s", dlerror());
        return NULL;
    }
    weft_cuda_module_function *function = (weft_cuda_module_function *)dlsym(library, "weft_cuda_module");
    const struct weft_cuda_module *module = function != NULL ? function(&host) : NULL;
    (void)dlclose(library); /* stays loaded */
    if (module == NULL || module->abi != WEFT_CUDA_MODULE_ABI) {
        (void)snprintf(reason_out, reason_size, "%s is the module of another Weft: interface %u, expected %u",
                       file != NULL ? file : path, module == NULL ? 0 : module->abi, WEFT_CUDA_MODULE_ABI);
        return NULL;
    }
    return module;
}

uint32_t weft_gpu_list(const char *module_path, struct weft_gpu *gpus_out, char *reason_out, size_t reason_size)
{
    const struct weft_cuda_module *module = load(module_path, reason_out, reason_size);

    return module == NULL ? 0 : module->list(gpus_out, reason_out, reason_size);
}

bool weft_gpu_library(const char *module_path, char *name_out, size_t name_size, char *reason_out, size_t reason_size)
{
    const struct weft_cuda_module *module = load(module_path, reason_out, reason_size);

    return module != NULL && module->library(name_out, name_size, reason_out, reason_size);
}

enum weft_status weft_device_open_cuda(const struct weft_device_options *options, uint32_t gpu_index,
                                       struct weft_device **out)
{
    char reason[PATH_SIZE];
    const struct weft_cuda_module *module = load(options->module, reason, sizeof(reason));

    if (module == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels", "device cuda: %s", reason);
        return WEFT_ERR_UNSUPPORTED;
    }
    return module->open(options, (int)gpu_index, out);
}
