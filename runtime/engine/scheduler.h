/*
 * Which sequences run in the next step, and how many tokens of each. First come, first served.
 *
 * A sequence is admitted when a place and all the pages it may ever need are free, so that nothing that runs is ever
 * thrown out. Every step takes the next token of all sequences that decode, plus up to prefill_chunk prompt tokens in
 * order of arrival. None of this changes an answer: forward() gives a token the same bits in any company.
 *
 * Pure bookkeeping: no I/O, no clock, no threads. Sequences are the caller's and stay where they are while listed.
 */
#ifndef WEFT_ENGINE_SCHEDULER_H
#define WEFT_ENGINE_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/pages.h"
#include "weft/status.h"
#include "weft/weft.h"

enum weft_sequence_state { WEFT_SEQUENCE_NEW = 0, WEFT_SEQUENCE_WAITING, WEFT_SEQUENCE_RUNNING };

struct weft_sequence {
    enum weft_sequence_state state;
    struct weft_sequence *next;  /* in the queue */
    const int32_t *token_ids;    /* [token_count] prompt, then output; borrowed */
    uint32_t token_count;        /* the caller adds what is sampled */
    uint32_t cached_count;       /* of them, from the front, are in the KV cache */
    uint32_t position_count_max; /* positions it may ever cache */
    uint32_t *pages;             /* [weft_pages_for(position_count_max)]; borrowed room, filled while running */
};

struct weft_scheduler_limits {
    uint32_t sequence_count_max; /* running at once */
    uint32_t prefill_chunk;      /* prompt tokens per step, at least 1 */
};

struct weft_scheduler {
    struct weft_scheduler_limits limits;
    struct weft_pages *pages; /* borrowed */
    struct weft_sequence *queue_first;
    struct weft_sequence *queue_last;
    uint32_t queue_count;
    struct weft_sequence **running; /* [running_count] in order of arrival, owned */
    uint32_t running_count;
};

/* Part of a step: the next token_count tokens of the sequence after its cached ones. */
struct weft_schedule_entry {
    struct weft_sequence *sequence;
    uint32_t token_count;
    bool is_sampled; /* they include the last known token: its logits are wanted */
};

/* From resolved options. A chunk longer than the model's context would only take memory: "the whole prompt". */
static inline struct weft_scheduler_limits weft_scheduler_limits_of(const struct weft_engine_options *options,
                                                                    uint32_t context_length)
{
    return (struct weft_scheduler_limits){
        .sequence_count_max = options->sequence_count_max,
        .prefill_chunk = options->prefill_chunk < context_length ? options->prefill_chunk : context_length};
}

/* Tokens of the largest step that weft_scheduler_next() can ask for. */
uint32_t weft_scheduler_token_max(const struct weft_scheduler_limits *limits);

WEFT_MUST_CHECK enum weft_status weft_scheduler_init(struct weft_scheduler *scheduler,
                                                     const struct weft_scheduler_limits *limits,
                                                     struct weft_pages *pages);
void weft_scheduler_fini(struct weft_scheduler *scheduler);

/* Appends to the queue. The sequence must fit into the whole cache. */
void weft_scheduler_push(struct weft_scheduler *scheduler, struct weft_sequence *sequence);

/* Takes a sequence out, wherever it is, and its pages back. Nothing happens when it is not listed. */
void weft_scheduler_remove(struct weft_scheduler *scheduler, struct weft_sequence *sequence);

/* Admits what fits and fills entries_out[sequence_count_max]. Returns their count; 0: nothing to run. */
uint32_t weft_scheduler_next(struct weft_scheduler *scheduler, struct weft_schedule_entry *entries_out);

/* The step has run: the tokens of entries[count] are cached. */
void weft_scheduler_commit(const struct weft_schedule_entry *entries, uint32_t count);

#endif
