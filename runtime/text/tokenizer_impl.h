/* The tokenizer behind weft/tokenizer.h, for the files of this folder. */
#ifndef WEFT_TEXT_TOKENIZER_IMPL_H
#define WEFT_TEXT_TOKENIZER_IMPL_H

#include "added.h"
#include "base/arena.h"
#include "bpe.h"
#include "decode.h"
#include "normalize.h"
#include "pretokenize.h"
#include "template.h"
#include "weft/tokenizer.h"

/* One id, looked at from the decoding side. Texts are NULL for a hole. */
struct weft_token {
    const char *text;   /* as spelled in the file */
    const char *string; /* what decoders get: an added token's normalized spelling */
    const char *bytes;  /* what it stands for alone */
    uint32_t size;
    uint32_t string_size;
    uint32_t bytes_size;
    bool is_special;
    bool is_skipped; /* by is_special_skipped */
};

struct weft_tokenizer {
    struct weft_arena arena; /* strings and steps */
    struct weft_bpe bpe;
    struct weft_normalizers normalizers;
    struct weft_pretokenizers pretokenizers;
    struct weft_added added;
    struct weft_template template;
    struct weft_decoders decoders;
    struct weft_token *tokens; /* [token_count], by id */
    uint32_t token_count;
    const char *roles[WEFT_TOKEN_ROLE_COUNT];
    int32_t role_ids[WEFT_TOKEN_ROLE_COUNT];
    const char *chat_template;
};

/* Fills roles, role_ids and chat_template from a tokenizer_config.json (text NULL: none). */
WEFT_MUST_CHECK enum weft_status weft_tokenizer_read_config(struct weft_tokenizer *tokenizer, const char *name,
                                                            const char *text, size_t size);

#endif
