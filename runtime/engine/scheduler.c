/* First come, first served, with chunked prefill and page reservation at admission. */
#include "engine/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "weft/log.h"

uint32_t weft_scheduler_token_max(const struct weft_scheduler_limits *limits)
{
    return limits->prefill_chunk + limits->sequence_count_max;
}

enum weft_status weft_scheduler_init(struct weft_scheduler *scheduler, const struct weft_scheduler_limits *limits,
                                     struct weft_pages *pages)
{
    assert(limits->prefill_chunk >= 1 && limits->sequence_count_max >= 1);
    *scheduler = (struct weft_scheduler){.limits = *limits, .pages = pages};
    scheduler->running = calloc(limits->sequence_count_max, sizeof(struct weft_sequence *));
    if (scheduler->running == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/scheduler", "out of memory for %u sequences", limits->sequence_count_max);
        return WEFT_ERR_MEMORY;
    }
    return WEFT_OK;
}

void weft_scheduler_fini(struct weft_scheduler *scheduler)
{
    free(scheduler->running);
    *scheduler = (struct weft_scheduler){0};
}

void weft_scheduler_push(struct weft_scheduler *scheduler, struct weft_sequence *sequence)
{
    assert(sequence->state == WEFT_SEQUENCE_NEW);
    assert(weft_pages_for(sequence->position_count_max) <= scheduler->pages->page_count);
    sequence->state = WEFT_SEQUENCE_WAITING;
    sequence->next = NULL;
    if (scheduler->queue_last == NULL) {
        scheduler->queue_first = sequence;
    } else {
        scheduler->queue_last->next = sequence;
    }
    scheduler->queue_last = sequence;
    scheduler->queue_count++;
}

static void queue_remove(struct weft_scheduler *scheduler, struct weft_sequence *sequence)
{
    struct weft_sequence *before = NULL;
    struct weft_sequence *at = scheduler->queue_first;

    while (at != sequence) {
        before = at;
        at = at->next;
    }
    if (before == NULL) {
        scheduler->queue_first = sequence->next;
    } else {
        before->next = sequence->next;
    }
    if (scheduler->queue_last == sequence) {
        scheduler->queue_last = before;
    }
    sequence->next = NULL;
    scheduler->queue_count--;
}

static void running_remove(struct weft_scheduler *scheduler, struct weft_sequence *sequence)
{
    uint32_t index = 0;

    while (scheduler->running[index] != sequence) {
        index++;
    }
    scheduler->running_count--;
    memmove(&scheduler->running[index], &scheduler->running[index + 1],
            (scheduler->running_count - index) * sizeof(struct weft_sequence *));
    weft_pages_release(scheduler->pages, sequence->pages, weft_pages_for(sequence->position_count_max));
}

void weft_scheduler_remove(struct weft_scheduler *scheduler, struct weft_sequence *sequence)
{
    if (sequence->state == WEFT_SEQUENCE_WAITING) {
        queue_remove(scheduler, sequence);
    } else if (sequence->state == WEFT_SEQUENCE_RUNNING) {
        running_remove(scheduler, sequence);
    }
    sequence->state = WEFT_SEQUENCE_NEW;
}

/* The head of the queue waits for its pages rather than being overtaken: a long prompt is never starved. */
static void admit(struct weft_scheduler *scheduler)
{
    while (scheduler->queue_first != NULL && scheduler->running_count < scheduler->limits.sequence_count_max) {
        struct weft_sequence *sequence = scheduler->queue_first;
        if (!weft_pages_acquire(scheduler->pages, weft_pages_for(sequence->position_count_max), sequence->pages)) {
            break;
        }
        queue_remove(scheduler, sequence);
        sequence->state = WEFT_SEQUENCE_RUNNING;
        sequence->cached_count = 0;
        scheduler->running[scheduler->running_count++] = sequence;
    }
}

uint32_t weft_scheduler_next(struct weft_scheduler *scheduler, struct weft_schedule_entry *entries_out)
{
    uint32_t prefill_left = scheduler->limits.prefill_chunk;
    uint32_t count = 0;

    admit(scheduler);
    for (uint32_t i = 0; i < scheduler->running_count; i++) {
        struct weft_sequence *sequence = scheduler->running[i];
        uint32_t missing = sequence->token_count - sequence->cached_count;
        uint32_t taken = missing;
        assert(sequence->token_count > sequence->cached_count && sequence->token_count <= sequence->position_count_max);
        if (missing > 1 || sequence->cached_count == 0) {
            taken = missing < prefill_left ? missing : prefill_left;
            prefill_left -= taken;
        }
        if (taken > 0) {
            entries_out[count++] = (struct weft_schedule_entry){sequence, taken, taken == missing};
        }
    }
    return count;
}

void weft_scheduler_commit(const struct weft_schedule_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        entries[i].sequence->cached_count += entries[i].token_count;
    }
}
