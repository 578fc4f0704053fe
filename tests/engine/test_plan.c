/* StepPlan: what is packed comes out again; everything out of limits and every damaged byte string is refused. */
#include "engine_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan.h"
#include "weft/log.h"

static const struct weft_plan_limits limits = {.token_count_max = 24,
                                               .sequence_count_max = 3,
                                               .row_count_max = 3,
                                               .candidate_count_max = 8,
                                               .page_count = 20,
                                               .context_length = 64,
                                               .vocab_size = 100};
static const struct weft_plan_expected expected = {.generation = 1, .number = 5, .digest = 77, .row_count = 3};

/* A valid step of two sequences that tests then bend. Too large to pass by value: everything points inside. */
struct sample {
    int32_t token_ids[8];
    uint32_t pages[2][4];
    struct weft_batch_sequence sequences[2];
    uint32_t penalty_ids[2];
    float penalty_subtracts[2];
    struct weft_step_row rows[2];
    uint32_t gather_rows[2];
    struct weft_step step;
};

static void sample_init(struct sample *sample)
{
    *sample = (struct sample){
        .token_ids = {1, 2, 3, 4, 99},
        .pages = {{7, 3}, {19, 0}},
        .sequences = {{.token_begin = 0, .token_count = 4, .position = 14, .page_count = 2},
                      {.token_begin = 4, .token_count = 1, .position = 16, .page_count = 2}},
        .penalty_ids = {5, 99},
        .penalty_subtracts = {0.5f, -1.0f},
        .rows = {{.token_row = 3, .inv_temperature = 1.0f},
                 {.token_row = 4, .inv_temperature = 2.0f, .has_full = true, .repetition = 1.1f, .penalty_count = 2}},
        .gather_rows = {0, 2},
        .step = {.kind = WEFT_STEP_FORWARD,
                 .generation = 1,
                 .number = 5,
                 .digest = 77,
                 .candidate_count = 8,
                 .token_count = 5,
                 .sequence_count = 2,
                 .row_count = 2}};
    sample->sequences[0].pages = sample->pages[0];
    sample->sequences[1].pages = sample->pages[1];
    sample->rows[1].penalty_ids = sample->penalty_ids;
    sample->rows[1].penalty_subtracts = sample->penalty_subtracts;
    sample->step.token_ids = sample->token_ids;
    sample->step.sequences = sample->sequences;
    sample->step.rows = sample->rows;
}

static enum weft_status round_trip(struct weft_plan *plan, const struct sample *sample, const struct weft_step **out)
{
    const void *data;
    size_t size;

    weft_plan_pack(plan, &sample->step, &data, &size);
    return weft_plan_parse(plan, data, size, &expected, out);
}

static void drop_line(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

static int set_up(void **state)
{
    weft_log_configure(WEFT_LOG_ERROR, drop_line, NULL);
    return weft_plan_open(&limits, (struct weft_plan **)state) == WEFT_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    weft_plan_close((struct weft_plan **)state);
    return 0;
}

static void test_round_trip(void **state)
{
    struct sample sample;
    const struct weft_step *step;

    sample_init(&sample);
    assert_int_equal(round_trip(*state, &sample, &step), WEFT_OK);
    assert_int_equal(step->token_count, 5);
    assert_memory_equal(step->token_ids, sample.token_ids, 5 * sizeof(int32_t));
    assert_int_equal(step->sequence_count, 2);
    assert_int_equal(step->sequences[1].token_begin, 4);
    assert_int_equal(step->sequences[1].position, 16);
    assert_memory_equal(step->sequences[0].pages, sample.pages[0], 2 * sizeof(uint32_t));
    assert_int_equal(step->row_count, 2);
    assert_true(step->rows[1].has_full && !step->rows[1].has_raw && !step->rows[0].has_full);
    assert_int_equal(step->rows[1].penalty_count, 2);
    assert_memory_equal(step->rows[1].penalty_ids, sample.penalty_ids, sizeof(sample.penalty_ids));
    assert_memory_equal(step->rows[1].penalty_subtracts, sample.penalty_subtracts, sizeof(sample.penalty_subtracts));
    sample.step = (struct weft_step){.kind = WEFT_STEP_GATHER,
                                     .generation = 1,
                                     .number = 5,
                                     .digest = 77,
                                     .gather_rows = sample.gather_rows,
                                     .gather_count = 2};
    assert_int_equal(round_trip(*state, &sample, &step), WEFT_OK);
    assert_memory_equal(step->gather_rows, sample.gather_rows, sizeof(sample.gather_rows));
    sample.step.kind = WEFT_STEP_END;
    assert_int_equal(round_trip(*state, &sample, &step), WEFT_OK);
}

static void test_largest_step_fits(void **state)
{
    struct weft_plan *plan = *state;
    int32_t token_ids[24];
    uint32_t pages[3][4];
    uint32_t ids[64];
    float subtracts[64];
    struct weft_batch_sequence sequences[3];
    struct weft_step_row rows[3];
    const struct weft_step *step;
    struct sample sample = {.step = {.kind = WEFT_STEP_FORWARD,
                                     .generation = 1,
                                     .number = 5,
                                     .digest = 77,
                                     .candidate_count = 8,
                                     .token_count = 24,
                                     .token_ids = token_ids,
                                     .sequence_count = 3,
                                     .sequences = sequences,
                                     .row_count = 3,
                                     .rows = rows}};

    for (uint32_t i = 0; i < 64; i++) {
        ids[i] = 36 + i;
        subtracts[i] = 1.5f;
    }
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t j = 0; j < 8; j++) {
            token_ids[8 * i + j] = 99;
        }
        for (uint32_t j = 0; j < 4; j++) {
            pages[i][j] = 4 * i + j;
        }
        sequences[i] = (struct weft_batch_sequence){8 * i, 8, 56, 4, pages[i]};
        rows[i] = (struct weft_step_row){8 * i + 7, 1.0f, true, true, 1.2f, 64, ids, subtracts};
    }
    assert_int_equal(round_trip(plan, &sample, &step), WEFT_OK);
    assert_int_equal(step->rows[2].penalty_ids[63], 99);
}

/* Bends one thing at a time; each must be refused. */
static void bend(struct sample *sample, int which)
{
    static uint32_t many_pages[4] = {1, 2, 3, 4};

    switch (which) {
    case 0: sample->step.generation = 2; break;
    case 1: sample->step.number = 6; break;
    case 2: sample->step.digest = 78; break;
    case 3: sample->step.kind = (enum weft_step_kind)9; break;
    case 4: sample->token_ids[1] = 100; break;
    case 5: sample->token_ids[1] = -1; break;
    case 6: sample->pages[0][1] = 20; break;
    case 7: sample->pages[1][1] = 3; break; /* both write page 3 */
    case 8: sample->sequences[0].position = 61; break;
    case 9: sample->sequences[0].position = UINT32_MAX; break;
    case 10: sample->sequences[0].page_count = 1; break;
    case 11:
        sample->sequences[1].page_count = 4;
        sample->sequences[1].pages = many_pages;
        break;
    case 12: sample->sequences[1].token_count = 0; break;
    case 13: sample->rows[1].token_row = 5; break;
    case 14: sample->rows[1].token_row = 3; break;
    case 15: sample->rows[0].inv_temperature = 0.0f; break;
    case 16: sample->rows[0].inv_temperature = NAN; break;
    case 17: sample->rows[0].inv_temperature = INFINITY; break;
    case 18: sample->rows[1].repetition = 0.0f; break;
    case 19: sample->penalty_ids[1] = 5; break;
    case 20: sample->penalty_ids[1] = 100; break;
    case 21: sample->penalty_subtracts[0] = INFINITY; break;
    case 22: sample->step.candidate_count = 9; break;
    case 23: sample->step.candidate_count = 0; break;
    case 24:
        sample->step.sequence_count = 0;
        sample->step.row_count = 0;
        break;
    case 25: sample->step.kind = WEFT_STEP_GATHER; break; /* of nothing */
    case 26:
        sample->gather_rows[1] = 3;
        sample->step = (struct weft_step){.kind = WEFT_STEP_GATHER,
                                          .generation = 1,
                                          .number = 5,
                                          .digest = 77,
                                          .gather_rows = sample->gather_rows,
                                          .gather_count = 2};
        break;
    default: sample->step.kind = (enum weft_step_kind)0; break;
    }
}

static void test_every_bent_field_is_refused(void **state)
{
    for (int which = 0; which <= 27; which++) {
        struct sample sample;
        const struct weft_step *step = NULL;
        sample_init(&sample);
        bend(&sample, which);
        assert_int_not_equal(round_trip(*state, &sample, &step), WEFT_OK);
        assert_null(step);
        /* and the parser is as good as new: pages marked while checking are forgotten */
        sample_init(&sample);
        assert_int_equal(round_trip(*state, &sample, &step), WEFT_OK);
    }
}

static void test_damaged_bytes_do_no_harm(void **state)
{
    struct weft_plan *plan = *state;
    struct sample sample;
    const struct weft_step *step;
    const void *data;
    size_t size;
    uint64_t seed = 3;
    uint8_t *copy;

    sample_init(&sample);
    weft_plan_pack(plan, &sample.step, &data, &size);
    copy = malloc(size);
    assert_non_null(copy);
    for (size_t cut = 0; cut < size; cut++) {
        memcpy(copy, data, size);
        (void)!weft_plan_parse(plan, copy, cut, &expected, &step);
    }
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, data, size);
        for (int i = 0; i < 3; i++) {
            copy[test_random(&seed) % size] = (uint8_t)test_random(&seed);
        }
        if (weft_plan_parse(plan, copy, size, &expected, &step) == WEFT_OK) {
            assert_true(step->token_count <= limits.token_count_max && step->row_count <= limits.row_count_max);
        }
    }
    free(copy);
}

static void test_digest_sees_every_byte(void **state)
{
    uint8_t data[19] = {0};
    uint64_t plain = weft_digest_mix(1, data, sizeof(data));

    (void)state;
    assert_true(plain != weft_digest_mix(1, data, sizeof(data) - 1));
    assert_true(plain != weft_digest_mix(2, data, sizeof(data)));
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = 1;
        assert_true(plain != weft_digest_mix(1, data, sizeof(data)));
        data[i] = 0;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_largest_step_fits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_bent_field_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_bytes_do_no_harm, set_up, tear_down),
        cmocka_unit_test(test_digest_sees_every_byte),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
