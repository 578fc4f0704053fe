/* Typed members and the flattening of Sequences. */
#include "json_text.h"

#include <string.h>

#include "utf8.h"
#include "weft/log.h"

static const char where[] = "text/tokenizer";

enum weft_status weft_text_mismatch(const char *path, const char *key, const char *expected)
{
    weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected %s", path, key, expected);
    return WEFT_ERR_FORMAT;
}

enum weft_status weft_text_refuse(const char *path, const char *type, const char *list)
{
    weft_log(WEFT_LOG_ERROR, where, "%s: %.64s is not supported (supported: %s)", path, type, list);
    return WEFT_ERR_UNSUPPORTED;
}

enum weft_status weft_text_member(const json_t *object, const char *path, const char *key, bool is_optional,
                                  const char **text_out, size_t *size_out)
{
    const json_t *member = json_object_get(object, key);

    if (is_optional && (member == NULL || json_is_null(member))) {
        *text_out = NULL;
        *size_out = 0;
        return WEFT_OK;
    }
    if (!json_is_string(member)) {
        return weft_text_mismatch(path, key, member == NULL ? "a string, found nothing" : "a string");
    }
    *text_out = json_string_value(member);
    *size_out = json_string_length(member);
    return WEFT_OK;
}

enum weft_status weft_text_char(const json_t *object, const char *path, const char *key, unsigned *code_out)
{
    const char *text;
    size_t size, length;

    WEFT_TRY(weft_text_member(object, path, key, false, &text, &size));
    if (size == 0 || weft_utf8_length((unsigned char)text[0]) != size) {
        return weft_text_mismatch(path, key, "exactly one character");
    }
    *code_out = weft_utf8_read(text, &length);
    return WEFT_OK;
}

enum weft_status weft_text_pattern(const json_t *object, const char *path, const char **text_out, size_t *size_out,
                                   bool *is_regex_out)
{
    const json_t *pattern = json_object_get(object, "pattern");
    const char *key = json_object_get(pattern, "Regex") != NULL ? "Regex" : "String";

    if (!json_is_object(pattern) || json_object_size(pattern) != 1) {
        return weft_text_mismatch(path, "pattern", "{\"String\": ...} or {\"Regex\": ...}");
    }
    WEFT_TRY(weft_text_member(pattern, path, key, false, text_out, size_out));
    *is_regex_out = key[0] == 'R';
    return WEFT_OK;
}

enum weft_status weft_text_type(const json_t *object, const char *path, const char **type_out)
{
    size_t size;

    if (!json_is_object(object)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected an object with a \"type\"", path);
        return WEFT_ERR_FORMAT;
    }
    return weft_text_member(object, path, "type", false, type_out, &size);
}

struct walk {
    const char *path;
    const char *list_key;
    weft_text_component *component;
    void *context;
    size_t step_count;
};

static enum weft_status walk_component(struct walk *walk, const json_t *object, unsigned depth)
{
    const char *type;
    const json_t *list, *item;
    size_t index;

    if (depth > WEFT_TEXT_DEPTH_MAX || walk->step_count >= WEFT_TEXT_STEP_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: more than %d components, or nested deeper than %d", walk->path,
                 WEFT_TEXT_STEP_MAX, WEFT_TEXT_DEPTH_MAX);
        return WEFT_ERR_LIMIT;
    }
    WEFT_TRY(weft_text_type(object, walk->path, &type));
    if (strcmp(type, "Sequence") != 0) {
        walk->step_count++;
        return walk->component(walk->context, object, type);
    }
    list = json_object_get(object, walk->list_key);
    if (!json_is_array(list)) {
        return weft_text_mismatch(walk->path, walk->list_key, "a list");
    }
    json_array_foreach(list, index, item)
    {
        WEFT_TRY(walk_component(walk, item, depth + 1));
    }
    return WEFT_OK;
}

enum weft_status weft_text_components(const json_t *object, const char *path, const char *list_key,
                                      weft_text_component *component, void *context)
{
    struct walk walk = {path, list_key, component, context, 0};

    return object == NULL || json_is_null(object) ? WEFT_OK : walk_component(&walk, object, 0);
}
