/* Reading the "decoder" member of a tokenizer.json. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "decode.h"
#include "json_text.h"
#include "utf8.h"
#include "weft/log.h"

struct reader {
    struct weft_decoders *out;
    struct weft_arena *arena;
    const char *path;
};

static enum weft_status read_text(const struct reader *reader, const json_t *object, const char *key,
                                  struct weft_decoder *step)
{
    const char *text;

    WEFT_TRY(weft_text_member(object, reader->path, key, false, &text, &step->size));
    step->text = weft_arena_text(reader->arena, text, step->size);
    return step->text == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

static enum weft_status read_replace(const struct reader *reader, const json_t *object, struct weft_decoder *step)
{
    const char *pattern;
    size_t size;
    bool is_regex;

    WEFT_TRY(read_text(reader, object, "content", step));
    WEFT_TRY(weft_text_pattern(object, reader->path, &pattern, &size, &is_regex));
    step->is_local = !is_regex && size > 0 && weft_utf8_length((unsigned char)pattern[0]) == size;
    if (step->is_local && size == 1 && pattern[0] != '\0') {
        step->single = pattern[0];
        return WEFT_OK;
    }
    return weft_regex_open(reader->path, pattern, size, is_regex, &step->regex);
}

static enum weft_status read_strip(const struct reader *reader, const json_t *object, struct weft_decoder *step)
{
    struct weft_json_int_args args = {.name = reader->path, .key = "start", .min = 0, .max = UINT32_MAX};
    int64_t start, stop;

    WEFT_TRY(weft_json_int(object, &args, &start));
    args.key = "stop";
    WEFT_TRY(weft_json_int(object, &args, &stop));
    step->start = (uint32_t)start;
    step->stop = (uint32_t)stop;
    return weft_text_char(object, reader->path, "content", &step->code);
}

static enum weft_status read_metaspace(const struct reader *reader, const json_t *object, struct weft_decoder *step)
{
    return weft_metaspace_read(object, reader->path, &step->code, &step->scheme);
}

static enum weft_status read_suffix(const struct reader *reader, const json_t *object, struct weft_decoder *step)
{
    WEFT_TRY(read_text(reader, object, "suffix", step));
    return step->size > 0 ? WEFT_OK : weft_text_mismatch(reader->path, "suffix", "a string that is not empty");
}

static enum weft_status read_step(void *context, const json_t *object, const char *type)
{
    static const struct {
        const char *type;
        enum weft_decoder_kind kind;
        enum weft_status (*read)(const struct reader *reader, const json_t *object, struct weft_decoder *step);
    } types[] = {
        {"Replace", WEFT_DECODER_REPLACE, read_replace},
        {"ByteFallback", WEFT_DECODER_BYTE_FALLBACK, NULL},
        {"Fuse", WEFT_DECODER_FUSE, NULL},
        {"Strip", WEFT_DECODER_STRIP, read_strip},
        {"ByteLevel", WEFT_DECODER_BYTE_LEVEL, NULL},
        {"Metaspace", WEFT_DECODER_METASPACE, read_metaspace},
        {"BPEDecoder", WEFT_DECODER_SUFFIX, read_suffix},
    };
    const struct reader *reader = context;
    struct weft_decoders *out = reader->out;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(types[i].type, type) == 0) {
            struct weft_decoder *step = &out->steps[out->count];
            *step = (struct weft_decoder){.kind = types[i].kind};
            if (types[i].read != NULL) {
                WEFT_TRY(types[i].read(reader, object, step));
            }
            out->count++;
            return WEFT_OK;
        }
    }
    return weft_text_refuse(reader->path, type,
                            "Replace, ByteFallback, Fuse, Strip, ByteLevel, Metaspace, BPEDecoder, Sequence");
}

enum weft_status weft_decoders_init(struct weft_decoders *out, const char *name, const json_t *object,
                                    struct weft_arena *arena)
{
    char path[256];
    struct reader reader = {out, arena, path};

    snprintf(path, sizeof(path), "%.200s: decoder", name);
    *out = (struct weft_decoders){.steps = weft_arena_alloc(arena, WEFT_TEXT_STEP_MAX, sizeof(out->steps[0]))};
    if (out->steps == NULL) {
        return WEFT_ERR_MEMORY;
    }
    out->is_joined = object == NULL || json_is_null(object);
    enum weft_status status = weft_text_components(object, path, "decoders", read_step, &reader);
    if (status != WEFT_OK) {
        weft_decoders_fini(out);
    }
    return status;
}

void weft_decoders_fini(struct weft_decoders *decoders)
{
    for (size_t i = 0; i < decoders->count; i++) {
        weft_regex_close(&decoders->steps[i].regex);
    }
    *decoders = (struct weft_decoders){0};
}
