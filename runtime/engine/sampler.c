/* The sampler. Its header defines what is computed; here only in which order of work. */
#include "engine/sampler.h"

#include <assert.h>
#include <math.h>

#include "weft/numeric.h"

float weft_sampling_inv_temperature(const struct weft_sampling *sampling)
{
    return weft_sampling_is_greedy(sampling) ? 1.0f : 1.0f / sampling->temperature;
}

/* ---- order ---- */

bool weft_candidate_is_before(struct weft_candidate a, struct weft_candidate b)
{
    bool is_nan_a = isnan(a.logit);
    bool is_nan_b = isnan(b.logit);

    if (is_nan_a != is_nan_b) {
        return is_nan_a;
    }
    if (!is_nan_a && a.logit != b.logit) {
        return a.logit > b.logit;
    }
    return a.token_id < b.token_id;
}

void weft_ranking_merge(const struct weft_candidate *const *lists, const uint32_t *widths, uint32_t rank_count,
                        uint32_t count, struct weft_candidate *room, struct weft_ranking *ranking_out)
{
    uint32_t heads[WEFT_LEAF_COUNT_MAX] = {0}; /* P <= V */
    size_t merged = 0;
    bool is_complete = true;

    assert(rank_count <= WEFT_LEAF_COUNT_MAX);
    for (;;) {
        uint32_t best = rank_count;
        for (uint32_t r = 0; r < rank_count; r++) {
            uint32_t known = widths[r] < count ? widths[r] : count;
            if (heads[r] == known) {
                if (known < widths[r]) {
                    is_complete = false; /* its next entry might be the best of all, nobody here knows */
                }
                continue;
            }
            if (best == rank_count || weft_candidate_is_before(lists[r][heads[r]], lists[best][heads[best]])) {
                best = r;
            }
        }
        if (best == rank_count || !is_complete) {
            break;
        }
        room[merged++] = lists[best][heads[best]++];
    }
    *ranking_out = (struct weft_ranking){.sorted = room, .sorted_count = merged, .is_complete = is_complete};
}

static void sift_down(struct weft_candidate *heap, size_t count, size_t index)
{
    struct weft_candidate moved = heap[index];

    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count && weft_candidate_is_before(heap[child + 1], heap[child])) {
            child++;
        }
        if (!weft_candidate_is_before(heap[child], moved)) {
            break;
        }
        heap[index] = heap[child];
        index = child;
    }
    heap[index] = moved;
}

/*
 * The heap's root is heap[0] and popped entries go to the end of the same room, last first: entry i of the order is
 * then room[vocab_size - 1 - i]. `sorted` therefore points one past the end and is indexed backwards.
 */
void weft_ranking_from_row(const float *logits, uint32_t vocab_size, struct weft_candidate *room,
                           struct weft_ranking *ranking_out)
{
    for (uint32_t i = 0; i < vocab_size; i++) {
        room[i] = (struct weft_candidate){.logit = logits[i], .token_id = (int32_t)i};
    }
    for (size_t i = vocab_size / 2; i-- > 0;) {
        sift_down(room, vocab_size, i);
    }
    *ranking_out =
        (struct weft_ranking){.sorted = room + vocab_size, .heap = room, .heap_count = vocab_size, .is_complete = true};
}

bool weft_ranking_at(struct weft_ranking *ranking, size_t index, struct weft_candidate *candidate_out)
{
    if (ranking->heap == NULL) {
        if (index >= ranking->sorted_count) {
            return false;
        }
        *candidate_out = ranking->sorted[index];
        return true;
    }
    while (ranking->sorted_count <= index && ranking->heap_count > 0) {
        struct weft_candidate best = ranking->heap[0];
        ranking->heap_count--;
        ranking->heap[0] = ranking->heap[ranking->heap_count];
        if (ranking->heap_count > 0) {
            sift_down(ranking->heap, ranking->heap_count, 0);
        }
        ranking->sorted_count++;
        *(ranking->sorted - ranking->sorted_count) = best;
    }
    if (index >= ranking->sorted_count) {
        return false;
    }
    *candidate_out = *(ranking->sorted - 1 - index);
    return true;
}

/* ---- sums ---- */

float weft_lse_total(const struct weft_lse *leaves, uint32_t leaf_count, float inv_temperature)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    float sums[WEFT_LEAF_COUNT_MAX];
    float max = -INFINITY;

    assert(leaf_count >= 1 && leaf_count <= WEFT_LEAF_COUNT_MAX);
    for (uint32_t v = 0; v < leaf_count; v++) {
        max = leaves[v].max > max ? leaves[v].max : max;
        nodes[v] = (struct weft_range){v, v + 1};
    }
    for (uint32_t v = 0; v < leaf_count; v++) {
        /* A leaf without vocabulary rows, or with nothing but -inf, adds nothing. */
        sums[v] = leaves[v].sum == 0.0f || leaves[v].max == -INFINITY
                      ? 0.0f
                      : leaves[v].sum * weft_exp((leaves[v].max - max) * inv_temperature);
    }
    size_t add_count = weft_tree_adds(leaf_count, nodes, leaf_count, adds);
    for (size_t i = 0; i < add_count; i++) {
        sums[adds[i].left] += sums[adds[i].right];
    }
    return sums[0];
}

/* ---- the walk ---- */

/* What top_k, top_p and min_p leave: the first `count` entries, whose w sum to `sum`. */
struct nucleus {
    size_t count;
    double sum;
};

static float weight(struct weft_candidate entry, float max, float inv_temperature)
{
    return weft_exp((entry.logit - max) * inv_temperature);
}

/* Sum of w over the first `limit` entries; false when the ranking does not know them all. */
static bool head_sum(struct weft_ranking *ranking, size_t limit, float max, float inv_temperature, double *sum_out)
{
    struct weft_candidate entry;
    double sum = 0.0;

    for (size_t i = 0; i < limit; i++) {
        if (!weft_ranking_at(ranking, i, &entry)) {
            if (!ranking->is_complete) {
                return false;
            }
            break;
        }
        float w = weight(entry, max, inv_temperature);
        if (w == 0.0f) {
            break; /* and so are all that follow */
        }
        sum += (double)w;
    }
    *sum_out = sum;
    return true;
}

static bool nucleus_find(const struct weft_sampling *sampling, struct weft_ranking *ranking, float max, float total,
                         struct nucleus *nucleus_out)
{
    float inv_temperature = weft_sampling_inv_temperature(sampling);
    size_t limit = sampling->top_k > 0 ? sampling->top_k : SIZE_MAX;
    double enough = INFINITY;
    struct nucleus nucleus = {0, 0.0};
    struct weft_candidate entry;

    if (sampling->top_p < 1.0f) {
        double all = (double)total;
        if (sampling->top_k > 0 && !head_sum(ranking, limit, max, inv_temperature, &all)) {
            return false;
        }
        enough = (double)sampling->top_p * all;
    }
    while (nucleus.count < limit && nucleus.sum < enough) {
        if (!weft_ranking_at(ranking, nucleus.count, &entry)) {
            if (!ranking->is_complete) {
                return false;
            }
            break;
        }
        float w = weight(entry, max, inv_temperature);
        if (nucleus.count > 0 && (w == 0.0f || w < sampling->min_p)) {
            break;
        }
        nucleus.count++;
        nucleus.sum += (double)w;
    }
    *nucleus_out = nucleus;
    return true;
}

enum weft_sample weft_sample(const struct weft_sampling *sampling, struct weft_ranking *ranking, float total,
                             uint64_t position, int32_t *token_out)
{
    float inv_temperature = weft_sampling_inv_temperature(sampling);
    struct nucleus nucleus = {SIZE_MAX, (double)total};
    struct weft_candidate entry;
    struct weft_candidate chosen;
    double running = 0.0;

    if (!weft_ranking_at(ranking, 0, &chosen)) {
        return ranking->is_complete ? WEFT_SAMPLE_NOT_FINITE : WEFT_SAMPLE_MORE;
    }
    if (!isfinite(chosen.logit)) {
        return WEFT_SAMPLE_NOT_FINITE;
    }
    if (weft_sampling_is_greedy(sampling)) {
        *token_out = chosen.token_id;
        return WEFT_SAMPLE_DONE;
    }
    float max = chosen.logit;
    bool is_restricted = sampling->top_k > 0 || sampling->top_p < 1.0f || sampling->min_p > 0.0f;
    if (is_restricted && !nucleus_find(sampling, ranking, max, total, &nucleus)) {
        return WEFT_SAMPLE_MORE;
    }
    double target = weft_uniform(sampling->seed, position) * nucleus.sum;
    for (size_t i = 0; i < nucleus.count; i++) {
        if (!weft_ranking_at(ranking, i, &entry)) {
            if (!ranking->is_complete) {
                return WEFT_SAMPLE_MORE;
            }
            break; /* rounding: the sums differ in the last bits; the last entry it is */
        }
        float w = weight(entry, max, inv_temperature);
        if (w == 0.0f) {
            break;
        }
        chosen = entry;
        running += (double)w;
        if (running > target) {
            break;
        }
    }
    *token_out = chosen.token_id;
    return WEFT_SAMPLE_DONE;
}

/* ---- random numbers ---- */

void weft_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0];
    uint32_t c1 = counter[1];
    uint32_t c2 = counter[2];
    uint32_t c3 = counter[3];
    uint32_t k0 = key[0];
    uint32_t k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53U * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57U * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

double weft_uniform(uint64_t seed, uint64_t position)
{
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];

    weft_philox(counter, key, words);
    return (double)(((uint64_t)words[0] << 21) ^ ((uint64_t)words[1] >> 11)) * 0x1p-53;
}
