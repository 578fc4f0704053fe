/*
 * config.json of a Hugging Face model folder, checked and made uniform: one struct for every dense Llama-like family.
 *
 * Families: LlamaForCausalLM (2, 3, 3.1, 3.2), MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM. RoPE scaling:
 * none
 * ("default"), linear, llama3, yarn. Anything else is one clear line and WEFT_ERR_UNSUPPORTED.
 */
#ifndef WEFT_MODEL_CONFIG_H
#define WEFT_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/device.h"
#include "weft/status.h"

#define WEFT_LAYER_COUNT_MAX 512
#define WEFT_EOS_COUNT_MAX   16

enum weft_family { WEFT_FAMILY_LLAMA, WEFT_FAMILY_MISTRAL, WEFT_FAMILY_QWEN2, WEFT_FAMILY_QWEN3 };

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
    bool is_tied;                           /* tie_word_embeddings; the loader also accepts either tensor alone */
    uint32_t windows[WEFT_LAYER_COUNT_MAX]; /* sliding window per layer, 0: none */
    enum weft_dtype dtype;                  /* torch_dtype / dtype: what the config says; the tensors decide */
    float inv_freq[512];  /* [E/2] RoPE frequencies, scaling applied, f32 as Hugging Face computes them */
    float rope_scale;     /* factor on cos and sin (yarn's attention factor), else 1 */
    char rope_type[16];   /* "default", "linear", "llama3", "yarn" */
    int32_t bos_token_id; /* -1: none */
    int32_t eos_token_ids[WEFT_EOS_COUNT_MAX]; /* from generation_config.json when present, else config.json */
    uint32_t eos_token_count;
    uint64_t parameter_count; /* tied embeddings once */
};

/* Reads FOLDER/config.json and FOLDER/generation_config.json (optional). */
WEFT_MUST_CHECK enum weft_status weft_model_config_read(const char *folder, struct weft_model_config *config_out);

/* The same from text (fuzzing, tests); generation_text may be NULL. */
WEFT_MUST_CHECK enum weft_status weft_model_config_parse(const char *name, const char *text, size_t size,
                                                         const char *generation_text, size_t generation_size,
                                                         struct weft_model_config *config_out);

const char *weft_family_name(enum weft_family family);

#endif
