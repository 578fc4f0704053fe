/* Penalties, best candidates and partial log-sum-exps against a plain sort and plain loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { ROWS = 3, LEAVES = 4 };

/* NaN first, then descending logits, then ascending ids. */
static int compare(const void *left, const void *right)
{
    const struct weft_candidate *a = left;
    const struct weft_candidate *b = right;

    if (isnan(a->logit) != isnan(b->logit)) {
        return isnan(a->logit) ? -1 : 1;
    }
    if (!isnan(a->logit) && a->logit != b->logit) {
        return a->logit > b->logit ? -1 : 1;
    }
    return a->token_id < b->token_id ? -1 : 1;
}

static void check_best(struct check *check, const struct weft_candidates_args *args, uint32_t row)
{
    const float *logits = args->logits + (size_t)row * args->width;
    struct weft_candidate *sorted = malloc((args->width + 1) * sizeof(*sorted));

    for (uint32_t i = 0; i < args->width; i++) {
        sorted[i] = (struct weft_candidate){logits[i], args->token_first + (int32_t)i};
    }
    qsort(sorted, args->width, sizeof(*sorted), compare);
    for (uint32_t i = 0; i < args->count; i++) {
        struct weft_candidate found = args->best_out[(size_t)row * args->count + i];

        if (i >= args->width) {
            check->compared_count++;
            if (found.token_id != -1) {
                check_fail(check, "candidates of %u: entry %u of %u is token %d, expected none", args->width, i,
                           args->count, found.token_id);
            }
            continue;
        }
        check_same(check, &found.logit, &sorted[i].logit, 1, "candidate %u of %u, width %u", i, args->count,
                   args->width);
        if (found.token_id != sorted[i].token_id) {
            check_fail(check, "candidate %u of %u, width %u: token %d, expected %d", i, args->count, args->width,
                       found.token_id, sorted[i].token_id);
        }
    }
    free(sorted);
}

static void check_sums(struct check *check, const struct weft_candidates_args *args, uint32_t row)
{
    for (uint32_t i = 0; i < args->leaf_count; i++) {
        const float *logits = args->logits + (size_t)row * args->width + args->leaves[i].begin;
        uint32_t count = weft_range_count(args->leaves[i]);
        struct weft_lse found = args->lse_out[(size_t)row * args->leaf_count + i];
        float max = check->ref->max(logits, count);
        float sum = max == -INFINITY ? 0.0f : check->ref->exp_sum(logits, count, max, args->inv_temperatures[row]);

        check_same(check, &found.max, &max, 1, "log-sum-exp maximum of leaf %u", i);
        check_same(check, &found.sum, &sum, 1, "log-sum-exp sum of leaf %u", i);
    }
}

/* Few distinct values give many ties, edge values give NaN and infinities. */
static void candidates_case(struct check *check, struct weft_device *device, uint32_t width, uint32_t count,
                            uint32_t kind)
{
    float *logits = malloc(((size_t)ROWS * width + 1) * sizeof(*logits));
    struct weft_candidate *best = malloc(((size_t)ROWS * count + 1) * sizeof(*best));
    struct weft_lse lse[ROWS * LEAVES];
    const float inv_temperatures[ROWS] = {1.0f, 0.5f, 3.0f};
    const struct weft_range leaves[LEAVES] = {
        {0, width / 3}, {width / 3, width / 3}, {width / 3, width / 2}, {width / 2, width}};
    size_t logits_size = (size_t)ROWS * width * sizeof(*logits);
    struct weft_candidates_args args = {.logits = NULL,
                                        .row_count = ROWS,
                                        .width = width,
                                        .token_first = 1000,
                                        .leaves = leaves,
                                        .leaf_count = LEAVES,
                                        .count = count,
                                        .inv_temperatures = inv_temperatures,
                                        .best_out = best,
                                        .lse_out = lse};

    check_fill(check, kind == 1 ? CHECK_EDGE : CHECK_PLAIN, logits, (size_t)ROWS * width);
    for (uint32_t i = 0; i < ROWS * width && kind >= 2; i++) {
        logits[i] = kind == 2 ? (float)check_below(check, 3) : (float)i; /* ties, or ascending: the worst order */
    }
    float *lent = check_lend(device, logits, logits_size);
    args.logits = lent;
    weft_device_candidates(device, &args);
    check_return(check, device, lent, logits, logits_size);
    args.logits = logits;
    for (uint32_t row = 0; row < ROWS; row++) {
        check_best(check, &args, row);
        check_sums(check, &args, row);
    }
    free(logits);
    free(best);
}

static void penalize_case(struct check *check, struct weft_device *device)
{
    const struct weft_penalty penalties[] = {{0, 1, 1.3f, 0.25f}, {0, 2, 1.3f, 0.0f}, {1, 4, 1.0f, 1.5f}};
    float logits[] = {1, 2, -3, 4, 5, 6, 7, 8, 9, 10};
    const float expected[] = {1, 2 / 1.3f - 0.25f, -3 * 1.3f, 4, 5, 6, 7, 8, 9, 10 - 1.5f};

    float *lent = check_lend(device, logits, sizeof(logits));
    weft_device_penalize(device, lent, 5, penalties, 3);
    check_return(check, device, lent, logits, sizeof(logits));
    check_same(check, logits, expected, 10, "penalize");
}

void check_device_candidates(struct check *check)
{
    static const uint32_t widths[] = {1, 5, 255, 256, 257, 1500};
    static const uint32_t counts[] = {0, 1, 2, 7, 64, 300};
    uint32_t thread_count_max = check->module != NULL ? 1 : 3;

    for (uint32_t threads = 1; threads <= thread_count_max; threads++) {
        struct weft_device *device = check_device(check, threads);

        for (uint32_t i = 0; i < 6 * 6 * 4; i++) {
            candidates_case(check, device, widths[i % 6], counts[i / 6 % 6], i / 36);
        }
        candidates_case(check, device, 20000, 40, 0); /* on a GPU: two rounds */
        candidates_case(check, device, 9000, 2500, 1);
        penalize_case(check, device);
        weft_device_close(&device);
    }
}
