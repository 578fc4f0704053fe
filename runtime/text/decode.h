/*
 * Decoders: token strings to text, as a chain of streaming stages.
 *
 * The package defines a decoder as a function from a list of strings to a list of strings. Here every stage takes the
 * strings one by one, or in fragments (a fused string has as many as there are tokens), and passes on what can no
 * longer change. Decoding all at once is the same chain fed to the end, so a stream and a whole cannot differ.
 */
#ifndef WEFT_TEXT_DECODE_H
#define WEFT_TEXT_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/json.h"
#include "buffer.h"
#include "normalize.h"
#include "pretokenize.h"
#include "regex.h"

enum weft_decoder_kind {
    WEFT_DECODER_REPLACE,
    WEFT_DECODER_BYTE_FALLBACK, /* runs of <0xHH> to characters; a run that is no UTF-8: one U+FFFD a byte */
    WEFT_DECODER_FUSE,          /* all strings become one */
    WEFT_DECODER_STRIP,         /* characters off both ends of a string */
    WEFT_DECODER_BYTE_LEVEL,    /* byte-level alphabet to bytes, all strings become one */
    WEFT_DECODER_METASPACE,
    WEFT_DECODER_SUFFIX, /* BPEDecoder: the suffix becomes a space, nothing in the last string */
};

struct weft_decoder {
    enum weft_decoder_kind kind;
    struct weft_regex *regex; /* REPLACE, unless single */
    char single;              /* REPLACE: pattern that is one ASCII character */
    bool is_local;            /* REPLACE: pattern is one character, so fragments can be replaced one by one */
    const char *text;         /* REPLACE: content; SUFFIX: suffix */
    size_t size;
    uint32_t code;  /* STRIP, METASPACE: the character */
    uint32_t start; /* STRIP: at most so many at the start, at the end */
    uint32_t stop;
    enum weft_metaspace_scheme scheme;
};

struct weft_decoders {
    struct weft_decoder *steps; /* [count], in the arena */
    size_t count;
    bool is_joined; /* no decoder at all: strings are joined with spaces */
};

/* `object` is the member of tokenizer.json, may be NULL or null. On error *out is empty. */
WEFT_MUST_CHECK enum weft_status weft_decoders_init(struct weft_decoders *out, const char *name, const json_t *object,
                                                    struct weft_arena *arena);
void weft_decoders_fini(struct weft_decoders *decoders);

/* One text in the making. */
struct weft_decoding {
    const struct weft_decoders *decoders; /* borrowed */
    struct weft_decoding_state *states;   /* [decoders->count], owned */
    struct weft_bytes out;                /* final text; the owner empties it */
    struct weft_regex_scratch regex;
    size_t string_count;
};

WEFT_MUST_CHECK enum weft_status weft_decoding_init(struct weft_decoding *decoding,
                                                    const struct weft_decoders *decoders);
void weft_decoding_fini(struct weft_decoding *decoding);
/* The next token string; appends to out what became final, whole characters only. */
WEFT_MUST_CHECK enum weft_status weft_decoding_push(struct weft_decoding *decoding, const char *text, size_t size);
/* The end: appends what was held back. Reset before the next text. */
WEFT_MUST_CHECK enum weft_status weft_decoding_finish(struct weft_decoding *decoding);
void weft_decoding_reset(struct weft_decoding *decoding);

/* Zero-initialise. */
struct weft_decoders_scratch {
    struct weft_regex_scratch regex;
    struct weft_bytes in;
    struct weft_bytes out;
};
void weft_decoders_scratch_fini(struct weft_decoders_scratch *scratch);

/* scratch->in <- the bytes that one token string stands for in the middle of a text; they may be no valid UTF-8. */
WEFT_MUST_CHECK enum weft_status weft_decoders_bytes(const struct weft_decoders *decoders,
                                                     struct weft_decoders_scratch *scratch, const char *text,
                                                     size_t size);

#endif
