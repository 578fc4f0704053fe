/* The weights of one rank in device memory: planned, allocated and read by the table of tensors.h. */
#ifndef WEFT_MODEL_WEIGHTS_H
#define WEFT_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model.h"
#include "model/reader.h"
#include "model/tensors.h"
#include "weft/device.h"

struct weft_layer {
    struct weft_matrix *matrices[WEFT_LAYER_MATRIX_COUNT];
    float *vectors[WEFT_LAYER_VECTOR_COUNT]; /* NULL: the model has none */
};

struct weft_weights {
    struct weft_matrix *embedding; /* [N of this rank, D] */
    struct weft_matrix *head;      /* [N of this rank, D]; the same as embedding when tied */
    float *norm;                   /* [D] */
    struct weft_layer *layers;     /* [L] */
    float *vectors;                /* the one allocation behind every vector above */
    struct weft_arena arena;       /* of `layers` */
};

/* Bytes of device memory that weft_weights_open() will take. */
size_t weft_weights_size(const struct weft_device *device, const struct weft_model_config *config,
                         const struct weft_slice *slice);
/* Bytes of device memory that multiplying by them takes besides. */
size_t weft_weights_scratch_size(const struct weft_device *device, const struct weft_model_config *config,
                                 const struct weft_slice *slice);

/*
 * Allocates this rank's matrices and vectors and fills them: from the checkpoint, which has been resolved into
 * `config`; or with `comm` from rank 0, which alone reads it (stream.h). *stats_out: bytes and time of reading. On
 * errors everything is released again.
 */
struct weft_weights_args {
    struct weft_device *device;
    const struct weft_checkpoint *checkpoint; /* NULL on ranks other than 0 when streamed */
    const struct weft_model_config *config;
    const struct weft_slice *slices; /* [rank_count] */
    uint32_t rank;
    uint32_t rank_count;
    struct weft_comm *comm;        /* NULL: not streamed */
    weft_model_progress *progress; /* or NULL */
    void *progress_context;
};
WEFT_MUST_CHECK enum weft_status weft_weights_open(const struct weft_weights_args *args, struct weft_weights *out,
                                                   struct weft_reader_stats *stats_out);
void weft_weights_close(struct weft_device *device, const struct weft_model_config *config,
                        struct weft_weights *weights);

#endif
