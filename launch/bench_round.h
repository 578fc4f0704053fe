/*
 * One measurement of a whole engine: B requests of the same length at once, from the first submit to the last token.
 * What the tokens are does not matter, so weights may be random.
 */
#ifndef WEFT_LAUNCH_BENCH_ROUND_H
#define WEFT_LAUNCH_BENCH_ROUND_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/weft.h"

struct weft_bench_shape {
    uint32_t batch;
    uint32_t prompt_count; /* tokens of each request's prompt */
    uint32_t token_count;  /* tokens each request makes, at least 2 */
};

/* Tokens per second of all requests together. */
struct weft_bench_rates {
    double prefill; /* prompt tokens, until every request has its first token */
    double decode;  /* tokens made from then until the first request ends */
};

/*
 * Prompts are pseudo-random tokens of the vocabulary, others for each request. False after an error, logged or on
 * stderr; or when a signal came, which weft_signals_caught() tells.
 */
bool weft_bench_round(struct weft_engine *engine, const struct weft_bench_shape *shape,
                      struct weft_bench_rates *rates_out);

#endif
