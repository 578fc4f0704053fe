/*
 * Fuzzes the check of StepPlans: whatever bytes a leader sends, what weft_plan_parse() lets through is within the
 * limits that the worker's buffers were sized from, and survives another round trip.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#include "engine/plan.h"

static const struct weft_plan_limits limits = {.token_count_max = 40,
                                               .sequence_count_max = 4,
                                               .row_count_max = 4,
                                               .candidate_count_max = 8,
                                               .page_count = 12,
                                               .context_length = 100,
                                               .vocab_size = 300};
static const struct weft_plan_expected expected = {.generation = 1, .number = 5, .digest = 7, .row_count = 3};

/* Fields 1, 2, 3 = 1, 5, 7: appended to every input, since the last value of a field wins and no fuzzer guesses a
 * digest. */
static const uint8_t header[] = {0x08, 1, 0x10, 5, 0x18, 7};

static void check_sequences(const struct weft_step *step)
{
    bool is_written[12] = {false};
    uint32_t row = 0;

    for (uint32_t i = 0; i < step->sequence_count; i++) {
        const struct weft_batch_sequence *sequence = &step->sequences[i];
        uint32_t end = sequence->position + sequence->token_count;
        fuzz_require(sequence->token_begin == row && sequence->token_count >= 1);
        fuzz_require(end <= limits.context_length && sequence->page_count * WEFT_PAGE_POSITIONS >= end);
        for (uint32_t page = 0; page < sequence->page_count; page++) {
            fuzz_require(sequence->pages[page] < limits.page_count);
            if (page >= sequence->position / WEFT_PAGE_POSITIONS) {
                fuzz_require(!is_written[sequence->pages[page]]);
                is_written[sequence->pages[page]] = true;
            }
        }
        row += sequence->token_count;
    }
    fuzz_require(row == step->token_count && row <= limits.token_count_max);
    for (uint32_t i = 0; i < row; i++) {
        fuzz_require(step->token_ids[i] >= 0 && (uint32_t)step->token_ids[i] < limits.vocab_size);
    }
}

static void check_rows(const struct weft_step *step)
{
    fuzz_require(step->row_count <= limits.row_count_max && step->candidate_count <= limits.candidate_count_max);
    for (uint32_t i = 0; i < step->row_count; i++) {
        const struct weft_step_row *row = &step->rows[i];
        fuzz_require(row->token_row < step->token_count && row->inv_temperature > 0.0f);
        for (uint32_t j = 0; j < row->penalty_count; j++) {
            fuzz_require(row->penalty_ids[j] < limits.vocab_size);
            fuzz_require(j == 0 || row->penalty_ids[j] > row->penalty_ids[j - 1]);
        }
    }
    for (uint32_t i = 0; i < step->gather_count; i++) {
        fuzz_require(step->gather_rows[i] < expected.row_count);
    }
}

static enum weft_status parse(struct weft_plan *plan, const uint8_t *data, size_t size, const struct weft_step **step)
{
    uint8_t *whole = malloc(size + sizeof(header)); /* exact size: reading beyond is seen */

    fuzz_require(whole != NULL);
    if (size > 0) {
        memcpy(whole, data, size);
    }
    memcpy(whole + size, header, sizeof(header));
    enum weft_status status = weft_plan_parse(plan, whole, size + sizeof(header), &expected, step);
    free(whole);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct weft_plan *plan;
    static struct weft_plan *packer;
    const struct weft_step *step;
    const struct weft_step *again;
    const void *packed;
    size_t packed_size;

    if (plan == NULL) {
        fuzz_silence();
        fuzz_require(weft_plan_open(&limits, &plan) == WEFT_OK && weft_plan_open(&limits, &packer) == WEFT_OK);
    }
    if (parse(plan, data, size, &step) != WEFT_OK) {
        return 0;
    }
    check_sequences(step);
    check_rows(step);
    weft_plan_pack(packer, step, &packed, &packed_size);
    fuzz_require(weft_plan_parse(packer, packed, packed_size, &expected, &again) == WEFT_OK);
    fuzz_require(again->token_count == step->token_count && again->row_count == step->row_count);
    return 0;
}
