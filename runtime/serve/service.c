/* The jobs of a server and the thread that polls the engine for them. No protocol here. */
#include "service.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "weft/log.h"

enum {
    EVENTS_PER_POLL = 64,
    /* How soon close() is noticed; events wake the poll at once. */
    POLL_TIMEOUT_MS = 100,
};

struct weft_service {
    _Atomic(struct weft_engine *) engine; /* NULL before start */
    weft_service_state_callback *on_state;
    void *context;
    pthread_t thread;
    bool has_thread;
    _Atomic bool is_stopping;
    pthread_mutex_t mutex;
    pthread_cond_t is_empty;
    /* All below under mutex. */
    enum weft_service_state state;
    struct weft_service_job *jobs;
    uint32_t job_count;
    bool is_cancelling;
};

/* Under mutex. */
static void list_add(struct weft_service *service, struct weft_service_job *job)
{
    job->previous = NULL;
    job->next = service->jobs;
    if (job->next != NULL) {
        job->next->previous = job;
    }
    service->jobs = job;
    service->job_count++;
    job->is_listed = true;
}

/* Under mutex. False when the job had already left. */
static bool list_remove(struct weft_service *service, struct weft_service_job *job)
{
    if (!job->is_listed) {
        return false;
    }
    if (job->previous != NULL) {
        job->previous->next = job->next;
    } else {
        service->jobs = job->next;
    }
    if (job->next != NULL) {
        job->next->previous = job->previous;
    }
    job->is_listed = false;
    service->job_count--;
    if (service->job_count == 0) {
        pthread_cond_broadcast(&service->is_empty);
    }
    return true;
}

static void dispatch(struct weft_service *service, const struct weft_event *event)
{
    struct weft_service_job *job = event->user;

    if (event->finish != WEFT_FINISH_NONE) {
        bool was_listed;

        pthread_mutex_lock(&service->mutex);
        was_listed = list_remove(service, job);
        pthread_mutex_unlock(&service->mutex);
        if (!was_listed) {
            return;
        }
    }
    job->on_event(job->context, event);
}

/* The engine owes every open request a last event before it reports failure; should it ever forget one, nobody hangs.
 */
static void finish_all(struct weft_service *service, enum weft_status status)
{
    for (;;) {
        struct weft_service_job *job;
        struct weft_event event;

        pthread_mutex_lock(&service->mutex);
        job = service->jobs;
        if (job != NULL) {
            (void)list_remove(service, job);
        }
        pthread_mutex_unlock(&service->mutex);
        if (job == NULL) {
            return;
        }
        memset(&event, 0, sizeof(event));
        event.text = "";
        event.user = job;
        event.finish = WEFT_FINISH_ERROR;
        event.status = status;
        job->on_event(job->context, &event);
    }
}

static void state_set(struct weft_service *service, enum weft_service_state state)
{
    bool is_changed;

    pthread_mutex_lock(&service->mutex);
    is_changed = state > service->state;
    if (is_changed) {
        service->state = state;
    }
    pthread_mutex_unlock(&service->mutex);
    if (is_changed) {
        service->on_state(service->context, state);
    }
}

static void *poll_main(void *argument)
{
    struct weft_service *service = argument;
    struct weft_event events[EVENTS_PER_POLL];

    while (!atomic_load(&service->is_stopping)) {
        uint32_t count = 0;
        enum weft_status status = weft_engine_poll(service->engine, POLL_TIMEOUT_MS, events, EVENTS_PER_POLL, &count);

        if (status != WEFT_OK) {
            finish_all(service, status);
            state_set(service, WEFT_SERVICE_FAILED);
            return NULL;
        }
        for (uint32_t i = 0; i < count; i++) {
            dispatch(service, &events[i]);
        }
    }
    return NULL;
}

enum weft_status weft_service_open(weft_service_state_callback *on_state, void *context, struct weft_service **out)
{
    struct weft_service *service = calloc(1, sizeof(*service));
    pthread_condattr_t attributes;

    if (service == NULL) {
        weft_log(WEFT_LOG_ERROR, "serve", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    service->on_state = on_state;
    service->context = context;
    pthread_mutex_init(&service->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&service->is_empty, &attributes);
    pthread_condattr_destroy(&attributes);
    *out = service;
    return WEFT_OK;
}

enum weft_status weft_service_start(struct weft_service *service, struct weft_engine *engine)
{
    int error;

    atomic_store(&service->engine, engine);
    error = pthread_create(&service->thread, NULL, poll_main, service);
    if (error != 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "cannot start a thread: %s", strerror(error));
        return WEFT_ERR_IO;
    }
    service->has_thread = true;
    state_set(service, WEFT_SERVICE_SERVING);
    return WEFT_OK;
}

void weft_service_stop(struct weft_service *service)
{
    weft_service_drain(service);
    if (!atomic_exchange(&service->is_stopping, true) && service->has_thread) {
        pthread_join(service->thread, NULL);
    }
    finish_all(service, WEFT_ERR_CANCELLED);
}

void weft_service_close(struct weft_service **service)
{
    struct weft_service *s = *service;

    if (s == NULL) {
        return;
    }
    *service = NULL;
    weft_service_stop(s);
    pthread_cond_destroy(&s->is_empty);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

enum weft_status weft_service_submit(struct weft_service *service, const struct weft_request *request,
                                     struct weft_service_job *job)
{
    struct weft_request own = *request;
    enum weft_status status;
    uint64_t id = 0;
    bool is_late;

    job->id = 0;
    pthread_mutex_lock(&service->mutex);
    if (service->state != WEFT_SERVICE_SERVING) {
        pthread_mutex_unlock(&service->mutex);
        return WEFT_ERR_STATE;
    }
    list_add(service, job); /* before submit: its first event may come at once */
    pthread_mutex_unlock(&service->mutex);

    own.user = job;
    status = weft_engine_submit(service->engine, &own, &id);
    pthread_mutex_lock(&service->mutex);
    if (status != WEFT_OK) {
        /* When the group failed meanwhile the job has had its last event, and that is its answer. */
        if (!list_remove(service, job)) {
            status = WEFT_OK;
        }
        pthread_mutex_unlock(&service->mutex);
        return status;
    }
    job->id = id;
    is_late = service->is_cancelling;
    pthread_mutex_unlock(&service->mutex);
    if (is_late) {
        weft_engine_cancel(service->engine, id);
    }
    return WEFT_OK;
}

void weft_service_cancel(struct weft_service *service, struct weft_service_job *job)
{
    uint64_t id;

    pthread_mutex_lock(&service->mutex);
    id = job->is_listed ? job->id : 0;
    pthread_mutex_unlock(&service->mutex);
    if (id != 0) {
        weft_engine_cancel(service->engine, id);
    }
}

void weft_service_drain(struct weft_service *service)
{
    state_set(service, WEFT_SERVICE_DRAINING);
}

void weft_service_cancel_all(struct weft_service *service, uint32_t timeout_ms)
{
    const struct timespec until = weft_clock_after(timeout_ms);

    pthread_mutex_lock(&service->mutex);
    service->is_cancelling = true;
    for (const struct weft_service_job *job = service->jobs; job != NULL; job = job->next) {
        if (job->id != 0) {
            weft_engine_cancel(service->engine, job->id);
        }
    }
    while (service->job_count > 0) {
        if (pthread_cond_timedwait(&service->is_empty, &service->mutex, &until) == ETIMEDOUT) {
            break;
        }
    }
    pthread_mutex_unlock(&service->mutex);
}

enum weft_service_state weft_service_state(struct weft_service *service)
{
    enum weft_service_state state;

    pthread_mutex_lock(&service->mutex);
    state = service->state;
    pthread_mutex_unlock(&service->mutex);
    return state;
}

void weft_service_reason(struct weft_service *service, char text_out[WEFT_SERVICE_REASON_SIZE])
{
    struct weft_engine *engine = weft_service_engine(service);
    enum weft_service_state state = weft_service_state(service);

    text_out[0] = '\0';
    if (engine != NULL) {
        weft_engine_failure(engine, text_out, WEFT_SERVICE_REASON_SIZE);
    }
    if (text_out[0] == '\0') {
        (void)snprintf(text_out, WEFT_SERVICE_REASON_SIZE, "%s",
                       state == WEFT_SERVICE_FAILED    ? "the group has failed"
                       : state == WEFT_SERVICE_LOADING ? "the model is loading"
                                                       : "the server is shutting down");
    }
}

uint32_t weft_service_job_count(struct weft_service *service)
{
    uint32_t count;

    pthread_mutex_lock(&service->mutex);
    count = service->job_count;
    pthread_mutex_unlock(&service->mutex);
    return count;
}

struct weft_engine *weft_service_engine(struct weft_service *service)
{
    return atomic_load(&service->engine);
}
