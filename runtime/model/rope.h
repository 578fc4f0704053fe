/*
 * RoPE frequencies from a config.json, as transformers' modeling_rope_utils computes them: default, linear, llama3,
 * yarn.
 */
#ifndef WEFT_MODEL_ROPE_H
#define WEFT_MODEL_ROPE_H

#include "base/json.h"
#include "model/config.h"

/*
 * Fills inv_freq, rope_scale and rope_type of *config from the members rope_parameters, rope_scaling, rope_theta,
 * original_max_position_embeddings and partial_rotary_factor of `root`; head_size and context_length are set already.
 * yarn raises context_length to factor * original_max_position_embeddings. `name` appears in errors.
 */
WEFT_MUST_CHECK enum weft_status weft_rope_init(const char *name, const json_t *root, struct weft_model_config *config);

#endif
