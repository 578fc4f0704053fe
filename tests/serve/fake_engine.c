/*
 * weft.h without a model: a test double that lets the server and the commands be tested for what a real engine does
 * rarely or slowly. Tokens are bytes; token k of an answer depends on the prompt's bytes and k alone.
 *
 * The model's name sets it up: "fake:token_us=1000,context=4096,close_ms=60000" (close takes as long as a long step);
 * with "hold=PATH" no request gets more than its first token while there is a file PATH; with "load=PATH" loading lasts
 * as long as there is one, and ends in an error when "bad" is in it. Words in a prompt make it
 * misbehave: <fail>, the group fails (rank 1) after the fifth token of this request; <wide>, 1000 bytes of text per
 * token; <stuck>, neither a second token nor an end. Every event's text and ids are scribbled over by the next poll:
 * what the server keeps it must have copied.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "weft/gpu.h"
#include "weft/log.h"
#include "weft/weft.h"

enum { REQUEST_MAX = 4096, WIDE_SIZE = 1000, FAIL_AFTER = 5 };

struct request {
    uint64_t id;
    void *user;
    uint32_t prompt_token_count;
    uint32_t max_tokens;
    uint32_t made;
    uint64_t key;
    bool is_cancelled;
    bool is_failing;
    bool is_wide;
    bool is_stuck;
};

struct weft_engine {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct request requests[REQUEST_MAX]; /* the first sequence_count run, the rest wait */
    uint32_t request_count;
    uint32_t sequence_count;
    uint32_t queue_count;
    uint32_t context;
    uint32_t token_us;
    uint32_t close_ms;
    uint64_t last_id;
    int failed_rank;
    char *text; /* of the last poll's events, one slot each */
    int32_t *ids;
    uint32_t slot_count;
    char model[256];
    char hold[256]; /* path; empty: none */
};

static _Thread_local char last_error[256];

static enum weft_status refuse(enum weft_status status, const char *reason)
{
    (void)snprintf(last_error, sizeof(last_error), "%s", reason);
    return status;
}

void weft_engine_options_init(struct weft_engine_options *options)
{
    memset(options, 0, sizeof(*options));
}

static uint32_t setting(const char *model, const char *name, uint32_t fallback)
{
    const char *at = strstr(model, name);

    return at != NULL ? (uint32_t)atol(at + strlen(name)) : fallback;
}

/* What follows `name` up to the next comma; "" without it. */
static void setting_text(const char *model, const char *name, char *text_out, size_t size)
{
    const char *at = strstr(model, name);

    (void)snprintf(text_out, size, "%s", at != NULL ? at + strlen(name) : "");
    text_out[strcspn(text_out, ",")] = '\0';
}

static enum weft_status load(const char *model)
{
    const struct timespec moment = {.tv_nsec = 5000000};
    char path[256];
    char word[4] = "";
    FILE *file;

    setting_text(model, "load=", path, sizeof(path));
    while (path[0] != '\0' && (file = fopen(path, "re")) != NULL) {
        bool is_bad = fread(word, 1, 3, file) == 3 && strncmp(word, "bad", 3) == 0;

        (void)fclose(file);
        if (is_bad) {
            weft_log(WEFT_LOG_ERROR, "fake", "%s: damaged", model);
            return WEFT_ERR_FORMAT;
        }
        (void)nanosleep(&moment, NULL);
    }
    return WEFT_OK;
}

enum weft_status weft_engine_open(const struct weft_engine_options *options, struct weft_engine **out)
{
    struct weft_engine *engine;

    if (strncmp(options->model, "fake:", 5) != 0) {
        weft_log(WEFT_LOG_ERROR, "fake", "%s: cannot open", options->model);
        return WEFT_ERR_MISSING;
    }
    if (options->leading != NULL) {
        WEFT_TRY(options->leading(options->leading_context));
    }
    if (options->memory_table != NULL) {
        options->memory_table(options->callback_context, "rank  weights  KV cache");
    }
    for (uint64_t i = 0; options->progress != NULL && i <= 100; i++) {
        options->progress(options->callback_context, "loading weights", i << 20, 100 << 20);
    }
    WEFT_TRY(load(options->model));
    engine = calloc(1, sizeof(*engine));
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_cond_init(&engine->changed, NULL);
    engine->failed_rank = -1;
    engine->sequence_count = options->sequence_count_max != 0 ? options->sequence_count_max : 16;
    engine->queue_count = options->queue_count_max != 0 ? options->queue_count_max : 1024;
    engine->context = setting(options->model, "context=", 4096);
    engine->token_us = setting(options->model, "token_us=", 0);
    engine->close_ms = setting(options->model, "close_ms=", 0);
    (void)snprintf(engine->model, sizeof(engine->model), "%s", options->model);
    setting_text(options->model, "hold=", engine->hold, sizeof(engine->hold));
    *out = engine;
    return WEFT_OK;
}

bool weft_engine_is_leader(const struct weft_engine *engine)
{
    (void)engine;
    return true;
}

enum weft_status weft_engine_work(struct weft_engine *engine)
{
    (void)engine;
    return WEFT_ERR_STATE;
}

void weft_engine_close(struct weft_engine **engine)
{
    if (*engine != NULL) {
        struct timespec pause = {.tv_sec = (*engine)->close_ms / 1000};

        (void)nanosleep(&pause, NULL);
        pthread_cond_destroy(&(*engine)->changed);
        pthread_mutex_destroy(&(*engine)->mutex);
        free((*engine)->text);
        free((*engine)->ids);
        free(*engine);
        *engine = NULL;
    }
}

void weft_request_init(struct weft_request *request)
{
    memset(request, 0, sizeof(*request));
    request->max_tokens = 256;
    request->top_p = 1;
    request->repetition_penalty = 1;
}

enum weft_status weft_engine_tokenize(struct weft_engine *engine, const char *text, size_t size, bool is_raw,
                                      int32_t **ids_out, size_t *count_out)
{
    int32_t *ids = malloc((size + 1) * sizeof(int32_t));

    (void)engine;
    (void)is_raw;
    for (size_t i = 0; i < size; i++) {
        ids[i] = (unsigned char)text[i];
    }
    *ids_out = ids;
    *count_out = size;
    return WEFT_OK;
}

enum weft_status weft_engine_detokenize(struct weft_engine *engine, const int32_t *ids, size_t count, char **text_out,
                                        size_t *size_out)
{
    char *text = malloc(count + 1);

    (void)engine;
    for (size_t i = 0; i < count; i++) {
        text[i] = (char)ids[i];
    }
    text[count] = 0;
    *text_out = text;
    *size_out = count;
    return WEFT_OK;
}

static bool has_word(const int32_t *ids, size_t count, const char *word)
{
    size_t size = strlen(word);

    for (size_t i = 0; i + size <= count; i++) {
        size_t k = 0;

        while (k < size && ids[i + k] == word[k]) {
            k++;
        }
        if (k == size) {
            return true;
        }
    }
    return false;
}

static enum weft_status submit_ids(struct weft_engine *engine, const struct weft_request *request, const int32_t *ids,
                                   size_t count, uint64_t *id_out)
{
    struct request *own = &engine->requests[engine->request_count];

    if (engine->failed_rank >= 0) {
        return refuse(WEFT_ERR_STATE, "the group has failed");
    }
    if (!(request->temperature >= 0) || !(request->top_p > 0 && request->top_p <= 1)) {
        return refuse(WEFT_ERR_ARGUMENT, "temperature or top_p: out of range");
    }
    if (count >= engine->context) {
        return refuse(WEFT_ERR_LIMIT, "prompt longer than the context");
    }
    if (engine->request_count >= engine->sequence_count + engine->queue_count || engine->request_count == REQUEST_MAX) {
        return refuse(WEFT_ERR_LIMIT, "queue full");
    }
    memset(own, 0, sizeof(*own));
    own->id = ++engine->last_id;
    own->user = request->user;
    own->prompt_token_count = (uint32_t)count;
    own->max_tokens =
        request->max_tokens < engine->context - count ? request->max_tokens : (uint32_t)(engine->context - count);
    for (size_t i = 0; i < count; i++) {
        own->key = own->key * 31 + (uint64_t)ids[i];
    }
    own->is_failing = has_word(ids, count, "<fail>");
    own->is_wide = has_word(ids, count, "<wide>");
    own->is_stuck = has_word(ids, count, "<stuck>");
    engine->request_count++;
    *id_out = own->id;
    return WEFT_OK;
}

enum weft_status weft_engine_submit(struct weft_engine *engine, const struct weft_request *request, uint64_t *id_out)
{
    int32_t *ids = NULL;
    size_t count = request->token_count;
    enum weft_status status;

    if (request->prompt != NULL) {
        WEFT_TRY(weft_engine_tokenize(engine, request->prompt, request->prompt_size, true, &ids, &count));
    }
    pthread_mutex_lock(&engine->mutex);
    status = submit_ids(engine, request, ids != NULL ? ids : request->token_ids, count, id_out);
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->mutex);
    free(ids);
    return status;
}

void weft_engine_cancel(struct weft_engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->mutex);
    for (uint32_t i = 0; i < engine->request_count; i++) {
        engine->requests[i].is_cancelled = engine->requests[i].is_cancelled || engine->requests[i].id == id;
    }
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->mutex);
}

const char *weft_finish_name(enum weft_finish finish)
{
    static const char *const names[] = {"", "stop", "length", "cancelled", "error"};

    return names[finish];
}

/* One event for `request` into slot `slot`; true when it was its last. */
static bool step(struct weft_engine *engine, struct request *request, uint32_t slot, bool is_running,
                 struct weft_event *event)
{
    char *text = engine->text + (size_t)slot * (WIDE_SIZE + 1);

    memset(event, 0, sizeof(*event));
    event->id = request->id;
    event->user = request->user;
    event->text = text;
    text[0] = 0;
    event->token_ids = &engine->ids[slot];
    event->prompt_token_count = request->prompt_token_count;
    if (engine->failed_rank >= 0) {
        event->finish = WEFT_FINISH_ERROR;
        event->status = WEFT_ERR_PEER;
    } else if (request->is_cancelled) {
        event->finish = WEFT_FINISH_CANCELLED;
        event->status = WEFT_ERR_CANCELLED;
    } else if (is_running) {
        int letter = 'a' + (int)((request->key + request->made * 7 + request->made / 5) % 26);

        event->text_size = request->is_wide ? WIDE_SIZE : 1;
        memset(text, letter, event->text_size);
        text[event->text_size] = 0;
        engine->ids[slot] = letter;
        event->token_count = 1;
        request->made++;
        event->timings.ttft_ms = 1;
        (void)snprintf(event->logits_sha256, sizeof(event->logits_sha256), "%064x", (unsigned)request->key);
        if (request->made == request->max_tokens) {
            event->finish = WEFT_FINISH_LENGTH;
        }
        if (request->is_failing && request->made == FAIL_AFTER) {
            engine->failed_rank = 1;
        }
    }
    event->output_token_count = request->made;
    return event->finish != WEFT_FINISH_NONE;
}

static void wait_ms(struct weft_engine *engine, uint32_t timeout_ms)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    (void)pthread_cond_timedwait(&engine->changed, &engine->mutex, &until);
}

static void slots_make(struct weft_engine *engine, uint32_t capacity)
{
    size_t text_size = (size_t)capacity * (WIDE_SIZE + 1);

    if (engine->slot_count < capacity) {
        free(engine->text);
        free(engine->ids);
        engine->text = malloc(text_size);
        engine->ids = malloc(capacity * sizeof(int32_t));
        engine->slot_count = capacity;
    }
    memset(engine->text, '#', text_size);
    memset(engine->ids, 0xff, capacity * sizeof(int32_t));
}

/* Whether a request gets nothing in this step, whatever its place. */
static bool is_held(const struct weft_engine *engine, const struct request *request)
{
    if (request->made == 0) {
        return false;
    }
    return request->is_stuck || (!request->is_cancelled && engine->failed_rank < 0 && engine->hold[0] != '\0' &&
                                 access(engine->hold, F_OK) == 0);
}

enum weft_status weft_engine_poll(struct weft_engine *engine, uint32_t timeout_ms, struct weft_event *events_out,
                                  uint32_t capacity, uint32_t *count_out)
{
    struct timespec pause = {.tv_nsec = (long)engine->token_us * 1000L};
    uint32_t count = 0;
    uint32_t kept = 0;

    pthread_mutex_lock(&engine->mutex);
    if (engine->request_count == 0) {
        if (engine->failed_rank >= 0) {
            pthread_mutex_unlock(&engine->mutex);
            return WEFT_ERR_PEER;
        }
        wait_ms(engine, timeout_ms);
    }
    slots_make(engine, capacity);
    for (uint32_t i = 0; i < engine->request_count; i++) {
        struct request *request = &engine->requests[i];
        bool is_running = i < engine->sequence_count;
        bool is_last = false;

        if (is_held(engine, request)) {
            engine->requests[kept++] = *request;
            continue;
        }
        if (count < capacity && (is_running || request->is_cancelled || engine->failed_rank >= 0)) {
            is_last = step(engine, request, count, is_running, &events_out[count]);
            count++;
        }
        if (!is_last) {
            engine->requests[kept++] = *request;
        }
    }
    engine->request_count = kept;
    pthread_mutex_unlock(&engine->mutex);
    if (count == 0) {
        pause.tv_nsec = 1000000;
    }
    if (pause.tv_nsec > 0) {
        (void)nanosleep(&pause, NULL);
    }
    *count_out = count;
    return WEFT_OK;
}

void weft_engine_info(const struct weft_engine *engine, struct weft_engine_info *info_out)
{
    *info_out = (struct weft_engine_info){
        .model = engine->model,
        .architecture = "FakeForCausalLM",
        .device = "none",
        .comm = "self",
        .parameter_count = 1,
        .vocab_size = 256,
        .context_length = engine->context,
        .rank_count = 1,
        .thread_count = 1,
        .leaf_count = 8,
        .weight_dtype = "f32",
        .kv_dtype = "f32",
    };
}

enum weft_status weft_engine_inspect(const struct weft_engine_options *options, struct weft_model_summary *summary_out,
                                     struct weft_rank_summary *ranks_out, uint32_t capacity)
{
    (void)options;
    (void)ranks_out;
    (void)capacity;
    memset(summary_out, 0, sizeof(*summary_out));
    return WEFT_OK;
}

/* A scrape sees what waits and runs; the rest of the figures is the engine's own affair. */
void weft_engine_stats(const struct weft_engine *engine, struct weft_engine_stats *stats_out)
{
    struct weft_engine *own = (struct weft_engine *)engine;

    memset(stats_out, 0, sizeof(*stats_out));
    pthread_mutex_lock(&own->mutex);
    stats_out->rank_count = 1;
    stats_out->running_max = own->sequence_count;
    stats_out->waiting_max = own->queue_count;
    stats_out->running_count = own->request_count < own->sequence_count ? own->request_count : own->sequence_count;
    stats_out->waiting_count = own->request_count - stats_out->running_count;
    pthread_mutex_unlock(&own->mutex);
}

double weft_histogram_bound_ms(uint32_t index)
{
    return 1 + index;
}

uint32_t weft_engine_collectives(struct weft_engine *engine, struct weft_collective_stats *stats_out, uint32_t capacity)
{
    (void)engine;
    if (capacity > 0) {
        stats_out[0] = (struct weft_collective_stats){"tree_sum", 2, 4096, 0.5};
    }
    return 1;
}

void weft_engine_failure(const struct weft_engine *engine, char *text_out, size_t size)
{
    (void)snprintf(text_out, size, "%s", engine->failed_rank >= 0 ? "rank 1 on loom failed: a thread broke" : "");
}

int weft_engine_failed_rank(const struct weft_engine *engine)
{
    return engine->failed_rank;
}

const char *weft_engine_error(void)
{
    return last_error;
}

const char *weft_version(void)
{
    return "0.1.0";
}

uint32_t weft_gpu_list(const char *module, struct weft_gpu *gpus_out, char *reason_out, size_t reason_size)
{
    (void)module;
    (void)gpus_out;
    snprintf(reason_out, reason_size, "none in a test double");
    return 0;
}

bool weft_gpu_library(const char *module, char *name_out, size_t name_size, char *reason_out, size_t reason_size)
{
    (void)module;
    (void)name_out;
    (void)name_size;
    (void)snprintf(reason_out, reason_size, "none in the tests");
    return false;
}
