/*
 * Decode steps that a device can replay (weft/device.h, graphs): which sizes there are, and recording them once the
 * model is open. A rehearsal on one page that nobody owns yet: what it leaves there is overwritten before it is read.
 */
#include <stdlib.h>

#include "model/model_impl.h"
#include "weft/log.h"

/* Positions whose attention differs in the grid: one piece, a few, many (256 positions each, up to 8 are a few). */
static const uint32_t positions[] = {0, 256, 2048};
enum { POSITION_COUNT = sizeof(positions) / sizeof(positions[0]), PAGE_COUNT = 2048 / WEFT_PAGE_POSITIONS + 1 };

/* Arguments of a step in the making, owned. */
struct rehearsal {
    struct weft_batch_sequence *sequences; /* [row_max] */
    int32_t *token_ids;                    /* [row_max] */
    uint32_t *logit_rows;                  /* [row_max] */
    uint32_t pages[PAGE_COUNT];            /* the first one, again and again */
};

/* Powers of two, and the largest there can be: some ten sizes, and hardly a step computes more than twice its rows. */
static uint32_t next_size(uint32_t count, uint32_t row_max)
{
    uint32_t size = 1;

    while (size < count) {
        size *= 2;
    }
    return size < row_max ? size : row_max;
}

/* With several ranks the rows of nobody cross the wire, too: a sum of a recorded step has the size it was recorded
 * with. */
uint32_t weft_model_rows(const struct weft_model *model, uint32_t count)
{
    return model->graphs == NULL ? count : next_size(count, model->limits.logit_row_max);
}

static enum weft_status rehearse(struct weft_model *model, struct weft_comm *comm, struct rehearsal *rehearsal,
                                 uint32_t count, uint32_t position)
{
    const struct weft_forward_args args = {
        .comm = comm,
        .batch = {.token_count = count, .sequence_count = count, .sequences = rehearsal->sequences},
        .token_ids = rehearsal->token_ids,
        .logit_rows = rehearsal->logit_rows,
        .logit_row_count = count};
    float *logits;

    for (uint32_t i = 0; i < count; i++) {
        rehearsal->sequences[i] = (struct weft_batch_sequence){.token_begin = i,
                                                               .token_count = 1,
                                                               .position = position,
                                                               .page_count = position / WEFT_PAGE_POSITIONS + 1,
                                                               .pages = rehearsal->pages};
        rehearsal->logit_rows[i] = i;
    }
    return weft_model_forward(model, &args, &logits);
}

/* First as ever: what is there only after a first use, code and scratch memory, cannot come while recording. */
static enum weft_status record_size(struct weft_model *model, struct weft_comm *comm, struct rehearsal *rehearsal,
                                    struct weft_graphs *graphs, uint32_t count)
{
    uint64_t cached = (uint64_t)model->limits.page_count * WEFT_PAGE_POSITIONS;
    uint32_t position_max = weft_model_position_max(&model->config, &model->limits);

    for (uint32_t i = 0; i < POSITION_COUNT && positions[i] < position_max && positions[i] < cached; i++) {
        WEFT_TRY(rehearse(model, comm, rehearsal, count, positions[i]));
        model->graphs = graphs;
        enum weft_status status = rehearse(model, comm, rehearsal, count, positions[i]);
        model->graphs = NULL;
        WEFT_TRY(status);
        WEFT_TRY(weft_device_sync(model->device));
    }
    return WEFT_OK;
}

static enum weft_status record_all(struct weft_model *model, struct weft_comm *comm, struct weft_graphs *graphs)
{
    uint32_t row_max = model->limits.logit_row_max;
    struct rehearsal rehearsal = {.sequences = calloc(row_max, sizeof(*rehearsal.sequences)),
                                  .token_ids = calloc(row_max, sizeof(*rehearsal.token_ids)),
                                  .logit_rows = calloc(row_max, sizeof(*rehearsal.logit_rows))};
    enum weft_status status = WEFT_OK;

    if (rehearsal.sequences == NULL || rehearsal.token_ids == NULL || rehearsal.logit_rows == NULL) {
        weft_log(WEFT_LOG_ERROR, "model/record", "out of memory for %u sequences", row_max);
        status = WEFT_ERR_MEMORY;
    }
    for (uint32_t done = 0; status == WEFT_OK && done < row_max;) {
        uint32_t count = next_size(done + 1, row_max);
        status = record_size(model, comm, &rehearsal, graphs, count);
        done = count;
    }
    free(rehearsal.sequences);
    free(rehearsal.token_ids);
    free(rehearsal.logit_rows);
    return status;
}

enum weft_status weft_model_record(struct weft_model *model, struct weft_comm *comm)
{
    const struct weft_graphs_desc desc =
        weft_model_graphs_desc(&model->config, &model->slice, &model->limits, model->kv);
    struct weft_graphs *graphs;

    WEFT_TRY(weft_graphs_open(model->device, &desc, &graphs));
    if (graphs == NULL) {
        return WEFT_OK;
    }
    weft_comm_rehearse(comm, true);
    enum weft_status status = record_all(model, comm, graphs);
    weft_comm_rehearse(comm, false);
    model->graphs = graphs;
    weft_graphs_seal(model->device, graphs);
    return status;
}
