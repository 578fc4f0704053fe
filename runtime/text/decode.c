/* Running decoders. Reading them from JSON is in decode_read.c. */
#include "decode.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"
#include "weft/log.h"

struct weft_decoding_state {
    struct weft_bytes token; /* fragments of a string that is needed whole */
    struct weft_bytes held;  /* BYTE_FALLBACK: the run; BYTE_LEVEL: an unfinished character; SUFFIX: a string */
    struct weft_bytes room;  /* output of the stage */
    size_t string_index;     /* METASPACE */
    uint32_t start_left;     /* STRIP: how many may still go at the start */
    uint32_t stop_held;      /* STRIP: how many at the end are held back */
    bool is_begun;           /* FUSE, BYTE_LEVEL: the one string has begun */
    size_t valid_size;       /* BYTE_FALLBACK: so much of the run is whole characters */
    bool is_broken;          /* BYTE_FALLBACK: the run can no longer become UTF-8 */
    bool has_held;           /* SUFFIX */
};

/* Part of one string between two stages; a string is whole when both ends are in it. */
struct fragment {
    const char *text;
    size_t size;
    bool is_begin;
    bool is_end;
};

static enum weft_status push(struct weft_decoding *decoding, size_t stage, struct fragment in);

static enum weft_status push_whole(struct weft_decoding *decoding, size_t stage, const char *text, size_t size)
{
    return push(decoding, stage, (struct fragment){text, size, true, true});
}

/* Collects fragments; *whole_out has the string when *is_whole_out. */
static enum weft_status collect(struct weft_decoding_state *state, struct fragment in, bool *is_whole_out,
                                struct fragment *whole_out)
{
    *is_whole_out = in.is_end;
    if (in.is_begin && in.is_end) {
        *whole_out = in;
        return WEFT_OK;
    }
    if (in.is_begin) {
        state->token.size = 0;
    }
    WEFT_TRY(weft_bytes_append(&state->token, in.text, in.size));
    *whole_out = (struct fragment){state->token.data, state->token.size, true, true};
    return WEFT_OK;
}

static enum weft_status push_replace(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    const struct weft_decoder *step = &decoding->decoders->steps[stage];
    struct weft_decoding_state *state = &decoding->states[stage];
    struct weft_replacement replacement = {step->regex, step->single, step->text, step->size};
    bool is_whole = true;

    if (!step->is_local) {
        WEFT_TRY(collect(state, in, &is_whole, &in));
    }
    if (!is_whole) {
        return WEFT_OK;
    }
    state->room.size = 0;
    WEFT_TRY(weft_text_replace(&state->room, &replacement, &decoding->regex, in.text, in.size, NULL));
    return push(decoding, stage + 1, (struct fragment){state->room.data, state->room.size, in.is_begin, in.is_end});
}

/* ---- ByteFallback ---- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0xHH>", -1 for other strings. "<0x+H>" is one too: Rust's parser takes a sign. */
static int fallback_byte(const char *text, size_t size)
{
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* True when no further byte can make the run valid UTF-8. */
static bool is_run_broken(struct weft_decoding_state *state)
{
    const char *rest = state->held.data + state->valid_size;
    size_t size = state->held.size - state->valid_size, bad;
    bool is_cut;

    size_t length = weft_utf8_check(rest, size, &bad, &is_cut);
    state->valid_size += length;
    return length == 0 && !is_cut;
}

static enum weft_status push_replacements(struct weft_decoding *decoding, size_t stage, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        WEFT_TRY(push_whole(decoding, stage, WEFT_UTF8_REPLACEMENT, 3));
    }
    return WEFT_OK;
}

/* The run of bytes is over. */
static enum weft_status end_run(struct weft_decoding *decoding, size_t stage)
{
    struct weft_decoding_state *state = &decoding->states[stage];
    struct weft_bytes *run = &state->held;
    size_t count = run->size;

    bool is_valid = state->valid_size == count;

    state->is_broken = false;
    state->valid_size = 0;
    run->size = 0;
    if (count == 0) {
        return WEFT_OK;
    }
    return is_valid ? push_whole(decoding, stage + 1, run->data, count) : push_replacements(decoding, stage + 1, count);
}

static enum weft_status push_byte_fallback(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    struct weft_decoding_state *state = &decoding->states[stage];
    bool is_whole;

    WEFT_TRY(collect(state, in, &is_whole, &in));
    if (!is_whole) {
        return WEFT_OK;
    }
    int byte = fallback_byte(in.text, in.size);
    if (byte < 0) {
        WEFT_TRY(end_run(decoding, stage));
        return push(decoding, stage + 1, in);
    }
    if (state->is_broken) {
        return push_replacements(decoding, stage + 1, 1);
    }
    char c = (char)byte;
    WEFT_TRY(weft_bytes_append(&state->held, &c, 1));
    if (is_run_broken(state)) {
        size_t count = state->held.size;
        state->held.size = state->valid_size = 0;
        state->is_broken = true;
        return push_replacements(decoding, stage + 1, count);
    }
    return WEFT_OK;
}

/* ---- ByteLevel ---- */

/* Appends the bytes of a string; a string with a character outside the alphabet stands for its own bytes. */
static enum weft_status append_alphabet_bytes(struct weft_bytes *out, const char *text, size_t size)
{
    size_t begin = out->size;

    WEFT_TRY(weft_bytes_reserve(out, size));
    for (size_t at = 0, length; at < size; at += length) {
        int byte = weft_byte_of_char(weft_utf8_read(text + at, &length));
        if (byte < 0) {
            out->size = begin;
            return weft_bytes_append(out, text, size);
        }
        out->data[out->size++] = (char)byte;
    }
    return WEFT_OK;
}

static enum weft_status push_byte_level(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    struct weft_decoding_state *state = &decoding->states[stage];
    size_t done = 0, bad;
    bool is_whole, is_cut;

    WEFT_TRY(collect(state, in, &is_whole, &in));
    if (!is_whole) {
        return WEFT_OK;
    }
    WEFT_TRY(append_alphabet_bytes(&state->held, in.text, in.size));
    state->room.size = 0;
    while (done < state->held.size) {
        size_t left = state->held.size - done;
        size_t valid = weft_utf8_valid_size(state->held.data + done, left);
        WEFT_TRY(weft_bytes_append(&state->room, state->held.data + done, valid));
        done += valid;
        if (valid == left || (weft_utf8_check(state->held.data + done, left - valid, &bad, &is_cut), is_cut)) {
            break;
        }
        WEFT_TRY(weft_bytes_append(&state->room, WEFT_UTF8_REPLACEMENT, 3));
        done += bad;
    }
    if (done < state->held.size) {
        memmove(state->held.data, state->held.data + done, state->held.size - done);
    }
    state->held.size -= done;
    bool is_begin = !state->is_begun;
    state->is_begun = true;
    return push(decoding, stage + 1, (struct fragment){state->room.data, state->room.size, is_begin, false});
}

/* ---- the others ---- */

static enum weft_status push_fuse(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    struct weft_decoding_state *state = &decoding->states[stage];
    bool is_begin = !state->is_begun;

    state->is_begun = true;
    return push(decoding, stage + 1, (struct fragment){in.text, in.size, is_begin, false});
}

static enum weft_status append_code(struct weft_bytes *out, uint32_t code)
{
    WEFT_TRY(weft_bytes_reserve(out, 4));
    out->size += weft_utf8_write(code, out->data + out->size);
    return WEFT_OK;
}

static enum weft_status push_strip(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    const struct weft_decoder *step = &decoding->decoders->steps[stage];
    struct weft_decoding_state *state = &decoding->states[stage];

    if (in.is_begin) {
        state->start_left = step->start;
        state->stop_held = 0;
    }
    state->room.size = 0;
    for (size_t at = 0, length; at < in.size; at += length) {
        bool is_match = weft_utf8_read(in.text + at, &length) == step->code;
        if (is_match && state->start_left > 0) {
            state->start_left--;
            continue;
        }
        state->start_left = 0;
        if (is_match && state->stop_held < step->stop) {
            state->stop_held++;
            continue;
        }
        /* Held ones were not at the end after all; a further match keeps as many held. */
        for (; !is_match && state->stop_held > 0; state->stop_held--) {
            WEFT_TRY(append_code(&state->room, step->code));
        }
        WEFT_TRY(weft_bytes_append(&state->room, in.text + at, length));
    }
    return push(decoding, stage + 1, (struct fragment){state->room.data, state->room.size, in.is_begin, in.is_end});
}

/* In the first string the mark is the space that encoding put there: it vanishes. */
static enum weft_status append_metaspace(struct weft_bytes *out, const struct weft_decoder *step, bool is_first,
                                         const char *text, size_t size)
{
    for (size_t at = 0, length; at < size; at += length) {
        if (weft_utf8_read(text + at, &length) != step->code) {
            WEFT_TRY(weft_bytes_append(out, text + at, length));
        } else if (!is_first || step->scheme == WEFT_METASPACE_NEVER) {
            WEFT_TRY(weft_bytes_append(out, " ", 1));
        }
    }
    return WEFT_OK;
}

static enum weft_status push_metaspace(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    struct weft_decoding_state *state = &decoding->states[stage];

    state->room.size = 0;
    WEFT_TRY(
        append_metaspace(&state->room, &decoding->decoders->steps[stage], state->string_index == 0, in.text, in.size));
    state->string_index += in.is_end;
    return push(decoding, stage + 1, (struct fragment){state->room.data, state->room.size, in.is_begin, in.is_end});
}

static enum weft_status append_suffix(struct weft_bytes *out, const struct weft_decoder *step, const char *content,
                                      const char *text, size_t size)
{
    if (size == 0) {
        return WEFT_OK;
    }
    const char *end = text + size, *found;
    while ((found = memmem(text, (size_t)(end - text), step->text, step->size)) != NULL) {
        WEFT_TRY(weft_bytes_append(out, text, (size_t)(found - text)));
        WEFT_TRY(weft_bytes_append(out, content, strlen(content)));
        text = found + step->size;
    }
    return weft_bytes_append(out, text, (size_t)(end - text));
}

/* A string with the suffix waits for its successor: only that says what the suffix becomes. */
static enum weft_status end_suffix(struct weft_decoding *decoding, size_t stage, const char *content)
{
    struct weft_decoding_state *state = &decoding->states[stage];

    if (!state->has_held) {
        return WEFT_OK;
    }
    state->has_held = false;
    state->room.size = 0;
    WEFT_TRY(
        append_suffix(&state->room, &decoding->decoders->steps[stage], content, state->held.data, state->held.size));
    return push_whole(decoding, stage + 1, state->room.data, state->room.size);
}

static enum weft_status push_suffix(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    const struct weft_decoder *step = &decoding->decoders->steps[stage];
    struct weft_decoding_state *state = &decoding->states[stage];
    bool is_whole;

    WEFT_TRY(collect(state, in, &is_whole, &in));
    if (!is_whole) {
        return WEFT_OK;
    }
    WEFT_TRY(end_suffix(decoding, stage, " "));
    if (memmem(in.text, in.size, step->text, step->size) == NULL) {
        return push(decoding, stage + 1, in);
    }
    state->has_held = true;
    state->held.size = 0;
    return weft_bytes_append(&state->held, in.text, in.size);
}

/* ---- the chain ---- */

static enum weft_status push(struct weft_decoding *decoding, size_t stage, struct fragment in)
{
    if (stage == decoding->decoders->count) {
        return weft_bytes_append(&decoding->out, in.text, in.size);
    }
    switch (decoding->decoders->steps[stage].kind) {
    case WEFT_DECODER_REPLACE: return push_replace(decoding, stage, in);
    case WEFT_DECODER_BYTE_FALLBACK: return push_byte_fallback(decoding, stage, in);
    case WEFT_DECODER_FUSE: return push_fuse(decoding, stage, in);
    case WEFT_DECODER_STRIP: return push_strip(decoding, stage, in);
    case WEFT_DECODER_BYTE_LEVEL: return push_byte_level(decoding, stage, in);
    case WEFT_DECODER_METASPACE: return push_metaspace(decoding, stage, in);
    case WEFT_DECODER_SUFFIX: return push_suffix(decoding, stage, in);
    }
    return WEFT_ERR_UNSUPPORTED;
}

/* No more strings come to this stage. */
static enum weft_status finish_stage(struct weft_decoding *decoding, size_t stage)
{
    struct weft_decoding_state *state = &decoding->states[stage];
    bool is_begin = !state->is_begun;

    switch (decoding->decoders->steps[stage].kind) {
    case WEFT_DECODER_BYTE_FALLBACK: return end_run(decoding, stage);
    case WEFT_DECODER_FUSE: return push(decoding, stage + 1, (struct fragment){"", 0, is_begin, true});
    case WEFT_DECODER_BYTE_LEVEL: {
        bool has_rest = state->held.size > 0;
        state->held.size = 0;
        return push(decoding, stage + 1, (struct fragment){WEFT_UTF8_REPLACEMENT, has_rest ? 3 : 0, is_begin, true});
    }
    case WEFT_DECODER_SUFFIX: return end_suffix(decoding, stage, "");
    default: return WEFT_OK;
    }
}

enum weft_status weft_decoding_push(struct weft_decoding *decoding, const char *text, size_t size)
{
    if (decoding->decoders->is_joined && decoding->string_count > 0) {
        WEFT_TRY(weft_bytes_append(&decoding->out, " ", 1));
    }
    decoding->string_count++;
    return push_whole(decoding, 0, text, size);
}

enum weft_status weft_decoding_finish(struct weft_decoding *decoding)
{
    for (size_t stage = 0; stage < decoding->decoders->count; stage++) {
        WEFT_TRY(finish_stage(decoding, stage));
    }
    return WEFT_OK;
}

enum weft_status weft_decoding_init(struct weft_decoding *decoding, const struct weft_decoders *decoders)
{
    *decoding = (struct weft_decoding){.decoders = decoders};
    decoding->states = calloc(decoders->count + 1, sizeof(decoding->states[0]));
    if (decoding->states == NULL) {
        weft_log(WEFT_LOG_ERROR, "text/decode", "out of memory for %zu stages", decoders->count);
        return WEFT_ERR_MEMORY;
    }
    return WEFT_OK;
}

void weft_decoding_reset(struct weft_decoding *decoding)
{
    for (size_t i = 0; i < decoding->decoders->count; i++) {
        struct weft_decoding_state *state = &decoding->states[i];
        struct weft_bytes token = state->token, held = state->held, room = state->room;
        token.size = held.size = room.size = 0;
        *state = (struct weft_decoding_state){.token = token, .held = held, .room = room};
    }
    decoding->string_count = 0;
}

void weft_decoding_fini(struct weft_decoding *decoding)
{
    for (size_t i = 0; decoding->states != NULL && i < decoding->decoders->count; i++) {
        weft_bytes_fini(&decoding->states[i].token);
        weft_bytes_fini(&decoding->states[i].held);
        weft_bytes_fini(&decoding->states[i].room);
    }
    free(decoding->states);
    weft_bytes_fini(&decoding->out);
    weft_regex_scratch_fini(&decoding->regex);
    *decoding = (struct weft_decoding){0};
}

/* ---- one token alone ---- */

static enum weft_status bytes_of_step(const struct weft_decoder *step, struct weft_regex_scratch *scratch,
                                      const struct weft_bytes *in, struct weft_bytes *out)
{
    struct weft_replacement replacement = {step->regex, step->single, step->text, step->size};
    int byte;
    char c;

    switch (step->kind) {
    case WEFT_DECODER_REPLACE: return weft_text_replace(out, &replacement, scratch, in->data, in->size, NULL);
    case WEFT_DECODER_BYTE_FALLBACK:
        byte = fallback_byte(in->data, in->size);
        c = (char)byte;
        return byte < 0 ? weft_bytes_append(out, in->data, in->size) : weft_bytes_append(out, &c, 1);
    case WEFT_DECODER_BYTE_LEVEL: return append_alphabet_bytes(out, in->data, in->size);
    case WEFT_DECODER_METASPACE: return append_metaspace(out, step, false, in->data, in->size);
    case WEFT_DECODER_SUFFIX: return append_suffix(out, step, " ", in->data, in->size);
    case WEFT_DECODER_FUSE:
    case WEFT_DECODER_STRIP: return weft_bytes_append(out, in->data, in->size);
    }
    return WEFT_ERR_UNSUPPORTED;
}

void weft_decoders_scratch_fini(struct weft_decoders_scratch *scratch)
{
    weft_regex_scratch_fini(&scratch->regex);
    weft_bytes_fini(&scratch->in);
    weft_bytes_fini(&scratch->out);
}

enum weft_status weft_decoders_bytes(const struct weft_decoders *decoders, struct weft_decoders_scratch *scratch,
                                     const char *text, size_t size)
{
    struct weft_bytes *in = &scratch->in, *out = &scratch->out;

    in->size = 0;
    WEFT_TRY(weft_bytes_append(in, text, size));
    for (size_t i = 0; i < decoders->count; i++) {
        /* Bytes are the end of it: later stages want text, and one byte may be none. */
        if (weft_utf8_valid_size(in->data, in->size) != in->size) {
            break;
        }
        out->size = 0;
        WEFT_TRY(bytes_of_step(&decoders->steps[i], &scratch->regex, in, out));
        struct weft_bytes swap = *in;
        *in = *out;
        *out = swap;
    }
    return WEFT_OK;
}
