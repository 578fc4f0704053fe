/* Reading post-processors. Each wraps what those before it have made. */
#include "template.h"

#include <stdio.h>
#include <string.h>

#include "json_text.h"
#include "vocab.h"
#include "weft/log.h"

struct reader {
    struct weft_template *out;
    const char *path;
};

static enum weft_status push_id(const struct reader *reader, struct weft_words *ids, const json_t *value)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;

    if (id < 0 || id > WEFT_VOCAB_ID_MAX) {
        return weft_text_mismatch(reader->path, "special token", "an id in [0, 16777215]");
    }
    return weft_words_push(ids, (uint32_t)id);
}

/* The ids of special token `name`: special_tokens[name].ids. */
static enum weft_status push_special(const struct reader *reader, const json_t *object, const char *name,
                                     struct weft_words *ids)
{
    const json_t *list = json_object_get(json_object_get(json_object_get(object, "special_tokens"), name), "ids");
    const json_t *id;
    size_t index;

    if (!json_is_array(list)) {
        weft_log(WEFT_LOG_ERROR, "text/tokenizer", "%s: special_tokens has no ids for \"%.64s\"", reader->path, name);
        return WEFT_ERR_FORMAT;
    }
    json_array_foreach(list, index, id)
    {
        WEFT_TRY(push_id(reader, ids, id));
    }
    return WEFT_OK;
}

/* "single": special tokens and, exactly once, the sequence A. */
static enum weft_status read_pieces(const struct reader *reader, const json_t *object, struct weft_words *before,
                                    struct weft_words *after)
{
    const json_t *pieces = json_object_get(object, "single"), *piece;
    size_t index, sequence_count = 0, size;
    const char *text;

    json_array_foreach(pieces, index, piece)
    {
        const json_t *sequence = json_object_get(piece, "Sequence");
        const json_t *special = json_object_get(piece, "SpecialToken");
        WEFT_TRY(weft_text_member(sequence != NULL ? sequence : special, reader->path, "id", false, &text, &size));
        if (sequence == NULL) {
            WEFT_TRY(push_special(reader, object, text, sequence_count == 0 ? before : after));
        } else if (strcmp(text, "A") == 0) {
            sequence_count++;
        } else {
            sequence_count = 2;
        }
    }
    if (sequence_count != 1) {
        return weft_text_mismatch(reader->path, "single", "a list with the sequence A exactly once, and not B");
    }
    return WEFT_OK;
}

/* What this step puts before goes outside of what is there already. */
static enum weft_status wrap(const struct reader *reader, const struct weft_words *before,
                             const struct weft_words *after)
{
    struct weft_template *out = reader->out;

    WEFT_TRY(weft_words_reserve(&out->before, before->count));
    if (before->count > 0) {
        memmove(out->before.data + before->count, out->before.data, out->before.count * sizeof(uint32_t));
        memcpy(out->before.data, before->data, before->count * sizeof(uint32_t));
        out->before.count += before->count;
    }
    for (size_t i = 0; i < after->count; i++) {
        WEFT_TRY(weft_words_push(&out->after, after->data[i]));
    }
    return WEFT_OK;
}

static enum weft_status read_template(const struct reader *reader, const json_t *object)
{
    struct weft_words before = {0}, after = {0};
    enum weft_status status = read_pieces(reader, object, &before, &after);

    if (status == WEFT_OK) {
        status = wrap(reader, &before, &after);
    }
    weft_words_fini(&before);
    weft_words_fini(&after);
    return status;
}

/* BertProcessing and RobertaProcessing: "cls": ["<s>", 0], "sep": ["</s>", 2]. */
static enum weft_status read_pair(const struct reader *reader, const json_t *object)
{
    struct weft_words before = {0}, after = {0};
    enum weft_status status = push_id(reader, &before, json_array_get(json_object_get(object, "cls"), 1));

    if (status == WEFT_OK) {
        status = push_id(reader, &after, json_array_get(json_object_get(object, "sep"), 1));
    }
    if (status == WEFT_OK) {
        status = wrap(reader, &before, &after);
    }
    weft_words_fini(&before);
    weft_words_fini(&after);
    return status;
}

static enum weft_status read_step(void *context, const json_t *object, const char *type)
{
    const struct reader *reader = context;

    if (strcmp(type, "ByteLevel") == 0) {
        return WEFT_OK; /* moves offsets, never ids */
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        return read_template(reader, object);
    }
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        return read_pair(reader, object);
    }
    return weft_text_refuse(reader->path, type,
                            "TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing, Sequence");
}

enum weft_status weft_template_init(struct weft_template *out, const char *name, const json_t *object)
{
    char path[256];
    struct reader reader = {out, path};

    snprintf(path, sizeof(path), "%.200s: post_processor", name);
    *out = (struct weft_template){0};
    enum weft_status status = weft_text_components(object, path, "processors", read_step, &reader);
    if (status != WEFT_OK) {
        weft_template_fini(out);
    }
    return status;
}

void weft_template_fini(struct weft_template *template)
{
    weft_words_fini(&template->before);
    weft_words_fini(&template->after);
}
