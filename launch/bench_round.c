/* Submits, polls, takes times. */
#include "bench_round.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "signals.h"
#include "weft/status.h"

/* EVENT_COUNT: the events of a step are to come in one call, so that times lie between steps. */
enum { EVENT_COUNT = 1024, POLL_MS = 200 };

/* Knuth's multiplicative hash: spreads neighbouring numbers over the vocabulary. */
static const uint32_t SPREAD = 2654435761u;

struct round {
    const struct weft_bench_shape *shape;
    bool *has_begun; /* [batch] */
    uint32_t begun_count;
    uint32_t ended_count;
    uint32_t made_count; /* tokens */
    int64_t begin_ns;
    int64_t all_ns;     /* when every request had its first token; 0: not yet */
    uint32_t all_count; /* tokens made by then */
    int64_t end_ns;     /* when the first of them ended after that; 0: not yet */
    uint32_t end_count; /* tokens made by then */
};

static bool submit_all(struct weft_engine *engine, const struct weft_bench_shape *shape)
{
    int32_t *tokens = malloc(shape->prompt_count * sizeof(*tokens));
    struct weft_engine_info info;
    bool is_done = tokens != NULL;

    weft_engine_info(engine, &info);
    for (uint32_t i = 0; i < shape->batch && is_done; i++) {
        struct weft_request request;
        uint64_t id;

        for (uint32_t t = 0; t < shape->prompt_count; t++) {
            tokens[t] = (int32_t)((i * shape->prompt_count + t) * SPREAD % info.vocab_size);
        }
        weft_request_init(&request);
        request.token_ids = tokens;
        request.token_count = shape->prompt_count;
        request.max_tokens = shape->token_count;
        request.is_eos_ignored = true;
        request.user = (void *)(uintptr_t)i;
        is_done = weft_engine_submit(engine, &request, &id) == WEFT_OK;
    }
    if (!is_done) {
        fprintf(stderr, "weft bench: %s\n", tokens == NULL ? "out of memory" : weft_engine_error());
    }
    free(tokens);
    return is_done;
}

/* False when a request came to a bad end. */
static bool take_event(struct round *round, const struct weft_event *event)
{
    uintptr_t index = (uintptr_t)event->user;

    if (event->token_count > 0 && !round->has_begun[index]) {
        round->has_begun[index] = true;
        round->begun_count++;
    }
    round->made_count += event->token_count;
    round->ended_count += event->finish != WEFT_FINISH_NONE;
    if (event->finish == WEFT_FINISH_ERROR) {
        fprintf(stderr, "weft bench: a request failed: %s\n", weft_status_name(event->status));
        return false;
    }
    return true;
}

/* Until the first request ends, all are decoded together. Where some had ended before the last began (a chunk far
 * smaller than the prompts, few tokens to make), all that is left is what there is to measure. */
static bool is_at_end(const struct round *round, uint32_t ended_before)
{
    return ended_before > 0 ? round->ended_count == round->shape->batch : round->ended_count > 0;
}

static bool follow(struct weft_engine *engine, struct round *round)
{
    const struct weft_bench_shape *shape = round->shape;
    struct weft_event events[EVENT_COUNT];
    uint32_t ended_before = 0;

    while (round->ended_count < shape->batch) {
        uint32_t count;
        enum weft_status status = weft_engine_poll(engine, POLL_MS, events, EVENT_COUNT, &count);

        if (weft_signals_caught() != 0) {
            return false;
        }
        if (status != WEFT_OK && status != WEFT_ERR_TIMEOUT) {
            return false; /* logged */
        }
        for (uint32_t i = 0; i < count; i++) {
            if (!take_event(round, &events[i])) {
                return false;
            }
        }
        if (round->begun_count == shape->batch && round->all_ns == 0) {
            round->all_ns = weft_clock_ns();
            round->all_count = round->made_count;
            ended_before = round->ended_count;
        } else if (round->all_ns != 0 && round->end_ns == 0 && is_at_end(round, ended_before)) {
            round->end_ns = weft_clock_ns();
            round->end_count = round->made_count;
        }
    }
    return true;
}

bool weft_bench_round(struct weft_engine *engine, const struct weft_bench_shape *shape,
                      struct weft_bench_rates *rates_out)
{
    struct round round = {.shape = shape, .has_begun = calloc(shape->batch, sizeof(bool)), .begin_ns = weft_clock_ns()};
    bool is_done;

    if (round.has_begun == NULL) {
        fputs("weft bench: out of memory\n", stderr);
        return false;
    }
    is_done = submit_all(engine, shape) && follow(engine, &round);
    if (is_done) {
        int64_t decode_ns = round.end_ns - round.all_ns;

        rates_out->prefill =
            (double)shape->batch * shape->prompt_count / ((double)(round.all_ns - round.begin_ns) * 1e-9);
        rates_out->decode =
            round.end_ns > round.all_ns ? (round.end_count - round.all_count) / ((double)decode_ns * 1e-9) : 0;
    }
    free(round.has_begun);
    return is_done;
}
