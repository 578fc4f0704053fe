/*
 * A model as one rank sees it: configuration, the rank's slice, its weights, and the forward pass.
 *
 * Everything here is per rank and per open call: nothing static, so several models or virtual ranks can live in one
 * process. Shape legend in weft/device.h.
 */
#ifndef WEFT_MODEL_MODEL_H
#define WEFT_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"
#include "weft/comm.h"
#include "weft/device.h"
#include "weft/status.h"
#include "weft/tree.h"

struct weft_model;

/* What one rank owns. Derived from config, V and the rank's leaves alone. */
struct weft_slice {
    uint32_t leaf_count; /* V */
    struct weft_range leaves;
    struct weft_range heads;    /* query heads */
    struct weft_range kv_heads; /* those its query heads use; may overlap a neighbour's */
    struct weft_range ffn;      /* FFN columns; 32-column blocks dealt to leaves */
    struct weft_range vocab;    /* token ids; 16-row panels dealt to leaves */
};

void weft_slice_init(const struct weft_model_config *config, uint32_t leaf_count, struct weft_range leaves,
                     struct weft_slice *slice_out);

/* Limits from which every buffer is sized. */
struct weft_model_limits {
    uint32_t token_count_max; /* T of one step */
    uint32_t logit_row_max;   /* sampled rows of one step */
    uint32_t candidate_max;   /* of one of them; 0: none are asked for */
    uint32_t page_count;      /* KV pages */
    uint32_t position_max;    /* of a sequence; 0: as many as the model allows */
    enum weft_dtype kv_dtype;
};

/* Bytes on this rank, known before anything is allocated. Loading takes 16 MiB of host memory besides (24 MiB when
 * streamed), for a while. */
struct weft_model_memory {
    size_t weights;
    size_t kv_cache;
    size_t activations;
    size_t buffers; /* device memory of the device itself and of its operations; who knows adds communication's */
    size_t kv_page; /* of kv_cache, one page (all layers) */
};

void weft_model_memory(const struct weft_device *device, const struct weft_model_config *config,
                       const struct weft_slice *slice, const struct weft_model_limits *limits,
                       struct weft_model_memory *memory_out);

/* Called now and then while loading, on this rank: bytes read so far of all this rank will read. Anything but OK ends
 * the loading with that status: there is no point in reading on when another rank has died. */
typedef enum weft_status weft_model_progress(void *context, uint64_t byte_count, uint64_t byte_total);

struct weft_model_options {
    const char *folder;
    const struct weft_model_config *config; /* copied */
    const struct weft_slice *slices;        /* [rank_count]; copied */
    uint32_t rank;
    uint32_t rank_count;
    struct weft_model_limits limits;
    struct weft_device *device; /* borrowed until close */
    /* NULL: every rank reads its slices from the folder. Else rank 0 reads each byte once and sends the others theirs:
     * they need no folder, and open is collective. Borrowed for the call. */
    struct weft_comm *stream;
    weft_model_progress *progress;
    void *progress_context;
};

/* Fills this rank's slices of the weights and allocates KV cache and activations. */
WEFT_MUST_CHECK enum weft_status weft_model_open(const struct weft_model_options *options, struct weft_model **out);
void weft_model_close(struct weft_model **model);

/* Bytes this rank has read from the checkpoint, and how long that took. */
void weft_model_load_stats(const struct weft_model *model, uint64_t *byte_count_out, uint64_t *time_ns_out);

/* One step. Host memory, borrowed until the call returns. */
struct weft_forward_args {
    struct weft_comm *comm; /* all ranks of the group run the same step */
    struct weft_batch batch;
    const int32_t *token_ids;   /* [T], each in [0, vocabulary) */
    const uint32_t *logit_rows; /* [logit_row_count] token rows whose logits are wanted, ascending, each once */
    uint32_t logit_row_count;
};

/*
 * Runs the transformer over the batch: KV of every token is appended, logits of the wanted rows are computed.
 * *logits_out <- device memory [logit_row_count, N of this rank] f32, valid until the next forward; untouched when no
 * row is wanted. Errors of comm are passed on (ERR_PEER, ERR_TIMEOUT).
 */
WEFT_MUST_CHECK enum weft_status weft_model_forward(struct weft_model *model, const struct weft_forward_args *args,
                                                    float **logits_out);

/*
 * Records decode steps of all sizes up to logit_row_max on a device that replays them (weft/device.h, graphs): once,
 * before the first step. Every rank for itself, nothing is exchanged; sums that can be are part of the recording, so
 * the model is closed before comm.
 */
WEFT_MUST_CHECK enum weft_status weft_model_record(struct weft_model *model, struct weft_comm *comm);

const struct weft_slice *weft_model_slice(const struct weft_model *model);

/* Largest count of a sum that forward() will ask of comm, for weft_comm_options. */
size_t weft_model_sum_count_max(const struct weft_model_config *config, const struct weft_model_limits *limits);

#endif
