/*
 * Regular expressions of tokenizer.json. They are written for Oniguruma (the `tokenizers` package); here PCRE2 runs
 * them, so the pattern is translated first: same matches, or refused by name.
 *
 * A compiled expression never changes: threads share it. What a match needs lives in a scratch of the caller.
 */
#ifndef WEFT_TEXT_REGEX_H
#define WEFT_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "weft/status.h"

struct weft_regex;

/* `path` is named in errors. is_regex false: the text itself. ERR_FORMAT (not a regular expression), ERR_UNSUPPORTED,
 * ERR_MEMORY; logged. */
WEFT_MUST_CHECK enum weft_status weft_regex_open(const char *path, const char *pattern, size_t size, bool is_regex,
                                                 struct weft_regex **out);
void weft_regex_close(struct weft_regex **regex);

/* Zero-initialise. */
struct weft_regex_scratch {
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack;
};
void weft_regex_scratch_fini(struct weft_regex_scratch *scratch);

/*
 * All matches in text[size] (valid UTF-8), left to right, as Oniguruma's binding finds them: an empty match right
 * behind the last match does not count.
 */
struct weft_regex_iter {
    const struct weft_regex *regex;
    struct weft_regex_scratch *scratch;
    const char *text;
    size_t size;
    size_t at;       /* where the search goes on */
    size_t last_end; /* of the last match, SIZE_MAX before the first */
};

void weft_regex_begin(struct weft_regex_iter *iter, const struct weft_regex *regex, struct weft_regex_scratch *scratch,
                      const char *text, size_t size);
/* *found_out false at the end. ERR_LIMIT when the expression gives up (catastrophic backtracking), ERR_MEMORY; logged.
 */
WEFT_MUST_CHECK enum weft_status weft_regex_next(struct weft_regex_iter *iter, bool *found_out, size_t *begin_out,
                                                 size_t *end_out);

/* Appends the PCRE2 form of an Oniguruma pattern. ERR_UNSUPPORTED for what has none, logged. */
WEFT_MUST_CHECK enum weft_status weft_regex_translate(const char *path, const char *pattern, size_t size,
                                                      struct weft_bytes *out);

#endif
