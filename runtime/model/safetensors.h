/*
 * The header of one safetensors file: which tensors lie where. Checked as strictly as the safetensors package does:
 * every byte of the file belongs to exactly one tensor, so that a truncated or patched file is noticed before anything
 * is read. An element type that is not ours is no error here; only using such a tensor is.
 */
#ifndef WEFT_MODEL_SAFETENSORS_H
#define WEFT_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "weft/device.h"
#include "weft/status.h"

#define WEFT_TENSOR_DIM_MAX 8
/* What the safetensors package accepts. */
#define WEFT_SAFETENSORS_HEADER_MAX 100000000

struct weft_tensor {
    const char *name; /* owned by the arena */
    uint32_t file;    /* index into the checkpoint's files; 0 here */
    char dtype[16];   /* as written: "BF16" */
    uint32_t dim_count;
    uint64_t dims[WEFT_TENSOR_DIM_MAX];
    uint64_t offset; /* of the first byte, from the start of the file */
    uint64_t size;   /* bytes */
};

/*
 * Parses bytes[size], the first bytes of a file of file_size bytes: 8 bytes of header length and at least the header.
 * *tensors_out [*count_out], in file order, lives in `arena`. `name` is the file named in errors.
 *
 * ERR_FORMAT, logged with file, tensor, expected and found: header longer than the file, not JSON, a name twice, a
 * member missing or of the wrong type, offsets that overlap, leave gaps or leave the file, shape that does not match
 * the size.
 */
WEFT_MUST_CHECK enum weft_status weft_safetensors_parse(const char *name, const void *bytes, size_t size,
                                                        uint64_t file_size, struct weft_arena *arena,
                                                        struct weft_tensor **tensors_out, size_t *count_out);

/* The same from an open file. */
WEFT_MUST_CHECK enum weft_status weft_safetensors_read(const char *name, int fd, struct weft_arena *arena,
                                                       struct weft_tensor **tensors_out, size_t *count_out);

/* Types of elements in files that we can read. Numbers travel (stream.c): do not change them. */
enum weft_element { WEFT_ELEMENT_F32, WEFT_ELEMENT_F16, WEFT_ELEMENT_BF16, WEFT_ELEMENT_F8_E4M3 };

/* Element type of a tensor when it is one of ours. Returns 0, or -1. */
int weft_tensor_element(const struct weft_tensor *tensor, enum weft_element *out);
/* Bytes: 4, 2, 2, 1. */
size_t weft_element_size(enum weft_element element);
/* The type of a matrix of such elements. */
enum weft_dtype weft_element_dtype(enum weft_element element);
/* One element as f32, little endian, unaligned. Not FP8, whose value takes a scale (fp8.h). */
float weft_element_value(const unsigned char *bytes, enum weft_element element);

/* "[64, 128]" into text[size]; returns text. */
const char *weft_tensor_shape(const struct weft_tensor *tensor, char *text, size_t size);

#endif
