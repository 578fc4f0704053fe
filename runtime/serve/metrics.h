/*
 * What /metrics says, in Prometheus' text format: requests, tokens, KV pages, latencies, ranks, this process. Names and
 * units follow Prometheus' rules (base units, _total for counters); README.md lists them.
 */
#ifndef WEFT_SERVE_METRICS_H
#define WEFT_SERVE_METRICS_H

#include <stdbool.h>
#include <stddef.h>

#include "weft/status.h"
#include "weft/weft.h"

#define WEFT_METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct weft_metrics {
    const struct weft_engine_info *info; /* NULL, both: while the model loads */
    const struct weft_engine_stats *stats;
    bool is_serving;
};

/* *text_out <- [size] from malloc, freed by the caller. Reads /proc/self for the process' own. ERR_MEMORY. */
WEFT_MUST_CHECK enum weft_status weft_metrics_render(const struct weft_metrics *metrics, char **text_out,
                                                     size_t *size_out);

#endif
