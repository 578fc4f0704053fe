/*
 * JSON files and objects, on jansson: reading a whole file with a size limit, and typed members whose absence, type or
 * range gives one clear log line ("config.json: hidden_size: expected an integer in [1, 1048576], found \"big\"").
 */
#ifndef WEFT_BASE_JSON_H
#define WEFT_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

/* text[size] of a whole file, NUL-terminated, from malloc; the caller frees. ERR_MISSING, ERR_IO, ERR_LIMIT when larger
 * than size_max. */
WEFT_MUST_CHECK enum weft_status weft_file_read(const char *path, size_t size_max, char **text_out, size_t *size_out);

/* Parses text[size]; `name` appears in errors. Duplicate keys: the last wins, as in the wild. A text with an integer
 * beyond 64 bits has all its integers as reals. *out is owned
 * (json_decref). */
WEFT_MUST_CHECK enum weft_status weft_json_parse(const char *name, const char *text, size_t size, json_t **out);

/* weft_file_read + weft_json_parse. */
WEFT_MUST_CHECK enum weft_status weft_json_read(const char *path, size_t size_max, json_t **out);

/*
 * Member `key` of `object` as an integer in [min, max]. Absent or null: *out <- fallback when has_fallback, else
 * ERR_FORMAT. Integral reals ("1e4", 4096.0) are taken. `name` is the file or object named in errors.
 */
struct weft_json_int_args {
    const char *name;
    const char *key;
    int64_t min;
    int64_t max;
    bool has_fallback;
    int64_t fallback;
};
WEFT_MUST_CHECK enum weft_status weft_json_int(const json_t *object, const struct weft_json_int_args *args,
                                               int64_t *out);

/* Member as a finite number; same rules. */
WEFT_MUST_CHECK enum weft_status weft_json_real(const json_t *object, const char *name, const char *key,
                                                const double *fallback, double *out);

/* Member as a bool; absent or null gives fallback; another type is ERR_FORMAT. */
WEFT_MUST_CHECK enum weft_status weft_json_bool(const json_t *object, const char *name, const char *key, bool fallback,
                                                bool *out);

#endif
