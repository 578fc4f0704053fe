/*
 * Decode and prefill of a whole engine through weft.h: B requests of the same length at once, rounds in a row, medians.
 * For GPUs (tests/gpu/run.sh) and CPUs alike; weights may be random, the tokens do not matter.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "weft/weft.h"

enum { ROUND_MAX = 99, BATCH_MAX = 1024 };

struct bench {
    struct weft_engine_options options;
    uint32_t batch;
    uint32_t prompt_count; /* tokens */
    uint32_t token_count;  /* to make */
    uint32_t round_count;
    int32_t *prompts; /* [batch][prompt_count] */
};

/* One round. Times from the first submit: until every request had its first token, and until the last token. */
struct times {
    double first_s;
    double last_s;
    uint32_t late_count; /* tokens made after first_s */
};

static double now_s(void)
{
    struct timespec time;

    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static bool submit_all(struct weft_engine *engine, const struct bench *bench)
{
    for (uint32_t i = 0; i < bench->batch; i++) {
        struct weft_request request;
        uint64_t id;

        weft_request_init(&request);
        request.token_ids = bench->prompts + (size_t)i * bench->prompt_count;
        request.token_count = bench->prompt_count;
        request.max_tokens = bench->token_count;
        request.is_eos_ignored = true;
        request.user = (void *)(uintptr_t)i;
        if (weft_engine_submit(engine, &request, &id) != WEFT_OK) {
            fprintf(stderr, "engine_bench: submit: %s\n", weft_engine_error());
            return false;
        }
    }
    return true;
}

static bool run_round(struct weft_engine *engine, const struct bench *bench, struct times *times)
{
    static bool has_begun[BATCH_MAX];
    uint32_t begun = 0;
    uint32_t ended = 0;
    uint32_t made = 0;
    double begin = now_s();

    memset(has_begun, 0, sizeof(has_begun));
    if (!submit_all(engine, bench)) {
        return false;
    }
    while (ended < bench->batch) {
        struct weft_event events[64];
        uint32_t count;

        if (weft_engine_poll(engine, 60000, events, 64, &count) != WEFT_OK || count == 0) {
            fprintf(stderr, "engine_bench: poll: %s\n", weft_engine_error());
            return false;
        }
        for (uint32_t i = 0; i < count; i++) {
            uintptr_t index = (uintptr_t)events[i].user;

            begun += events[i].token_count > 0 && !has_begun[index];
            has_begun[index] = has_begun[index] || events[i].token_count > 0;
            made += events[i].token_count;
            ended += events[i].finish != WEFT_FINISH_NONE;
        }
        if (begun == bench->batch && times->first_s == 0) {
            times->first_s = now_s() - begin;
            times->late_count = bench->batch * bench->token_count - made;
        }
    }
    times->last_s = now_s() - begin;
    return true;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof(values[0]), compare);
    return values[count / 2];
}

static int run(struct bench *bench)
{
    double decode[ROUND_MAX];
    double prefill[ROUND_MAX];
    struct weft_engine_info info;
    struct weft_engine *engine;

    if (weft_engine_open(&bench->options, &engine) != WEFT_OK) {
        return 1; /* logged */
    }
    weft_engine_info(engine, &info);
    for (uint32_t i = 0; i < bench->batch * bench->prompt_count; i++) {
        bench->prompts[i] = (int32_t)(i * 2654435761u % info.vocab_size);
    }
    for (uint32_t round = 0; round <= bench->round_count; round++) {
        struct times times = {0};

        if (!run_round(engine, bench, &times)) {
            weft_engine_close(&engine);
            return 1;
        }
        if (round > 0) { /* the first warms up */
            decode[round - 1] = times.late_count / (times.last_s - times.first_s);
            prefill[round - 1] = (double)bench->batch * bench->prompt_count / times.first_s;
        }
    }
    printf("{\"device\": \"%s\", \"ranks\": %u, \"batch\": %u, \"prompt\": %u, \"tokens\": %u, \"rounds\": %u, "
           "\"load_s\": %.3f, \"prefill_tokens_per_s\": %.1f, \"decode_tokens_per_s\": %.1f}\n",
           info.device, info.rank_count, bench->batch, bench->prompt_count, bench->token_count, bench->round_count,
           info.load_ms / 1000, median(prefill, bench->round_count), median(decode, bench->round_count));
    weft_engine_close(&engine);
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: engine_bench MODEL [--device D] [--numerics N] [--module FILE] [--ranks N] [--kv-dtype T]\n"
                    "                    [--batch B] [--prompt TOKENS] [--tokens N] [--rounds N] [--chunk N]\n");
    return 2;
}

static bool parse(int argument_count, char **arguments, struct bench *bench)
{
    if (argument_count < 2 || argument_count % 2 != 0) {
        return false;
    }
    bench->options.model = arguments[1];
    for (int i = 2; i < argument_count; i += 2) {
        const char *name = arguments[i], *value = arguments[i + 1];
        uint32_t number = (uint32_t)strtoul(value, NULL, 10);
        const struct {
            const char *name;
            const char **text;
            uint32_t *number;
        } known[] = {
            {"--device", &bench->options.device, NULL},      {"--numerics", &bench->options.numerics, NULL},
            {"--module", &bench->options.cuda_module, NULL}, {"--kv-dtype", &bench->options.kv_dtype, NULL},
            {"--ranks", NULL, &bench->options.rank_count},   {"--batch", NULL, &bench->batch},
            {"--prompt", NULL, &bench->prompt_count},        {"--tokens", NULL, &bench->token_count},
            {"--rounds", NULL, &bench->round_count},         {"--chunk", NULL, &bench->options.prefill_chunk},
        };
        size_t k = 0;

        while (k < sizeof(known) / sizeof(known[0]) && strcmp(known[k].name, name) != 0) {
            k++;
        }
        if (k == sizeof(known) / sizeof(known[0])) {
            return false;
        }
        if (known[k].text != NULL) {
            *known[k].text = value;
        } else {
            *known[k].number = number;
        }
    }
    return bench->batch >= 1 && bench->batch <= BATCH_MAX && bench->prompt_count >= 1 && bench->token_count >= 2 &&
           bench->round_count >= 1 && bench->round_count <= ROUND_MAX;
}

int main(int argument_count, char **arguments)
{
    struct bench bench = {.batch = 1, .prompt_count = 16, .token_count = 64, .round_count = 5};
    int code;

    weft_engine_options_init(&bench.options);
    if (!parse(argument_count, arguments, &bench)) {
        return usage();
    }
    bench.options.sequence_count_max = bench.batch;
    bench.options.context_length = bench.prompt_count + bench.token_count;
    bench.prompts = calloc((size_t)bench.batch * bench.prompt_count, sizeof(bench.prompts[0]));
    if (bench.prompts == NULL) {
        fprintf(stderr, "engine_bench: out of memory\n");
        return 1;
    }
    code = run(&bench);
    free(bench.prompts);
    return code;
}
