/*
 * FP8 checkpoints: matrices of E4M3 bytes (a sign, 4 bits of exponent biased by 7, 3 of fraction; 0x7f and 0xff are
 * NaN, there are no infinities) with scales in a tensor beside them. A weight is value(byte) * scale, one product
 * rounded to f32, then rounded to what the matrix is kept as (bf16, or quantised).
 *
 * Which forms there are: quant_method "fp8" with weight_block_size (DeepSeek-V3, Qwen3-FP8: NAME_scale_inv, one scale
 * for each block of the matrix, a factor in spite of its name), "fp8" without, "fbgemm_fp8" and "compressed-tensors" of
 * float weights (NAME_scale: one for the tensor, each row, or each block). Scales are F32, F16 or BF16. What
 * activations would be quantised to is not our concern: they are not. Which matrices are FP8 the tensors say, not the
 * lists in config.json.
 */
#ifndef WEFT_MODEL_FP8_H
#define WEFT_MODEL_FP8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "weft/tree.h"

/*
 * What quantization_config says; is_there false when there is none. ERR_UNSUPPORTED for other methods and types,
 * ERR_FORMAT for damage: one line that names the member.
 */
WEFT_MUST_CHECK enum weft_status weft_fp8_parse(const char *name, const json_t *root, struct weft_fp8 *out);

/*
 * The scales of an E4M3 matrix of a checkpoint, *out borrowed. Logged: config.json knows nothing of FP8, there are
 * none, or they have another shape or type than the form calls for.
 */
WEFT_MUST_CHECK enum weft_status weft_fp8_scale_find(const struct weft_checkpoint *checkpoint,
                                                     const struct weft_fp8 *fp8, const struct weft_tensor *tensor,
                                                     const struct weft_tensor **out);

/* Scales that one row of columns [cols.begin, cols.end) has: 1, or one for each block that they touch. */
uint32_t weft_fp8_row_scales(const struct weft_fp8 *fp8, struct weft_range cols);
/* Bytes of the file that rows [rows.begin, rows.end) of a tensor have scales in. */
uint64_t weft_fp8_scales_size(const struct weft_fp8 *fp8, const struct weft_tensor *tensor,
                              const struct weft_tensor *scale, struct weft_range rows);

/* ---- reading scales ---- */

/* The scales of one tensor at a time. Zeroed is empty; values and bytes are owned. */
struct weft_fp8_reader {
    const struct weft_checkpoint *checkpoint;
    const struct weft_fp8 *fp8;
    const struct weft_tensor *scale; /* that values are of, NULL: none yet */
    struct weft_range blocks;        /* rows of blocks that values are of */
    float *values;
    unsigned char *bytes; /* as they lie in the file */
    size_t capacity;      /* values */
};

/* Rows [rows.begin, rows.end) and columns of an E4M3 tensor, and its scales. */
struct weft_fp8_part {
    const struct weft_tensor *tensor;
    const struct weft_tensor *scale;
    struct weft_range rows;
    struct weft_range cols;
};

/*
 * to[rows][weft_fp8_row_scales(cols)] <- the scales of a part. Reads those of `wanted` rows, which contain part.rows,
 * unless it has them. ERR_FORMAT, logged: one is not finite, or so large that a weight might not be. *call_count,
 * *byte_count are raised.
 */
WEFT_MUST_CHECK enum weft_status weft_fp8_scales(struct weft_fp8_reader *reader, const struct weft_fp8_part *part,
                                                 struct weft_range wanted, float *to, uint64_t *byte_count,
                                                 uint64_t *call_count);
void weft_fp8_reader_fini(struct weft_fp8_reader *reader);

/* ERR_FORMAT, logged with place, when there is a NaN among the part's rows at `bytes`, `stride` bytes apart. */
WEFT_MUST_CHECK enum weft_status weft_fp8_check(const struct weft_checkpoint *checkpoint,
                                                const struct weft_fp8_part *part, const unsigned char *bytes,
                                                size_t stride);

/* ---- weights ---- */

/* value(byte) of every byte. */
void weft_fp8_table(float table[256]);

/* out[cols] <- bytes[cols] * scales[weft_fp8_row_scales(cols)]: one row. */
void weft_fp8_decode(const struct weft_fp8 *fp8, const float table[256], const unsigned char *bytes,
                     struct weft_range cols, const float *scales, float *out);

#endif
