/*
 * A step as all ranks see it, and its StepPlan on the wire (wire.proto).
 *
 * The leader fills a struct weft_step and packs it; every rank, the leader too, executes only what weft_plan_parse()
 * made of the bytes. parse() trusts nothing: whatever gets through is within the limits that buffers were sized from.
 * Both allocate nothing after open.
 */
#ifndef WEFT_ENGINE_PLAN_H
#define WEFT_ENGINE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/device.h"
#include "weft/status.h"

/* Values are those of StepKind in wire.proto. */
enum weft_step_kind {
    WEFT_STEP_FORWARD = 1,
    WEFT_STEP_GATHER = 2,
    WEFT_STEP_END = 3,
};

/* One wanted row of logits; wire.proto says what the members mean. */
struct weft_step_row {
    uint32_t token_row;
    float inv_temperature;
    bool has_full;
    bool has_raw;
    float repetition;
    uint32_t penalty_count;
    const uint32_t *penalty_ids;    /* [penalty_count] */
    const float *penalty_subtracts; /* [penalty_count] */
};

struct weft_step {
    enum weft_step_kind kind;
    uint64_t generation;
    uint64_t number;
    uint64_t digest;
    uint32_t candidate_count;
    uint32_t token_count;
    const int32_t *token_ids;                    /* [token_count] */
    const struct weft_batch_sequence *sequences; /* [sequence_count] */
    uint32_t sequence_count;
    const struct weft_step_row *rows; /* [row_count] */
    uint32_t row_count;
    const uint32_t *gather_rows; /* [gather_count] */
    uint32_t gather_count;
};

struct weft_plan_limits {
    uint32_t token_count_max;
    uint32_t sequence_count_max;
    uint32_t row_count_max;
    uint32_t candidate_count_max;
    uint32_t page_count;
    uint32_t context_length;
    uint32_t vocab_size;
};

/* What a rank knows before a plan arrives; the plan must agree. */
struct weft_plan_expected {
    uint64_t generation;
    uint64_t number;
    uint64_t digest;
    uint32_t row_count; /* of the last forward step, for WEFT_STEP_GATHER */
};

struct weft_plan;

WEFT_MUST_CHECK enum weft_status weft_plan_open(const struct weft_plan_limits *limits, struct weft_plan **out);
void weft_plan_close(struct weft_plan **plan);

/* *data_out [*size_out] <- the StepPlan, valid until the next pack. The step is within the limits (asserted). */
void weft_plan_pack(struct weft_plan *plan, const struct weft_step *step, const void **data_out, size_t *size_out);

/*
 * *step_out <- the step in data[size], valid until the next parse. ERR_FORMAT, ERR_LIMIT: logged, with what was
 * expected and found.
 */
WEFT_MUST_CHECK enum weft_status weft_plan_parse(struct weft_plan *plan, const void *data, size_t size,
                                                 const struct weft_plan_expected *expected,
                                                 const struct weft_step **step_out);

/* Mixes data[size] into a digest of 64 bits; not cryptographic: it finds ranks that went different ways. */
uint64_t weft_digest_mix(uint64_t digest, const void *data, size_t size);

#endif
