/*
 * How the matrices of a model are kept in memory, which need not be how they are stored: --quantize packs them as
 * weft/quant.h says while they are loaded. What is decided here follows from the configuration alone, so that every
 * rank plans, allocates and reads the same.
 *
 * With q8_0 every matrix is Q8_0. With q4_0 those of the layers are Q4_0; embedding and head stay Q8_0, tied or not:
 * the logits come straight from them and they are read once per token, not once per layer. Norms and biases stay f32.
 * With bf16 FP8 becomes that: the same numbers, twice the memory, nothing to unpack; what is not FP8 stays as it is.
 */
#ifndef WEFT_MODEL_QUANTISE_H
#define WEFT_MODEL_QUANTISE_H

#include <stddef.h>

#include "model/config.h"

/* "none", "q8_0", "q4_0", "bf16", NULL: none. Returns 0, or -1. */
int weft_quantise_parse(const char *text, enum weft_quantise *out);
/* "unknown" for what is none of them. */
const char *weft_quantise_name(enum weft_quantise quantise);

/* What a layer's matrix, and embedding and head, are kept as when their tensors are of type `stored`. */
enum weft_dtype weft_quantise_layer(enum weft_quantise quantise, enum weft_dtype stored);
enum weft_dtype weft_quantise_end(enum weft_quantise quantise, enum weft_dtype stored);

/* As which type rows are written to such a matrix: as they are stored, but FP8 as f32 when it is quantised, so that it
 * is rounded once, and as bf16 when it becomes that. */
enum weft_dtype weft_quantise_source(const struct weft_model_config *config, enum weft_dtype stored);

/* "bf16"; "f8_e4m3"; "bf16, converted while loading, from f8_e4m3"; "q4_0 (embedding and head q8_0), quantised while
 * loading, from bf16" into text[WEFT_WEIGHTS_TEXT_SIZE]; returns text. */
#define WEFT_WEIGHTS_TEXT_SIZE 96
const char *weft_weights_text(const struct weft_model_config *config, char *text);

#endif
