/* Members of tokenizer.json that are strings or named variants, with one clear line when they are not. */
#ifndef WEFT_TEXT_JSON_TEXT_H
#define WEFT_TEXT_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/json.h"
#include "weft/status.h"

/* Member `key` of `object` as a string, borrowed from it; absent or null gives NULL when is_optional, else ERR_FORMAT.
 * `path` is what errors name: "tokenizer.json: decoder". */
WEFT_MUST_CHECK enum weft_status weft_text_member(const json_t *object, const char *path, const char *key,
                                                  bool is_optional, const char **text_out, size_t *size_out);

/* Member as exactly one character; its code point. */
WEFT_MUST_CHECK enum weft_status weft_text_char(const json_t *object, const char *path, const char *key,
                                                unsigned *code_out);

/*
 * Members `pattern` of a Split or Replace: {"String": "..."} or {"Regex": "..."}; borrowed from `object`.
 */
WEFT_MUST_CHECK enum weft_status weft_text_pattern(const json_t *object, const char *path, const char **text_out,
                                                   size_t *size_out, bool *is_regex_out);

/* "type" of a component; ERR_FORMAT when object is not an object with a string "type". */
WEFT_MUST_CHECK enum weft_status weft_text_type(const json_t *object, const char *path, const char **type_out);

/* ERR_UNSUPPORTED: "path: TYPE is not supported (supported: LIST)". */
WEFT_MUST_CHECK enum weft_status weft_text_refuse(const char *path, const char *type, const char *list);

/* ERR_FORMAT: "path: key: expected EXPECTED". */
WEFT_MUST_CHECK enum weft_status weft_text_mismatch(const char *path, const char *key, const char *expected);

/* Components nest no deeper (a Sequence in a Sequence in ...). */
enum { WEFT_TEXT_DEPTH_MAX = 16, WEFT_TEXT_STEP_MAX = 64 };

/* Called for every component that is not itself a Sequence, in order. */
typedef enum weft_status weft_text_component(void *context, const json_t *object, const char *type);

/*
 * Flattens a component that may be null, one object, or a Sequence (its list under `list_key`), and calls `component`
 * for each. ERR_FORMAT for other shapes, ERR_LIMIT for more than the maxima above.
 */
WEFT_MUST_CHECK enum weft_status weft_text_components(const json_t *object, const char *path, const char *list_key,
                                                      weft_text_component *component, void *context);

#endif
