/*
 * The controller's loop and the three doors to it.
 *
 * The mutex guards the lists of jobs, the scheduler and what jobs share; a step runs without it. Invariant: a job
 * without its last event is in `jobs`, and the scheduler knows it unless it is still in the inbox.
 */
#include "engine/controller.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/handshake.h"
#include "engine/rendezvous.h"
#include "engine/stats.h"
#include "engine/step.h"
#include "weft/log.h"

/* How long the loop may take to notice what the heartbeats know. */
enum { STUCK_NS = 200000000 };
/* How long close waits for the step that runs, and again when it has ended the group: nobody gets what it makes. */
enum { CLOSE_STEP_MS = 100 };

enum life { LIFE_RUNNING, LIFE_CLOSING, LIFE_FAILED };

struct weft_controller {
    struct weft_controller_options options;
    struct weft_group *group;
    struct weft_stepper *stepper;        /* owned */
    struct weft_schedule_entry *entries; /* [sequence_count_max] */
    struct weft_step_result *results;    /* [sequence_count_max] */
    struct weft_pages pages;
    int log_rank;
    int wake_fd;
    pthread_t thread;
    bool has_thread;

    pthread_mutex_t mutex;
    pthread_cond_t news;
    enum life life;
    bool has_ended; /* the loop */
    struct weft_scheduler scheduler;
    struct weft_job *jobs;        /* all that have not had their last event handed out */
    struct weft_job *inbox_first; /* submitted, not yet seen by the loop; linked by sequence.next */
    struct weft_job *inbox_last;
    uint32_t inbox_count;
    uint32_t cancel_count; /* jobs marked since the loop looked */
    struct weft_job *ready_first;
    struct weft_job *ready_last;
    struct weft_job *told; /* last events handed out: freed at the next poll; linked by next */
    uint64_t last_id;
    enum weft_status failure;
    int failed_rank;
    char failure_text[WEFT_REASON_SIZE]; /* the first error, with its place in the code */
    char loss_text[WEFT_REASON_SIZE];    /* the rank, its host and why; empty while the group lives */
    int64_t lost_ns;                     /* when poll first saw a loss that the loop has not noticed */
    struct weft_comm_stats comm_stats;

    struct weft_stats stats; /* read without the mutex */
};

/* ---- jobs; under the mutex ---- */

static void tell(struct weft_controller *controller, struct weft_job *job)
{
    weft_job_queue_ready(&controller->ready_first, &controller->ready_last, job);
    pthread_cond_signal(&controller->news);
}

/* The numbers of those who wait, run and hold pages have changed. */
static void note_load(struct weft_controller *controller)
{
    weft_stats_load(&controller->stats, controller->inbox_count + controller->scheduler.queue_count,
                    controller->scheduler.running_count, controller->pages.page_count - controller->pages.free_count);
}

static void finish(struct weft_controller *controller, struct weft_job *job, enum weft_finish how,
                   enum weft_status status)
{
    uint8_t digest[WEFT_SHA256_SIZE];

    if (job->finish != WEFT_FINISH_NONE) {
        return;
    }
    weft_scheduler_remove(&controller->scheduler, &job->sequence);
    note_load(controller);
    weft_stats_finish(&controller->stats, how, job->last_token_ns - job->submit_ns);
    if (job->digest != NULL && EVP_DigestFinal_ex(job->digest, digest, NULL) == 1) {
        weft_sha256_text(digest, job->logits_sha256);
    }
    job->finish = how;
    job->status = status;
    tell(controller, job);
}

static void publish(struct weft_controller *controller, struct weft_job *job, enum weft_finish how, int64_t now)
{
    enum weft_status status = weft_text_append(&job->pending, job->fresh.data, job->fresh.size);

    job->published_count = job->output_count;
    if (job->first_token_ns == 0) {
        weft_stats_first_token(&controller->stats, job->prompt_count, job->first_step_ns - job->submit_ns,
                               now - job->submit_ns);
        job->first_token_ns = now;
    } else {
        weft_stats_next_token(&controller->stats, now - job->last_token_ns);
    }
    job->last_token_ns = now;
    if (status != WEFT_OK) {
        finish(controller, job, WEFT_FINISH_ERROR, status);
    } else if (how != WEFT_FINISH_NONE) {
        finish(controller, job, how, WEFT_OK);
    } else {
        tell(controller, job);
    }
}

/* ---- the loop ---- */

static void take_inbox(struct weft_controller *controller)
{
    while (controller->inbox_first != NULL) {
        struct weft_job *job = controller->inbox_first;
        controller->inbox_first = (struct weft_job *)job->sequence.next;
        weft_scheduler_push(&controller->scheduler, &job->sequence);
    }
    controller->inbox_last = NULL;
    controller->inbox_count = 0;
    for (struct weft_job *job = controller->jobs; job != NULL && controller->cancel_count > 0; job = job->next) {
        if (job->is_cancelled) {
            finish(controller, job, WEFT_FINISH_CANCELLED, WEFT_ERR_CANCELLED);
        }
    }
    controller->cancel_count = 0;
}

/* What to do next; 0 entries: nothing. */
static uint32_t next_step(struct weft_controller *controller, enum life *life_out)
{
    uint32_t count = 0;
    int64_t now = weft_clock_ns();

    pthread_mutex_lock(&controller->mutex);
    *life_out = controller->life;
    if (controller->life == LIFE_RUNNING) {
        take_inbox(controller);
        count = weft_scheduler_next(&controller->scheduler, controller->entries);
        note_load(controller);
    }
    for (uint32_t i = 0; i < count; i++) {
        struct weft_job *job = (struct weft_job *)controller->entries[i].sequence;
        job->first_step_ns = job->first_step_ns == 0 ? now : job->first_step_ns;
    }
    pthread_mutex_unlock(&controller->mutex);
    return count;
}

/* One entry of a step that has run. */
static void take_result(struct weft_controller *controller, const struct weft_schedule_entry *entry,
                        const struct weft_step_result *result, int64_t now)
{
    struct weft_job *job = (struct weft_job *)entry->sequence;
    enum weft_finish how = WEFT_FINISH_NONE;
    enum weft_status status = WEFT_OK;

    if (!entry->is_sampled) {
        return;
    }
    if (result->is_broken) {
        weft_log(WEFT_LOG_ERROR, "engine", "request %" PRIu64 ": the logits of position %u are not finite numbers",
                 job->id, job->sequence.token_count);
        status = WEFT_ERR_FORMAT;
    } else {
        status = weft_job_take(job, controller->group->config, result->token, &how);
    }
    pthread_mutex_lock(&controller->mutex);
    if (status != WEFT_OK) {
        finish(controller, job, WEFT_FINISH_ERROR, status);
    } else {
        publish(controller, job, how, now);
    }
    pthread_mutex_unlock(&controller->mutex);
}

static enum weft_status run_step(struct weft_controller *controller, uint32_t count)
{
    WEFT_TRY(weft_stepper_run(controller->stepper, controller->entries, count, controller->results));
    weft_scheduler_commit(controller->entries, count);
    weft_stats_step(&controller->stats);
    if (controller->options.options->is_traced) {
        struct weft_comm_stats stats;
        weft_comm_stats(controller->group->comm, &stats);
        pthread_mutex_lock(&controller->mutex);
        controller->comm_stats = stats; /* before the tokens: who has seen the last one sees its cost too */
        pthread_mutex_unlock(&controller->mutex);
    }
    int64_t now = weft_clock_ns();
    for (uint32_t i = 0; i < count; i++) {
        take_result(controller, &controller->entries[i], &controller->results[i], now);
    }
    return WEFT_OK;
}

/* Asleep until somebody submits, cancels or closes, or a rank dies. */
static enum weft_status sleep_idle(struct weft_controller *controller)
{
    uint64_t count;

    WEFT_TRY(weft_bootstrap_wait(controller->group->bootstrap, controller->wake_fd, UINT32_MAX));
    if (read(controller->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR) {
        weft_log(WEFT_LOG_ERROR, "engine/controller", "eventfd: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

/* The group is lost: everybody learns who did it, every request gets its last event. */
static void fail(struct weft_controller *controller, enum weft_status status)
{
    const char *reason = weft_log_last_error();
    char text[WEFT_REASON_SIZE];

    snprintf(text, sizeof(text), "%s", reason[0] != '\0' ? reason : weft_status_name(status));
    uint32_t rank = weft_group_fail(controller->group, status);
    const char *host = weft_bootstrap_failed_host(controller->group->bootstrap);
    pthread_mutex_lock(&controller->mutex);
    controller->life = LIFE_FAILED;
    controller->failure = status;
    controller->failed_rank = (int)rank;
    memcpy(controller->failure_text, text, sizeof(text));
    snprintf(controller->loss_text, sizeof(controller->loss_text), "rank %u%s%s failed: %s", rank,
             host[0] != '\0' ? " on " : "", host, weft_bootstrap_failed_reason(controller->group->bootstrap));
    take_inbox(controller);
    for (struct weft_job *job = controller->jobs; job != NULL; job = job->next) {
        finish(controller, job, WEFT_FINISH_ERROR, status);
    }
    pthread_cond_broadcast(&controller->news);
    pthread_mutex_unlock(&controller->mutex);
}

static void *run(void *context)
{
    struct weft_controller *controller = context;
    enum weft_status status = WEFT_OK;
    enum life life = LIFE_RUNNING;

    weft_log_set_rank(controller->log_rank);
    while (status == WEFT_OK && life == LIFE_RUNNING) {
        uint32_t count = next_step(controller, &life);
        if (count > 0) {
            status = run_step(controller, count);
        } else if (life == LIFE_RUNNING) {
            status = sleep_idle(controller);
        }
    }
    if (status == WEFT_OK) {
        status = weft_stepper_end(controller->stepper);
    }
    if (status != WEFT_OK) {
        fail(controller, status);
    }
    pthread_mutex_lock(&controller->mutex);
    controller->has_ended = true;
    pthread_cond_broadcast(&controller->news);
    pthread_mutex_unlock(&controller->mutex);
    return NULL;
}

/* ---- open and close ---- */

static enum weft_status start(struct weft_controller *controller)
{
    const struct weft_scheduler_limits limits =
        weft_scheduler_limits_of(controller->options.options, controller->group->config->context_length);
    pthread_condattr_t attributes;

    pthread_mutex_init(&controller->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&controller->news, &attributes);
    pthread_condattr_destroy(&attributes);
    controller->entries = calloc(limits.sequence_count_max, sizeof(*controller->entries));
    controller->results = calloc(limits.sequence_count_max, sizeof(*controller->results));
    controller->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (controller->entries == NULL || controller->results == NULL || controller->wake_fd < 0) {
        weft_log(WEFT_LOG_ERROR, "engine/controller", "out of memory or descriptors");
        return WEFT_ERR_MEMORY;
    }
    WEFT_TRY(weft_pages_init(&controller->pages, controller->group->limits.page_count));
    WEFT_TRY(weft_scheduler_init(&controller->scheduler, &limits, &controller->pages));
    WEFT_TRY(weft_stepper_open(controller->group, &controller->stepper));
    int error = pthread_create(&controller->thread, NULL, run, controller);
    if (error != 0) {
        weft_log(WEFT_LOG_ERROR, "engine/controller", "thread: %s", strerror(error));
        return WEFT_ERR_IO;
    }
    controller->has_thread = true;
    return WEFT_OK;
}

enum weft_status weft_controller_open(const struct weft_controller_options *options, struct weft_controller **out)
{
    struct weft_controller *controller = calloc(1, sizeof(*controller));

    if (controller == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/controller", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    controller->options = *options;
    controller->group = options->group;
    controller->log_rank = weft_log_rank();
    controller->failed_rank = -1;
    controller->wake_fd = -1;
    enum weft_status status = start(controller);
    if (status != WEFT_OK) {
        weft_controller_close(&controller);
        return status;
    }
    *out = controller;
    return WEFT_OK;
}

static void wake(struct weft_controller *controller)
{
    uint64_t one = 1;

    if (write(controller->wake_fd, &one, sizeof(one)) < 0) {
        return; /* the counter is full: it is awake */
    }
}

static void free_told(struct weft_controller *controller)
{
    while (controller->told != NULL) {
        struct weft_job *job = controller->told;
        controller->told = job->next;
        weft_job_close(&job);
    }
}

static bool ends_within(struct weft_controller *controller, uint32_t timeout_ms)
{
    const struct timespec deadline = weft_clock_after(timeout_ms);

    pthread_mutex_lock(&controller->mutex);
    while (!controller->has_ended && pthread_cond_timedwait(&controller->news, &controller->mutex, &deadline) == 0) {
    }
    bool has_ended = controller->has_ended;
    pthread_mutex_unlock(&controller->mutex);
    return has_ended;
}

static void end_steps(struct weft_controller *controller)
{
    if (!ends_within(controller, CLOSE_STEP_MS)) {
        weft_bootstrap_end(controller->group->bootstrap);
        if (!ends_within(controller, CLOSE_STEP_MS)) {
            weft_rendezvous_leave(controller->options.options, controller->group->bootstrap);
        }
    }
}

void weft_controller_close(struct weft_controller **controller_pointer)
{
    struct weft_controller *controller = *controller_pointer;

    if (controller == NULL) {
        return;
    }
    if (controller->has_thread) {
        pthread_mutex_lock(&controller->mutex);
        controller->life = controller->life == LIFE_RUNNING ? LIFE_CLOSING : controller->life;
        pthread_mutex_unlock(&controller->mutex);
        wake(controller);
        end_steps(controller);
        pthread_join(controller->thread, NULL);
    }
    free_told(controller);
    while (controller->jobs != NULL) {
        struct weft_job *job = controller->jobs;
        weft_job_list_remove(&controller->jobs, job);
        weft_job_close(&job);
    }
    weft_stepper_close(&controller->stepper);
    weft_scheduler_fini(&controller->scheduler);
    weft_pages_fini(&controller->pages);
    if (controller->wake_fd >= 0) {
        close(controller->wake_fd);
    }
    pthread_cond_destroy(&controller->news);
    pthread_mutex_destroy(&controller->mutex);
    free(controller->entries);
    free(controller->results);
    free(controller);
    *controller_pointer = NULL;
}

/* ---- the doors ---- */

/* The status of a group that takes no requests; OK while it does. Under the mutex. */
static enum weft_status check_alive(const struct weft_controller *controller)
{
    if (controller->life == LIFE_FAILED) {
        weft_log_keep_error("%s", controller->failure_text);
        return controller->failure;
    }
    if (controller->life == LIFE_CLOSING) {
        weft_log_keep_error("the engine is closing");
        return WEFT_ERR_STATE;
    }
    return WEFT_OK;
}

/* Under the mutex. */
static enum weft_status enqueue(struct weft_controller *controller, struct weft_job *job)
{
    uint32_t waiting = controller->inbox_count + controller->scheduler.queue_count;

    if (check_alive(controller) != WEFT_OK) {
        return WEFT_ERR_STATE;
    }
    if (waiting >= controller->options.options->queue_count_max) {
        weft_log_keep_error("%u requests are waiting already: try again later", waiting);
        weft_stats_refuse(&controller->stats);
        return WEFT_ERR_LIMIT;
    }
    job->id = ++controller->last_id;
    weft_job_list_add(&controller->jobs, job);
    job->sequence.next = NULL;
    if (controller->inbox_last == NULL) {
        controller->inbox_first = job;
    } else {
        controller->inbox_last->sequence.next = &job->sequence;
    }
    controller->inbox_last = job;
    controller->inbox_count++;
    note_load(controller);
    return WEFT_OK;
}

enum weft_status weft_controller_submit(struct weft_controller *controller, const struct weft_request *request,
                                        uint64_t *id_out)
{
    const struct weft_job_limits limits = {.tokenizer = controller->options.tokenizer,
                                           .context_length = controller->group->limits.context_length,
                                           .vocab_size = controller->group->limits.vocab_size};
    struct weft_job *job;
    uint64_t id = 0;

    WEFT_TRY(weft_job_open(request, &limits, &job));
    pthread_mutex_lock(&controller->mutex);
    enum weft_status status = enqueue(controller, job);
    if (status == WEFT_OK) {
        id = job->id; /* it may be gone as soon as the mutex is free */
    }
    pthread_mutex_unlock(&controller->mutex);
    if (status != WEFT_OK) {
        weft_job_close(&job);
        return status;
    }
    wake(controller);
    *id_out = id;
    return WEFT_OK;
}

void weft_controller_cancel(struct weft_controller *controller, uint64_t id)
{
    pthread_mutex_lock(&controller->mutex);
    for (struct weft_job *job = controller->jobs; job != NULL; job = job->next) {
        if (job->id == id && !job->is_cancelled && job->finish == WEFT_FINISH_NONE) {
            job->is_cancelled = true;
            controller->cancel_count++;
        }
    }
    pthread_mutex_unlock(&controller->mutex);
    wake(controller);
}

static void hand_out(struct weft_controller *controller, struct weft_event *events_out, uint32_t capacity,
                     uint32_t *count_out)
{
    uint32_t count = 0;

    while (count < capacity && controller->ready_first != NULL) {
        struct weft_job *job = controller->ready_first;
        controller->ready_first = job->ready_next;
        if (controller->ready_first == NULL) {
            controller->ready_last = NULL;
        }
        job->is_ready = false;
        weft_job_event(job, &events_out[count++]);
        if (job->finish != WEFT_FINISH_NONE) {
            weft_job_list_remove(&controller->jobs, job);
            job->next = controller->told;
            controller->told = job;
        }
    }
    *count_out = count;
}

/* ERR_PEER once the heartbeats have known for a while of a loss that the loop has not noticed: it is stuck, in MPI or a
 * driver, and nobody may wait for it. Under the mutex. */
static enum weft_status check_stuck(struct weft_controller *controller)
{
    char text[WEFT_REASON_SIZE];
    uint32_t rank;

    if (controller->life != LIFE_RUNNING ||
        !weft_bootstrap_lost(controller->group->bootstrap, &rank, text, sizeof(text))) {
        return WEFT_OK;
    }
    if (controller->lost_ns == 0) {
        controller->lost_ns = weft_clock_ns();
    }
    if (weft_clock_ns() - controller->lost_ns < STUCK_NS) {
        return WEFT_OK;
    }
    weft_log_keep_error("%s", text);
    return WEFT_ERR_PEER;
}

enum weft_status weft_controller_poll(struct weft_controller *controller, uint32_t timeout_ms,
                                      struct weft_event *events_out, uint32_t capacity, uint32_t *count_out)
{
    const struct timespec deadline = weft_clock_after(timeout_ms);
    enum weft_status status = WEFT_OK;
    uint32_t count = 0;

    pthread_mutex_lock(&controller->mutex);
    free_told(controller);
    while (controller->ready_first == NULL && controller->life == LIFE_RUNNING) {
        if (pthread_cond_timedwait(&controller->news, &controller->mutex, &deadline) != 0) {
            break;
        }
    }
    hand_out(controller, events_out, capacity, &count);
    if (count == 0) {
        status = check_alive(controller);
        status = status == WEFT_OK ? check_stuck(controller) : status;
    }
    pthread_mutex_unlock(&controller->mutex);
    if (status == WEFT_OK) {
        *count_out = count;
    }
    return status;
}

int weft_controller_failed_rank(struct weft_controller *controller)
{
    char text[WEFT_REASON_SIZE];
    uint32_t lost;

    pthread_mutex_lock(&controller->mutex);
    int rank = controller->failed_rank;
    pthread_mutex_unlock(&controller->mutex);
    if (rank < 0 && weft_bootstrap_lost(controller->group->bootstrap, &lost, text, sizeof(text))) {
        rank = (int)lost;
    }
    return rank;
}

void weft_controller_failure(struct weft_controller *controller, char *text_out, size_t size)
{
    uint32_t rank;

    pthread_mutex_lock(&controller->mutex);
    snprintf(text_out, size, "%s", controller->loss_text);
    pthread_mutex_unlock(&controller->mutex);
    if (text_out[0] == '\0') {
        (void)weft_bootstrap_lost(controller->group->bootstrap, &rank, text_out, size);
    }
}

void weft_controller_stats(struct weft_controller *controller, struct weft_engine_stats *stats_out)
{
    weft_stats_read(&controller->stats, stats_out);
    pthread_mutex_lock(&controller->mutex);
    stats_out->rank_count = controller->group->rank_count;
    stats_out->waiting_max = controller->options.options->queue_count_max;
    stats_out->running_max = controller->options.options->sequence_count_max;
    stats_out->kv_page_count = controller->pages.page_count;
    stats_out->kv_page_positions = WEFT_PAGE_POSITIONS;
    pthread_mutex_unlock(&controller->mutex);
}

void weft_controller_comm_stats(struct weft_controller *controller, struct weft_comm_stats *stats_out)
{
    pthread_mutex_lock(&controller->mutex);
    *stats_out = controller->comm_stats;
    pthread_mutex_unlock(&controller->mutex);
}
