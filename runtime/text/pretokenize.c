/* Running pre-tokenizers. Reading them from JSON is in pretokenize_read.c. */
#include "pretokenize.h"

#include <string.h>

#include "normalize.h"
#include "utf8.h"

/* ---- cutting: a stream of parts, separators and the text between them, folded by behavior ---- */

struct cutter {
    struct weft_text_work *work;
    const struct weft_piece *piece;
    enum weft_split_behavior behavior;
    bool is_inverted;
    bool has_held; /* a part that may still be joined with the next */
    bool is_held_separator;
    size_t held_begin;
    size_t held_end;
    bool is_previous_separator;
};

static enum weft_status emit(struct cutter *cutter, size_t begin, size_t end)
{
    return weft_text_work_add(cutter->work, (struct weft_piece){.begin = cutter->piece->begin + begin,
                                                                .size = end - begin,
                                                                .id = -1,
                                                                .is_head = cutter->piece->is_head && begin == 0});
}

static bool joins_held(const struct cutter *cutter, bool is_separator)
{
    switch (cutter->behavior) {
    case WEFT_SPLIT_CONTIGUOUS: return is_separator == cutter->is_previous_separator;
    case WEFT_SPLIT_MERGED_WITH_PREVIOUS: return is_separator && !cutter->is_previous_separator;
    case WEFT_SPLIT_MERGED_WITH_NEXT: return cutter->is_held_separator && !is_separator;
    default: return false;
    }
}

static enum weft_status part(struct cutter *cutter, size_t begin, size_t end, bool is_match)
{
    bool is_separator = is_match != cutter->is_inverted;

    if (cutter->behavior == WEFT_SPLIT_ISOLATED || cutter->behavior == WEFT_SPLIT_REMOVED) {
        return cutter->behavior == WEFT_SPLIT_REMOVED && is_separator ? WEFT_OK : emit(cutter, begin, end);
    }
    if (cutter->has_held && joins_held(cutter, is_separator)) {
        cutter->held_end = end;
        cutter->is_held_separator = false;
    } else {
        if (cutter->has_held) {
            WEFT_TRY(emit(cutter, cutter->held_begin, cutter->held_end));
        }
        cutter->has_held = true;
        cutter->held_begin = begin;
        cutter->held_end = end;
        cutter->is_held_separator = is_separator;
    }
    cutter->is_previous_separator = is_separator;
    return WEFT_OK;
}

static enum weft_status end_parts(struct cutter *cutter)
{
    return cutter->has_held ? emit(cutter, cutter->held_begin, cutter->held_end) : WEFT_OK;
}

static enum weft_status cut_regex(struct cutter *cutter, const struct weft_pretokenizer *step, const char *text,
                                  size_t size)
{
    struct weft_regex_iter iter;
    size_t done = 0, begin, end;
    bool found;

    weft_regex_begin(&iter, step->regex, &cutter->work->regex, text, size);
    for (;;) {
        WEFT_TRY(weft_regex_next(&iter, &found, &begin, &end));
        if (!found) {
            break;
        }
        if (begin > done) {
            WEFT_TRY(part(cutter, done, begin, false));
        }
        WEFT_TRY(part(cutter, begin, end, true));
        done = end;
    }
    return done < size ? part(cutter, done, size, false) : WEFT_OK;
}

static enum weft_status cut_chars(struct cutter *cutter, const struct weft_pretokenizer *step, const char *text,
                                  size_t size)
{
    size_t done = 0;

    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code = weft_utf8_read(text + at, &length);
        if (step->is_in_class != NULL ? !step->is_in_class(code) : code != step->code) {
            continue;
        }
        if (at > done) {
            WEFT_TRY(part(cutter, done, at, false));
        }
        WEFT_TRY(part(cutter, at, at + length, true));
        done = at + length;
    }
    return done < size ? part(cutter, done, size, false) : WEFT_OK;
}

static enum weft_status cut_piece(struct weft_text_work *work, const void *context, const struct weft_piece *piece)
{
    const struct weft_pretokenizer *step = context;
    struct cutter cutter = {.work = work, .piece = piece, .behavior = step->behavior, .is_inverted = step->is_inverted};
    const char *text = work->text.data + piece->begin;

    WEFT_TRY(step->kind == WEFT_PRETOKENIZER_SPLIT ? cut_regex(&cutter, step, text, piece->size)
                                                   : cut_chars(&cutter, step, text, piece->size));
    return end_parts(&cutter);
}

/* ---- rewriting ---- */

static enum weft_status add_space(struct weft_text_work *work, const char *text, size_t size)
{
    if (text[0] != ' ') {
        WEFT_TRY(weft_bytes_append(&work->next_text, " ", 1));
    }
    return weft_bytes_append(&work->next_text, text, size);
}

static enum weft_status add_metaspace(struct weft_text_work *work, const struct weft_pretokenizer *step,
                                      const char *text, size_t size, bool is_head)
{
    struct weft_bytes *out = &work->next_text;
    char mark[4];
    size_t mark_size = weft_utf8_write(step->code, mark);
    bool has_mark = text[0] == ' ' || (size >= mark_size && memcmp(text, mark, mark_size) == 0);

    if (!has_mark && (step->scheme == WEFT_METASPACE_ALWAYS || (step->scheme == WEFT_METASPACE_FIRST && is_head))) {
        WEFT_TRY(weft_bytes_append(out, mark, mark_size));
    }
    struct weft_replacement replacement = {.single = ' ', .content = mark, .content_size = mark_size};
    return weft_text_replace(out, &replacement, &work->regex, text, size, NULL);
}

static enum weft_status rewrite_piece(struct weft_text_work *work, const void *context, const char *text, size_t size,
                                      bool *is_head_io)
{
    const struct weft_pretokenizer *step = context;

    switch (step->kind) {
    case WEFT_PRETOKENIZER_SPACE: return add_space(work, text, size);
    case WEFT_PRETOKENIZER_METASPACE: return add_metaspace(work, step, text, size, *is_head_io);
    default: return weft_text_append_byte_level(&work->next_text, text, size);
    }
}

enum weft_status weft_pretokenizers_run(const struct weft_pretokenizers *pretokenizers, struct weft_text_work *work)
{
    for (size_t i = 0; i < pretokenizers->count; i++) {
        const struct weft_pretokenizer *step = &pretokenizers->steps[i];
        bool is_cut = step->kind == WEFT_PRETOKENIZER_SPLIT || step->kind == WEFT_PRETOKENIZER_SPLIT_CLASS ||
                      step->kind == WEFT_PRETOKENIZER_SPLIT_CHAR;
        WEFT_TRY(is_cut ? weft_text_work_cut(work, cut_piece, step)
                        : weft_text_work_rewrite(work, rewrite_piece, step));
    }
    return WEFT_OK;
}
