/* struct weft_engine_options made complete: defaults filled in, ranges checked, strings copied. */
#ifndef WEFT_ENGINE_OPTIONS_H
#define WEFT_ENGINE_OPTIONS_H

#include "base/arena.h"
#include "model/config.h"
#include "weft/device.h"
#include "weft/status.h"
#include "weft/weft.h"

/* *resolved_out <- options with no zeros and NULLs left where a default exists; what it points to lives in `arena`.
 * ERR_ARGUMENT, logged. */
WEFT_MUST_CHECK enum weft_status weft_options_resolve(const struct weft_engine_options *options,
                                                      struct weft_arena *arena,
                                                      struct weft_engine_options *resolved_out);

/* Of resolved options. */
bool weft_options_are_streamed(const struct weft_engine_options *options); /* rank 0 reads the weights for all */
enum weft_dtype weft_kv_dtype(const struct weft_engine_options *options);
enum weft_quantise weft_options_quantise(const struct weft_engine_options *options);

#endif
