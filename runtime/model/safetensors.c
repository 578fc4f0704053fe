/* The header of one safetensors file: 8 bytes of length, then JSON, then the tensors' bytes. */
#include "model/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "weft/log.h"
#include "weft/numeric.h"

static const char where[] = "model/safetensors";

enum { LENGTH_SIZE = 8 };

/* Bytes per element; 0 for a type we do not know, whose size is then not checked. */
static uint32_t element_size(const char *dtype)
{
    static const struct {
        const char *name;
        uint32_t size;
    } sizes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},   {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2},
                 {"U16", 2},  {"F16", 2}, {"BF16", 2}, {"I32", 4},     {"U32", 4},     {"F32", 4},
                 {"I64", 8},  {"U64", 8}, {"F64", 8},  {"C64", 8}};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (strcmp(sizes[i].name, dtype) == 0) {
            return sizes[i].size;
        }
    }
    return 0;
}

int weft_tensor_element(const struct weft_tensor *tensor, enum weft_element *out)
{
    static const char *const names[] = {[WEFT_ELEMENT_F32] = "F32",
                                        [WEFT_ELEMENT_F16] = "F16",
                                        [WEFT_ELEMENT_BF16] = "BF16",
                                        [WEFT_ELEMENT_F8_E4M3] = "F8_E4M3"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(tensor->dtype, names[i]) == 0) {
            *out = (enum weft_element)i;
            return 0;
        }
    }
    return -1;
}

size_t weft_element_size(enum weft_element element)
{
    return weft_dtype_size(weft_element_dtype(element));
}

enum weft_dtype weft_element_dtype(enum weft_element element)
{
    switch (element) {
    case WEFT_ELEMENT_F32: return WEFT_F32;
    case WEFT_ELEMENT_F16: return WEFT_F16;
    case WEFT_ELEMENT_F8_E4M3: return WEFT_F8_E4M3;
    case WEFT_ELEMENT_BF16: break;
    }
    return WEFT_BF16;
}

float weft_element_value(const unsigned char *bytes, enum weft_element element)
{
    uint16_t half;
    float value;

    if (element == WEFT_ELEMENT_F32) {
        memcpy(&value, bytes, sizeof(value));
        return value;
    }
    memcpy(&half, bytes, sizeof(half));
    return element == WEFT_ELEMENT_F16 ? weft_f16_to_f32(half) : weft_bf16_to_f32(half);
}

const char *weft_tensor_shape(const struct weft_tensor *tensor, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");

    for (uint32_t i = 0; i < tensor->dim_count && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%" PRIu64, i == 0 ? "" : ", ", tensor->dims[i]);
    }
    if (used < size) {
        snprintf(text + used, size - used, "]");
    }
    return text;
}

static enum weft_status damaged(const char *name, const struct weft_tensor *tensor, const char *what)
{
    weft_log(WEFT_LOG_ERROR, where, "%s: %.200s: %s", name, tensor->name, what);
    return WEFT_ERR_FORMAT;
}

static enum weft_status parse_shape(const char *name, const json_t *shape, struct weft_tensor *tensor)
{
    if (!json_is_array(shape) || json_array_size(shape) > WEFT_TENSOR_DIM_MAX) {
        return damaged(name, tensor, "shape: expected a list of at most 8 integers");
    }
    tensor->dim_count = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < tensor->dim_count; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return damaged(name, tensor, "shape: expected integers from 0 up");
        }
        tensor->dims[i] = (uint64_t)json_integer_value(dim);
    }
    return WEFT_OK;
}

/* data_offsets [begin, end), relative to data_begin; both must lie in the file. */
static enum weft_status parse_offsets(const char *name, const json_t *offsets, uint64_t data_begin, uint64_t file_size,
                                      struct weft_tensor *tensor)
{
    const json_t *first = json_array_get(offsets, 0);
    const json_t *second = json_array_get(offsets, 1);

    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second)) {
        return damaged(name, tensor, "data_offsets: expected two integers");
    }
    json_int_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin || (uint64_t)end > file_size - data_begin) {
        weft_log(WEFT_LOG_ERROR, where,
                 "%s: %.200s: data_offsets: expected a range inside the file's %" PRIu64
                 " bytes of data, found [%lld, %lld]",
                 name, tensor->name, file_size - data_begin, (long long)begin, (long long)end);
        return WEFT_ERR_FORMAT;
    }
    tensor->offset = data_begin + (uint64_t)begin;
    tensor->size = (uint64_t)(end - begin);
    return WEFT_OK;
}

static enum weft_status check_size(const char *name, const struct weft_tensor *tensor)
{
    size_t size = element_size(tensor->dtype);
    bool is_whole = true;
    char shape[200];

    if (size == 0) {
        return WEFT_OK;
    }
    for (uint32_t i = 0; i < tensor->dim_count; i++) {
        is_whole = is_whole && weft_size_mul(size, tensor->dims[i], &size);
    }
    if (!is_whole || size != tensor->size) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %.200s: %s %s: expected %s%zu bytes, data_offsets give %" PRIu64, name,
                 tensor->name, tensor->dtype, weft_tensor_shape(tensor, shape, sizeof(shape)),
                 is_whole ? "" : "more than ", is_whole ? size : SIZE_MAX, tensor->size);
        return WEFT_ERR_FORMAT;
    }
    return WEFT_OK;
}

static enum weft_status parse_tensor(const char *name, const json_t *entry, uint64_t data_begin, uint64_t file_size,
                                     struct weft_tensor *tensor)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));

    if (!json_is_object(entry)) {
        return damaged(name, tensor, "expected an object with dtype, shape and data_offsets");
    }
    if (dtype == NULL || strlen(dtype) >= sizeof(tensor->dtype)) {
        return damaged(name, tensor, "dtype: expected a short string such as \"BF16\"");
    }
    snprintf(tensor->dtype, sizeof(tensor->dtype), "%s", dtype);
    WEFT_TRY(parse_shape(name, json_object_get(entry, "shape"), tensor));
    WEFT_TRY(parse_offsets(name, json_object_get(entry, "data_offsets"), data_begin, file_size, tensor));
    return check_size(name, tensor);
}

static int compare_offsets(const void *a, const void *b)
{
    const struct weft_tensor *left = a, *right = b;

    if (left->offset != right->offset) {
        return left->offset < right->offset ? -1 : 1;
    }
    /* an empty tensor comes before the one that begins at the same byte */
    return left->size < right->size ? -1 : left->size > right->size;
}

/* Sorts by place and checks that the tensors tile [data_begin, file_size). */
static enum weft_status check_tiling(const char *name, uint64_t data_begin, uint64_t file_size,
                                     struct weft_tensor *tensors, size_t count)
{
    uint64_t end = data_begin;

    qsort(tensors, count, sizeof(tensors[0]), compare_offsets);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].offset < end) {
            weft_log(WEFT_LOG_ERROR, where, "%s: %.200s: bytes from %" PRIu64 " on also belong to %.200s", name,
                     tensors[i].name, tensors[i].offset, tensors[i - 1].name);
            return WEFT_ERR_FORMAT;
        }
        if (tensors[i].offset > end) {
            weft_log(WEFT_LOG_ERROR, where, "%s: %.200s: expected to begin at byte %" PRIu64 ", found %" PRIu64, name,
                     tensors[i].name, end, tensors[i].offset);
            return WEFT_ERR_FORMAT;
        }
        end += tensors[i].size;
    }
    if (end != file_size) {
        weft_log(WEFT_LOG_ERROR, where, "%s: the tensors end at byte %" PRIu64 ", the file at byte %" PRIu64, name, end,
                 file_size);
        return WEFT_ERR_FORMAT;
    }
    return WEFT_OK;
}

static enum weft_status parse_entries(const char *name, const json_t *root, uint64_t data_begin, uint64_t file_size,
                                      struct weft_arena *arena, struct weft_tensor **tensors_out, size_t *count_out)
{
    const char *key;
    json_t *entry;
    size_t count = 0;
    struct weft_tensor *tensors = weft_arena_alloc(arena, json_object_size(root), sizeof(tensors[0]));

    if (tensors == NULL) {
        return WEFT_ERR_MEMORY;
    }
    json_object_foreach((json_t *)root, key, entry)
    {
        if (strcmp(key, "__metadata__") == 0) {
            continue;
        }
        tensors[count].name = weft_arena_text(arena, key, strlen(key));
        if (tensors[count].name == NULL) {
            return WEFT_ERR_MEMORY;
        }
        WEFT_TRY(parse_tensor(name, entry, data_begin, file_size, &tensors[count]));
        count++;
    }
    WEFT_TRY(check_tiling(name, data_begin, file_size, tensors, count));
    *tensors_out = tensors;
    *count_out = count;
    return WEFT_OK;
}

/* Header length from the first 8 bytes; the header must fit into the file. */
static enum weft_status header_size(const char *name, const unsigned char *bytes, uint64_t file_size, size_t *out)
{
    uint64_t length = 0;

    for (int i = LENGTH_SIZE - 1; i >= 0; i--) {
        length = length << 8 | bytes[i];
    }
    if (length < 2 || length > WEFT_SAFETENSORS_HEADER_MAX || length > file_size - LENGTH_SIZE) {
        weft_log(WEFT_LOG_ERROR, where,
                 "%s: header length: expected 2 to %d bytes inside a file of %" PRIu64 ", found %" PRIu64, name,
                 WEFT_SAFETENSORS_HEADER_MAX, file_size, length);
        return WEFT_ERR_FORMAT;
    }
    *out = (size_t)length;
    return WEFT_OK;
}

static enum weft_status check_length(const char *name, uint64_t file_size)
{
    if (file_size < LENGTH_SIZE) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected a safetensors file, found %" PRIu64 " bytes", name, file_size);
        return WEFT_ERR_FORMAT;
    }
    return WEFT_OK;
}

enum weft_status weft_safetensors_parse(const char *name, const void *bytes, size_t size, uint64_t file_size,
                                        struct weft_arena *arena, struct weft_tensor **tensors_out, size_t *count_out)
{
    json_error_t error;
    size_t length;

    WEFT_TRY(check_length(name, size < file_size ? size : file_size));
    WEFT_TRY(header_size(name, bytes, size < file_size ? size : file_size, &length));
    json_t *root = json_loadb((const char *)bytes + LENGTH_SIZE, length, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: header: not valid JSON at byte %d: %s", name, error.position, error.text);
        return WEFT_ERR_FORMAT;
    }
    enum weft_status status = WEFT_ERR_FORMAT;
    if (json_is_object(root)) {
        status = parse_entries(name, root, LENGTH_SIZE + length, file_size, arena, tensors_out, count_out);
    } else {
        weft_log(WEFT_LOG_ERROR, where, "%s: header: expected a JSON object", name);
    }
    json_decref(root);
    return status;
}

static enum weft_status read_all(const char *name, int fd, void *to, size_t size)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = pread(fd, (char *)to + done, size - done, (off_t)done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: header: read stopped at byte %zu of %zu: %s", name, done, size,
                     got < 0 ? strerror(errno) : "end of file");
            return WEFT_ERR_IO;
        }
        done += (size_t)got;
    }
    return WEFT_OK;
}

enum weft_status weft_safetensors_read(const char *name, int fd, struct weft_arena *arena,
                                       struct weft_tensor **tensors_out, size_t *count_out)
{
    unsigned char start[LENGTH_SIZE];
    struct stat info;
    size_t length;

    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected a regular file", name);
        return WEFT_ERR_MISSING;
    }
    uint64_t file_size = (uint64_t)info.st_size;
    WEFT_TRY(check_length(name, file_size));
    WEFT_TRY(read_all(name, fd, start, sizeof(start)));
    WEFT_TRY(header_size(name, start, file_size, &length));
    void *bytes = malloc(LENGTH_SIZE + length);
    if (bytes == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory for a header of %zu bytes", name, length);
        return WEFT_ERR_MEMORY;
    }
    enum weft_status status = read_all(name, fd, bytes, LENGTH_SIZE + length);
    if (status == WEFT_OK) {
        status = weft_safetensors_parse(name, bytes, LENGTH_SIZE + length, file_size, arena, tensors_out, count_out);
    }
    free(bytes);
    return status;
}
