/* Reading the "pre_tokenizer" member of a tokenizer.json. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "json_text.h"
#include "pretokenize.h"
#include "utf8.h"
#include "weft/log.h"

/* What ByteLevel (GPT-2) and Whitespace split at; the latter is a pattern of Rust's regex, whose \w has the joiners. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char word_pattern[] = "[\\w\\x{200c}\\x{200d}]+|[^\\w\\x{200c}\\x{200d}\\s]+";

struct reader {
    struct weft_pretokenizers *out;
    const char *path;
};

static enum weft_status add(const struct reader *reader, struct weft_pretokenizer step)
{
    if (reader->out->count == reader->out->capacity) {
        weft_regex_close(&step.regex);
        weft_log(WEFT_LOG_ERROR, "text/tokenizer", "%s: more than %zu steps", reader->path, reader->out->capacity);
        return WEFT_ERR_LIMIT;
    }
    reader->out->steps[reader->out->count++] = step;
    return WEFT_OK;
}

static enum weft_status add_split(const struct reader *reader, const char *pattern, size_t size, bool is_regex,
                                  enum weft_split_behavior behavior, bool is_inverted)
{
    struct weft_pretokenizer step = {.kind = WEFT_PRETOKENIZER_SPLIT, .behavior = behavior, .is_inverted = is_inverted};

    WEFT_TRY(weft_regex_open(reader->path, pattern, size, is_regex, &step.regex));
    return add(reader, step);
}

static enum weft_status add_class(const struct reader *reader, bool (*is_in_class)(uint32_t),
                                  enum weft_split_behavior behavior)
{
    return add(reader, (struct weft_pretokenizer){
                           .kind = WEFT_PRETOKENIZER_SPLIT_CLASS, .is_in_class = is_in_class, .behavior = behavior});
}

static enum weft_status read_behavior(const struct reader *reader, const json_t *object, bool is_optional,
                                      enum weft_split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
    const char *text;
    size_t size;

    WEFT_TRY(weft_text_member(object, reader->path, "behavior", is_optional, &text, &size));
    if (text == NULL) {
        return WEFT_OK;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], text) == 0) {
            *out = (enum weft_split_behavior)i;
            return WEFT_OK;
        }
    }
    return weft_text_mismatch(reader->path, "behavior",
                              "Removed, Isolated, Contiguous, MergedWithPrevious or MergedWithNext");
}

static enum weft_status read_split(const struct reader *reader, const json_t *object)
{
    enum weft_split_behavior behavior = WEFT_SPLIT_ISOLATED;
    const char *pattern;
    size_t size;
    bool is_regex, is_inverted;

    WEFT_TRY(weft_text_pattern(object, reader->path, &pattern, &size, &is_regex));
    WEFT_TRY(read_behavior(reader, object, false, &behavior));
    WEFT_TRY(weft_json_bool(object, reader->path, "invert", false, &is_inverted));
    return add_split(reader, pattern, size, is_regex, behavior, is_inverted);
}

static enum weft_status read_byte_level(const struct reader *reader, const json_t *object)
{
    bool has_space, has_regex;

    WEFT_TRY(weft_json_bool(object, reader->path, "add_prefix_space", true, &has_space));
    WEFT_TRY(weft_json_bool(object, reader->path, "use_regex", true, &has_regex));
    if (has_space) {
        WEFT_TRY(add(reader, (struct weft_pretokenizer){.kind = WEFT_PRETOKENIZER_SPACE}));
    }
    if (has_regex) {
        WEFT_TRY(add_split(reader, gpt2_pattern, sizeof(gpt2_pattern) - 1, true, WEFT_SPLIT_ISOLATED, false));
    }
    return add(reader, (struct weft_pretokenizer){.kind = WEFT_PRETOKENIZER_BYTE_LEVEL});
}

/* The new form has prepend_scheme; the old one only add_prefix_space, where false means never. */
enum weft_status weft_metaspace_read(const json_t *object, const char *path, uint32_t *code_out,
                                     enum weft_metaspace_scheme *scheme_out)
{
    const char *scheme;
    size_t size;
    bool has_space;

    WEFT_TRY(weft_text_char(object, path, "replacement", code_out));
    WEFT_TRY(weft_json_bool(object, path, "add_prefix_space", true, &has_space));
    WEFT_TRY(weft_text_member(object, path, "prepend_scheme", true, &scheme, &size));
    if (scheme == NULL) {
        *scheme_out = has_space ? WEFT_METASPACE_ALWAYS : WEFT_METASPACE_NEVER;
    } else if (strcmp(scheme, "always") == 0) {
        *scheme_out = WEFT_METASPACE_ALWAYS;
    } else if (strcmp(scheme, "first") == 0) {
        *scheme_out = WEFT_METASPACE_FIRST;
    } else if (strcmp(scheme, "never") == 0) {
        *scheme_out = WEFT_METASPACE_NEVER;
    } else {
        return weft_text_mismatch(path, "prepend_scheme", "always, first or never");
    }
    if (!has_space && *scheme_out != WEFT_METASPACE_NEVER) {
        return weft_text_mismatch(path, "add_prefix_space", "the same meaning as prepend_scheme");
    }
    return WEFT_OK;
}

static enum weft_status read_metaspace(const struct reader *reader, const json_t *object)
{
    struct weft_pretokenizer step = {.kind = WEFT_PRETOKENIZER_METASPACE};
    bool is_split;

    WEFT_TRY(weft_metaspace_read(object, reader->path, &step.code, &step.scheme));
    WEFT_TRY(weft_json_bool(object, reader->path, "split", true, &is_split));
    WEFT_TRY(add(reader, step));
    if (!is_split) {
        return WEFT_OK;
    }
    return add(reader, (struct weft_pretokenizer){.kind = WEFT_PRETOKENIZER_SPLIT_CHAR,
                                                  .code = step.code,
                                                  .behavior = WEFT_SPLIT_MERGED_WITH_NEXT});
}

static enum weft_status read_digits(const struct reader *reader, const json_t *object)
{
    bool is_individual;

    WEFT_TRY(weft_json_bool(object, reader->path, "individual_digits", false, &is_individual));
    return add_class(reader, weft_char_is_numeric, is_individual ? WEFT_SPLIT_ISOLATED : WEFT_SPLIT_CONTIGUOUS);
}

static enum weft_status read_punctuation(const struct reader *reader, const json_t *object)
{
    enum weft_split_behavior behavior = WEFT_SPLIT_ISOLATED;

    WEFT_TRY(read_behavior(reader, object, true, &behavior));
    return add_class(reader, weft_char_is_punctuation, behavior);
}

static enum weft_status read_whitespace(const struct reader *reader, const json_t *object)
{
    (void)object;
    return add_split(reader, word_pattern, sizeof(word_pattern) - 1, true, WEFT_SPLIT_REMOVED, true);
}

static enum weft_status read_whitespace_split(const struct reader *reader, const json_t *object)
{
    (void)object;
    return add_class(reader, weft_char_is_space, WEFT_SPLIT_REMOVED);
}

static enum weft_status read_delimiter(const struct reader *reader, const json_t *object)
{
    struct weft_pretokenizer step = {.kind = WEFT_PRETOKENIZER_SPLIT_CHAR, .behavior = WEFT_SPLIT_REMOVED};

    WEFT_TRY(weft_text_char(object, reader->path, "delimiter", &step.code));
    return add(reader, step);
}

static enum weft_status read_step(void *context, const json_t *object, const char *type)
{
    static const struct {
        const char *type;
        enum weft_status (*read)(const struct reader *reader, const json_t *object);
    } types[] = {
        {"ByteLevel", read_byte_level},    {"Split", read_split},
        {"Metaspace", read_metaspace},     {"Digits", read_digits},
        {"Whitespace", read_whitespace},   {"WhitespaceSplit", read_whitespace_split},
        {"Punctuation", read_punctuation}, {"CharDelimiterSplit", read_delimiter},
    };
    const struct reader *reader = context;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(types[i].type, type) == 0) {
            return types[i].read(reader, object);
        }
    }
    return weft_text_refuse(reader->path, type,
                            "ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, Punctuation, "
                            "CharDelimiterSplit, Sequence");
}

enum weft_status weft_pretokenizers_init(struct weft_pretokenizers *out, const char *name, const json_t *object,
                                         struct weft_arena *arena)
{
    char path[256];
    struct reader reader = {out, path};

    snprintf(path, sizeof(path), "%.200s: pre_tokenizer", name);
    *out = (struct weft_pretokenizers){.capacity = WEFT_TEXT_STEP_MAX};
    out->steps = weft_arena_alloc(arena, out->capacity, sizeof(out->steps[0]));
    if (out->steps == NULL) {
        return WEFT_ERR_MEMORY;
    }
    enum weft_status status = weft_text_components(object, path, "pretokenizers", read_step, &reader);
    if (status != WEFT_OK) {
        weft_pretokenizers_fini(out);
    }
    return status;
}

void weft_pretokenizers_fini(struct weft_pretokenizers *pretokenizers)
{
    for (size_t i = 0; i < pretokenizers->count; i++) {
        weft_regex_close(&pretokenizers->steps[i].regex);
    }
    *pretokenizers = (struct weft_pretokenizers){0};
}
