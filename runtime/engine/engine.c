/*
 * weft/weft.h: how a group is launched, and one engine around group and controller.
 *
 * Ranks other than the leader: children of WEFT_LAUNCH_LOCAL live and end inside open; threads of WEFT_LAUNCH_THREADS
 * run beside the leader until close; with TCP and MPI the caller brings its own process into weft_engine_work().
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "engine/controller.h"
#include "engine/group.h"
#include "engine/identity.h"
#include "engine/options.h"
#include "engine/rendezvous.h"
#include "engine/worker.h"
#include "model/quantise.h"
#include "weft/log.h"
#include "weft/tokenizer.h"
#include "weft/weft.h"

#define NS_PER_MS 1e6

/* A worker of WEFT_LAUNCH_THREADS. */
struct rank_thread {
    struct weft_engine *engine;
    struct weft_bootstrap *bootstrap; /* handed over to the thread */
    uint32_t rank;
    pthread_t thread;
};

struct weft_engine {
    struct weft_arena arena;
    struct weft_engine_options options; /* resolved; texts in the arena */
    struct weft_identity identity;
    char weight_text[WEFT_WEIGHTS_TEXT_SIZE]; /* filled by weft_engine_open() */
    struct weft_tokenizer *tokenizer;         /* owned; leader, when the folder has one */
    struct weft_group group;
    bool has_group;
    struct weft_controller *controller; /* owned; leader */
    struct weft_worker *worker;         /* owned; a worker in a process of its own */
    struct rank_thread *threads;        /* [thread_count], owned */
    uint32_t thread_count;
    bool lacks_model; /* no folder here: the leader streams it */
    double load_ms;   /* all of opening; of it: */
    double meet_ms;   /* until all ranks had come */
    double examine_ms;
};

/* ---- launching ---- */

/* Refusals that need no other rank come before any is started. */
static enum weft_status check_leaves(const struct weft_engine_options *options)
{
    struct weft_range leaves[WEFT_RANK_COUNT_MAX];
    uint32_t rank_count = options->rank_count;

    if (rank_count == 0) {
        if (options->launch == WEFT_LAUNCH_MPI) {
            return WEFT_OK; /* mpirun knows; the leader checks when the ranks have met */
        }
        rank_count = 1;
    }
    return weft_deal_leaves(options->leaf_count, rank_count, options->shares, options->share_count, leaves);
}

static enum weft_status check_rank_count(const struct weft_engine_options *options, struct weft_bootstrap *bootstrap)
{
    uint32_t found = weft_bootstrap_rank_count(bootstrap);

    if (options->rank_count != 0 && options->rank_count != found) {
        weft_log(WEFT_LOG_ERROR, "engine", "%u ranks asked for, but %s started %u", options->rank_count,
                 weft_bootstrap_kind(bootstrap), found);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

static enum weft_status open_tokenizer(struct weft_engine *engine)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/tokenizer.json", engine->options.model);
    if (access(path, F_OK) != 0) {
        weft_log(WEFT_LOG_WARN, "engine", "%s is missing: only requests with token ids can be answered", path);
        return WEFT_OK;
    }
    return weft_tokenizer_open(engine->options.model, &engine->tokenizer);
}

/* Configuration and fingerprints, as far as this rank has them; the leader's tokenizer. */
static enum weft_status examine(struct weft_engine *engine, bool is_leader)
{
    int64_t begin = weft_clock_ns();

    engine->lacks_model = !is_leader && weft_options_are_streamed(&engine->options);
    if (engine->lacks_model) {
        WEFT_TRY(weft_identity_read_options(&engine->options, &engine->identity));
    } else {
        WEFT_TRY(weft_identity_read(&engine->options, &engine->identity));
    }
    if (is_leader) {
        WEFT_TRY(open_tokenizer(engine));
    }
    engine->examine_ms = (double)(weft_clock_ns() - begin) / NS_PER_MS;
    return WEFT_OK;
}

/* ---- ranks ---- */

/* Whole life of a worker whose process or thread is ours: join, work, leave. Takes the bootstrap over. */
static enum weft_status live_as_worker(struct weft_engine *engine, struct weft_bootstrap *bootstrap)
{
    const struct weft_group_args args = {
        .options = &engine->options, .identity = &engine->identity, .status = WEFT_OK, .generation = 1};
    struct weft_group group;
    struct weft_worker *worker = NULL;

    WEFT_TRY(weft_group_open(&args, bootstrap, &group));
    const struct weft_worker_options worker_options = {.group = &group};
    enum weft_status status = weft_worker_open(&worker_options, &worker);
    if (status == WEFT_OK) {
        status = weft_worker_run(worker);
    } else {
        (void)weft_group_fail(&group, status);
    }
    weft_worker_close(&worker);
    weft_group_close(&group);
    return status;
}

static void *run_rank_thread(void *context)
{
    struct rank_thread *thread = context;

    weft_log_set_rank((int)thread->rank);
    if (live_as_worker(thread->engine, thread->bootstrap) != WEFT_OK) {
        return NULL; /* the leader has been told and reports it */
    }
    return NULL;
}

/* *leader_out <- the leader's bootstrap; every other rank gets a thread. */
static enum weft_status start_threads(struct weft_engine *engine, struct weft_bootstrap **leader_out)
{
    uint32_t rank_count = engine->options.rank_count == 0 ? 1 : engine->options.rank_count;
    struct weft_bootstrap *bootstraps[WEFT_RANK_COUNT_MAX];

    engine->threads = calloc(rank_count, sizeof(*engine->threads));
    if (engine->threads == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    WEFT_TRY(weft_bootstrap_open_threads(rank_count, bootstraps));
    *leader_out = bootstraps[0];
    for (uint32_t r = 1; r < rank_count; r++) {
        struct rank_thread *thread = &engine->threads[engine->thread_count];
        *thread = (struct rank_thread){.engine = engine, .bootstrap = bootstraps[r], .rank = r};
        int error = pthread_create(&thread->thread, NULL, run_rank_thread, thread);
        if (error != 0) {
            weft_log(WEFT_LOG_ERROR, "engine", "thread of rank %u: %s", r, strerror(error));
            for (; r < rank_count; r++) {
                weft_bootstrap_close(&bootstraps[r]);
            }
            weft_bootstrap_close(leader_out);
            return WEFT_ERR_IO;
        }
        engine->thread_count++;
    }
    return WEFT_OK;
}

/*
 * A rank that the user's launcher started says why it ends. Under mpirun the leader has already said so on the same
 * terminal, in more words; elsewhere this rank's log may be the only one that its host's owner reads.
 */
static void log_refusal(const char *kind)
{
    char reason[512];

    snprintf(reason, sizeof(reason), "%s", weft_log_last_error());
    if (strcmp(kind, "local") != 0 && strcmp(kind, "threads") != 0) {
        weft_log(strcmp(kind, "tcp") == 0 ? WEFT_LOG_ERROR : WEFT_LOG_INFO, "engine", "this rank ends: %s", reason);
    }
}

static enum weft_status say_leading(const struct weft_engine_options *options)
{
    return options->leading != NULL ? options->leading(options->leading_context) : WEFT_OK;
}

/* The group in this process, over an open bootstrap, which is taken over. Never returns in a forked child. */
static enum weft_status form_group(struct weft_engine *engine, struct weft_bootstrap *bootstrap)
{
    const char *kind = weft_bootstrap_kind(bootstrap);
    struct weft_group_args args = {
        .options = &engine->options, .identity = &engine->identity, .status = WEFT_OK, .generation = 1};
    bool is_leader = weft_bootstrap_rank(bootstrap) == 0;

    if (!is_leader && strcmp(kind, "local") == 0) {
        _exit(live_as_worker(engine, bootstrap) == WEFT_OK ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    /* Only the leader reports what every rank would find (a damaged model); the others send it their reason. */
    weft_log_set_quiet(!is_leader);
    args.status = check_rank_count(&engine->options, bootstrap);
    if (args.status == WEFT_OK && is_leader && engine->options.launch != WEFT_LAUNCH_TCP) {
        args.status = say_leading(&engine->options);
    }
    if (args.status == WEFT_OK && engine->options.launch == WEFT_LAUNCH_MPI) {
        args.status = examine(engine, is_leader);
    }
    args.lacks_model = engine->lacks_model;
    enum weft_status status = weft_group_open(&args, bootstrap, &engine->group);
    weft_log_set_quiet(false);
    if (status != WEFT_OK && !is_leader) {
        log_refusal(kind);
    }
    engine->has_group = status == WEFT_OK;
    return status;
}

static enum weft_status start_rank(struct weft_engine *engine)
{
    const struct weft_controller_options controller_options = {
        .group = &engine->group, .options = &engine->options, .tokenizer = engine->tokenizer};
    const struct weft_worker_options worker_options = {.group = &engine->group};
    enum weft_status status = engine->group.rank == 0 ? weft_controller_open(&controller_options, &engine->controller)
                                                      : weft_worker_open(&worker_options, &engine->worker);

    if (status != WEFT_OK) {
        (void)weft_group_fail(&engine->group, status);
    }
    return status;
}

/*
 * All that this rank can find out alone, before it meets the others: a bad folder starts nothing. Under MPI who leads
 * is known only then, and all come at the same time anyhow.
 */
static enum weft_status prepare(struct weft_engine *engine, const struct weft_engine_options *options)
{
    bool is_leader = options->launch != WEFT_LAUNCH_TCP || options->rank == 0;

    if (options->launch == WEFT_LAUNCH_TCP && options->rank != WEFT_RANK_ANY) {
        weft_log_set_rank((int)options->rank);
    }
    WEFT_TRY(weft_options_resolve(options, &engine->arena, &engine->options));
    WEFT_TRY(check_leaves(&engine->options));
    if (options->launch == WEFT_LAUNCH_TCP && is_leader) {
        WEFT_TRY(say_leading(&engine->options));
    }
    return options->launch == WEFT_LAUNCH_MPI ? WEFT_OK : examine(engine, is_leader);
}

/* The others are not to wait for a rank that knows by itself that it cannot take part. */
static void excuse(const struct weft_engine_options *options, enum weft_status status)
{
    char trouble[512];

    snprintf(trouble, sizeof(trouble), "%s", weft_log_last_error());
    weft_rendezvous_excuse(options, status, trouble);
    weft_log_keep_error("%s", trouble);
}

static enum weft_status open_all(struct weft_engine *engine, const struct weft_engine_options *options)
{
    struct weft_bootstrap *bootstrap = NULL;
    enum weft_status status = prepare(engine, options);

    if (status != WEFT_OK) {
        excuse(options, status);
        return status;
    }
    int64_t begin = weft_clock_ns();
    if (options->launch == WEFT_LAUNCH_THREADS) {
        WEFT_TRY(start_threads(engine, &bootstrap));
    } else {
        WEFT_TRY(weft_rendezvous_open(&engine->options, &bootstrap));
    }
    engine->meet_ms = (double)(weft_clock_ns() - begin) / NS_PER_MS;
    WEFT_TRY(form_group(engine, bootstrap));
    return start_rank(engine);
}

/* What the time until here was made of; the first step is the caller's to time. */
static void log_start(const struct weft_engine *engine)
{
    if (engine->group.rank == 0) {
        weft_log(WEFT_LOG_DEBUG, "engine",
                 "start: ranks met after %.0f ms, model examined in %.0f ms, weights and the rest in %.0f ms",
                 engine->meet_ms, engine->examine_ms, engine->load_ms - engine->meet_ms - engine->examine_ms);
    }
}

/* ---- the API ---- */

enum weft_status weft_engine_open(const struct weft_engine_options *options, struct weft_engine **out)
{
    int64_t begin = weft_clock_ns();
    struct weft_engine *engine = calloc(1, sizeof(*engine));

    if (engine == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    enum weft_status status = open_all(engine, options);
    if (status != WEFT_OK) {
        weft_engine_close(&engine);
        return status;
    }
    engine->load_ms = (double)(weft_clock_ns() - begin) / NS_PER_MS;
    log_start(engine);
    (void)weft_weights_text(&engine->identity.config, engine->weight_text);
    *out = engine;
    return WEFT_OK;
}

bool weft_engine_is_leader(const struct weft_engine *engine)
{
    return engine->group.rank == 0;
}

enum weft_status weft_engine_work(struct weft_engine *engine)
{
    if (engine->worker == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine", "weft_engine_work() is for ranks other than the leader");
        return WEFT_ERR_STATE;
    }
    enum weft_status status = weft_worker_run(engine->worker);
    weft_worker_close(&engine->worker);
    return status;
}

void weft_engine_close(struct weft_engine **engine_pointer)
{
    struct weft_engine *engine = *engine_pointer;

    if (engine == NULL) {
        return;
    }
    weft_controller_close(&engine->controller);
    if (engine->worker != NULL) {
        weft_bootstrap_abort(engine->group.bootstrap, engine->group.rank, "closed while the group was running");
        weft_worker_close(&engine->worker);
    }
    if (engine->has_group) {
        weft_group_close(&engine->group);
    }
    for (uint32_t i = 0; i < engine->thread_count; i++) {
        pthread_join(engine->threads[i].thread, NULL);
    }
    weft_tokenizer_close(&engine->tokenizer);
    free(engine->threads);
    weft_arena_fini(&engine->arena);
    free(engine);
    *engine_pointer = NULL;
}

/* Requests belong to the leader. */
static enum weft_status check_leader(const struct weft_engine *engine)
{
    if (engine->controller == NULL) {
        weft_log_keep_error("only the leader takes requests: this is rank %u", engine->group.rank);
        return WEFT_ERR_STATE;
    }
    return WEFT_OK;
}

enum weft_status weft_engine_submit(struct weft_engine *engine, const struct weft_request *request, uint64_t *id_out)
{
    WEFT_TRY(check_leader(engine));
    return weft_controller_submit(engine->controller, request, id_out);
}

void weft_engine_cancel(struct weft_engine *engine, uint64_t id)
{
    if (engine->controller != NULL) {
        weft_controller_cancel(engine->controller, id);
    }
}

enum weft_status weft_engine_poll(struct weft_engine *engine, uint32_t timeout_ms, struct weft_event *events_out,
                                  uint32_t capacity, uint32_t *count_out)
{
    WEFT_TRY(check_leader(engine));
    return weft_controller_poll(engine->controller, timeout_ms, events_out, capacity, count_out);
}

static enum weft_status check_tokenizer(const struct weft_engine *engine)
{
    if (engine->tokenizer == NULL) {
        weft_log_keep_error("%s has no tokenizer.json, or this rank is not the leader", engine->options.model);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

enum weft_status weft_engine_tokenize(struct weft_engine *engine, const char *text, size_t size, bool is_raw,
                                      int32_t **ids_out, size_t *count_out)
{
    WEFT_TRY(check_tokenizer(engine));
    return weft_tokenizer_encode(engine->tokenizer, text, size, is_raw ? 0 : WEFT_ENCODE_ADD_SPECIAL, ids_out,
                                 count_out);
}

enum weft_status weft_engine_detokenize(struct weft_engine *engine, const int32_t *ids, size_t count, char **text_out,
                                        size_t *size_out)
{
    WEFT_TRY(check_tokenizer(engine));
    return weft_tokenizer_decode(engine->tokenizer, ids, count, true, text_out, size_out);
}

void weft_engine_info(const struct weft_engine *engine, struct weft_engine_info *info_out)
{
    const struct weft_model_config *config = &engine->identity.config;

    *info_out =
        (struct weft_engine_info){.model = engine->options.model,
                                  .architecture = config->architecture,
                                  .device = weft_device_name(engine->group.device),
                                  .comm = weft_comm_backend(engine->group.comm),
                                  .parameter_count = config->parameter_count,
                                  .vocab_size = config->vocab_size,
                                  .context_length = engine->group.limits.context_length,
                                  .rank_count = engine->group.rank_count,
                                  .thread_count = engine->group.thread_count,
                                  .leaf_count = engine->group.leaf_count,
                                  .weight_dtype = weft_dtype_name(weft_quantise_layer(config->quantise, config->dtype)),
                                  .weight_text = engine->weight_text,
                                  .kv_dtype = engine->options.kv_dtype,
                                  .load_ms = engine->load_ms};
}

void weft_engine_stats(const struct weft_engine *engine, struct weft_engine_stats *stats_out)
{
    *stats_out = (struct weft_engine_stats){0};
    if (engine->controller != NULL) {
        weft_controller_stats(engine->controller, stats_out);
    }
}

uint32_t weft_engine_collectives(struct weft_engine *engine, struct weft_collective_stats *stats_out, uint32_t capacity)
{
    static const char *const names[WEFT_COMM_OP_COUNT] = {"tree_sum", "all_gather", "broadcast", "barrier"};
    struct weft_comm_stats stats = {0};

    if (engine->controller != NULL) {
        weft_controller_comm_stats(engine->controller, &stats);
    }
    for (uint32_t i = 0; i < WEFT_COMM_OP_COUNT && i < capacity; i++) {
        stats_out[i] = (struct weft_collective_stats){.name = names[i],
                                                      .call_count = stats.ops[i].call_count,
                                                      .byte_count = stats.ops[i].byte_count,
                                                      .time_ms = (double)stats.ops[i].time_ns / NS_PER_MS};
    }
    return WEFT_COMM_OP_COUNT;
}

int weft_engine_failed_rank(const struct weft_engine *engine)
{
    if (engine->controller != NULL) {
        return weft_controller_failed_rank(engine->controller);
    }
    return engine->has_group ? weft_bootstrap_failed_rank(engine->group.bootstrap) : -1;
}

void weft_engine_failure(const struct weft_engine *engine, char *text_out, size_t size)
{
    uint32_t rank;

    text_out[0] = '\0';
    if (engine->controller != NULL) {
        weft_controller_failure(engine->controller, text_out, size);
    } else if (engine->has_group) {
        (void)weft_bootstrap_lost(engine->group.bootstrap, &rank, text_out, size);
    }
}

const char *weft_engine_error(void)
{
    return weft_log_last_error();
}
