/*
 * What the sampler needs of a row of logits: the best entries and partial log-sum-exps, without sorting the row.
 *
 * The best are kept in a heap whose root is the worst kept entry. Blocks whose maximum cannot beat the root are skipped
 * whole: after a few thousand entries nearly all are.
 */
#include <assert.h>
#include <math.h>

#include "cpu/device_cpu.h"

enum { BLOCK = 256 }; /* entries per maximum; L1-resident, long enough to hide the call */

void weft_cpu_penalize(struct weft_device *device, float *logits, uint32_t width, const struct weft_penalty *penalties,
                       uint32_t count)
{
    (void)device;
    for (uint32_t i = 0; i < count; i++) {
        const struct weft_penalty *penalty = &penalties[i];
        float *x = logits + (size_t)penalty->row * width + penalty->column;

        assert(penalty->column < width);
        *x = (*x > 0 ? *x / penalty->repetition : *x * penalty->repetition) - penalty->subtract;
    }
}

/* The order of candidates: NaN first, then larger logits, then smaller ids. */
static bool is_better(struct weft_candidate a, struct weft_candidate b)
{
    bool a_nan = isnan(a.logit);
    bool b_nan = isnan(b.logit);

    if (a_nan != b_nan) {
        return a_nan;
    }
    if (!a_nan && a.logit != b.logit) {
        return a.logit > b.logit;
    }
    return a.token_id < b.token_id;
}

/* Restores the heap below `i`: no child is worse than its parent. */
static void sift_down(struct weft_candidate *heap, uint32_t count, uint32_t i)
{
    struct weft_candidate moved = heap[i];

    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child >= count) {
            break;
        }
        if (child + 1 < count && is_better(heap[child], heap[child + 1])) {
            child++;
        }
        if (!is_better(moved, heap[child])) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

static void sift_up(struct weft_candidate *heap, uint32_t i)
{
    struct weft_candidate moved = heap[i];

    while (i > 0 && is_better(heap[(i - 1) / 2], moved)) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = moved;
}

/* Best first: the worst goes to the end, again and again. */
static void sort_heap(struct weft_candidate *heap, uint32_t count)
{
    for (uint32_t end = count; end > 1; end--) {
        struct weft_candidate worst = heap[0];

        heap[0] = heap[end - 1];
        heap[end - 1] = worst;
        sift_down(heap, end - 1, 0);
    }
}

static void find_best(const struct weft_cpu_kernels *kernels, const struct weft_candidates_args *args, uint32_t row)
{
    const float *logits = args->logits + (size_t)row * args->width;
    struct weft_candidate *heap = args->best_out + (size_t)row * args->count;
    uint32_t kept = 0;

    for (uint32_t begin = 0; begin < args->width && args->count > 0; begin += BLOCK) {
        uint32_t end = weft_min_u32(begin + BLOCK, args->width);

        if (kept == args->count) { /* entries come by ascending id: an equal one loses */
            float block_max = kernels->max(logits + begin, end - begin);

            if (!(block_max > heap[0].logit) && !isnan(block_max)) {
                continue;
            }
        }
        for (uint32_t i = begin; i < end; i++) {
            struct weft_candidate entry = {.logit = logits[i], .token_id = args->token_first + (int32_t)i};

            if (kept < args->count) {
                heap[kept] = entry;
                sift_up(heap, kept++);
            } else if (is_better(entry, heap[0])) {
                heap[0] = entry;
                sift_down(heap, kept, 0);
            }
        }
    }
    sort_heap(heap, kept);
    for (uint32_t i = kept; i < args->count; i++) {
        heap[i] = (struct weft_candidate){.logit = -INFINITY, .token_id = -1};
    }
}

static void sum_leaf(const struct weft_cpu_kernels *kernels, const struct weft_candidates_args *args, uint32_t row,
                     uint32_t leaf)
{
    const float *logits = args->logits + (size_t)row * args->width + args->leaves[leaf].begin;
    uint32_t count = weft_range_count(args->leaves[leaf]);
    float max = kernels->max(logits, count);
    struct weft_lse *lse = &args->lse_out[(size_t)row * args->leaf_count + leaf];

    lse->max = max;
    /* An empty leaf, or one of -infinity alone, contributes nothing. */
    lse->sum = max == -INFINITY ? 0.0f : kernels->exp_sum(logits, count, max, args->inv_temperatures[row]);
}

struct candidates_job {
    const struct weft_cpu_kernels *kernels;
    const struct weft_candidates_args *args;
};

/* Items: per row, its best entries, then one per leaf. */
static void candidates_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct candidates_job *job = context;
    uint32_t per_row = job->args->leaf_count + 1;

    (void)worker;
    for (uint32_t item = begin; item < end; item++) {
        if (item % per_row == 0) {
            find_best(job->kernels, job->args, item / per_row);
        } else {
            sum_leaf(job->kernels, job->args, item / per_row, item % per_row - 1);
        }
    }
}

void weft_cpu_candidates(struct weft_device *device, const struct weft_candidates_args *args)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    struct candidates_job job = {.kernels = &cpu->kernels, .args = args};

    for (uint32_t i = 0; i < args->leaf_count; i++) {
        assert(args->leaves[i].begin <= args->leaves[i].end && args->leaves[i].end <= args->width);
    }
    weft_pool_run(cpu->pool, WEFT_POOL_DYNAMIC, args->row_count * (args->leaf_count + 1), candidates_task, &job);
}
