/* Normalizers, Unicode ones over utf8proc. */
#include "normalize.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "base/json.h"
#include "json_text.h"
#include "utf8.h"
#include "weft/log.h"

/* ---- Replace ---- */

/* Adds what stands in place of a match. A short match and a long content must not fill the memory. */
static enum weft_status append_content(struct weft_bytes *out, const struct weft_replacement *replacement)
{
    if (out->size > UINT32_MAX) {
        weft_log(WEFT_LOG_ERROR, "text/normalize", "the text grows beyond 4 GiB while parts of it are replaced");
        return WEFT_ERR_LIMIT;
    }
    return weft_bytes_append(out, replacement->content, replacement->content_size);
}

static enum weft_status replace_single(struct weft_bytes *out, const struct weft_replacement *replacement,
                                       const char *text, size_t size, bool *is_head_io)
{
    const char *found, *end = text + size;

    for (const char *at = text; at < end; at = found + 1) {
        found = memchr(at, replacement->single, (size_t)(end - at));
        if (found == NULL) {
            return weft_bytes_append(out, at, (size_t)(end - at));
        }
        if (found == text && replacement->content_size == 0 && is_head_io != NULL) {
            *is_head_io = false;
        }
        WEFT_TRY(weft_bytes_append(out, at, (size_t)(found - at)));
        WEFT_TRY(append_content(out, replacement));
    }
    return WEFT_OK;
}

enum weft_status weft_text_replace(struct weft_bytes *out, const struct weft_replacement *replacement,
                                   struct weft_regex_scratch *scratch, const char *text, size_t size, bool *is_head_io)
{
    struct weft_regex_iter iter;
    size_t done = 0, begin, end;
    bool found;

    if (size == 0) {
        return WEFT_OK; /* the package does not look for matches in nothing */
    }
    if (replacement->regex == NULL) {
        return replace_single(out, replacement, text, size, is_head_io);
    }
    weft_regex_begin(&iter, replacement->regex, scratch, text, size);
    for (;;) {
        WEFT_TRY(weft_regex_next(&iter, &found, &begin, &end));
        if (!found) {
            return weft_bytes_append(out, text + done, size - done);
        }
        if (begin == 0 && end > 0 && replacement->content_size == 0 && is_head_io != NULL) {
            *is_head_io = false;
        }
        WEFT_TRY(weft_bytes_append(out, text + done, begin - done));
        WEFT_TRY(append_content(out, replacement));
        done = end;
    }
}

/* ---- Unicode normalization ---- */

/* True when text is in the wanted form already, seen cheaply: ASCII, for NFC everything below U+0300. */
static bool is_normal(const struct weft_normalizer *step, const char *text, size_t size)
{
    unsigned char limit = step->is_composed && !step->is_compatible ? 0xCC : 0x80;

    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)text[i] >= limit) {
            return false;
        }
    }
    return true;
}

/*
 * Canonical ordering of a run of combining characters: stable sort by combining class. utf8proc's own ordering is an
 * insertion sort, quadratic in a run that a stranger may make a megabyte long; this is a merge sort.
 */
static void sort_marks(uint32_t *codes, uint32_t *room, size_t count)
{
    if (count < 2) {
        return;
    }
    size_t half = count / 2, left = 0, right = half;
    sort_marks(codes, room, half);
    sort_marks(codes + half, room, count - half);
    memcpy(room, codes, count * sizeof(codes[0]));
    for (size_t i = 0; i < count; i++) {
        /* codes carry the class in the top byte while they are sorted */
        bool is_left = right == count || (left < half && room[left] >> 24 <= room[right] >> 24);
        codes[i] = is_left ? room[left++] : room[right++];
    }
}

/* codes[count] with classes in the top byte -> canonical order, plain code points. Room: [count] behind them. */
static void order_marks(uint32_t *codes, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && codes[end] >> 24 != 0) {
            end++;
        }
        sort_marks(codes + i, codes + count, end - i);
        i = end + 1;
    }
    for (size_t i = 0; i < count; i++) {
        codes[i] &= 0x1FFFFF;
    }
}

static enum weft_status decompose(const struct weft_normalizer *step, struct weft_words *codes, const char *text,
                                  size_t size)
{
    utf8proc_option_t options = UTF8PROC_DECOMPOSE | (step->is_compatible ? UTF8PROC_COMPAT : 0);
    utf8proc_int32_t parts[32]; /* the longest decomposition is 18 characters, of U+FDFA */

    codes->count = 0;
    for (size_t at = 0, length; at < size; at += length) {
        utf8proc_int32_t code = (utf8proc_int32_t)weft_utf8_read(text + at, &length);
        bool is_inert = !weft_char_is_normalizable((uint32_t)code);
        utf8proc_ssize_t count = is_inert ? 0 : utf8proc_decompose_char(code, parts, 32, options, NULL);
        if (count <= 0 || count > 32) {
            parts[0] = code;
            count = 1;
        }
        WEFT_TRY(weft_words_reserve(codes, (size_t)count));
        for (utf8proc_ssize_t i = 0; i < count; i++) {
            uint32_t class = is_inert ? 0 : (uint32_t)utf8proc_get_property(parts[i])->combining_class;
            codes->data[codes->count++] = (uint32_t)parts[i] | class << 24;
        }
    }
    return WEFT_OK;
}

static enum weft_status normalize_unicode(struct weft_text_work *work, const struct weft_normalizer *step,
                                          const char *text, size_t size)
{
    struct weft_words *codes = &work->codes;

    if (is_normal(step, text, size)) {
        return weft_bytes_append(&work->next_text, text, size);
    }
    WEFT_TRY(decompose(step, codes, text, size));
    WEFT_TRY(weft_words_reserve(codes, codes->count));
    order_marks(codes->data, codes->count);
    if (step->is_composed) {
        utf8proc_ssize_t count = utf8proc_normalize_utf32(
            (utf8proc_int32_t *)codes->data, (utf8proc_ssize_t)codes->count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (count >= 0) {
            codes->count = (size_t)count;
        }
    }
    WEFT_TRY(weft_bytes_reserve(&work->next_text, 4 * codes->count));
    for (size_t i = 0; i < codes->count; i++) {
        work->next_text.size += weft_utf8_write(codes->data[i], work->next_text.data + work->next_text.size);
    }
    return WEFT_OK;
}

/* ---- the small ones ---- */

static enum weft_status append_code(struct weft_bytes *out, uint32_t code)
{
    WEFT_TRY(weft_bytes_reserve(out, 4));
    out->size += weft_utf8_write(code, out->data + out->size);
    return WEFT_OK;
}

static enum weft_status lowercase(struct weft_bytes *out, const char *text, size_t size)
{
    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code = weft_utf8_read(text + at, &length);
        if (code == 0x130) { /* the one character whose lower case is two: i and a dot above */
            WEFT_TRY(weft_bytes_append(out, "i\xCC\x87", 3));
        } else {
            WEFT_TRY(append_code(out, weft_char_lower(code)));
        }
    }
    return WEFT_OK;
}

static enum weft_status strip(const struct weft_normalizer *step, struct weft_bytes *out, const char *text, size_t size,
                              bool *is_head_io)
{
    size_t begin = 0, end = size, length;

    while (step->is_left && begin < end && weft_char_is_space(weft_utf8_read(text + begin, &length))) {
        begin += length;
    }
    while (step->is_right && end > begin) {
        size_t last = end - 1;
        while (((unsigned char)text[last] & 0xC0) == 0x80) {
            last--;
        }
        if (!weft_char_is_space(weft_utf8_read(text + last, &length))) {
            break;
        }
        end = last;
    }
    *is_head_io = *is_head_io && begin == 0;
    return weft_bytes_append(out, text + begin, end - begin);
}

/* What sentencepiece's "nmt" rules drop, and what they turn into a space. */
static bool is_nmt_dropped(uint32_t code)
{
    return (code >= 0x01 && code <= 0x08) || code == 0x0B || (code >= 0x0E && code <= 0x1F) || code == 0x7F ||
           code == 0x8F || code == 0x9F;
}

static bool is_nmt_space(uint32_t code)
{
    return code == 0x09 || code == 0x0A || code == 0x0C || code == 0x0D || code == 0x1680 ||
           (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xFEFF ||
           code == 0xFFFD;
}

/* StripAccents and Nmt: character by character, some dropped. */
static enum weft_status filter(const struct weft_normalizer *step, struct weft_bytes *out, const char *text,
                               size_t size, bool *is_head_io)
{
    bool is_nmt = step->kind == WEFT_NORMALIZER_NMT;

    for (size_t at = 0, length; at < size; at += length) {
        uint32_t code = weft_utf8_read(text + at, &length);
        if (is_nmt ? is_nmt_dropped(code) : weft_char_is_mark(code)) {
            *is_head_io = *is_head_io && at > 0;
            continue;
        }
        WEFT_TRY(append_code(out, is_nmt && is_nmt_space(code) ? ' ' : code));
    }
    return WEFT_OK;
}

static enum weft_status rewrite_piece(struct weft_text_work *work, const void *context, const char *text, size_t size,
                                      bool *is_head_io)
{
    const struct weft_normalizer *step = context;
    struct weft_bytes *out = &work->next_text;

    switch (step->kind) {
    case WEFT_NORMALIZER_PREPEND:
        WEFT_TRY(weft_bytes_append(out, step->text, step->size));
        return weft_bytes_append(out, text, size);
    case WEFT_NORMALIZER_REPLACE: {
        struct weft_replacement replacement = {step->regex, step->single, step->text, step->size};
        return weft_text_replace(out, &replacement, &work->regex, text, size, is_head_io);
    }
    case WEFT_NORMALIZER_UNICODE: return normalize_unicode(work, step, text, size);
    case WEFT_NORMALIZER_LOWERCASE: return lowercase(out, text, size);
    case WEFT_NORMALIZER_STRIP: return strip(step, out, text, size, is_head_io);
    case WEFT_NORMALIZER_STRIP_ACCENTS:
    case WEFT_NORMALIZER_NMT: return filter(step, out, text, size, is_head_io);
    case WEFT_NORMALIZER_BYTE_LEVEL: return weft_text_append_byte_level(out, text, size);
    }
    return WEFT_ERR_UNSUPPORTED;
}

enum weft_status weft_normalizers_run(const struct weft_normalizers *normalizers, struct weft_text_work *work)
{
    for (size_t i = 0; i < normalizers->count; i++) {
        WEFT_TRY(weft_text_work_rewrite(work, rewrite_piece, &normalizers->steps[i]));
    }
    return WEFT_OK;
}

/* ---- reading ---- */

struct reader {
    struct weft_normalizers *out;
    struct weft_arena *arena;
    const char *path;
};

static enum weft_status read_content(const struct reader *reader, const json_t *object, const char *key,
                                     struct weft_normalizer *step)
{
    const char *text;

    WEFT_TRY(weft_text_member(object, reader->path, key, false, &text, &step->size));
    step->text = weft_arena_text(reader->arena, text, step->size);
    return step->text == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

static enum weft_status read_replace(const struct reader *reader, const json_t *object, struct weft_normalizer *step)
{
    const char *pattern;
    size_t size;
    bool is_regex;

    WEFT_TRY(read_content(reader, object, "content", step));
    WEFT_TRY(weft_text_pattern(object, reader->path, &pattern, &size, &is_regex));
    if (!is_regex && size == 1 && pattern[0] != '\0') {
        step->single = pattern[0];
        return WEFT_OK;
    }
    return weft_regex_open(reader->path, pattern, size, is_regex, &step->regex);
}

static enum weft_status read_step(void *context, const json_t *object, const char *type)
{
    static const struct {
        const char *type;
        enum weft_normalizer_kind kind;
        bool is_composed;
        bool is_compatible;
    } types[] = {
        {"Prepend", WEFT_NORMALIZER_PREPEND, false, false},
        {"Replace", WEFT_NORMALIZER_REPLACE, false, false},
        {"NFC", WEFT_NORMALIZER_UNICODE, true, false},
        {"NFD", WEFT_NORMALIZER_UNICODE, false, false},
        {"NFKC", WEFT_NORMALIZER_UNICODE, true, true},
        {"NFKD", WEFT_NORMALIZER_UNICODE, false, true},
        {"Lowercase", WEFT_NORMALIZER_LOWERCASE, false, false},
        {"Strip", WEFT_NORMALIZER_STRIP, false, false},
        {"StripAccents", WEFT_NORMALIZER_STRIP_ACCENTS, false, false},
        {"Nmt", WEFT_NORMALIZER_NMT, false, false},
        {"ByteLevel", WEFT_NORMALIZER_BYTE_LEVEL, false, false},
    };
    const struct reader *reader = context;
    size_t i = 0;

    while (i < sizeof(types) / sizeof(types[0]) && strcmp(types[i].type, type) != 0) {
        i++;
    }
    if (i == sizeof(types) / sizeof(types[0])) {
        return weft_text_refuse(reader->path, type,
                                "Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Nmt, "
                                "ByteLevel, Sequence");
    }
    struct weft_normalizer *step = &reader->out->steps[reader->out->count];
    *step = (struct weft_normalizer){
        .kind = types[i].kind, .is_composed = types[i].is_composed, .is_compatible = types[i].is_compatible};
    if (step->kind == WEFT_NORMALIZER_PREPEND) {
        WEFT_TRY(read_content(reader, object, "prepend", step));
    } else if (step->kind == WEFT_NORMALIZER_REPLACE) {
        WEFT_TRY(read_replace(reader, object, step));
    } else if (step->kind == WEFT_NORMALIZER_STRIP) {
        WEFT_TRY(weft_json_bool(object, reader->path, "strip_left", true, &step->is_left));
        WEFT_TRY(weft_json_bool(object, reader->path, "strip_right", true, &step->is_right));
    }
    reader->out->count++;
    return WEFT_OK;
}

enum weft_status weft_normalizers_init(struct weft_normalizers *out, const char *name, const json_t *object,
                                       struct weft_arena *arena)
{
    char path[256];
    struct reader reader = {out, arena, path};

    snprintf(path, sizeof(path), "%.200s: normalizer", name);
    *out = (struct weft_normalizers){.steps = weft_arena_alloc(arena, WEFT_TEXT_STEP_MAX, sizeof(out->steps[0]))};
    if (out->steps == NULL) {
        return WEFT_ERR_MEMORY;
    }
    enum weft_status status = weft_text_components(object, path, "normalizers", read_step, &reader);
    if (status != WEFT_OK) {
        weft_normalizers_fini(out);
    }
    return status;
}

void weft_normalizers_fini(struct weft_normalizers *normalizers)
{
    for (size_t i = 0; i < normalizers->count; i++) {
        weft_regex_close(&normalizers->steps[i].regex);
    }
    *normalizers = (struct weft_normalizers){0};
}
