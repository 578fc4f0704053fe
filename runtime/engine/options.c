/* Defaults and ranges of the engine's options. */
#include "engine/options.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "engine/machine.h"
#include "model/quantise.h"
#include "weft/log.h"
#include "weft/tree.h"

enum {
    LEAF_COUNT = 8,
    SEQUENCE_COUNT = 16,
    SEQUENCE_COUNT_MAX = 4096,
    QUEUE_COUNT = 1024,
    PREFILL_CHUNK = 256,
    PREFILL_CHUNK_FAST = 2048, /* libraries of matrix products pay from some 500 tokens on */
    PREFILL_CHUNK_MAX = 65536, /* a larger step only needs more memory */
    CANDIDATE_COUNT = 64,      /* top_k and top_p in use rarely reach further */
    CANDIDATE_COUNT_MAX = 4096,
    TIMEOUT_MS = 30000,
};

void weft_engine_options_init(struct weft_engine_options *options)
{
    *options = (struct weft_engine_options){0};
}

static void default_to(uint32_t *value, uint32_t fallback)
{
    if (*value == 0) {
        *value = fallback;
    }
}

static enum weft_status check_range(const char *name, uint32_t value, uint32_t max)
{
    if (value > max) {
        weft_log(WEFT_LOG_ERROR, "engine/options", "%s %u: expected at most %u", name, value, max);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

static enum weft_status check_word(const char *name, const char *value, const char *const *words)
{
    char list[128] = "";

    for (size_t i = 0; words[i] != NULL; i++) {
        if (strcmp(value, words[i]) == 0) {
            return WEFT_OK;
        }
        strncat(list, i == 0 ? "" : ", ", sizeof(list) - strlen(list) - 1);
        strncat(list, words[i], sizeof(list) - strlen(list) - 1);
    }
    weft_log(WEFT_LOG_ERROR, "engine/options", "%s \"%s\": expected one of %s", name, value, list);
    return WEFT_ERR_ARGUMENT;
}

static enum weft_status copy_texts(struct weft_arena *arena, struct weft_engine_options *options)
{
    const char **const texts[] = {&options->model,    &options->leader,      &options->secret,   &options->device,
                                  &options->comm,     &options->interface,   &options->kv_dtype, &options->cpu_level,
                                  &options->numerics, &options->cuda_module, &options->weights,  &options->quantize};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (*texts[i] != NULL) {
            *texts[i] = weft_arena_text(arena, *texts[i], strlen(*texts[i]));
            if (*texts[i] == NULL) {
                return WEFT_ERR_MEMORY;
            }
        }
    }
    if (options->share_count > 0) {
        uint32_t *shares = weft_arena_alloc(arena, options->share_count, sizeof(*shares));
        if (shares == NULL) {
            return WEFT_ERR_MEMORY;
        }
        memcpy(shares, options->shares, options->share_count * sizeof(*shares));
        options->shares = shares;
    }
    return WEFT_OK;
}

static enum weft_status check_launch(const struct weft_engine_options *options)
{
    if (options->launch == WEFT_LAUNCH_TCP &&
        (options->leader == NULL || options->rank_count == 0 ||
         (options->rank >= options->rank_count && options->rank != WEFT_RANK_ANY))) {
        weft_log(WEFT_LOG_ERROR, "engine/options",
                 "tcp launch: expected a leader address and a rank below the rank "
                 "count, found leader %s, rank %u of %u",
                 options->leader == NULL ? "none" : options->leader, options->rank, options->rank_count);
        return WEFT_ERR_ARGUMENT;
    }
    if ((int)options->launch < WEFT_LAUNCH_LOCAL || options->launch > WEFT_LAUNCH_THREADS) {
        weft_log(WEFT_LOG_ERROR, "engine/options", "launch %d is unknown", (int)options->launch);
        return WEFT_ERR_ARGUMENT;
    }
    if (options->share_count > 0 && options->shares == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/options", "%u shares announced, none given", options->share_count);
        return WEFT_ERR_ARGUMENT;
    }
    if (options->share_count > 0 && options->is_share_measured) {
        weft_log(WEFT_LOG_ERROR, "engine/options",
                 "shares are given and to be measured as well: expected one of the two");
        return WEFT_ERR_ARGUMENT;
    }
    return check_range("number of shares", options->share_count, WEFT_LEAF_COUNT_MAX);
}

enum weft_status weft_options_resolve(const struct weft_engine_options *options, struct weft_arena *arena,
                                      struct weft_engine_options *resolved_out)
{
    static const char *const numerics[] = {"exact", "reference", "fast", NULL};
    static const char *const comms[] = {"auto", "self", "shm", "tcp", "ucx", "mpi", "nccl", NULL};
    static const char *const dtypes[] = {"f32", "bf16", NULL};
    static const char *const weights[] = {"local", "stream", NULL};
    static const char *const quantize[] = {"none", "bf16", "q8_0", "q4_0", NULL};
    struct weft_engine_options resolved = *options;
    enum weft_device_kind kind;
    uint32_t gpu_index;

    default_to(&resolved.leaf_count, LEAF_COUNT);
    default_to(&resolved.sequence_count_max, SEQUENCE_COUNT);
    default_to(&resolved.queue_count_max, QUEUE_COUNT);
    default_to(&resolved.candidate_count, CANDIDATE_COUNT);
    default_to(&resolved.timeout_ms, TIMEOUT_MS);
    resolved.device = resolved.device == NULL ? "auto" : resolved.device;
    resolved.numerics = resolved.numerics == NULL ? "exact" : resolved.numerics;
    default_to(&resolved.prefill_chunk, strcmp(resolved.numerics, "fast") == 0 ? PREFILL_CHUNK_FAST : PREFILL_CHUNK);
    resolved.comm = resolved.comm == NULL ? "auto" : resolved.comm;
    resolved.weights = resolved.weights == NULL ? "local" : resolved.weights;
    resolved.quantize = resolved.quantize == NULL ? "none" : resolved.quantize;
    resolved.kv_dtype = resolved.kv_dtype == NULL ? "f32" : resolved.kv_dtype;
    if (resolved.prefill_chunk > PREFILL_CHUNK_MAX) {
        resolved.prefill_chunk = PREFILL_CHUNK_MAX; /* "the whole prompt" */
    }
    if (resolved.model == NULL || resolved.model[0] == '\0') {
        weft_log(WEFT_LOG_ERROR, "engine/options", "no model folder given");
        return WEFT_ERR_ARGUMENT;
    }
    WEFT_TRY(check_launch(&resolved));
    WEFT_TRY(check_range("leaves", resolved.leaf_count, WEFT_LEAF_COUNT_MAX));
    WEFT_TRY(check_range("threads", resolved.thread_count, WEFT_CPU_COUNT_MAX));
    WEFT_TRY(check_range("sequences at once", resolved.sequence_count_max, SEQUENCE_COUNT_MAX));
    WEFT_TRY(check_range("candidates", resolved.candidate_count, CANDIDATE_COUNT_MAX));
    WEFT_TRY(check_range("context length", resolved.context_length, INT32_MAX));
    WEFT_TRY(weft_device_kind_parse(resolved.device, &kind, &gpu_index));
    WEFT_TRY(check_word("numerics", resolved.numerics, numerics));
    WEFT_TRY(check_word("comm", resolved.comm, comms));
    WEFT_TRY(check_word("weights", resolved.weights, weights));
    WEFT_TRY(check_word("KV cache type", resolved.kv_dtype, dtypes));
    WEFT_TRY(check_word("quantize", resolved.quantize, quantize));
    WEFT_TRY(copy_texts(arena, &resolved));
    *resolved_out = resolved;
    return WEFT_OK;
}

bool weft_options_are_streamed(const struct weft_engine_options *options)
{
    return strcmp(options->weights, "stream") == 0;
}

enum weft_quantise weft_options_quantise(const struct weft_engine_options *options)
{
    enum weft_quantise quantise = WEFT_QUANTISE_NONE;

    (void)weft_quantise_parse(options->quantize, &quantise); /* checked when resolved */
    return quantise;
}

enum weft_dtype weft_kv_dtype(const struct weft_engine_options *options)
{
    return strcmp(options->kv_dtype, "bf16") == 0 ? WEFT_BF16 : WEFT_F32;
}
