/*
 * From logits to a token, the same for every rank count and for every way the logits arrived.
 *
 * Everything is defined on the vocabulary sorted by (logit descending, id ascending) and walked from its head, so a
 * prefix of that order (the ranks' best candidates) gives the same bits as the whole row, or is not enough:
 *
 *   w[i] = exp((logit[i] - logit[0]) / temperature)          f32, weft_exp
 *   top_k: i < k
 *   top_p: the shortest head whose sum of w reaches top_p times the sum over what top_k left
 *   min_p: w[i] >= min_p
 *   token: the first i whose running sum of w exceeds u times the sum over what is left
 *
 * Running sums are f64 in sorted order; the sum over the whole vocabulary comes from the partial log-sum-exps of the
 * vocabulary's leaves, added along the canonical tree. u in [0, 1) is Philox4x32-10 of (seed, position).
 *
 * Penalties are applied before, by the ranks (weft_device_penalize).
 */
#ifndef WEFT_ENGINE_SAMPLER_H
#define WEFT_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/device.h"
#include "weft/status.h"
#include "weft/tree.h"

struct weft_sampling {
    float temperature; /* 0: greedy */
    uint32_t top_k;    /* 0: all */
    float top_p;       /* (0, 1]; 1: all */
    float min_p;       /* [0, 1); 0: off */
    uint64_t seed;
};

/* Below this the best token's neighbours vanish in f32 and 1 / temperature may overflow: it is greedy. */
#define WEFT_TEMPERATURE_MIN 1e-5f

static inline bool weft_sampling_is_greedy(const struct weft_sampling *sampling)
{
    return sampling->temperature < WEFT_TEMPERATURE_MIN;
}

/* 1 / temperature; 1 when greedy. What the ranks scale their log-sum-exp with. */
float weft_sampling_inv_temperature(const struct weft_sampling *sampling);

/*
 * The sorted vocabulary, as far as it is known. Either candidates merged from the ranks, or a whole row that is
 * sorted as far as somebody walks (a heap).
 */
struct weft_ranking {
    struct weft_candidate *sorted; /* [sorted_count] the head of the order */
    size_t sorted_count;
    struct weft_candidate *heap; /* [heap_count] the rest, a heap; NULL with candidates */
    size_t heap_count;
    bool is_complete; /* sorted and heap together are the whole vocabulary */
};

/* True when a comes before b: larger logit, then smaller id; NaN before everything, so that it cannot hide. */
bool weft_candidate_is_before(struct weft_candidate a, struct weft_candidate b);

/*
 * Merges the lists of rank_count ranks. lists[r] has `count` entries, best first, the unused ones with token_id -1;
 * widths[r] is how many vocabulary rows rank r has. The order is known up to where a rank's list is used up without
 * having held its whole slice. room[rank_count * count] receives the sorted head.
 */
void weft_ranking_merge(const struct weft_candidate *const *lists, const uint32_t *widths, uint32_t rank_count,
                        uint32_t count, struct weft_candidate *room, struct weft_ranking *ranking_out);

/* A whole row logits[vocab_size]; room[vocab_size]. Cost: O(vocab_size) now, O(log) for every entry walked. */
void weft_ranking_from_row(const float *logits, uint32_t vocab_size, struct weft_candidate *room,
                           struct weft_ranking *ranking_out);

/* Entry `index` of the order; false when it is not known or, in a complete ranking, does not exist. */
bool weft_ranking_at(struct weft_ranking *ranking, size_t index, struct weft_candidate *candidate_out);

/*
 * Sum over the vocabulary of exp((logit - max) * inv_temperature), max the largest of all, from the partial sums of
 * the leaf_count leaves, in leaf order, along the canonical tree.
 */
float weft_lse_total(const struct weft_lse *leaves, uint32_t leaf_count, float inv_temperature);

enum weft_sample {
    WEFT_SAMPLE_DONE = 0,
    WEFT_SAMPLE_MORE = 1,      /* the ranking is not long enough to decide: the whole row is needed */
    WEFT_SAMPLE_NOT_FINITE = 2 /* the largest logit is NaN or infinite: the model or its input is broken */
};

/* *token_out <- the token at `position`. total: weft_lse_total(), used only without top_k. */
enum weft_sample weft_sample(const struct weft_sampling *sampling, struct weft_ranking *ranking, float total,
                             uint64_t position, int32_t *token_out);

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): counter and key to four words. */
void weft_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Uniform in [0, 1), 53 bits, of (seed, position). */
double weft_uniform(uint64_t seed, uint64_t position);

#endif
