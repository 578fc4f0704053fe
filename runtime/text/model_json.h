/*
 * The two large members of a tokenizer.json, model.vocab and model.merges, read without a tree in memory.
 *
 * They are 95 % of the file and a million values; jansson would take a second and 300 MB for the largest files in the
 * wild, and refuses keys with a NUL, which vocabularies have. The rest of the file, with these two cut out, is
 * jansson's.
 */
#ifndef WEFT_TEXT_MODEL_JSON_H
#define WEFT_TEXT_MODEL_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

/* Text of one JSON value, borrowed; data NULL when it is absent. */
struct weft_json_span {
    const char *data;
    size_t size;
};

struct weft_model_json {
    struct weft_json_span vocab;  /* begins with { */
    struct weft_json_span merges; /* begins with [ */
};

/*
 * Finds both in text[size] and appends the text without their contents to `rest` (line breaks stay, so that line
 * numbers in errors are right). Damaged JSON is not noticed here: what is not found stays in `rest`. ERR_MEMORY.
 */
WEFT_MUST_CHECK enum weft_status weft_model_json_cut(const char *text, size_t size, struct weft_model_json *out,
                                                     struct weft_bytes *rest);

/* Reads a span from left to right. */
struct weft_json_reader {
    const char *path; /* for errors */
    struct weft_json_span span;
    size_t at;
};

/* The next character that is not white space, NUL at the end; is not consumed. */
char weft_json_reader_peek(struct weft_json_reader *reader);
/* Consumes `c`; ERR_FORMAT when something else comes. */
WEFT_MUST_CHECK enum weft_status weft_json_reader_expect(struct weft_json_reader *reader, char c);
/* Appends the contents of a string to `out`: valid UTF-8. */
WEFT_MUST_CHECK enum weft_status weft_json_reader_string(struct weft_json_reader *reader, struct weft_bytes *out);
/* An integer in [0, max]. */
WEFT_MUST_CHECK enum weft_status weft_json_reader_uint(struct weft_json_reader *reader, uint32_t max,
                                                       uint32_t *value_out);
/* Behind an item of a list or object: *more_out true after a comma, false after `close`; both are consumed. */
WEFT_MUST_CHECK enum weft_status weft_json_reader_next(struct weft_json_reader *reader, char close, bool *more_out);

#endif
