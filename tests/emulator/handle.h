/* The emulated CUDA module as a test program holds it: where it is, and its settings (control.h). */
#ifndef WEFT_TESTS_EMULATOR_HANDLE_H
#define WEFT_TESTS_EMULATOR_HANDLE_H

#include <stdbool.h>

#include "control.h"

struct weft_emulated_handle {
    char path[4096]; /* for weft_engine_options.cuda_module, weft_device_options.module */
    void (*config_init)(struct weft_emulated_config *config);
    void (*configure)(const struct weft_emulated_config *config);
    uint32_t (*call_count)(void);
    uint32_t (*launch_count)(void);
    uint32_t (*count)(const char *name);
    uint32_t (*live_count)(void);
    uint64_t (*taken)(uint32_t index);
    const char *(*report)(void);
};

/* weft_cuda_emulated.so beside the running program. False: it is not there, the build has no C++ compiler. The module
 * stays loaded, so that its settings reach whoever opens it next. */
bool weft_emulated_open(struct weft_emulated_handle *handle);

#endif
