/* The GPUs of this host, as `weft info` shows them. */
#ifndef WEFT_LAUNCH_GPUS_H
#define WEFT_LAUNCH_GPUS_H

#include "base/json.h"
#include "settings.h"

/* A table on standard output, or one line that says why there are none. */
void weft_gpus_print(const struct weft_settings *settings);

/* {"list": [...], "none_because": null or text}; NULL out of memory. Owned by the caller. */
json_t *weft_gpus_json(const struct weft_settings *settings);

#endif
