/*
 * Memory as a limit: a step allocates nothing, and any allocation of the library may fail without a crash, a leak or a
 * hang. The linker routes our objects' allocations here (--wrap); those inside other libraries are not seen.
 */
#include "harness.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "weft/log.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
char *__wrap_strdup(const char *text);

static atomic_long allocation_count;
static atomic_long fail_at; /* number of the allocation that fails; 0: none */

static bool is_failing(void)
{
    return atomic_fetch_add(&allocation_count, 1) + 1 == atomic_load(&fail_at);
}

void *__wrap_malloc(size_t size)
{
    return is_failing() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return is_failing() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return is_failing() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return is_failing() ? NULL : __real_aligned_alloc(alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return is_failing() ? NULL : __real_strdup(text);
}

static const char *const stops[] = {"no such text"};

static void make_request(struct weft_request *request, uint32_t max_tokens)
{
    weft_request_init(request);
    request->prompt = "Hello";
    request->prompt_size = 5;
    request->max_tokens = max_tokens;
    request->temperature = 2.0f;
    request->top_p = 0.9f;
    request->repetition_penalty = 1.1f;
    request->stop = stops;
    request->stop_count = 1;
    request->has_logits_digest = true;
    request->is_eos_ignored = true;
}

/* Between the first news of a request and the last, with others coming to an end in between. */
static void check_steps_allocate_nothing(uint32_t rank_count)
{
    struct weft_engine_options options;
    struct weft_request request;
    uint64_t id;
    uint32_t ended = 0;
    long before = 0;

    test_options(&options, model_with_tokenizer(), rank_count);
    options.candidate_count = 4; /* whole rows are gathered now and then */
    struct weft_engine *engine = open_engine(&options);
    for (uint32_t i = 0; i < 3; i++) {
        make_request(&request, 30 + 30 * i);
        assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
    }
    while (ended < 3) {
        struct weft_event events[3];
        uint32_t count;
        assert_int_equal(weft_engine_poll(engine, 1000, events, 3, &count), WEFT_OK);
        before = before == 0 && count > 0 ? atomic_load(&allocation_count) : before;
        for (uint32_t i = 0; i < count; i++) {
            ended += events[i].finish != WEFT_FINISH_NONE;
        }
    }
    assert_int_equal(atomic_load(&allocation_count) - before, 0);
    weft_engine_close(&engine);
    model_with_tokenizer_remove();
}

static void test_steps_allocate_nothing(void **state)
{
    (void)state;
    check_steps_allocate_nothing(1);
    check_steps_allocate_nothing(3);
}

/* One life of an engine. True when the allocation that was to fail was reached. */
static bool live(const struct weft_engine_options *options, long failing)
{
    struct weft_engine *engine = NULL;
    struct weft_request request;
    uint64_t id;

    make_request(&request, 5);
    atomic_store(&allocation_count, 0);
    atomic_store(&fail_at, failing);
    int64_t begin = weft_clock_ns();
    enum weft_status status = weft_engine_open(options, &engine);
    assert_true(status == WEFT_OK || engine == NULL);
    if (status == WEFT_OK && weft_engine_submit(engine, &request, &id) == WEFT_OK) {
        bool has_ended = false;
        while (status == WEFT_OK && !has_ended) {
            struct weft_event event;
            uint32_t count = 0;
            status = weft_engine_poll(engine, 1000, &event, 1, &count);
            has_ended = status == WEFT_OK && count == 1 && event.finish != WEFT_FINISH_NONE;
        }
    }
    weft_engine_close(&engine);
    bool is_reached = atomic_load(&allocation_count) >= failing;
    atomic_store(&fail_at, 0);
    /* Nobody waits for a rank that has given up until time is up, which is after a minute. */
    assert_true(weft_clock_ns() - begin < INT64_C(30000000000));
    return is_reached;
}

/* With every allocation in turn, or about `life_count` of them evenly spread when there are more. */
static void check_lives(const struct weft_engine_options *options, long life_count)
{
    assert_false(live(options, LONG_MAX));
    long total = atomic_load(&allocation_count);
    assert_true(total > 50);
    for (long k = 1; live(options, k); k += 1 + total / life_count) {
        assert_true(k <= 2 * total);
    }
}

static void test_any_allocation_may_fail(void **state)
{
    struct weft_engine_options options;

    (void)state;
    test_options(&options, model_with_tokenizer(), 1);
    check_lives(&options, 200);
    test_options(&options, options.model, 3); /* their order varies from run to run */
    check_lives(&options, 100);
    model_with_tokenizer_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_allocate_nothing),
        cmocka_unit_test(test_any_allocation_may_fail),
    };

    log_capture();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
