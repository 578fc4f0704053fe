/* weft bench: how fast this group, as it is, reads prompts and makes tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "bench_round.h"
#include "command.h"
#include "signals.h"

enum { STOP_LIMIT_MS = 800, ROUND_MAX = 1000 };

/* Of one batch size: medians over the rounds, and how far the middle half of them lies apart. */
struct result {
    struct weft_bench_shape shape;
    struct weft_bench_rates median;
    struct weft_bench_rates spread; /* (third quartile - first) / median */
};

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static double median(double *values, uint32_t count, double *spread_out)
{
    qsort(values, count, sizeof(values[0]), compare);
    double middle = (values[(count - 1) / 2] + values[count / 2]) / 2;
    *spread_out = middle > 0 ? (values[count - 1 - count / 4] - values[count / 4]) / middle : 0;
    return middle;
}

/* A first round, not counted, warms up. */
static bool measure(struct weft_engine *engine, uint32_t round_count, struct result *result)
{
    double prefill[ROUND_MAX];
    double decode[ROUND_MAX];

    for (uint32_t round = 0; round <= round_count; round++) {
        struct weft_bench_rates rates;

        if (!weft_bench_round(engine, &result->shape, &rates)) {
            return false;
        }
        if (round > 0) {
            prefill[round - 1] = rates.prefill;
            decode[round - 1] = rates.decode;
        }
    }
    result->median.prefill = median(prefill, round_count, &result->spread.prefill);
    result->median.decode = median(decode, round_count, &result->spread.decode);
    return true;
}

static void head_print(const struct weft_engine_info *info, const struct weft_settings *settings)
{
    printf("%s: %s, %.1f million parameters, %s\n", info->model, info->architecture,
           (double)info->parameter_count / 1e6, info->weight_text);
    printf("%s, ranks x threads %u x %u over %s, KV cache %s, loaded in %.1f s; medians of %u rounds\n\n", info->device,
           info->rank_count, info->thread_count, info->comm, info->kv_dtype, info->load_ms / 1000, settings->rounds);
    printf("%6s %14s %16s %8s %12s %16s %8s %12s\n", "batch", "prompt tokens", "prefill tok/s", "spread", "made tokens",
           "decode tok/s", "spread", "per token");
    fflush(stdout);
}

static void result_print(const struct result *result)
{
    const struct weft_bench_shape *shape = &result->shape;

    printf("%6u %14u %16.1f %6.1f %% %12u %16.1f %6.1f %% %9.2f ms\n", shape->batch, shape->prompt_count,
           result->median.prefill, result->spread.prefill * 100, shape->token_count, result->median.decode,
           result->spread.decode * 100, result->median.decode > 0 ? shape->batch * 1000.0 / result->median.decode : 0);
    fflush(stdout);
}

static bool results_print_json(const struct weft_engine_info *info, uint32_t round_count, const struct result *results,
                               uint32_t count)
{
    json_t *list = json_array();
    json_t *object;
    char *line;
    bool is_done;

    for (uint32_t i = 0; i < count; i++) {
        const struct result *result = &results[i];

        json_array_append_new(
            list, json_pack("{s:i, s:i, s:i, s:f, s:f, s:f, s:f}", "batch", (int)result->shape.batch, "prompt_tokens",
                            (int)result->shape.prompt_count, "made_tokens", (int)result->shape.token_count,
                            "prefill_tokens_per_s", result->median.prefill, "prefill_spread", result->spread.prefill,
                            "decode_tokens_per_s", result->median.decode, "decode_spread", result->spread.decode));
    }
    object = json_pack("{s:s, s:s, s:s, s:i, s:i, s:s, s:s, s:s, s:f, s:i, s:o}", "model", info->model, "architecture",
                       info->architecture, "device", info->device, "ranks", (int)info->rank_count, "threads",
                       (int)info->thread_count, "comm", info->comm, "weight_dtype", info->weight_dtype, "kv_dtype",
                       info->kv_dtype, "load_s", info->load_ms / 1000, "rounds", (int)round_count, "results", list);
    line = object != NULL ? json_dumps(object, JSON_REAL_PRECISION(6)) : NULL;
    is_done = line != NULL && puts(line) >= 0 && fflush(stdout) == 0;
    free(line);
    json_decref(object);
    if (!is_done) {
        fputs("weft bench: cannot write the result to standard output\n", stderr);
    }
    return is_done;
}

static int bench(struct weft_engine *engine, void *context)
{
    const struct weft_settings *settings = context;
    struct result results[WEFT_SETTINGS_SHARE_MAX];
    bool is_json = strcmp(settings->output, "json") == 0;
    struct weft_engine_info info;

    weft_engine_info(engine, &info);
    if (!is_json) {
        head_print(&info, settings);
    }
    for (uint32_t i = 0; i < settings->batch.count; i++) {
        results[i].shape = (struct weft_bench_shape){.batch = settings->batch.items[i],
                                                     .prompt_count = settings->prompt_tokens,
                                                     .token_count = settings->bench_tokens};
        if (!measure(engine, settings->rounds, &results[i])) {
            return weft_signals_caught() != 0 ? 128 + weft_signals_caught() : WEFT_EXIT_FAILURE;
        }
        if (!is_json) {
            result_print(&results[i]);
        }
    }
    if (is_json && !results_print_json(&info, settings->rounds, results, settings->batch.count)) {
        return WEFT_EXIT_FAILURE;
    }
    return WEFT_EXIT_OK;
}

static uint32_t largest(const struct weft_number_list *list)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < list->count; i++) {
        most = list->items[i] > most ? list->items[i] : most;
    }
    return most;
}

int weft_command_bench(struct weft_settings *settings)
{
    struct weft_terminal terminal;
    struct weft_setup setup;
    int code;

    if (settings->batch.is_auto) {
        fputs("weft bench: --batch: expected whole numbers from 1 such as 1,8,32, found \"auto\"\n", stderr);
        return WEFT_EXIT_USAGE;
    }
    if (!weft_setup_init(&setup, settings, "bench", &code)) {
        return code;
    }
    weft_terminal_init(&terminal, settings->is_quiet || weft_setup_is_worker(&setup), settings->is_verbose);
    setup.options.sequence_count_max = largest(&settings->batch);
    setup.options.context_length = settings->prompt_tokens + settings->bench_tokens;
    return weft_command_lead(&setup, &terminal, STOP_LIMIT_MS, bench, settings);
}
