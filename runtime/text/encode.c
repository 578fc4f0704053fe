/* Text to ids: added tokens, normalizers, pre-tokenizers, BPE, post-processor, in this order. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_impl.h"
#include "utf8.h"
#include "weft/log.h"

enum { TEXT_SIZE_MAX = 1 << 30 };

static enum weft_status cut(const struct weft_tokenizer *tokenizer, struct weft_text_work *work, const char *text,
                            size_t size)
{
    WEFT_TRY(weft_utf8_append_lossy(&work->text, text, size));
    WEFT_TRY(weft_text_work_add(work, (struct weft_piece){.size = work->text.size, .id = -1, .is_head = true}));
    struct weft_pieces pieces = work->pieces;
    work->pieces = work->next_pieces;
    work->next_pieces = pieces;
    WEFT_TRY(weft_added_cut(&tokenizer->added, false, work));
    WEFT_TRY(weft_normalizers_run(&tokenizer->normalizers, work));
    WEFT_TRY(weft_added_cut(&tokenizer->added, true, work));
    return weft_pretokenizers_run(&tokenizer->pretokenizers, work);
}

static enum weft_status append_words(struct weft_words *ids, const struct weft_words *more)
{
    WEFT_TRY(weft_words_reserve(ids, more->count + 1)); /* never NULL, even for no ids at all */
    if (more->count > 0) {
        memcpy(ids->data + ids->count, more->data, more->count * sizeof(more->data[0]));
        ids->count += more->count;
    }
    return WEFT_OK;
}

static enum weft_status encode(const struct weft_tokenizer *tokenizer, struct weft_text_work *work, const char *text,
                               size_t size, unsigned flags, struct weft_words *ids)
{
    static const struct weft_words nothing;
    bool is_wrapped = (flags & WEFT_ENCODE_ADD_SPECIAL) != 0;

    WEFT_TRY(cut(tokenizer, work, text, size));
    WEFT_TRY(append_words(ids, is_wrapped ? &tokenizer->template.before : &nothing));
    for (size_t i = 0; i < work->pieces.count; i++) {
        const struct weft_piece *piece = &work->pieces.data[i];
        if (piece->id >= 0) {
            WEFT_TRY(weft_words_push(ids, (uint32_t)piece->id));
        } else {
            WEFT_TRY(weft_bpe_encode(&tokenizer->bpe, &work->bpe, work->text.data + piece->begin, piece->size, ids));
        }
    }
    return append_words(ids, is_wrapped ? &tokenizer->template.after : &nothing);
}

enum weft_status weft_tokenizer_encode(const struct weft_tokenizer *tokenizer, const char *text, size_t size,
                                       unsigned flags, int32_t **ids_out, size_t *count_out)
{
    struct weft_text_work work = {0};
    struct weft_words ids = {0};

    if (size > TEXT_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, "text/tokenizer", "%zu bytes of text, at most %d can be encoded", size, TEXT_SIZE_MAX);
        return WEFT_ERR_LIMIT;
    }
    enum weft_status status = encode(tokenizer, &work, text, size, flags, &ids);
    weft_text_work_fini(&work);
    if (status != WEFT_OK) {
        weft_words_fini(&ids);
        return status;
    }
    *ids_out = (int32_t *)ids.data;
    *count_out = ids.count;
    return WEFT_OK;
}
