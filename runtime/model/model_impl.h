/* What model.c (opening, memory) and forward.c (the pass) share. Not a contract. */
#ifndef WEFT_MODEL_MODEL_IMPL_H
#define WEFT_MODEL_MODEL_IMPL_H

#include "model/model.h"
#include "model/weights.h"

/* Buffers of a step, f32 in device memory, for T = token_count_max tokens; R = logit_row_max. */
struct weft_activations {
    float *x;      /* [T, D] the residual stream */
    float *norm;   /* [T, D] normalised input of a block */
    float *sum;    /* [T, D] a block's output, summed over ranks */
    float *qkv;    /* [T, H + 2G, E] */
    float *heads;  /* [T, H, E] attention's result */
    float *ffn;    /* [T, F] */
    float *angles; /* [T, E/2, 2] */
    float *logits; /* [R, N of this rank] */
};

struct weft_model {
    struct weft_model_config config;
    struct weft_slice slice;
    struct weft_slice *slices; /* [rank_count], owned */
    uint32_t rank;
    uint32_t rank_count;
    struct weft_model_limits limits;
    struct weft_device *device; /* borrowed */
    struct weft_weights weights;
    struct weft_kv_cache *kv;
    struct weft_activations activations;
    struct weft_graphs *graphs; /* decode steps, owned; NULL: every operation is issued */
    uint32_t node_count;        /* of this rank, in every sum */
    uint32_t *rows;             /* [node_count][T] host: rows of the embedding or of a selection in the making */
    struct weft_reader_stats load;
};

/* Positions of a sequence, at most, however many pages there are. */
uint32_t weft_model_position_max(const struct weft_model_config *config, const struct weft_model_limits *limits);

/* Parts: a step pauses for every sum, that of the embeddings included. */
struct weft_graphs_desc weft_model_graphs_desc(const struct weft_model_config *config, const struct weft_slice *slice,
                                               const struct weft_model_limits *limits, const struct weft_kv_cache *kv);

/* record.c: rows that a decode step of `count` sequences is computed with: sizes are few when steps are replayed. */
uint32_t weft_model_rows(const struct weft_model *model, uint32_t count);

#endif
