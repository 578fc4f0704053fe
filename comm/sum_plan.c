/* Running the tree's additions over buffers, block by block. Contract in sum_plan.h. */
#include "sum_plan.h"

#include <assert.h>
#include <string.h>

/* Explicit vectors: `out` may be `a`, which stops the compiler from vectorising a plain loop. */
typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));
#define LANE_COUNT 8u

static inline __attribute__((always_inline)) void add_body(float *out, const float *a, const float *b, size_t count)
{
    size_t i = 0;

    for (; i + LANE_COUNT <= count; i += LANE_COUNT) {
        *(lanes *)(out + i) = *(const lanes *)(a + i) + *(const lanes *)(b + i);
    }
    for (; i < count; i++) {
        out[i] = a[i] + b[i];
    }
}

static void add_plain(float *out, const float *a, const float *b, size_t count)
{
    add_body(out, a, b, count);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void add_avx2(float *out, const float *a, const float *b, size_t count)
{
    add_body(out, a, b, count);
}
#endif

/* The output that slot `left` becomes, when step `index` is the last to write it; -1 otherwise. */
static int output_of(const struct weft_tree_add *adds, size_t add_count, size_t index, const uint8_t *output_by_slot)
{
    for (size_t later = index + 1; later < add_count; later++) {
        if (adds[later].left == adds[index].left || adds[later].right == adds[index].left) {
            return -1;
        }
    }
    return output_by_slot[adds[index].left];
}

void weft_sum_plan_init(struct weft_sum_plan *plan, uint32_t leaf_count, const struct weft_range *inputs,
                        uint32_t input_count)
{
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];
    bool is_merged[WEFT_LEAF_COUNT_MAX] = {false}, is_sum[WEFT_LEAF_COUNT_MAX] = {false};
    uint8_t output_by_slot[WEFT_LEAF_COUNT_MAX] = {0};
    size_t add_count = weft_tree_adds(leaf_count, inputs, input_count, adds);

    *plan = (struct weft_sum_plan){.input_count = input_count, .step_count = (uint32_t)add_count, .add = add_plain};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        plan->add = add_avx2;
    }
#endif
    memcpy(nodes, inputs, input_count * sizeof(nodes[0]));
    for (size_t a = 0; a < add_count; a++) {
        is_merged[adds[a].right] = true;
        is_sum[adds[a].left] = true;
        nodes[adds[a].left].end = nodes[adds[a].right].end;
    }
    for (uint32_t i = 0; i < input_count; i++) {
        if (!is_merged[i]) {
            output_by_slot[i] = (uint8_t)plan->output_count;
            plan->copies[plan->output_count] = is_sum[i] ? -1 : (int8_t)i;
            plan->outputs[plan->output_count++] = nodes[i];
        }
    }
    for (size_t a = 0; a < add_count; a++) {
        int output = output_of(adds, add_count, a, output_by_slot);

        plan->steps[a] =
            (struct weft_sum_step){adds[a].left, adds[a].right, output >= 0, output >= 0 ? (uint8_t)output : 0};
    }
}

static void run_block(const struct weft_sum_plan *plan, const float *const *inputs, float *const *outputs,
                      size_t offset, size_t count, float *temporaries)
{
    const float *slots[WEFT_LEAF_COUNT_MAX];

    for (uint32_t i = 0; i < plan->input_count; i++) {
        slots[i] = inputs[i] + offset;
    }
    for (uint32_t s = 0; s < plan->step_count; s++) {
        const struct weft_sum_step *step = &plan->steps[s];
        float *to = step->is_last ? outputs[step->output] + offset : temporaries + step->left * WEFT_SUM_BLOCK;

        plan->add(to, slots[step->left], slots[step->right], count);
        slots[step->left] = to;
    }
    for (uint32_t o = 0; o < plan->output_count; o++) {
        if (plan->copies[o] >= 0) {
            memcpy(outputs[o] + offset, inputs[plan->copies[o]] + offset, count * sizeof(float));
        }
    }
}

void weft_sum_plan_run(const struct weft_sum_plan *plan, const float *const *inputs, float *const *outputs,
                       size_t count, float *temporaries)
{
    for (size_t offset = 0; offset < count; offset += WEFT_SUM_BLOCK) {
        size_t left = count - offset;

        run_block(plan, inputs, outputs, offset, left < WEFT_SUM_BLOCK ? left : WEFT_SUM_BLOCK, temporaries);
    }
}
