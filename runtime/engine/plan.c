/* StepPlan: packing into and parsing out of preallocated memory, and the validation of every field. */
#include "engine/plan.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "weft/log.h"
#include "wire.pb-c.h"

_Static_assert(WEFT_STEP_FORWARD == (int)WEFT__WIRE__STEP_KIND__STEP_FORWARD, "StepKind");
_Static_assert(WEFT_STEP_GATHER == (int)WEFT__WIRE__STEP_KIND__STEP_GATHER, "StepKind");
_Static_assert(WEFT_STEP_END == (int)WEFT__WIRE__STEP_KIND__STEP_END, "StepKind");

/* Room for one unpacking: protobuf-c asks for many small pieces and gives all of them back at once. */
struct bump {
    char *memory;
    size_t used;
    size_t capacity;
};

struct weft_plan {
    struct weft_plan_limits limits;
    struct weft_arena arena;

    /* packing */
    uint8_t *packed; /* [packed_capacity], owned */
    size_t packed_capacity;
    Weft__Wire__SequencePlan *sequence_messages; /* [sequence_count_max] */
    Weft__Wire__SequencePlan **sequence_pointers;
    Weft__Wire__RowPlan *row_messages; /* [row_count_max] */
    Weft__Wire__RowPlan **row_pointers;

    /* parsing */
    struct bump bump;
    ProtobufCAllocator allocator;
    struct weft_step step;
    int32_t *token_ids;                    /* [token_count_max] */
    struct weft_batch_sequence *sequences; /* [sequence_count_max] */
    struct weft_step_row *rows;            /* [row_count_max] */
    uint8_t *written_pages;                /* [page_count] bit set while checking: pages that this step writes */
};

static void *bump_alloc(void *context, size_t size)
{
    struct bump *bump = context;

    if (size > bump->capacity - bump->used) {
        return NULL;
    }
    void *result = bump->memory + bump->used;
    size_t rounded = (size + 15) / 16 * 16;
    bump->used = rounded > bump->capacity - bump->used ? bump->capacity : bump->used + rounded;
    return result;
}

static void bump_free(void *context, void *memory)
{
    (void)context;
    (void)memory; /* all at once, when the next parse begins */
}

/*
 * Largest StepPlan of our own making: varints of 32 bits take at most 5 bytes, floats 4, and every message or field
 * head less than 64 together. A prompt and its output have no more different tokens than cached positions (and one that
 * is never cached), and no more than the vocabulary. In 64 bits: at most 2^17 tokens, 2^12 rows, 2^32 pages of 2^4.
 */
static uint64_t packed_size_max(const struct weft_plan_limits *limits)
{
    uint64_t pages = (uint64_t)limits->context_length / WEFT_PAGE_POSITIONS + 1;
    uint64_t different = limits->vocab_size < limits->context_length ? limits->vocab_size : limits->context_length;
    uint64_t penalties = different * limits->row_count_max;
    uint64_t positions = (uint64_t)limits->page_count * WEFT_PAGE_POSITIONS + limits->row_count_max;

    penalties = positions < penalties ? positions : penalties;
    return (uint64_t)limits->token_count_max * 5 + limits->sequence_count_max * (pages * 5 + 64) + penalties * 9 +
           (uint64_t)limits->row_count_max * (5 + 64) + 128;
}

/* Everything in one arena; NULLs are found at the end. */
static bool plan_alloc(struct weft_plan *plan)
{
    const struct weft_plan_limits *limits = &plan->limits;
    struct weft_arena *arena = &plan->arena;

    uint64_t packed_size = packed_size_max(limits);
    /* Unpacked: 4 bytes for at least one byte each, again for the scanner, some for every message. */
    uint64_t unpacked_size =
        packed_size * 6 + ((uint64_t)limits->sequence_count_max + limits->row_count_max) * 512 + (uint64_t)64 * 1024;

    if (unpacked_size > SIZE_MAX / 2) {
        return false;
    }
    plan->packed_capacity = (size_t)packed_size;
    plan->bump.capacity = (size_t)unpacked_size;
    /* calloc, not the arena: hundreds of MiB for long contexts, of which a step touches a few pages. */
    plan->packed = calloc(plan->packed_capacity, 1);
    plan->bump.memory = calloc(plan->bump.capacity, 1);
    plan->sequence_messages = weft_arena_alloc(arena, limits->sequence_count_max, sizeof(*plan->sequence_messages));
    plan->sequence_pointers = weft_arena_alloc(arena, limits->sequence_count_max, sizeof(*plan->sequence_pointers));
    plan->row_messages = weft_arena_alloc(arena, limits->row_count_max, sizeof(*plan->row_messages));
    plan->row_pointers = weft_arena_alloc(arena, limits->row_count_max, sizeof(*plan->row_pointers));
    plan->token_ids = weft_arena_alloc(arena, limits->token_count_max, sizeof(*plan->token_ids));
    plan->sequences = weft_arena_alloc(arena, limits->sequence_count_max, sizeof(*plan->sequences));
    plan->rows = weft_arena_alloc(arena, limits->row_count_max, sizeof(*plan->rows));
    plan->written_pages = weft_arena_alloc(arena, limits->page_count, 1);
    return plan->packed != NULL && plan->bump.memory != NULL && plan->sequence_messages != NULL &&
           plan->sequence_pointers != NULL && plan->row_messages != NULL && plan->row_pointers != NULL &&
           plan->token_ids != NULL && plan->sequences != NULL && plan->rows != NULL && plan->written_pages != NULL;
}

enum weft_status weft_plan_open(const struct weft_plan_limits *limits, struct weft_plan **out)
{
    struct weft_plan *plan = calloc(1, sizeof(*plan));

    if (plan != NULL) {
        plan->limits = *limits;
        plan->allocator = (ProtobufCAllocator){bump_alloc, bump_free, &plan->bump};
    }
    if (plan == NULL || !plan_alloc(plan)) {
        weft_log(WEFT_LOG_ERROR, "engine/plan", "out of memory for plans of %u sequences, %u tokens",
                 limits->sequence_count_max, limits->token_count_max);
        weft_plan_close(&plan);
        return WEFT_ERR_MEMORY;
    }
    *out = plan;
    return WEFT_OK;
}

void weft_plan_close(struct weft_plan **plan)
{
    if (*plan != NULL) {
        free((*plan)->packed);
        free((*plan)->bump.memory);
        weft_arena_fini(&(*plan)->arena);
        free(*plan);
        *plan = NULL;
    }
}

/* ---- packing ---- */

/* protobuf-c's structs point to mutable arrays; packing only reads them. */
static void fill_sequence(Weft__Wire__SequencePlan *message, const struct weft_step *step,
                          const struct weft_batch_sequence *sequence)
{
    weft__wire__sequence_plan__init(message);
    message->position = sequence->position;
    message->n_token_ids = sequence->token_count;
    message->token_ids = (uint32_t *)(uintptr_t)(step->token_ids + sequence->token_begin);
    message->n_pages = sequence->page_count;
    message->pages = (uint32_t *)(uintptr_t)sequence->pages;
}

static void fill_row(Weft__Wire__RowPlan *message, const struct weft_step_row *row)
{
    weft__wire__row_plan__init(message);
    message->token_row = row->token_row;
    message->inv_temperature = row->inv_temperature;
    message->has_full = row->has_full;
    message->has_raw = row->has_raw;
    message->repetition = row->repetition;
    message->n_penalty_ids = row->penalty_count;
    message->penalty_ids = (uint32_t *)(uintptr_t)row->penalty_ids;
    message->n_penalty_subtracts = row->penalty_count;
    message->penalty_subtracts = (float *)(uintptr_t)row->penalty_subtracts;
}

void weft_plan_pack(struct weft_plan *plan, const struct weft_step *step, const void **data_out, size_t *size_out)
{
    Weft__Wire__StepPlan message = WEFT__WIRE__STEP_PLAN__INIT;

    assert(step->sequence_count <= plan->limits.sequence_count_max && step->row_count <= plan->limits.row_count_max);
    message.generation = step->generation;
    message.step = step->number;
    message.digest = step->digest;
    message.kind = (Weft__Wire__StepKind)step->kind;
    message.candidate_count = step->candidate_count;
    for (uint32_t i = 0; i < step->sequence_count; i++) {
        plan->sequence_pointers[i] = &plan->sequence_messages[i];
        fill_sequence(&plan->sequence_messages[i], step, &step->sequences[i]);
    }
    for (uint32_t i = 0; i < step->row_count; i++) {
        plan->row_pointers[i] = &plan->row_messages[i];
        fill_row(&plan->row_messages[i], &step->rows[i]);
    }
    message.n_sequences = step->sequence_count;
    message.sequences = plan->sequence_pointers;
    message.n_rows = step->row_count;
    message.rows = plan->row_pointers;
    message.n_gather_rows = step->gather_count;
    message.gather_rows = (uint32_t *)(uintptr_t)step->gather_rows;
    size_t size = weft__wire__step_plan__get_packed_size(&message);
    assert(size <= plan->packed_capacity);
    *size_out = weft__wire__step_plan__pack(&message, plan->packed);
    *data_out = plan->packed;
}

/* ---- parsing ---- */

#define REFUSE(status, ...)                                                                                            \
    do {                                                                                                               \
        weft_log(WEFT_LOG_ERROR, "engine/plan", __VA_ARGS__);                                                          \
        return (status);                                                                                               \
    } while (0)

static enum weft_status check_header(const Weft__Wire__StepPlan *message, const struct weft_plan_expected *expected)
{
    if (message->generation != expected->generation) {
        REFUSE(WEFT_ERR_FORMAT, "plan of group generation %" PRIu64 ": this rank is in %" PRIu64, message->generation,
               expected->generation);
    }
    if (message->step != expected->number) {
        REFUSE(WEFT_ERR_FORMAT, "plan of step %" PRIu64 ": this rank expects step %" PRIu64, message->step,
               expected->number);
    }
    if (message->digest != expected->digest) {
        REFUSE(WEFT_ERR_FORMAT,
               "step %" PRIu64 ": digest %016" PRIx64 " of the leader, %016" PRIx64 " here: the ranks have diverged",
               message->step, message->digest, expected->digest);
    }
    return WEFT_OK;
}

static enum weft_status check_tokens(const struct weft_plan *plan, const Weft__Wire__SequencePlan *message,
                                     size_t index)
{
    for (size_t i = 0; i < message->n_token_ids; i++) {
        if (message->token_ids[i] >= plan->limits.vocab_size) {
            REFUSE(WEFT_ERR_FORMAT, "sequence %zu: token id %u, the vocabulary has %u", index, message->token_ids[i],
                   plan->limits.vocab_size);
        }
    }
    return WEFT_OK;
}

/* Pages written by this step belong to one sequence each: two writers of one page would race between threads. */
static enum weft_status check_pages(struct weft_plan *plan, const Weft__Wire__SequencePlan *message, size_t index)
{
    size_t end = (size_t)message->position + message->n_token_ids;
    size_t needed = (end + WEFT_PAGE_POSITIONS - 1) / WEFT_PAGE_POSITIONS;
    size_t first_written = message->position / WEFT_PAGE_POSITIONS;

    if (message->n_pages != needed) {
        REFUSE(WEFT_ERR_FORMAT, "sequence %zu: %zu pages for positions [0, %zu), expected %zu", index, message->n_pages,
               end, needed);
    }
    for (size_t i = 0; i < needed; i++) {
        uint32_t page = message->pages[i];
        if (page >= plan->limits.page_count) {
            REFUSE(WEFT_ERR_FORMAT, "sequence %zu: page %u, the cache has %u", index, page, plan->limits.page_count);
        }
        if (i >= first_written) {
            if (plan->written_pages[page] != 0) {
                REFUSE(WEFT_ERR_FORMAT, "sequence %zu: page %u is written twice", index, page);
            }
            plan->written_pages[page] = 1;
        }
    }
    return WEFT_OK;
}

static void forget_written_pages(struct weft_plan *plan, const Weft__Wire__StepPlan *message)
{
    for (size_t i = 0; i < message->n_sequences; i++) {
        for (size_t j = 0; j < message->sequences[i]->n_pages; j++) {
            uint32_t page = message->sequences[i]->pages[j];
            if (page < plan->limits.page_count) {
                plan->written_pages[page] = 0;
            }
        }
    }
}

static enum weft_status take_sequences(struct weft_plan *plan, const Weft__Wire__StepPlan *message)
{
    struct weft_step *step = &plan->step;

    for (size_t i = 0; i < message->n_sequences; i++) {
        const Weft__Wire__SequencePlan *sequence = message->sequences[i];
        size_t count = sequence->n_token_ids;
        if (count == 0 || count > plan->limits.token_count_max - step->token_count) {
            REFUSE(WEFT_ERR_LIMIT, "sequence %zu: %zu tokens, expected 1 to %u", i, count,
                   plan->limits.token_count_max - step->token_count);
        }
        if (sequence->position >= plan->limits.context_length ||
            count > plan->limits.context_length - sequence->position) {
            REFUSE(WEFT_ERR_LIMIT, "sequence %zu: %zu tokens from position %u, the context has %u", i, count,
                   sequence->position, plan->limits.context_length);
        }
        WEFT_TRY(check_tokens(plan, sequence, i));
        WEFT_TRY(check_pages(plan, sequence, i));
        for (size_t j = 0; j < count; j++) {
            plan->token_ids[step->token_count + j] = (int32_t)sequence->token_ids[j];
        }
        plan->sequences[i] = (struct weft_batch_sequence){.token_begin = step->token_count,
                                                          .token_count = (uint32_t)count,
                                                          .position = sequence->position,
                                                          .page_count = (uint32_t)sequence->n_pages,
                                                          .pages = sequence->pages};
        step->token_count += (uint32_t)count;
    }
    step->sequence_count = (uint32_t)message->n_sequences;
    return WEFT_OK;
}

static enum weft_status check_row(const struct weft_plan *plan, const Weft__Wire__RowPlan *row, size_t index)
{
    if (!(row->inv_temperature > 0.0F) || !isfinite(row->inv_temperature)) {
        REFUSE(WEFT_ERR_FORMAT, "row %zu: inverse temperature %g, expected a positive number", index,
               (double)row->inv_temperature);
    }
    if (row->n_penalty_subtracts != row->n_penalty_ids) {
        REFUSE(WEFT_ERR_FORMAT, "row %zu: %zu penalties for %zu tokens", index, row->n_penalty_subtracts,
               row->n_penalty_ids);
    }
    if (row->n_penalty_ids > 0 && (!(row->repetition > 0.0F) || !isfinite(row->repetition))) {
        REFUSE(WEFT_ERR_FORMAT, "row %zu: repetition penalty %g, expected a positive number", index,
               (double)row->repetition);
    }
    for (size_t i = 0; i < row->n_penalty_ids; i++) {
        if (row->penalty_ids[i] >= plan->limits.vocab_size ||
            (i > 0 && row->penalty_ids[i] <= row->penalty_ids[i - 1])) {
            REFUSE(WEFT_ERR_FORMAT, "row %zu: penalised token id %u after %u, expected ascending ids below %u", index,
                   row->penalty_ids[i], i > 0 ? row->penalty_ids[i - 1] : 0, plan->limits.vocab_size);
        }
        if (!isfinite(row->penalty_subtracts[i])) {
            REFUSE(WEFT_ERR_FORMAT, "row %zu: penalty of token %u is not finite", index, row->penalty_ids[i]);
        }
    }
    return WEFT_OK;
}

static enum weft_status take_rows(struct weft_plan *plan, const Weft__Wire__StepPlan *message)
{
    struct weft_step *step = &plan->step;

    for (size_t i = 0; i < message->n_rows; i++) {
        const Weft__Wire__RowPlan *row = message->rows[i];
        if (row->token_row >= step->token_count || (i > 0 && row->token_row <= message->rows[i - 1]->token_row)) {
            REFUSE(WEFT_ERR_FORMAT, "row %zu: token row %u, expected ascending rows below %u", i, row->token_row,
                   step->token_count);
        }
        WEFT_TRY(check_row(plan, row, i));
        plan->rows[i] = (struct weft_step_row){.token_row = row->token_row,
                                               .inv_temperature = row->inv_temperature,
                                               .has_full = row->has_full != 0,
                                               .has_raw = row->has_raw != 0,
                                               .repetition = row->repetition,
                                               .penalty_count = (uint32_t)row->n_penalty_ids,
                                               .penalty_ids = row->penalty_ids,
                                               .penalty_subtracts = row->penalty_subtracts};
    }
    step->row_count = (uint32_t)message->n_rows;
    return WEFT_OK;
}

static enum weft_status take_forward(struct weft_plan *plan, const Weft__Wire__StepPlan *message)
{
    const struct weft_plan_limits *limits = &plan->limits;

    if (message->n_sequences < 1 || message->n_sequences > limits->sequence_count_max) {
        REFUSE(WEFT_ERR_LIMIT, "%zu sequences, expected 1 to %u", message->n_sequences, limits->sequence_count_max);
    }
    if (message->n_rows > limits->row_count_max) {
        REFUSE(WEFT_ERR_LIMIT, "%zu rows of logits, expected at most %u", message->n_rows, limits->row_count_max);
    }
    if (message->candidate_count > limits->candidate_count_max ||
        (message->candidate_count == 0 && message->n_rows > 0)) {
        REFUSE(WEFT_ERR_LIMIT, "%u candidates, expected 1 to %u", message->candidate_count,
               limits->candidate_count_max);
    }
    plan->step.candidate_count = message->candidate_count;
    enum weft_status status = take_sequences(plan, message);
    forget_written_pages(plan, message);
    WEFT_TRY(status);
    return take_rows(plan, message);
}

static enum weft_status take_gather(struct weft_plan *plan, const Weft__Wire__StepPlan *message, uint32_t row_count)
{
    if (message->n_gather_rows < 1 || message->n_gather_rows > row_count) {
        REFUSE(WEFT_ERR_LIMIT, "%zu rows to gather, the last step had %u", message->n_gather_rows, row_count);
    }
    for (size_t i = 0; i < message->n_gather_rows; i++) {
        uint32_t row = message->gather_rows[i];
        if (row >= row_count || (i > 0 && row <= message->gather_rows[i - 1])) {
            REFUSE(WEFT_ERR_FORMAT, "gather of row %u, expected ascending rows below %u", row, row_count);
        }
    }
    plan->step.gather_rows = message->gather_rows;
    plan->step.gather_count = (uint32_t)message->n_gather_rows;
    return WEFT_OK;
}

enum weft_status weft_plan_parse(struct weft_plan *plan, const void *data, size_t size,
                                 const struct weft_plan_expected *expected, const struct weft_step **step_out)
{
    if (size > plan->packed_capacity) {
        REFUSE(WEFT_ERR_LIMIT, "plan of %zu bytes, expected at most %zu", size, plan->packed_capacity);
    }
    plan->bump.used = 0;
    const Weft__Wire__StepPlan *message = weft__wire__step_plan__unpack(&plan->allocator, size, data);
    if (message == NULL) {
        REFUSE(WEFT_ERR_FORMAT, "plan of %zu bytes cannot be decoded", size);
    }
    WEFT_TRY(check_header(message, expected));
    plan->step = (struct weft_step){.kind = (enum weft_step_kind)message->kind,
                                    .generation = message->generation,
                                    .number = message->step,
                                    .digest = message->digest,
                                    .token_ids = plan->token_ids,
                                    .sequences = plan->sequences,
                                    .rows = plan->rows};
    switch ((int)message->kind) {
    case WEFT_STEP_FORWARD: WEFT_TRY(take_forward(plan, message)); break;
    case WEFT_STEP_GATHER: WEFT_TRY(take_gather(plan, message, expected->row_count)); break;
    case WEFT_STEP_END: break;
    default: REFUSE(WEFT_ERR_FORMAT, "plan of unknown kind %d", (int)message->kind);
    }
    *step_out = &plan->step;
    return WEFT_OK;
}

uint64_t weft_digest_mix(uint64_t digest, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t word;

    digest = (digest ^ size) * UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = 0; i < size; i += sizeof(word)) {
        size_t part = size - i < sizeof(word) ? size - i : sizeof(word);
        word = 0;
        memcpy(&word, bytes + i, part);
        digest = (digest ^ word) * UINT64_C(0x9E3779B97F4A7C15);
        digest ^= digest >> 32;
    }
    return digest;
}
