/* The sampler: any way the logits arrive gives the same token, restrictions mean what they say, frequencies fit. */
#include "engine_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "weft/numeric.h"

enum { VOCAB = 500, LEAVES = 8 };

static void test_philox_known_answers(void **state)
{
    /* From the kat_vectors file of Random123. */
    static const uint32_t cases[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
         0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };

    (void)state;
    for (size_t i = 0; i < TEST_COUNT(cases); i++) {
        uint32_t out[4];
        weft_philox(cases[i], cases[i] + 4, out);
        assert_memory_equal(out, cases[i] + 6, sizeof(out));
    }
}

static int compare_candidates(const void *a, const void *b)
{
    return weft_candidate_is_before(*(const struct weft_candidate *)a, *(const struct weft_candidate *)b) ? -1 : 1;
}

/* Vocabulary of leaf v, and of a rank that owns leaves [begin, end). */
static struct weft_range leaf_range(uint32_t begin, uint32_t end)
{
    return weft_tree_units(VOCAB, LEAVES, (struct weft_range){begin, end});
}

/* The partial sums as a device would make them (in plain order: any fixed order will do here). */
static void make_lse(const float *logits, float inv_temperature, struct weft_lse *lse)
{
    for (uint32_t v = 0; v < LEAVES; v++) {
        struct weft_range range = leaf_range(v, v + 1);
        lse[v] = (struct weft_lse){-INFINITY, 0.0f};
        for (uint32_t i = range.begin; i < range.end; i++) {
            lse[v].max = logits[i] > lse[v].max ? logits[i] : lse[v].max;
        }
        for (uint32_t i = range.begin; i < range.end; i++) {
            lse[v].sum += weft_exp((logits[i] - lse[v].max) * inv_temperature);
        }
    }
}

/* Candidates of rank_count ranks, `count` each, merged. */
static void rank_candidates(const float *logits, uint32_t rank_count, uint32_t count, struct weft_candidate *room,
                            struct weft_ranking *ranking)
{
    static struct weft_candidate lists[LEAVES][VOCAB];
    const struct weft_candidate *pointers[LEAVES];
    struct weft_range leaves[LEAVES];
    uint32_t widths[LEAVES];

    assert_int_equal(weft_tree_deal(LEAVES, rank_count, NULL, leaves), 0);
    for (uint32_t r = 0; r < rank_count; r++) {
        struct weft_range range = leaf_range(leaves[r].begin, leaves[r].end);
        widths[r] = weft_range_count(range);
        for (uint32_t i = 0; i < widths[r]; i++) {
            lists[r][i] = (struct weft_candidate){logits[range.begin + i], (int32_t)(range.begin + i)};
        }
        qsort(lists[r], widths[r], sizeof(lists[r][0]), compare_candidates);
        for (uint32_t i = widths[r]; i < count; i++) {
            lists[r][i] = (struct weft_candidate){-INFINITY, -1};
        }
        pointers[r] = lists[r];
    }
    weft_ranking_merge(pointers, widths, rank_count, count, room, ranking);
}

static void random_logits(uint64_t *seed, float *logits)
{
    float spread = (float)(1 + test_random(seed) % 12);

    for (uint32_t i = 0; i < VOCAB; i++) {
        /* Coarse steps: ties are common. */
        logits[i] = spread * ((float)(test_random(seed) % 64) / 32.0f - 1.0f);
    }
}

static void test_ranking_is_the_same_from_row_and_candidates(void **state)
{
    static struct weft_candidate row_room[VOCAB];
    static struct weft_candidate room[LEAVES * VOCAB];
    float logits[VOCAB];
    uint64_t seed = 5;

    (void)state;
    for (int round = 0; round < 50; round++) {
        random_logits(&seed, logits);
        for (uint32_t ranks = 1; ranks <= LEAVES; ranks++) {
            uint32_t count = 1 + (uint32_t)(test_random(&seed) % 80);
            struct weft_ranking whole;
            struct weft_ranking head;
            struct weft_candidate a;
            struct weft_candidate b;
            weft_ranking_from_row(logits, VOCAB, row_room, &whole);
            rank_candidates(logits, ranks, count, room, &head);
            assert_true(head.sorted_count >= count || head.is_complete);
            assert_true(!head.is_complete || head.sorted_count == VOCAB);
            for (size_t i = 0; i < head.sorted_count; i++) {
                assert_true(weft_ranking_at(&whole, i, &a) && weft_ranking_at(&head, i, &b));
                assert_int_equal(a.token_id, b.token_id);
            }
            assert_true(weft_ranking_at(&whole, VOCAB - 1, &a));
            assert_false(weft_ranking_at(&whole, VOCAB, &a));
            assert_true(weft_ranking_at(&whole, 0, &a)); /* the head stays after the tail was asked for */
            assert_int_equal(a.token_id, head.sorted[0].token_id);
        }
    }
}

static void random_sampling(uint64_t *seed, struct weft_sampling *sampling)
{
    static const float temperatures[] = {0.0f, 0.2f, 1.0f, 3.0f};
    static const uint32_t ks[] = {0, 0, 1, 5, 50, 400, 1000};
    static const float ps[] = {1.0f, 1.0f, 0.1f, 0.9f, 0.999f, 0.9999999f};
    static const float min_ps[] = {0.0f, 0.0f, 0.05f, 0.9f};

    sampling->temperature = temperatures[test_random(seed) % TEST_COUNT(temperatures)];
    sampling->top_k = ks[test_random(seed) % TEST_COUNT(ks)];
    sampling->top_p = ps[test_random(seed) % TEST_COUNT(ps)];
    sampling->min_p = min_ps[test_random(seed) % TEST_COUNT(min_ps)];
    sampling->seed = test_random(seed);
}

static void test_candidates_decide_as_the_row_or_not_at_all(void **state)
{
    static struct weft_candidate row_room[VOCAB];
    static struct weft_candidate room[LEAVES * VOCAB];
    float logits[VOCAB];
    struct weft_lse lse[LEAVES];
    uint64_t seed = 9;
    int decided = 0;
    int undecided = 0;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        struct weft_sampling sampling;
        struct weft_ranking ranking;
        int32_t from_row = -1;
        int32_t from_candidates = -1;
        random_logits(&seed, logits);
        random_sampling(&seed, &sampling);
        make_lse(logits, weft_sampling_inv_temperature(&sampling), lse);
        float total = weft_lse_total(lse, LEAVES, weft_sampling_inv_temperature(&sampling));
        weft_ranking_from_row(logits, VOCAB, row_room, &ranking);
        assert_int_equal(weft_sample(&sampling, &ranking, total, (uint64_t)round, &from_row), WEFT_SAMPLE_DONE);
        rank_candidates(logits, 1 + (uint32_t)(test_random(&seed) % LEAVES), 1 + (uint32_t)(test_random(&seed) % 64),
                        room, &ranking);
        if (weft_sample(&sampling, &ranking, total, (uint64_t)round, &from_candidates) == WEFT_SAMPLE_DONE) {
            assert_int_equal(from_candidates, from_row);
            decided++;
        } else {
            undecided++;
        }
    }
    assert_true(decided > 500 && undecided > 500); /* both paths were exercised */
}

/* Draws many tokens and compares the frequencies with probabilities computed the plain way in double. */
static void check_frequencies(const struct weft_sampling *sampling, const float *logits, const double *expected)
{
    enum { DRAWS = 40000 };
    static struct weft_candidate room[VOCAB];
    struct weft_lse lse[LEAVES];
    uint32_t counts[VOCAB] = {0};

    make_lse(logits, weft_sampling_inv_temperature(sampling), lse);
    float total = weft_lse_total(lse, LEAVES, weft_sampling_inv_temperature(sampling));
    for (uint64_t position = 0; position < DRAWS; position++) {
        struct weft_ranking ranking;
        int32_t token;
        weft_ranking_from_row(logits, VOCAB, room, &ranking);
        assert_int_equal(weft_sample(sampling, &ranking, total, position, &token), WEFT_SAMPLE_DONE);
        counts[token]++;
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        double deviation = sqrt(expected[i] * (1.0 - expected[i]) / DRAWS);
        assert_true(fabs(counts[i] / (double)DRAWS - expected[i]) <= 5.0 * deviation + 1e-9);
        assert_true(expected[i] > 0.0 || counts[i] == 0);
    }
}

/* Probabilities of a sorted vocabulary (token i is the i-th best) when only the first `kept` remain. */
static void probabilities(const float *logits, double temperature, uint32_t kept, double *out)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < VOCAB; i++) {
        out[i] = i < kept ? exp((double)(logits[i] - logits[0]) / temperature) : 0.0;
        sum += out[i];
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        out[i] /= sum;
    }
}

static void test_frequencies(void **state)
{
    struct weft_sampling sampling = {.temperature = 0.7f, .top_p = 1.0f, .seed = 42};
    float logits[VOCAB];
    double expected[VOCAB];
    double cumulative = 0.0;
    uint32_t kept = 0;

    (void)state;
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[i] = 4.0f - 0.05f * (float)i;
    }
    probabilities(logits, 0.7, VOCAB, expected);
    check_frequencies(&sampling, logits, expected);
    while (cumulative < 0.8) {
        cumulative += expected[kept++];
    }
    sampling.top_p = 0.8f;
    probabilities(logits, 0.7, kept, expected);
    check_frequencies(&sampling, logits, expected);
    sampling = (struct weft_sampling){.temperature = 1.5f, .top_k = 7, .top_p = 1.0f, .seed = 43};
    probabilities(logits, 1.5, 7, expected);
    check_frequencies(&sampling, logits, expected);
    /* exp(-0.05 i) >= 0.5 up to i = 13 */
    sampling = (struct weft_sampling){.temperature = 1.0f, .min_p = 0.5f, .top_p = 1.0f, .seed = 44};
    probabilities(logits, 1.0, 14, expected);
    check_frequencies(&sampling, logits, expected);
}

static void test_greedy_ties_and_broken_rows(void **state)
{
    static struct weft_candidate room[VOCAB];
    const struct weft_sampling greedy = {.temperature = 0.0f, .top_p = 1.0f};
    const struct weft_sampling warm = {.temperature = 1.0f, .top_p = 1.0f};
    struct weft_ranking ranking;
    float logits[VOCAB] = {0};
    int32_t token;

    (void)state;
    logits[77] = 3.0f;
    logits[300] = 3.0f;
    weft_ranking_from_row(logits, VOCAB, room, &ranking);
    assert_int_equal(weft_sample(&greedy, &ranking, 1.0f, 0, &token), WEFT_SAMPLE_DONE);
    assert_int_equal(token, 77);
    logits[400] = NAN;
    weft_ranking_from_row(logits, VOCAB, room, &ranking);
    assert_int_equal(weft_sample(&greedy, &ranking, 1.0f, 0, &token), WEFT_SAMPLE_NOT_FINITE);
    assert_int_equal(weft_sample(&warm, &ranking, 1.0f, 0, &token), WEFT_SAMPLE_NOT_FINITE);
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[i] = i == 9 ? 1.0f : -INFINITY;
    }
    weft_ranking_from_row(logits, VOCAB, room, &ranking);
    assert_int_equal(weft_sample(&warm, &ranking, 1.0f, 0, &token), WEFT_SAMPLE_DONE);
    assert_int_equal(token, 9);
    for (uint32_t i = 0; i < VOCAB; i++) {
        logits[i] = -INFINITY;
    }
    weft_ranking_from_row(logits, VOCAB, room, &ranking);
    assert_int_equal(weft_sample(&warm, &ranking, 1.0f, 0, &token), WEFT_SAMPLE_NOT_FINITE);
}

static void test_uniform_is_in_range_and_depends_on_both(void **state)
{
    double sum = 0.0;

    (void)state;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = weft_uniform(i % 100, i / 100);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
    }
    assert_true(fabs(sum / 10000 - 0.5) < 0.02);
    assert_true(weft_uniform(1, 2) != weft_uniform(2, 1));
    assert_true(weft_uniform(UINT64_C(1) << 40, 2) != weft_uniform(0, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_ranking_is_the_same_from_row_and_candidates),
        cmocka_unit_test(test_candidates_decide_as_the_row_or_not_at_all),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_greedy_ties_and_broken_rows),
        cmocka_unit_test(test_uniform_is_in_range_and_depends_on_both),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
