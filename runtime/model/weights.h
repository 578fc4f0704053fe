/*
 * The weights of one rank: which tensors a model has, which part of each a rank holds, and where it lies in memory.
 * One table (weights.c) serves checking a checkpoint, counting parameters, planning memory and loading.
 */
#ifndef WEFT_MODEL_WEIGHTS_H
#define WEFT_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model.h"
#include "model/reader.h"
#include "weft/device.h"

/* Matrices of a layer. Output rows first: [rows, columns]. H, G, F of this rank. */
enum weft_layer_matrix {
    WEFT_QKV,           /* [(H + 2G) E, D]: q_proj, k_proj, v_proj */
    WEFT_ATTENTION_OUT, /* [D, H E]: o_proj, summed over ranks */
    WEFT_GATE_UP,       /* [2F, D]: gate_proj, up_proj */
    WEFT_DOWN,          /* [D, F]: down_proj, summed over ranks */
    WEFT_LAYER_MATRIX_COUNT
};

/* Vectors of a layer, f32 in device memory. */
enum weft_layer_vector {
    WEFT_ATTENTION_NORM, /* [D] */
    WEFT_FFN_NORM,       /* [D] */
    WEFT_Q_NORM,         /* [E] */
    WEFT_K_NORM,         /* [E] */
    WEFT_QKV_BIAS,       /* [(H + 2G) E] */
    WEFT_OUTPUT_BIAS,    /* [D], added once, after the sum over ranks */
    WEFT_GATE_UP_BIAS,   /* [2F] */
    WEFT_DOWN_BIAS,      /* [D], as WEFT_OUTPUT_BIAS */
    WEFT_LAYER_VECTOR_COUNT
};

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

/* Parameters of the whole model, tied embeddings once. */
uint64_t weft_weights_parameter_count(const struct weft_model_config *config);

/*
 * Finds every tensor that `config` calls for and checks its shape and type; sets config's dtypes, is_tied and
 * parameter_count by what is there. Names with and without the "model." prefix are found. Logged: the first tensor that
 * is missing, misshapen or of a type we do not have.
 */
WEFT_MUST_CHECK enum weft_status weft_weights_resolve(const struct weft_checkpoint *checkpoint,
                                                      struct weft_model_config *config);

/* Bytes of device memory that weft_weights_open() will take. */
size_t weft_weights_size(const struct weft_device *device, const struct weft_model_config *config,
                         const struct weft_slice *slice);

/*
 * Allocates this rank's matrices and vectors and reads its parts of the checkpoint, which has been resolved into
 * `config`. *stats_out: bytes and time of reading. On errors everything is released again.
 */
struct weft_weights_args {
    struct weft_device *device;
    const struct weft_checkpoint *checkpoint;
    const struct weft_model_config *config;
    const struct weft_slice *slice;
    weft_model_progress *progress; /* or NULL */
    void *progress_context;
};
WEFT_MUST_CHECK enum weft_status weft_weights_open(const struct weft_weights_args *args, struct weft_weights *out,
                                                   struct weft_reader_stats *stats_out);
void weft_weights_close(struct weft_device *device, const struct weft_model_config *config,
                        struct weft_weights *weights);

#endif
