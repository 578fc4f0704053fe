/* Requests: validation, tokens, penalties, text, events. */
#include "engine/job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/identity.h"
#include "engine/pages.h"
#include "weft/log.h"

/* Bytes of text reserved per token: most tokens are shorter, so that a step need not grow the buffer. */
enum { TEXT_PER_TOKEN = 8, TEXT_RESERVE_MAX = 64 * 1024, TOKEN_TEXT_SIZE = 1024 };

void weft_request_init(struct weft_request *request)
{
    *request = (struct weft_request){.max_tokens = 256, .top_p = 1.0f, .repetition_penalty = 1.0f};
}

#define REFUSE(status, ...)                                                                                            \
    do {                                                                                                               \
        weft_log_keep_error(__VA_ARGS__);                                                                              \
        return (status);                                                                                               \
    } while (0)

static enum weft_status check_settings(const struct weft_request *request)
{
    if (request->max_tokens == 0) {
        REFUSE(WEFT_ERR_ARGUMENT, "max_tokens is 0: expected at least 1");
    }
    if (!(request->temperature >= 0.0f && request->temperature <= 100.0f)) {
        REFUSE(WEFT_ERR_ARGUMENT, "temperature %g: expected 0 to 100", (double)request->temperature);
    }
    if (!(request->top_p > 0.0f && request->top_p <= 1.0f)) {
        REFUSE(WEFT_ERR_ARGUMENT, "top_p %g: expected more than 0, at most 1", (double)request->top_p);
    }
    if (!(request->min_p >= 0.0f && request->min_p < 1.0f)) {
        REFUSE(WEFT_ERR_ARGUMENT, "min_p %g: expected 0 to less than 1", (double)request->min_p);
    }
    if (!(request->repetition_penalty > 0.0f && request->repetition_penalty <= 100.0f)) {
        REFUSE(WEFT_ERR_ARGUMENT, "repetition_penalty %g: expected more than 0, at most 100 (1: off)",
               (double)request->repetition_penalty);
    }
    if (!(fabsf(request->presence_penalty) <= 100.0f) || !(fabsf(request->frequency_penalty) <= 100.0f)) {
        REFUSE(WEFT_ERR_ARGUMENT, "presence_penalty %g, frequency_penalty %g: expected -100 to 100",
               (double)request->presence_penalty, (double)request->frequency_penalty);
    }
    if (request->prompt == NULL && request->token_ids == NULL) {
        REFUSE(WEFT_ERR_ARGUMENT, "no prompt: neither text nor token ids");
    }
    return WEFT_OK;
}

/* *ids_out [*count_out] from malloc. */
static enum weft_status prompt_tokens(const struct weft_request *request, const struct weft_job_limits *limits,
                                      int32_t **ids_out, size_t *count_out)
{
    int32_t *ids;
    size_t count = request->token_count;

    if (request->token_ids != NULL) {
        ids = malloc((count + 1) * sizeof(*ids));
        if (ids == NULL) {
            REFUSE(WEFT_ERR_MEMORY, "out of memory for a prompt of %zu tokens", count);
        }
        memcpy(ids, request->token_ids, count * sizeof(*ids));
    } else if (limits->tokenizer == NULL) {
        REFUSE(WEFT_ERR_UNSUPPORTED, "the model folder has no tokenizer.json: give token ids instead of text");
    } else {
        WEFT_TRY(weft_tokenizer_encode(limits->tokenizer, request->prompt, request->prompt_size,
                                       request->is_raw ? 0 : WEFT_ENCODE_ADD_SPECIAL, &ids, &count));
    }
    *ids_out = ids;
    *count_out = count;
    return WEFT_OK;
}

static enum weft_status check_tokens(const int32_t *ids, size_t count, const struct weft_job_limits *limits)
{
    if (count == 0) {
        REFUSE(WEFT_ERR_ARGUMENT, "the prompt has no tokens");
    }
    if (count >= limits->context_length) {
        REFUSE(WEFT_ERR_LIMIT, "prompt of %zu tokens: the context holds %u, one of them for the answer", count,
               limits->context_length);
    }
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= limits->vocab_size) {
            REFUSE(WEFT_ERR_ARGUMENT, "token id %d at position %zu: expected 0 to %u", ids[i], i,
                   limits->vocab_size - 1);
        }
    }
    return WEFT_OK;
}

/* ---- penalties ---- */

static bool has_output_penalty(const struct weft_job *job)
{
    return job->presence != 0.0f || job->frequency != 0.0f;
}

static bool has_penalty(const struct weft_job *job)
{
    return job->repetition != 1.0f || has_output_penalty(job);
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* Room for every different token of prompt and output; the prompt's are listed now. */
static enum weft_status penalties_init(struct weft_job *job)
{
    struct weft_penalties *penalties = &job->penalties;
    size_t room = (size_t)job->prompt_count + job->output_max;

    if (!has_penalty(job)) {
        return WEFT_OK;
    }
    penalties->ids = malloc(room * sizeof(*penalties->ids));
    penalties->counts = calloc(room, sizeof(*penalties->counts));
    penalties->subtracts = calloc(room, sizeof(*penalties->subtracts));
    if (penalties->ids == NULL || penalties->counts == NULL || penalties->subtracts == NULL) {
        return WEFT_ERR_MEMORY;
    }
    if (job->repetition == 1.0f) {
        return WEFT_OK;
    }
    for (uint32_t i = 0; i < job->prompt_count; i++) {
        penalties->ids[i] = (uint32_t)job->token_ids[i];
    }
    qsort(penalties->ids, job->prompt_count, sizeof(*penalties->ids), compare_ids);
    for (uint32_t i = 0; i < job->prompt_count; i++) {
        if (i == 0 || penalties->ids[i] != penalties->ids[penalties->count - 1]) {
            penalties->ids[penalties->count++] = penalties->ids[i];
        }
    }
    return WEFT_OK;
}

static void penalties_add(struct weft_job *job, uint32_t id)
{
    struct weft_penalties *penalties = &job->penalties;
    uint32_t begin = 0;
    uint32_t end = penalties->count;

    if (penalties->ids == NULL) {
        return;
    }
    while (begin < end) {
        uint32_t middle = begin + (end - begin) / 2;
        if (penalties->ids[middle] < id) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    if (begin == penalties->count || penalties->ids[begin] != id) {
        size_t moved = penalties->count - begin;
        memmove(penalties->ids + begin + 1, penalties->ids + begin, moved * sizeof(*penalties->ids));
        memmove(penalties->counts + begin + 1, penalties->counts + begin, moved * sizeof(*penalties->counts));
        memmove(penalties->subtracts + begin + 1, penalties->subtracts + begin, moved * sizeof(*penalties->subtracts));
        penalties->ids[begin] = id;
        penalties->counts[begin] = 0;
        penalties->count++;
    }
    penalties->counts[begin]++;
    penalties->subtracts[begin] = job->presence + job->frequency * (float)penalties->counts[begin];
}

/* ---- opening ---- */

static enum weft_status job_alloc(struct weft_job *job, const struct weft_request *request,
                                  const struct weft_job_limits *limits)
{
    size_t reserve = (size_t)job->output_max * TEXT_PER_TOKEN;

    reserve = reserve > TEXT_RESERVE_MAX ? TEXT_RESERVE_MAX : reserve;
    job->sequence.pages =
        malloc(((size_t)weft_pages_for(job->sequence.position_count_max) + 1) * sizeof(*job->sequence.pages));
    job->pending.data = malloc(reserve);
    job->handed.data = malloc(reserve);
    job->fresh.data = malloc(TOKEN_TEXT_SIZE + WEFT_STOP_SIZE_MAX);
    job->fresh.capacity = TOKEN_TEXT_SIZE + WEFT_STOP_SIZE_MAX;
    job->pending.capacity = reserve;
    job->handed.capacity = reserve;
    if (job->sequence.pages == NULL || job->pending.data == NULL || job->handed.data == NULL ||
        job->fresh.data == NULL || penalties_init(job) != WEFT_OK) {
        REFUSE(WEFT_ERR_MEMORY, "out of memory for a request of %u tokens", job->prompt_count + job->output_max);
    }
    if (limits->tokenizer != NULL) {
        const char *text;
        size_t size;
        /* One token now, so that its buffers exist before the first step. */
        WEFT_TRY(weft_detokenizer_open(limits->tokenizer, true, &job->detokenizer));
        WEFT_TRY(weft_detokenizer_push(job->detokenizer, job->token_ids[0], &text, &size));
        weft_detokenizer_reset(job->detokenizer);
    }
    if (request->has_logits_digest) {
        job->digest = EVP_MD_CTX_new();
        if (job->digest == NULL || EVP_DigestInit_ex(job->digest, EVP_sha256(), NULL) != 1) {
            REFUSE(WEFT_ERR_MEMORY, "SHA-256 is not available");
        }
    }
    return weft_stop_init(&job->stop, request->stop, request->stop_count);
}

/* Takes ids[count] (from malloc) over. */
static enum weft_status job_init(struct weft_job *job, const struct weft_request *request,
                                 const struct weft_job_limits *limits, int32_t *ids, size_t count)
{
    uint32_t room = limits->context_length - (uint32_t)count;

    job->token_ids = ids;
    job->prompt_count = (uint32_t)count;
    job->output_max = request->max_tokens < room ? request->max_tokens : room;
    int32_t *grown = realloc(ids, (count + job->output_max) * sizeof(*ids));
    if (grown == NULL) {
        REFUSE(WEFT_ERR_MEMORY, "out of memory for a request of %zu tokens", count + job->output_max);
    }
    job->token_ids = grown;
    job->sequence.token_ids = grown;
    job->sequence.token_count = (uint32_t)count;
    job->sequence.position_count_max = (uint32_t)count + job->output_max - 1; /* the last token is never fed */
    job->sampling = (struct weft_sampling){.temperature = request->temperature,
                                           .top_k = request->top_k,
                                           .top_p = request->top_p,
                                           .min_p = request->min_p,
                                           .seed = request->seed};
    job->repetition = request->repetition_penalty;
    job->presence = request->presence_penalty;
    job->frequency = request->frequency_penalty;
    job->is_eos_ignored = request->is_eos_ignored;
    job->user = request->user;
    return job_alloc(job, request, limits);
}

enum weft_status weft_job_open(const struct weft_request *request, const struct weft_job_limits *limits,
                               struct weft_job **out)
{
    int32_t *ids;
    size_t count;
    int64_t submit_ns = weft_clock_ns();

    WEFT_TRY(check_settings(request));
    WEFT_TRY(prompt_tokens(request, limits, &ids, &count));
    enum weft_status status = check_tokens(ids, count, limits);
    struct weft_job *job = status == WEFT_OK ? calloc(1, sizeof(*job)) : NULL;
    if (job == NULL) {
        free(ids);
        if (status == WEFT_OK) {
            REFUSE(WEFT_ERR_MEMORY, "out of memory for a request");
        }
        return status;
    }
    job->submit_ns = submit_ns;
    status = job_init(job, request, limits, ids, count);
    if (status != WEFT_OK) {
        weft_job_close(&job);
        return status;
    }
    *out = job;
    return WEFT_OK;
}

void weft_job_close(struct weft_job **job_pointer)
{
    struct weft_job *job = *job_pointer;

    if (job == NULL) {
        return;
    }
    weft_stop_fini(&job->stop);
    weft_detokenizer_close(&job->detokenizer);
    EVP_MD_CTX_free(job->digest);
    free(job->penalties.ids);
    free(job->penalties.counts);
    free(job->penalties.subtracts);
    free(job->fresh.data);
    free(job->pending.data);
    free(job->handed.data);
    free(job->sequence.pages);
    free(job->token_ids);
    free(job);
    *job_pointer = NULL;
}

/* ---- running ---- */

uint32_t weft_job_candidate_count(const struct weft_job *job, uint32_t count_max)
{
    if (weft_sampling_is_greedy(&job->sampling)) {
        return 1;
    }
    return job->sampling.top_k > 0 && job->sampling.top_k < count_max ? job->sampling.top_k : count_max;
}

void weft_job_fill_row(const struct weft_job *job, uint32_t token_row, uint32_t candidate_count_max,
                       struct weft_step_row *row_out)
{
    bool is_greedy = weft_sampling_is_greedy(&job->sampling);

    *row_out = (struct weft_step_row){.token_row = token_row,
                                      .inv_temperature = weft_sampling_inv_temperature(&job->sampling),
                                      .has_full = !is_greedy &&
                                                  (job->is_row_wanted || job->sampling.top_k > candidate_count_max),
                                      .has_raw = job->digest != NULL,
                                      .repetition = job->repetition,
                                      .penalty_count = job->penalties.count,
                                      .penalty_ids = job->penalties.ids,
                                      .penalty_subtracts = job->penalties.subtracts};
}

static bool is_eos(const struct weft_job *job, const struct weft_model_config *config, int32_t token)
{
    for (uint32_t i = 0; i < config->eos_token_count && !job->is_eos_ignored; i++) {
        if (config->eos_token_ids[i] == token) {
            return true;
        }
    }
    return false;
}

/* Text of the detokenizer goes through the stop strings to job->fresh. */
static enum weft_status add_text(struct weft_job *job, const char *text, size_t size, bool *is_stopped_out)
{
    WEFT_TRY(weft_stop_push(&job->stop, text, size, &text, &size, is_stopped_out));
    return weft_text_append(&job->fresh, text, size);
}

/* The answer ends without a stop string: what the detokenizer holds back, then what the stop strings do. */
static enum weft_status end_text(struct weft_job *job, enum weft_finish *finish)
{
    const char *text = "";
    size_t size = 0;
    bool is_stopped;

    if (job->detokenizer != NULL) {
        WEFT_TRY(weft_detokenizer_flush(job->detokenizer, &text, &size));
    }
    WEFT_TRY(add_text(job, text, size, &is_stopped));
    if (is_stopped) {
        *finish = WEFT_FINISH_STOP;
        return WEFT_OK;
    }
    weft_stop_flush(&job->stop, &text, &size);
    return weft_text_append(&job->fresh, text, size);
}

enum weft_status weft_job_take(struct weft_job *job, const struct weft_model_config *config, int32_t token,
                               enum weft_finish *finish_out)
{
    const char *text = "";
    size_t size = 0;
    bool is_stopped = false;
    enum weft_finish finish = WEFT_FINISH_NONE;

    job->fresh.size = 0;
    job->token_ids[job->prompt_count + job->output_count++] = token;
    job->sequence.token_count++;
    penalties_add(job, (uint32_t)token);
    if (is_eos(job, config, token)) {
        finish = WEFT_FINISH_STOP;
    } else {
        if (job->detokenizer != NULL) {
            WEFT_TRY(weft_detokenizer_push(job->detokenizer, token, &text, &size));
        }
        WEFT_TRY(add_text(job, text, size, &is_stopped));
        if (!is_stopped && job->output_count == job->output_max) {
            finish = WEFT_FINISH_LENGTH;
        }
    }
    if (finish != WEFT_FINISH_NONE) {
        WEFT_TRY(end_text(job, &finish));
    }
    *finish_out = is_stopped ? WEFT_FINISH_STOP : finish;
    return WEFT_OK;
}

/* ---- telling ---- */

enum weft_status weft_text_append(struct weft_text *text, const char *data, size_t size)
{
    if (size + 1 > text->capacity - text->size) {
        size_t capacity = (text->size + size + 1) * 2;
        char *grown = realloc(text->data, capacity);
        if (grown == NULL) {
            weft_log(WEFT_LOG_ERROR, "engine/job", "out of memory for %zu bytes of text", capacity);
            return WEFT_ERR_MEMORY;
        }
        text->data = grown;
        text->capacity = capacity;
    }
    if (size > 0) {
        memcpy(text->data + text->size, data, size);
    }
    text->size += size;
    text->data[text->size] = '\0';
    return WEFT_OK;
}

static double milliseconds(int64_t from_ns, int64_t to_ns)
{
    return from_ns == 0 || to_ns == 0 ? 0.0 : (double)(to_ns - from_ns) / 1e6;
}

static void fill_timings(const struct weft_job *job, struct weft_timings *timings)
{
    *timings = (struct weft_timings){.queue_ms = milliseconds(job->submit_ns, job->first_step_ns),
                                     .prefill_ms = milliseconds(job->first_step_ns, job->first_token_ns),
                                     .decode_ms = milliseconds(job->first_token_ns, job->last_token_ns),
                                     .ttft_ms = milliseconds(job->submit_ns, job->first_token_ns)};
    if (job->output_count > 1 && timings->decode_ms > 0.0) {
        timings->tokens_per_second = (job->output_count - 1) / timings->decode_ms * 1e3;
    }
}

void weft_job_queue_ready(struct weft_job **first, struct weft_job **last, struct weft_job *job)
{
    if (job->is_ready) {
        return;
    }
    job->is_ready = true;
    job->ready_next = NULL;
    if (*last == NULL) {
        *first = job;
    } else {
        (*last)->ready_next = job;
    }
    *last = job;
}

void weft_job_list_add(struct weft_job **first, struct weft_job *job)
{
    job->previous = NULL;
    job->next = *first;
    if (job->next != NULL) {
        job->next->previous = job;
    }
    *first = job;
}

void weft_job_list_remove(struct weft_job **first, struct weft_job *job)
{
    if (job->previous != NULL) {
        job->previous->next = job->next;
    } else {
        *first = job->next;
    }
    if (job->next != NULL) {
        job->next->previous = job->previous;
    }
}

void weft_job_event(struct weft_job *job, struct weft_event *event_out)
{
    struct weft_text handed = job->pending;

    job->pending = job->handed;
    job->pending.size = 0;
    job->handed = handed;
    *event_out = (struct weft_event){.id = job->id,
                                     .user = job->user,
                                     .text = handed.size == 0 ? "" : handed.data,
                                     .text_size = handed.size,
                                     .token_ids = job->token_ids + job->prompt_count + job->delivered_count,
                                     .token_count = job->published_count - job->delivered_count,
                                     .finish = job->finish,
                                     .status = job->status};
    job->delivered_count = job->published_count;
    if (job->finish != WEFT_FINISH_NONE) {
        event_out->prompt_token_count = job->prompt_count;
        event_out->output_token_count = job->published_count;
        fill_timings(job, &event_out->timings);
        memcpy(event_out->logits_sha256, job->logits_sha256, sizeof(job->logits_sha256));
    }
}

const char *weft_finish_name(enum weft_finish finish)
{
    static const char *const names[] = {"", "stop", "length", "cancelled", "error"};

    return (size_t)finish < sizeof(names) / sizeof(names[0]) ? names[finish] : "";
}
