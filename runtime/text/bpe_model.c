/* Reading the "model" member of a tokenizer.json. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "bpe.h"
#include "json_text.h"
#include "utf8.h"
#include "weft/log.h"

static const char where[] = "text/bpe";

static enum weft_status read_vocab(struct weft_bpe *bpe, const char *path, const json_t *model,
                                   struct weft_arena *arena)
{
    json_t *vocab = json_object_get(model, "vocab");
    const char *text;
    json_t *value;

    if (!json_is_object(vocab)) {
        return weft_text_mismatch(path, "vocab", "an object of token: id");
    }
    WEFT_TRY(weft_vocab_init(&bpe->vocab, arena, json_object_size(vocab)));
    json_object_foreach(vocab, text, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > WEFT_VOCAB_ID_MAX) {
            weft_log(WEFT_LOG_ERROR, where, "%s: vocab: \"%.64s\": expected an id in [0, %d]", path, text,
                     WEFT_VOCAB_ID_MAX);
            return WEFT_ERR_FORMAT;
        }
        if ((size_t)id < bpe->vocab.count && bpe->vocab.tokens[id].text != NULL) {
            weft_log(WEFT_LOG_ERROR, where, "%s: vocab: id %lld is given to \"%.64s\" and to \"%.64s\"", path,
                     (long long)id, bpe->vocab.tokens[id].text, text);
            return WEFT_ERR_FORMAT;
        }
        WEFT_TRY(weft_vocab_add(&bpe->vocab, text, strlen(text), (uint32_t)id));
    }
    return WEFT_OK;
}

/* The two halves of one merge: "left right" or ["left", "right"]. */
struct halves {
    const char *left;
    size_t left_size;
    const char *right;
    size_t right_size;
};

static bool read_halves(const json_t *item, struct halves *out)
{
    if (json_is_string(item)) {
        const char *text = json_string_value(item);
        size_t size = json_string_length(item);
        const char *space = memchr(text, ' ', size);
        if (space == NULL || memchr(space + 1, ' ', size - (size_t)(space + 1 - text)) != NULL) {
            return false;
        }
        *out = (struct halves){text, (size_t)(space - text), space + 1, size - (size_t)(space + 1 - text)};
        return true;
    }
    const json_t *left = json_array_get(item, 0), *right = json_array_get(item, 1);
    if (json_array_size(item) != 2 || !json_is_string(left) || !json_is_string(right)) {
        return false;
    }
    *out = (struct halves){json_string_value(left), json_string_length(left), json_string_value(right),
                           json_string_length(right)};
    return true;
}

static enum weft_status find_part(const struct weft_bpe *bpe, const char *path, size_t index, const char *text,
                                  size_t size, uint32_t *id_out)
{
    int32_t id = weft_vocab_find(&bpe->vocab, text, size);

    if (id < 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: merges: entry %zu needs \"%.*s\", which is not in the vocabulary", path,
                 index, (int)(size > 64 ? 64 : size), text);
        return WEFT_ERR_FORMAT;
    }
    *id_out = (uint32_t)id;
    return WEFT_OK;
}

static enum weft_status add_merge(struct weft_bpe *bpe, const char *path, size_t index, uint32_t rank,
                                  const struct halves *halves, struct weft_bytes *whole)
{
    struct weft_merge merge = {.rank = rank};
    uint32_t left, right;

    if (halves->right_size < bpe->prefix_size) {
        weft_log(WEFT_LOG_ERROR, where, "%s: merges: entry %zu: right part is shorter than continuing_subword_prefix",
                 path, index);
        return WEFT_ERR_FORMAT;
    }
    whole->size = 0;
    WEFT_TRY(weft_bytes_append(whole, halves->left, halves->left_size));
    WEFT_TRY(weft_bytes_append(whole, halves->right + bpe->prefix_size, halves->right_size - bpe->prefix_size));
    WEFT_TRY(find_part(bpe, path, index, halves->left, halves->left_size, &left));
    WEFT_TRY(find_part(bpe, path, index, halves->right, halves->right_size, &right));
    WEFT_TRY(find_part(bpe, path, index, whole->data, whole->size, &merge.id));
    weft_merges_add(&bpe->merges, left, right, merge);
    return WEFT_OK;
}

static enum weft_status read_merges(struct weft_bpe *bpe, const char *path, const json_t *model)
{
    const json_t *merges = json_object_get(model, "merges"), *item;
    struct weft_bytes whole = {0};
    enum weft_status status = WEFT_OK;
    struct halves halves;
    uint32_t rank = 0;
    size_t index;

    if (!json_is_array(merges)) {
        return weft_text_mismatch(path, "merges", "a list of merges");
    }
    WEFT_TRY(weft_merges_init(&bpe->merges, json_array_size(merges)));
    /* Room first, so that the key is never a NULL pointer, even for two empty halves. */
    WEFT_TRY(weft_bytes_reserve(&whole, 1));
    json_array_foreach(merges, index, item)
    {
        if (json_is_string(item) && strncmp(json_string_value(item), "#version", 8) == 0) {
            continue; /* the first line of a merges.txt, carried along */
        }
        if (!read_halves(item, &halves)) {
            weft_log(WEFT_LOG_ERROR, where, "%s: merges: entry %zu: expected \"left right\" or [\"left\", \"right\"]",
                     path, index);
            status = WEFT_ERR_FORMAT;
            break;
        }
        status = add_merge(bpe, path, index, rank++, &halves, &whole);
        if (status != WEFT_OK) {
            break;
        }
    }
    weft_bytes_fini(&whole);
    return status;
}

/* Optional string member, "" when absent, copied to the arena. */
static enum weft_status read_text(const json_t *model, const char *path, const char *key, struct weft_arena *arena,
                                  const char **text_out, size_t *size_out)
{
    const char *text;

    WEFT_TRY(weft_text_member(model, path, key, true, &text, size_out));
    *text_out = text == NULL ? "" : weft_arena_text(arena, text, *size_out);
    return *text_out == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

static enum weft_status read_options(struct weft_bpe *bpe, const char *path, const json_t *model,
                                     struct weft_arena *arena)
{
    const double no_dropout = 0;
    double dropout;
    size_t size;

    WEFT_TRY(weft_json_real(model, path, "dropout", &no_dropout, &dropout));
    if (dropout != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: dropout %g is not supported (it makes encoding random)", path, dropout);
        return WEFT_ERR_UNSUPPORTED;
    }
    WEFT_TRY(weft_json_bool(model, path, "fuse_unk", false, &bpe->is_unk_fused));
    WEFT_TRY(weft_json_bool(model, path, "byte_fallback", false, &bpe->has_byte_fallback));
    WEFT_TRY(weft_json_bool(model, path, "ignore_merges", false, &bpe->is_merge_ignored));
    WEFT_TRY(read_text(model, path, "continuing_subword_prefix", arena, &bpe->prefix, &bpe->prefix_size));
    WEFT_TRY(read_text(model, path, "end_of_word_suffix", arena, &bpe->suffix, &bpe->suffix_size));
    WEFT_TRY(read_text(model, path, "unk_token", arena, &bpe->unk_text, &size));
    bpe->unk_id = weft_vocab_find(&bpe->vocab, bpe->unk_text, size);
    if (!json_is_string(json_object_get(model, "unk_token"))) {
        bpe->unk_text = NULL;
    }
    return WEFT_OK;
}

static void fill_tables(struct weft_bpe *bpe)
{
    char text[8];

    for (uint32_t code = 0; code < WEFT_BPE_TABLE_SIZE; code++) {
        bpe->char_ids[code] = weft_vocab_find(&bpe->vocab, text, weft_utf8_write(code, text));
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof(text), "<0x%02X>", byte);
        bpe->byte_ids[byte] = weft_vocab_find(&bpe->vocab, text, 6);
    }
}

static enum weft_status read_model(struct weft_bpe *bpe, const char *path, const json_t *model,
                                   struct weft_arena *arena)
{
    const char *type;
    size_t size;

    if (!json_is_object(model)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected an object", path);
        return WEFT_ERR_FORMAT;
    }
    /* The oldest files name no type; a list of merges says BPE. */
    WEFT_TRY(weft_text_member(model, path, "type", json_object_get(model, "merges") != NULL, &type, &size));
    if (type != NULL && strcmp(type, "BPE") != 0) {
        return weft_text_refuse(path, type, "BPE");
    }
    WEFT_TRY(read_vocab(bpe, path, model, arena));
    WEFT_TRY(read_options(bpe, path, model, arena));
    WEFT_TRY(read_merges(bpe, path, model));
    fill_tables(bpe);
    return WEFT_OK;
}

enum weft_status weft_bpe_init(struct weft_bpe *bpe, const char *name, const json_t *model, struct weft_arena *arena)
{
    char path[256];

    *bpe = (struct weft_bpe){0};
    snprintf(path, sizeof(path), "%.200s: model", name);
    enum weft_status status = read_model(bpe, path, model, arena);
    if (status != WEFT_OK) {
        weft_bpe_fini(bpe);
    }
    return status;
}

void weft_bpe_fini(struct weft_bpe *bpe)
{
    weft_vocab_fini(&bpe->vocab);
    weft_merges_fini(&bpe->merges);
    *bpe = (struct weft_bpe){0};
}
