/* The ranges behind weft_slice_init(), for single leaves too: where the summed dimensions are cut. */
#ifndef WEFT_MODEL_SLICE_H
#define WEFT_MODEL_SLICE_H

#include "model/model.h"

/* 32 columns: a quantisation block, so that quantised weights can be cut in the same places. */
#define WEFT_SLICE_FFN_BLOCK 32
/* 16 rows: a panel of packed rows (kernels/cpu), so that no panel is torn. */
#define WEFT_SLICE_VOCAB_PANEL 16

/* Query heads, FFN columns and token ids of leaves [leaves.begin, leaves.end); any of them may be empty. */
struct weft_range weft_slice_heads(const struct weft_model_config *config, uint32_t leaf_count,
                                   struct weft_range leaves);
struct weft_range weft_slice_ffn(const struct weft_model_config *config, uint32_t leaf_count, struct weft_range leaves);
struct weft_range weft_slice_vocab(const struct weft_model_config *config, uint32_t leaf_count,
                                   struct weft_range leaves);

#endif
