/* Pages and scheduler: nothing leaks, nothing is dealt twice, limits hold, arrival order is kept. */
#include "engine_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/scheduler.h"

static void test_pages_are_dealt_once(void **state)
{
    struct weft_pages pages;
    uint32_t list[10];
    bool is_seen[10] = {false};

    (void)state;
    assert_int_equal(weft_pages_init(&pages, 10), WEFT_OK);
    assert_true(weft_pages_acquire(&pages, 4, list));
    assert_false(weft_pages_acquire(&pages, 7, list + 4));
    assert_true(weft_pages_acquire(&pages, 6, list + 4));
    assert_int_equal(pages.free_count, 0);
    for (int i = 0; i < 10; i++) {
        assert_true(list[i] < 10 && !is_seen[list[i]]);
        is_seen[list[i]] = true;
    }
    weft_pages_release(&pages, list, 10);
    assert_int_equal(pages.free_count, 10);
    weft_pages_fini(&pages);
}

static void test_page_counts(void **state)
{
    (void)state;
    assert_int_equal(weft_pages_for(0), 0);
    assert_int_equal(weft_pages_for(1), 1);
    assert_int_equal(weft_pages_for(16), 1);
    assert_int_equal(weft_pages_for(17), 2);
    assert_int_equal(weft_pages_for(UINT32_MAX), UINT32_MAX / 16 + 1);
}

enum { SEQUENCES = 60, POSITIONS_MAX = 200 };

struct fixture {
    struct weft_sequence sequences[SEQUENCES];
    uint32_t prompts[SEQUENCES];
    uint32_t pages[SEQUENCES][POSITIONS_MAX / WEFT_PAGE_POSITIONS + 1];
};

static void sequence_init(struct fixture *fixture, uint32_t i, uint32_t prompt, uint32_t output)
{
    fixture->prompts[i] = prompt;
    fixture->sequences[i] = (struct weft_sequence){
        .token_count = prompt, .position_count_max = prompt + output - 1, .pages = fixture->pages[i]};
}

/* What must hold of every step, whatever came before. */
static void check_step(const struct weft_scheduler *scheduler, const struct weft_schedule_entry *entries,
                       uint32_t count)
{
    uint32_t tokens = 0;
    uint32_t prefill = 0;
    uint8_t owner[1000] = {0};

    assert_true(count <= scheduler->limits.sequence_count_max);
    for (uint32_t i = 0; i < count; i++) {
        const struct weft_sequence *sequence = entries[i].sequence;
        assert_int_equal(sequence->state, WEFT_SEQUENCE_RUNNING);
        assert_true(entries[i].token_count >= 1);
        assert_true(sequence->cached_count + entries[i].token_count <= sequence->token_count);
        assert_int_equal(entries[i].is_sampled,
                         sequence->cached_count + entries[i].token_count == sequence->token_count);
        tokens += entries[i].token_count;
        prefill += entries[i].token_count > 1 ? entries[i].token_count : 0;
    }
    assert_true(tokens <= weft_scheduler_token_max(&scheduler->limits));
    assert_true(prefill <= scheduler->limits.prefill_chunk);
    for (uint32_t i = 0; i < scheduler->running_count; i++) {
        const struct weft_sequence *sequence = scheduler->running[i];
        for (uint32_t j = 0; j < weft_pages_for(sequence->position_count_max); j++) {
            assert_int_equal(owner[sequence->pages[j]]++, 0);
        }
    }
}

static void run_random(uint64_t seed, uint32_t place_count, uint32_t chunk, uint32_t page_count)
{
    const struct weft_scheduler_limits limits = {place_count, chunk};
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct weft_schedule_entry entries[32];
    struct weft_scheduler scheduler;
    struct weft_pages pages;
    uint32_t pushed = 0;
    uint32_t finished = 0;
    uint32_t last_admitted = 0;
    uint32_t steps = 0;

    assert_non_null(fixture);
    assert_int_equal(weft_pages_init(&pages, page_count), WEFT_OK);
    assert_int_equal(weft_scheduler_init(&scheduler, &limits, &pages), WEFT_OK);
    while (finished < SEQUENCES) {
        for (; pushed < SEQUENCES && test_random(&seed) % 3 == 0; pushed++) {
            sequence_init(fixture, pushed, 1 + (uint32_t)(test_random(&seed) % 100),
                          1 + (uint32_t)(test_random(&seed) % 60));
            weft_scheduler_push(&scheduler, &fixture->sequences[pushed]);
        }
        uint32_t count = weft_scheduler_next(&scheduler, entries);
        check_step(&scheduler, entries, count);
        weft_scheduler_commit(entries, count);
        for (uint32_t i = 0; i < count; i++) {
            struct weft_sequence *sequence = entries[i].sequence;
            uint32_t index = (uint32_t)(sequence - fixture->sequences);
            assert_true(index <= last_admitted + 1); /* nobody overtakes */
            last_admitted = index > last_admitted ? index : last_admitted;
            bool is_done = entries[i].is_sampled && sequence->token_count == sequence->position_count_max;
            if (is_done || test_random(&seed) % 50 == 0) {
                weft_scheduler_remove(&scheduler, sequence);
                finished++;
            } else if (entries[i].is_sampled) {
                sequence->token_count++;
            }
        }
        assert_true(++steps < 100000);
    }
    assert_int_equal(pages.free_count, page_count);
    assert_int_equal(scheduler.queue_count + scheduler.running_count, 0);
    weft_scheduler_fini(&scheduler);
    weft_pages_fini(&pages);
    free(fixture);
}

static void test_random_loads(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        run_random(seed, 1 + (uint32_t)(seed % 9), 1 + (uint32_t)(seed * 7 % 70), 10 + (uint32_t)(seed % 40));
    }
}

static void test_waiting_sequences_can_be_removed(void **state)
{
    const struct weft_scheduler_limits limits = {1, 8};
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct weft_schedule_entry entries[1];
    struct weft_scheduler scheduler;
    struct weft_pages pages;

    (void)state;
    assert_non_null(fixture);
    assert_int_equal(weft_pages_init(&pages, 100), WEFT_OK);
    assert_int_equal(weft_scheduler_init(&scheduler, &limits, &pages), WEFT_OK);
    for (uint32_t i = 0; i < 4; i++) {
        sequence_init(fixture, i, 4, 4);
        weft_scheduler_push(&scheduler, &fixture->sequences[i]);
    }
    assert_int_equal(weft_scheduler_next(&scheduler, entries), 1);
    assert_ptr_equal(entries[0].sequence, &fixture->sequences[0]);
    weft_scheduler_remove(&scheduler, &fixture->sequences[3]); /* last */
    weft_scheduler_remove(&scheduler, &fixture->sequences[1]); /* first of the queue */
    weft_scheduler_remove(&scheduler, &fixture->sequences[1]); /* again: nothing */
    weft_scheduler_remove(&scheduler, &fixture->sequences[0]);
    assert_int_equal(scheduler.queue_count, 1);
    assert_int_equal(weft_scheduler_next(&scheduler, entries), 1);
    assert_ptr_equal(entries[0].sequence, &fixture->sequences[2]);
    weft_scheduler_remove(&scheduler, &fixture->sequences[2]);
    assert_int_equal(weft_scheduler_next(&scheduler, entries), 0);
    weft_scheduler_push(&scheduler, &fixture->sequences[3]);
    assert_int_equal(weft_scheduler_next(&scheduler, entries), 1);
    weft_scheduler_remove(&scheduler, &fixture->sequences[3]);
    assert_int_equal(pages.free_count, 100);
    weft_scheduler_fini(&scheduler);
    weft_pages_fini(&pages);
    free(fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_are_dealt_once),
        cmocka_unit_test(test_page_counts),
        cmocka_unit_test(test_random_loads),
        cmocka_unit_test(test_waiting_sequences_can_be_removed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
