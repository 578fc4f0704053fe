/*
 * runtime/serve/service.h over the test double of the engine: whatever happens (normal end, cancel, drain, failure of
 * the group, close), a job that was taken gets exactly one last event. Runs under ThreadSanitizer too: unlike the
 * server above it, nothing here passes through a library that was not built for that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "serve/service.h"

enum { THREAD_COUNT = 4, JOB_COUNT = 200 };

struct fixture {
    struct weft_engine *engine;
    struct weft_service *service;
    _Atomic int state_count;
    _Atomic int last_state;
};

struct job {
    struct weft_service_job base;
    _Atomic int last_count;
    _Atomic int token_count;
    _Atomic int finish;
    _Atomic int late_count; /* events after the last one */
};

static void on_event(void *context, const struct weft_event *event)
{
    struct job *job = context;

    if (atomic_load(&job->last_count) > 0) {
        atomic_fetch_add(&job->late_count, 1);
    }
    atomic_fetch_add(&job->token_count, (int)event->token_count);
    if (event->finish != WEFT_FINISH_NONE) {
        atomic_store(&job->finish, (int)event->finish);
        atomic_fetch_add(&job->last_count, 1);
    }
}

static void on_state(void *context, enum weft_service_state state)
{
    struct fixture *fixture = context;

    atomic_store(&fixture->last_state, (int)state);
    atomic_fetch_add(&fixture->state_count, 1);
}

static struct fixture *fixture_open(const char *model)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct weft_engine_options options;

    weft_engine_options_init(&options);
    options.model = model;
    options.queue_count_max = 4000;
    assert_int_equal(weft_engine_open(&options, &fixture->engine), WEFT_OK);
    assert_int_equal(weft_service_open(on_state, fixture, &fixture->service), WEFT_OK);
    assert_int_equal(weft_service_start(fixture->service, fixture->engine), WEFT_OK);
    atomic_store(&fixture->state_count, 0);
    return fixture;
}

static void fixture_close(struct fixture *fixture)
{
    weft_service_close(&fixture->service);
    weft_engine_close(&fixture->engine);
    free(fixture);
}

static enum weft_status submit(struct fixture *fixture, struct job *job, const char *prompt, uint32_t max_tokens)
{
    struct weft_request request;

    weft_request_init(&request);
    request.prompt = prompt;
    request.prompt_size = strlen(prompt);
    request.max_tokens = max_tokens;
    job->base.on_event = on_event;
    job->base.context = job;
    return weft_service_submit(fixture->service, &request, &job->base);
}

static void pause_ms(long milliseconds)
{
    struct timespec pause = {.tv_nsec = milliseconds * 1000000L};

    (void)nanosleep(&pause, NULL);
}

static void finished_wait(const struct job *job)
{
    while (atomic_load(&job->last_count) == 0) {
        pause_ms(1); /* CTest's limit ends a wait for nothing */
    }
}

static void test_one_job(void **state)
{
    struct fixture *fixture = fixture_open("fake:");
    struct job job = {.last_count = 0};

    (void)state;
    assert_int_equal(submit(fixture, &job, "hello", 20), WEFT_OK);
    finished_wait(&job);
    assert_int_equal(atomic_load(&job.finish), WEFT_FINISH_LENGTH);
    assert_int_equal(atomic_load(&job.token_count), 20);
    assert_int_equal(weft_service_job_count(fixture->service), 0);
    fixture_close(fixture);
}

static void test_refused_job_gets_no_event(void **state)
{
    struct fixture *fixture = fixture_open("fake:context=4");
    struct job job = {.last_count = 0};

    (void)state;
    assert_int_equal(submit(fixture, &job, "far too long", 20), WEFT_ERR_LIMIT);
    assert_int_equal(weft_service_job_count(fixture->service), 0);
    fixture_close(fixture);
    assert_int_equal(atomic_load(&job.last_count), 0);
}

static void test_drain_refuses_and_lets_go_on(void **state)
{
    struct fixture *fixture = fixture_open("fake:token_us=500");
    struct job running = {.last_count = 0};
    struct job late = {.last_count = 0};

    (void)state;
    assert_int_equal(submit(fixture, &running, "hello", 100), WEFT_OK);
    weft_service_drain(fixture->service);
    weft_service_drain(fixture->service);
    assert_int_equal(submit(fixture, &late, "hello", 1), WEFT_ERR_STATE);
    finished_wait(&running);
    assert_int_equal(atomic_load(&running.token_count), 100);
    assert_int_equal(atomic_load(&fixture->state_count), 1);
    fixture_close(fixture);
    assert_int_equal(atomic_load(&late.last_count), 0);
}

struct submitter {
    struct fixture *fixture;
    struct job *jobs; /* [JOB_COUNT] */
    int taken_count;
    unsigned seed;
    const char *last_prompt; /* of one job in the middle */
};

/* Submits, cancels some, stops at the first refusal. */
static void *submitter_main(void *argument)
{
    struct submitter *own = argument;

    for (int i = 0; i < JOB_COUNT; i++) {
        const char *prompt = own->last_prompt != NULL && i == JOB_COUNT / 2 ? own->last_prompt : "job";

        if (submit(own->fixture, &own->jobs[i], prompt, 1 + (uint32_t)rand_r(&own->seed) % 50) != WEFT_OK) {
            break;
        }
        own->taken_count++;
        if (rand_r(&own->seed) % 3 == 0) {
            weft_service_cancel(own->fixture->service, &own->jobs[i].base);
        }
    }
    return NULL;
}

/* Starts the submitters, does `meanwhile`, closes, and counts last events. */
static void storm(const char *last_prompt, void (*meanwhile)(struct fixture *fixture))
{
    struct fixture *fixture = fixture_open("fake:token_us=20");
    struct job *jobs = calloc(THREAD_COUNT * JOB_COUNT, sizeof(*jobs));
    struct submitter submitters[THREAD_COUNT];
    pthread_t threads[THREAD_COUNT];

    for (int i = 0; i < THREAD_COUNT; i++) {
        submitters[i] = (struct submitter){.fixture = fixture,
                                           .jobs = jobs + (ptrdiff_t)i * JOB_COUNT,
                                           .seed = (unsigned)i + 1,
                                           .last_prompt = last_prompt};
        assert_int_equal(pthread_create(&threads[i], NULL, submitter_main, &submitters[i]), 0);
    }
    if (meanwhile != NULL) {
        meanwhile(fixture);
    }
    for (int i = 0; i < THREAD_COUNT; i++) {
        pthread_join(threads[i], NULL);
    }
    if (last_prompt == NULL) {
        weft_service_cancel_all(fixture->service, 20000);
        assert_int_equal(weft_service_job_count(fixture->service), 0);
    }
    fixture_close(fixture);
    for (int i = 0; i < THREAD_COUNT; i++) {
        for (int k = 0; k < JOB_COUNT; k++) {
            assert_int_equal(atomic_load(&submitters[i].jobs[k].last_count), k < submitters[i].taken_count);
            assert_int_equal(atomic_load(&submitters[i].jobs[k].late_count), 0);
        }
    }
    free(jobs);
}

static void drain_soon(struct fixture *fixture)
{
    pause_ms(3);
    weft_service_drain(fixture->service);
    weft_service_cancel_all(fixture->service, 20000);
}

static void test_storm(void **state)
{
    (void)state;
    storm(NULL, NULL);
}

static void test_storm_with_drain(void **state)
{
    (void)state;
    storm(NULL, drain_soon);
}

static void test_storm_with_failure(void **state)
{
    (void)state;
    storm("<fail>", NULL);
}

static void test_failure_is_told_once(void **state)
{
    struct fixture *fixture = fixture_open("fake:");
    struct job other = {.last_count = 0};
    struct job failing = {.last_count = 0};
    struct job late = {.last_count = 0};

    (void)state;
    assert_int_equal(submit(fixture, &other, "hello", 3000), WEFT_OK);
    assert_int_equal(submit(fixture, &failing, "<fail>", 50), WEFT_OK);
    finished_wait(&failing);
    finished_wait(&other);
    assert_int_equal(atomic_load(&failing.finish), WEFT_FINISH_ERROR);
    while (weft_service_state(fixture->service) != WEFT_SERVICE_FAILED) {
        pause_ms(1);
    }
    assert_int_equal(submit(fixture, &late, "hello", 1), WEFT_ERR_STATE);
    weft_service_drain(fixture->service);
    weft_service_cancel_all(fixture->service, 1000);
    assert_int_equal(weft_service_state(fixture->service), WEFT_SERVICE_FAILED);
    fixture_close(fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_job),
        cmocka_unit_test(test_refused_job_gets_no_event),
        cmocka_unit_test(test_drain_refuses_and_lets_go_on),
        cmocka_unit_test(test_storm),
        cmocka_unit_test(test_storm_with_drain),
        cmocka_unit_test(test_storm_with_failure),
        cmocka_unit_test(test_failure_is_told_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
