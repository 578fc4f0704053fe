/* The order of additions that turns nodes of the leaf tree, wherever they lie in memory, into the nodes they make. */
#ifndef WEFT_COMM_SUM_PLAN_H
#define WEFT_COMM_SUM_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/tree.h"

/* Elements added at a time: temporaries of 4 KiB stay in L1. */
#define WEFT_SUM_BLOCK 1024u

struct weft_sum_step {
    uint8_t left;
    uint8_t right;
    bool is_last;   /* the sum in slot `left` is complete: goes to output, not to a temporary */
    uint8_t output; /* when is_last */
};

struct weft_sum_plan {
    uint32_t input_count;
    uint32_t step_count;
    uint32_t output_count;
    struct weft_sum_step steps[WEFT_LEAF_COUNT_MAX];
    struct weft_range outputs[WEFT_LEAF_COUNT_MAX]; /* nodes that remain, ascending */
    int8_t copies[WEFT_LEAF_COUNT_MAX];             /* per output: the input it is, -1 when it is a sum */
    void (*add)(float *out, const float *a, const float *b, size_t count);
};

/* inputs: canonical nodes, ascending, gaps allowed (a host need not own neighbouring leaves). */
void weft_sum_plan_init(struct weft_sum_plan *plan, uint32_t leaf_count, const struct weft_range *inputs,
                        uint32_t input_count);

/*
 * outputs[o][0..count) <- sums of inputs[i][0..count), in tree order. Outputs overlap no input. temporaries:
 * [input_count][WEFT_SUM_BLOCK].
 */
void weft_sum_plan_run(const struct weft_sum_plan *plan, const float *const *inputs, float *const *outputs,
                       size_t count, float *temporaries);

#endif
