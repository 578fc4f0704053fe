/* Running steps over pieces. */
#include "work.h"

#include <stdlib.h>

#include "utf8.h"
#include "weft/log.h"

void weft_text_work_fini(struct weft_text_work *work)
{
    weft_bytes_fini(&work->text);
    weft_bytes_fini(&work->next_text);
    free(work->pieces.data);
    free(work->next_pieces.data);
    weft_words_fini(&work->codes);
    weft_regex_scratch_fini(&work->regex);
    weft_bpe_scratch_fini(&work->bpe);
    *work = (struct weft_text_work){0};
}

enum weft_status weft_text_work_add(struct weft_text_work *work, struct weft_piece piece)
{
    struct weft_pieces *pieces = &work->next_pieces;

    if (piece.size == 0 && piece.id < 0) {
        return WEFT_OK;
    }
    if (pieces->count == pieces->capacity) {
        WEFT_TRY(weft_array_reserve(&pieces->data, &pieces->capacity, pieces->count + 1, sizeof(pieces->data[0])));
    }
    pieces->data[pieces->count++] = piece;
    return WEFT_OK;
}

static void swap_pieces(struct weft_text_work *work)
{
    struct weft_pieces pieces = work->pieces;

    work->pieces = work->next_pieces;
    work->next_pieces = pieces;
}

enum weft_status weft_text_work_rewrite(struct weft_text_work *work, weft_text_rewrite *rewrite, const void *step)
{
    work->next_text.size = 0;
    work->next_pieces.count = 0;
    for (size_t i = 0; i < work->pieces.count; i++) {
        struct weft_piece piece = work->pieces.data[i];
        if (piece.id < 0) {
            size_t begin = work->next_text.size;
            WEFT_TRY(rewrite(work, step, work->text.data + piece.begin, piece.size, &piece.is_head));
            piece.begin = begin;
            piece.size = work->next_text.size - begin;
        }
        WEFT_TRY(weft_text_work_add(work, piece));
        if (work->next_text.size > UINT32_MAX) {
            weft_log(WEFT_LOG_ERROR, "text/tokenizer", "the text grows beyond 4 GiB while it is normalized");
            return WEFT_ERR_LIMIT;
        }
    }
    struct weft_bytes text = work->text;
    work->text = work->next_text;
    work->next_text = text;
    swap_pieces(work);
    return WEFT_OK;
}

enum weft_status weft_text_work_cut(struct weft_text_work *work, weft_text_cut *cut, const void *step)
{
    work->next_pieces.count = 0;
    for (size_t i = 0; i < work->pieces.count; i++) {
        const struct weft_piece *piece = &work->pieces.data[i];
        WEFT_TRY(piece->id < 0 ? cut(work, step, piece) : weft_text_work_add(work, *piece));
    }
    swap_pieces(work);
    return WEFT_OK;
}

enum weft_status weft_text_append_byte_level(struct weft_bytes *out, const char *text, size_t size)
{
    WEFT_TRY(weft_bytes_reserve(out, 2 * size)); /* every character of the alphabet is below U+0800 */
    for (size_t i = 0; i < size; i++) {
        out->size += weft_utf8_write(weft_byte_char((unsigned char)text[i]), out->data + out->size);
    }
    return WEFT_OK;
}
