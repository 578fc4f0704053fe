/*
 * config.json of a Hugging Face model folder, checked and made uniform: one struct for every dense Llama-like family.
 *
 * Families: LlamaForCausalLM (2, 3, 3.1, 3.2), MistralForCausalLM, Qwen2ForCausalLM (2, 2.5), Qwen3ForCausalLM (dense).
 * RoPE scaling: none ("default"), linear, llama3, yarn, in the old form (rope_scaling) and the newer (rope_parameters).
 * Anything else is one clear line and WEFT_ERR_UNSUPPORTED; damaged values are one line and WEFT_ERR_FORMAT.
 */
#ifndef WEFT_MODEL_CONFIG_H
#define WEFT_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/device.h"
#include "weft/status.h"

#define WEFT_LAYER_COUNT_MAX 512
#define WEFT_EOS_COUNT_MAX   16

/* Of E; half of it is the length of inv_freq. */
#define WEFT_HEAD_SIZE_MAX 1024

enum weft_family { WEFT_FAMILY_LLAMA, WEFT_FAMILY_MISTRAL, WEFT_FAMILY_QWEN2, WEFT_FAMILY_QWEN3 };

/*
 * How the matrices of a model are stored. A matrix made of several tensors (qkv, gate_up) has one dtype: the tensors'
 * own when they agree, bf16 when some are that and some FP8, else f32, which holds f16 and bf16 exactly. They are kept
 * in memory as that, or quantised.
 */
struct weft_model_dtypes {
    enum weft_dtype embedding;
    enum weft_dtype head; /* same as embedding when tied */
    enum weft_dtype qkv[WEFT_LAYER_COUNT_MAX];
    enum weft_dtype attention_out[WEFT_LAYER_COUNT_MAX];
    enum weft_dtype gate_up[WEFT_LAYER_COUNT_MAX];
    enum weft_dtype down[WEFT_LAYER_COUNT_MAX];
};

/* To what matrices are quantised, or FP8 is converted, while they are loaded; see quantise.h. */
enum weft_quantise { WEFT_QUANTISE_NONE, WEFT_QUANTISE_Q8_0, WEFT_QUANTISE_Q4_0, WEFT_QUANTISE_BF16 };

/* Whether matrices may be stored as FP8 (E4M3), and how their scales lie; see fp8.h. */
struct weft_fp8 {
    bool is_there;
    uint32_t block_rows; /* of the blocks that have a scale each; 0: one scale for each row, or for the whole tensor */
    uint32_t block_cols; /* 0 exactly when block_rows is */
};

struct weft_model_config {
    enum weft_family family;
    char architecture[48];   /* "LlamaForCausalLM" */
    uint32_t layer_count;    /* L */
    uint32_t width;          /* D, hidden_size */
    uint32_t head_count;     /* H of the whole model */
    uint32_t kv_head_count;  /* G of the whole model; divides head_count */
    uint32_t head_size;      /* E, head_dim or D / H; even */
    uint32_t ffn_width;      /* F, intermediate_size */
    uint32_t vocab_size;     /* N */
    uint32_t context_length; /* max_position_embeddings, after yarn's factor where the config says so */
    float norm_eps;
    bool has_qkv_bias;
    bool has_output_bias; /* attention output (Llama attention_bias) */
    bool has_mlp_bias;
    bool has_qk_norm;
    bool is_tied; /* one matrix is embedding and output head: tie_word_embeddings, unless the tensors say otherwise */
    uint32_t windows[WEFT_LAYER_COUNT_MAX]; /* sliding window per layer, 0: none */
    enum weft_dtype dtype;                  /* torch_dtype or dtype: what the config says; f8_e4m3 with FP8 */
    struct weft_model_dtypes dtypes;        /* what the tensors say; all `dtype` when only the config was read */
    struct weft_fp8 fp8;
    enum weft_quantise quantise; /* NONE as read; set by who loads the model, the same on all ranks */
    /* [E/2] RoPE frequencies, scaling applied, f32 as Hugging Face computes them (to the last bit but one) */
    float inv_freq[WEFT_HEAD_SIZE_MAX / 2];
    float rope_scale;                          /* factor on cos and sin (yarn's attention factor), else 1 */
    char rope_type[16];                        /* "default", "linear", "llama3", "yarn" */
    int32_t bos_token_id;                      /* -1: none */
    int32_t eos_token_ids[WEFT_EOS_COUNT_MAX]; /* from generation_config.json when present, else config.json */
    uint32_t eos_token_count;
    uint64_t parameter_count; /* tied embeddings once */
};

/*
 * Reads FOLDER/config.json and FOLDER/generation_config.json (optional). When the folder has safetensors, their headers
 * are read and checked against the config too, so that `dtypes`, `is_tied` and `parameter_count` are those of the
 * tensors and every refusal comes before anything is allocated; without safetensors the config alone speaks.
 */
WEFT_MUST_CHECK enum weft_status weft_model_config_read(const char *folder, struct weft_model_config *config_out);

/* config.json and generation_config.json of a folder, from malloc; generation NULL when there is none. */
struct weft_model_texts {
    char *config;
    size_t config_size;
    char *generation;
    size_t generation_size;
};
/* ERR_MISSING, ERR_IO, ERR_LIMIT: logged, nothing to free. */
WEFT_MUST_CHECK enum weft_status weft_model_texts_read(const char *folder, struct weft_model_texts *texts_out);
void weft_model_texts_fini(struct weft_model_texts *texts);

/* config.json and generation_config.json (may be NULL) from text: fuzzing, tests. `name` appears in errors. */
WEFT_MUST_CHECK enum weft_status weft_model_config_parse(const char *name, const char *text, size_t size,
                                                         const char *generation_text, size_t generation_size,
                                                         struct weft_model_config *config_out);

/* "llama", "mistral", "qwen2", "qwen3". */
const char *weft_family_name(enum weft_family family);

#endif
