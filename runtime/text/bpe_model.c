/* Reading the "model" member of a tokenizer.json. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "bpe.h"
#include "json_text.h"
#include "model_json.h"
#include "utf8.h"
#include "weft/log.h"

static const char where[] = "text/bpe";

/* Far above any vocabulary, far below what would overflow a 32-bit index. */
enum { TOKEN_SIZE_MAX = 1 << 20, MERGE_COUNT_MAX = 1 << 26 };

/* Error lines show so much of a token. */
enum { SHOWN_SIZE = 64 };

static int shown(size_t size)
{
    return (int)(size < SHOWN_SIZE ? size : SHOWN_SIZE);
}

static enum weft_status add_token(struct weft_bpe *bpe, const char *path, const struct weft_bytes *token, uint32_t id)
{
    if (token->size > TOKEN_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: a token of %zu bytes, at most %d", path, token->size, TOKEN_SIZE_MAX);
        return WEFT_ERR_LIMIT;
    }
    if ((id < bpe->vocab.count && bpe->vocab.tokens[id].text != NULL) ||
        weft_vocab_find(&bpe->vocab, token->data, token->size) >= 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: \"%.*s\" with id %u: the token or the id is there already", path,
                 shown(token->size), token->data, id);
        return WEFT_ERR_FORMAT;
    }
    return weft_vocab_add(&bpe->vocab, token->data, token->size, id);
}

static enum weft_status read_vocab_items(struct weft_bpe *bpe, struct weft_json_reader *reader,
                                         struct weft_bytes *token)
{
    bool more = true;
    uint32_t id;

    WEFT_TRY(weft_json_reader_expect(reader, '{'));
    if (weft_json_reader_peek(reader) == '}') {
        return WEFT_OK;
    }
    while (more) {
        token->size = 0;
        WEFT_TRY(weft_json_reader_string(reader, token));
        WEFT_TRY(weft_json_reader_expect(reader, ':'));
        WEFT_TRY(weft_json_reader_uint(reader, WEFT_VOCAB_ID_MAX, &id));
        WEFT_TRY(add_token(bpe, reader->path, token, id));
        WEFT_TRY(weft_json_reader_next(reader, '}', &more));
    }
    return WEFT_OK;
}

static enum weft_status read_vocab(struct weft_bpe *bpe, const char *path, struct weft_json_span span,
                                   struct weft_arena *arena)
{
    char member[320];
    struct weft_json_reader reader = {.path = member, .span = span};
    struct weft_bytes token = {0};

    if (span.data == NULL) {
        return weft_text_mismatch(path, "vocab", "an object of token: id");
    }
    snprintf(member, sizeof(member), "%s: vocab", path);
    /* An entry takes some 16 bytes in a file; a wrong guess only costs growing. */
    WEFT_TRY(weft_vocab_init(&bpe->vocab, arena, span.size / 16));
    enum weft_status status = read_vocab_items(bpe, &reader, &token);
    weft_bytes_fini(&token);
    return status;
}

/* ---- merges ---- */

struct merge_reader {
    struct weft_bpe *bpe;
    struct weft_json_reader json;
    struct weft_bytes left, right; /* of the present entry */
    struct weft_words entries;     /* left, right and merged id of each */
};

static enum weft_status refuse_merge(const struct merge_reader *reader, const char *what)
{
    weft_log(WEFT_LOG_ERROR, where, "%s: entry %zu: %s", reader->json.path, reader->entries.count / 3, what);
    return WEFT_ERR_FORMAT;
}

static enum weft_status push_part(struct merge_reader *reader, const char *text, size_t size)
{
    int32_t id = weft_vocab_find(&reader->bpe->vocab, text, size);

    if (id < 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: entry %zu needs \"%.*s\", which is not in the vocabulary",
                 reader->json.path, reader->entries.count / 3, shown(size), text);
        return WEFT_ERR_FORMAT;
    }
    return weft_words_push(&reader->entries, (uint32_t)id);
}

/* ["left", "right"] or "left right"; *is_comment_out: the first line of a merges.txt, carried along. */
static enum weft_status read_halves(struct merge_reader *reader, bool *is_comment_out)
{
    struct weft_bytes *left = &reader->left, *right = &reader->right;

    left->size = right->size = 0;
    *is_comment_out = false;
    if (weft_json_reader_peek(&reader->json) == '[') {
        WEFT_TRY(weft_json_reader_expect(&reader->json, '['));
        WEFT_TRY(weft_json_reader_string(&reader->json, left));
        WEFT_TRY(weft_json_reader_expect(&reader->json, ','));
        WEFT_TRY(weft_json_reader_string(&reader->json, right));
        return weft_json_reader_expect(&reader->json, ']');
    }
    WEFT_TRY(weft_json_reader_string(&reader->json, left));
    *is_comment_out = left->size >= 8 && memcmp(left->data, "#version", 8) == 0;
    if (*is_comment_out) {
        return WEFT_OK;
    }
    const char *space = memchr(left->data, ' ', left->size);
    size_t left_size = space == NULL ? 0 : (size_t)(space - left->data);
    if (space == NULL || memchr(space + 1, ' ', left->size - left_size - 1) != NULL) {
        return refuse_merge(reader, "expected \"left right\" or [\"left\", \"right\"]");
    }
    WEFT_TRY(weft_bytes_append(right, space + 1, left->size - left_size - 1));
    left->size = left_size;
    return WEFT_OK;
}

/* True when the merge joins another character with a mark behind it: "d" and the mark, but not two marks. */
static bool is_across_mark(const struct weft_bytes *left, const struct weft_bytes *right)
{
    bool begins = right->size >= WEFT_BPE_MARK_SIZE && memcmp(right->data, WEFT_BPE_MARK, WEFT_BPE_MARK_SIZE) == 0;

    return begins && (left->size < WEFT_BPE_MARK_SIZE ||
                      memcmp(left->data + left->size - WEFT_BPE_MARK_SIZE, WEFT_BPE_MARK, WEFT_BPE_MARK_SIZE) != 0);
}

static enum weft_status read_merge(struct merge_reader *reader)
{
    struct weft_bytes *left = &reader->left, *right = &reader->right;
    size_t prefix_size = reader->bpe->prefix_size;
    bool is_comment;

    WEFT_TRY(read_halves(reader, &is_comment));
    if (is_comment) {
        return WEFT_OK;
    }
    if (right->size < prefix_size) {
        return refuse_merge(reader, "the right part is shorter than continuing_subword_prefix");
    }
    if (reader->entries.count / 3 >= MERGE_COUNT_MAX) {
        return refuse_merge(reader, "too many merges");
    }
    if (is_across_mark(left, right)) {
        reader->bpe->is_cut_at_mark = false;
    }
    size_t count = reader->entries.count;
    WEFT_TRY(push_part(reader, left->data, left->size));
    WEFT_TRY(push_part(reader, right->data, right->size));
    WEFT_TRY(weft_bytes_append(left, right->data + prefix_size, right->size - prefix_size));
    enum weft_status status = push_part(reader, left->data, left->size);
    reader->entries.count = status == WEFT_OK ? reader->entries.count : count;
    return status;
}

static enum weft_status read_merge_items(struct merge_reader *reader)
{
    bool more = true;

    WEFT_TRY(weft_json_reader_expect(&reader->json, '['));
    if (weft_json_reader_peek(&reader->json) != ']') {
        while (more) {
            WEFT_TRY(read_merge(reader));
            WEFT_TRY(weft_json_reader_next(&reader->json, ']', &more));
        }
    }
    size_t count = reader->entries.count / 3;
    WEFT_TRY(weft_merges_init(&reader->bpe->merges, count));
    for (uint32_t rank = 0; rank < count; rank++) {
        const uint32_t *entry = reader->entries.data + 3 * (size_t)rank;
        weft_merges_add(&reader->bpe->merges, entry[0], entry[1], (struct weft_merge){.rank = rank, .id = entry[2]});
    }
    return WEFT_OK;
}

static enum weft_status read_merges(struct weft_bpe *bpe, const char *path, struct weft_json_span span)
{
    char member[320];
    struct merge_reader reader = {.bpe = bpe, .json = {.path = member, .span = span}};

    if (span.data == NULL) {
        return weft_text_mismatch(path, "merges", "a list of merges");
    }
    snprintf(member, sizeof(member), "%s: merges", path);
    /* With a prefix or suffix, or an unknown mark, what a character becomes depends on its neighbours. */
    bpe->is_cut_at_mark = bpe->prefix_size == 0 && bpe->suffix_size == 0 &&
                          weft_vocab_find(&bpe->vocab, WEFT_BPE_MARK, WEFT_BPE_MARK_SIZE) >= 0;
    enum weft_status status = read_merge_items(&reader);
    weft_bytes_fini(&reader.left);
    weft_bytes_fini(&reader.right);
    weft_words_fini(&reader.entries);
    return status;
}

/* ---- the rest of the model ---- */

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
                                   const struct weft_model_json *large, struct weft_arena *arena)
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
    WEFT_TRY(read_vocab(bpe, path, large->vocab, arena));
    WEFT_TRY(read_options(bpe, path, model, arena));
    WEFT_TRY(read_merges(bpe, path, large->merges));
    fill_tables(bpe);
    return WEFT_OK;
}

enum weft_status weft_bpe_init(struct weft_bpe *bpe, const char *name, const json_t *model,
                               const struct weft_model_json *large, struct weft_arena *arena)
{
    char path[256];

    *bpe = (struct weft_bpe){0};
    snprintf(path, sizeof(path), "%.200s: model", name);
    enum weft_status status = read_model(bpe, path, model, large, arena);
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
