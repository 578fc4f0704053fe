/* Ids to text, all at once and one by one: the same chain of decoders. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"
#include "weft/log.h"

struct weft_detokenizer {
    const struct weft_tokenizer *tokenizer;
    bool is_special_skipped;
    struct weft_decoding decoding;
};

static enum weft_status push_id(const struct weft_tokenizer *tokenizer, struct weft_decoding *decoding, int32_t id,
                                bool is_special_skipped)
{
    if (id < 0 || (uint32_t)id >= tokenizer->token_count || tokenizer->tokens[id].text == NULL) {
        return WEFT_OK;
    }
    const struct weft_token *token = &tokenizer->tokens[id];
    if (is_special_skipped && token->is_skipped) {
        return WEFT_OK;
    }
    return weft_decoding_push(decoding, token->string, token->string_size);
}

static enum weft_status terminate(struct weft_bytes *out)
{
    WEFT_TRY(weft_bytes_append(out, "", 1));
    out->size--;
    return WEFT_OK;
}

static enum weft_status decode(const struct weft_tokenizer *tokenizer, struct weft_decoding *decoding,
                               const int32_t *ids, size_t count, bool is_special_skipped)
{
    for (size_t i = 0; i < count; i++) {
        WEFT_TRY(push_id(tokenizer, decoding, ids[i], is_special_skipped));
    }
    WEFT_TRY(weft_decoding_finish(decoding));
    return terminate(&decoding->out);
}

enum weft_status weft_tokenizer_decode(const struct weft_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                       bool is_special_skipped, char **text_out, size_t *size_out)
{
    struct weft_decoding decoding;

    WEFT_TRY(weft_decoding_init(&decoding, &tokenizer->decoders));
    enum weft_status status = decode(tokenizer, &decoding, ids, count, is_special_skipped);
    if (status == WEFT_OK) {
        *text_out = decoding.out.data;
        *size_out = decoding.out.size;
        decoding.out = (struct weft_bytes){0};
    }
    weft_decoding_fini(&decoding);
    return status;
}

enum weft_status weft_detokenizer_open(const struct weft_tokenizer *tokenizer, bool is_special_skipped,
                                       struct weft_detokenizer **out)
{
    struct weft_detokenizer *detokenizer = calloc(1, sizeof(*detokenizer));

    if (detokenizer == NULL) {
        weft_log(WEFT_LOG_ERROR, "text/decode", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    detokenizer->tokenizer = tokenizer;
    detokenizer->is_special_skipped = is_special_skipped;
    enum weft_status status = weft_decoding_init(&detokenizer->decoding, &tokenizer->decoders);
    if (status != WEFT_OK) {
        free(detokenizer);
        return status;
    }
    *out = detokenizer;
    return WEFT_OK;
}

void weft_detokenizer_close(struct weft_detokenizer **detokenizer)
{
    if (*detokenizer != NULL) {
        weft_decoding_fini(&(*detokenizer)->decoding);
        free(*detokenizer);
        *detokenizer = NULL;
    }
}

static enum weft_status hand_out(struct weft_detokenizer *detokenizer, const char **text_out, size_t *size_out)
{
    WEFT_TRY(terminate(&detokenizer->decoding.out));
    *text_out = detokenizer->decoding.out.data;
    *size_out = detokenizer->decoding.out.size;
    return WEFT_OK;
}

enum weft_status weft_detokenizer_push(struct weft_detokenizer *detokenizer, int32_t id, const char **text_out,
                                       size_t *size_out)
{
    detokenizer->decoding.out.size = 0;
    WEFT_TRY(push_id(detokenizer->tokenizer, &detokenizer->decoding, id, detokenizer->is_special_skipped));
    return hand_out(detokenizer, text_out, size_out);
}

enum weft_status weft_detokenizer_flush(struct weft_detokenizer *detokenizer, const char **text_out, size_t *size_out)
{
    detokenizer->decoding.out.size = 0;
    WEFT_TRY(weft_decoding_finish(&detokenizer->decoding));
    weft_decoding_reset(&detokenizer->decoding);
    return hand_out(detokenizer, text_out, size_out);
}

void weft_detokenizer_reset(struct weft_detokenizer *detokenizer)
{
    weft_decoding_reset(&detokenizer->decoding);
    detokenizer->decoding.out.size = 0;
}
