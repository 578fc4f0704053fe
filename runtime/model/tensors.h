/*
 * Which tensors a model has, and which part of each a rank holds. One table serves checking a checkpoint, counting
 * parameters, planning memory and loading: a new family is a new entry here.
 */
#ifndef WEFT_MODEL_TENSORS_H
#define WEFT_MODEL_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model.h"

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

/* Tensors outside the layers. */
enum weft_global { WEFT_EMBEDDING, WEFT_HEAD, WEFT_NORM, WEFT_GLOBAL_COUNT };

enum { WEFT_PART_COUNT_MAX = 18, WEFT_TENSOR_NAME_SIZE = 96 };

/* One tensor, [row_count, col_count] or [row_count], and the rows and columns of it that one rank holds. */
struct weft_part {
    const char *suffix; /* after "layers.N." */
    int matrix;         /* enum weft_layer_matrix, or -1 */
    int vector;         /* enum weft_layer_vector, or -1 */
    uint32_t row_count;
    uint32_t col_count; /* 0: a vector */
    struct weft_range rows;
    struct weft_range cols;
    uint32_t row_to; /* where they begin in the fused matrix or vector */
};

struct weft_part_list {
    struct weft_part parts[WEFT_PART_COUNT_MAX];
    uint32_t count;
};

/* Every tensor of a layer, and one outside the layers, as `slice` needs them. */
void weft_part_list_layer(const struct weft_model_config *config, const struct weft_slice *slice,
                          struct weft_part_list *list);
struct weft_part weft_part_global(const struct weft_model_config *config, const struct weft_slice *slice,
                                  enum weft_global global);

/*
 * Every tensor of a model has a number, the same on all ranks: those outside the layers that it has (a tied head is
 * none), then layer by layer. `list`: weft_part_list_layer() of the slice in question.
 */
uint32_t weft_tensor_count(const struct weft_model_config *config, const struct weft_part_list *list);
struct weft_part weft_tensor_part(const struct weft_model_config *config, const struct weft_slice *slice,
                                  const struct weft_part_list *list, uint32_t tensor);

/* Names without "model.": "layers.3.mlp.up_proj.weight" into name[WEFT_TENSOR_NAME_SIZE]; "lm_head.weight". */
void weft_tensor_layer_name(uint32_t layer, const char *suffix, char *name);
const char *weft_tensor_global_name(enum weft_global global);

/* The tensor "model.NAME" or "NAME"; NULL when there is neither. */
const struct weft_tensor *weft_tensor_find(const struct weft_checkpoint *checkpoint, const char *name);

/* A tensor as a checkpoint has it; borrowed. */
struct weft_stored {
    const struct weft_tensor *tensor;
    enum weft_element element;
    const struct weft_tensor *scale; /* FP8 only, else NULL */
};

/* The same, with its element type and scales; missing, misshapen or of a type that we cannot read is an error, logged.
 */
WEFT_MUST_CHECK enum weft_status weft_tensor_locate(const struct weft_checkpoint *checkpoint,
                                                    const struct weft_model_config *config, const char *name,
                                                    const struct weft_part *part, struct weft_stored *out);

/*
 * Locates every tensor that `config` calls for; sets config's dtypes, is_tied and parameter_count by what is there. The
 * first tensor that will not do is logged.
 */
WEFT_MUST_CHECK enum weft_status weft_tensors_resolve(const struct weft_checkpoint *checkpoint,
                                                      struct weft_model_config *config);

/* Parameters of the whole model, tied embeddings once. */
uint64_t weft_tensors_parameter_count(const struct weft_model_config *config);

#endif
