/* Added tokens: the search, leftmost and longest, and what the flags do to a match. */
#include "added.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "json_text.h"
#include "utf8.h"
#include "weft/log.h"

static const char where[] = "text/added";

struct weft_added_node {
    uint32_t sibling;
    uint32_t child;
    int32_t token; /* position in tokens, -1 */
    unsigned char byte;
};

/* ---- the tree ---- */

static uint32_t find_node(const struct weft_added_trie *trie, uint32_t first, unsigned char byte)
{
    uint32_t node = first;

    while (node != 0 && trie->nodes[node].byte != byte) {
        node = trie->nodes[node].sibling;
    }
    return node;
}

static enum weft_status add_node(struct weft_added_trie *trie, unsigned char byte, uint32_t sibling, uint32_t *out)
{
    if (trie->count == 0) {
        trie->count = 1; /* the root, whose children are in trie->first */
    }
    WEFT_TRY(weft_array_reserve(&trie->nodes, &trie->capacity, trie->count + 1, sizeof(trie->nodes[0])));
    *out = (uint32_t)trie->count++;
    trie->nodes[*out] = (struct weft_added_node){.sibling = sibling, .token = -1, .byte = byte};
    return WEFT_OK;
}

static enum weft_status add_spelling(struct weft_added_trie *trie, const char *text, size_t size, int32_t token)
{
    uint32_t node = trie->first[(unsigned char)text[0]];

    if (node == 0) {
        WEFT_TRY(add_node(trie, (unsigned char)text[0], 0, &node));
        trie->first[(unsigned char)text[0]] = node;
    }
    for (size_t i = 1; i < size; i++) {
        uint32_t next = find_node(trie, trie->nodes[node].child, (unsigned char)text[i]);
        if (next == 0) {
            WEFT_TRY(add_node(trie, (unsigned char)text[i], trie->nodes[node].child, &next));
            trie->nodes[node].child = next;
        }
        node = next;
    }
    if (trie->nodes[node].token < 0) { /* two tokens may share a normalized spelling: the first is it */
        trie->nodes[node].token = token;
    }
    return WEFT_OK;
}

/* The longest spelling that begins at text; -1 when none does. */
static int32_t longest_at(const struct weft_added_trie *trie, const char *text, size_t size, size_t *length_out)
{
    uint32_t node = trie->first[(unsigned char)text[0]];
    int32_t token = -1;

    for (size_t i = 0; node != 0; node = find_node(trie, trie->nodes[node].child, (unsigned char)text[i])) {
        i++;
        if (trie->nodes[node].token >= 0) {
            token = trie->nodes[node].token;
            *length_out = i;
        }
        if (i == size) {
            break;
        }
    }
    return token;
}

/* ---- the search ---- */

static size_t last_char(const char *text, size_t end)
{
    do {
        end--;
    } while (((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

static bool touches_word(const char *text, size_t size, size_t begin, size_t end)
{
    size_t length;

    return (begin > 0 && weft_char_is_word(weft_utf8_read(text + last_char(text, begin), &length))) ||
           (end < size && weft_char_is_word(weft_utf8_read(text + end, &length)));
}

static size_t strip_left(const char *text, size_t begin, size_t limit)
{
    size_t length;

    while (begin > limit) {
        size_t last = last_char(text, begin);
        if (!weft_char_is_space(weft_utf8_read(text + last, &length))) {
            break;
        }
        begin = last;
    }
    return begin;
}

static size_t strip_right(const char *text, size_t size, size_t end)
{
    size_t length;

    while (end < size && weft_char_is_space(weft_utf8_read(text + end, &length))) {
        end += length;
    }
    return end;
}

struct search {
    const struct weft_added *added;
    const struct weft_added_trie *trie;
};

static enum weft_status emit_text(struct weft_text_work *work, const struct weft_piece *piece, size_t begin, size_t end)
{
    return weft_text_work_add(work, (struct weft_piece){.begin = piece->begin + begin,
                                                        .size = end - begin,
                                                        .id = -1,
                                                        .is_head = piece->is_head && begin == 0});
}

static enum weft_status cut_piece(struct weft_text_work *work, const void *context, const struct weft_piece *piece)
{
    const struct search *search = context;
    const char *text = work->text.data + piece->begin;
    size_t size = piece->size, done = 0, length = 0;

    for (size_t at = 0; at < size; at += length) {
        int32_t index = longest_at(search->trie, text + at, size - at, &length);
        if (index < 0) {
            length = 1;
            continue;
        }
        const struct weft_added_token *token = &search->added->tokens[index];
        size_t begin = at, end = at + length;
        if (token->is_single_word && touches_word(text, size, begin, end)) {
            continue;
        }
        if (token->is_left_stripped) {
            begin = begin < done ? done : strip_left(text, begin, done);
        }
        if (token->is_right_stripped) {
            end = strip_right(text, size, end);
        }
        if (begin > done) {
            WEFT_TRY(emit_text(work, piece, done, begin));
        }
        if (begin < end) { /* else the match before has taken its white space, and with it all there was */
            WEFT_TRY(weft_text_work_add(work, (struct weft_piece){.id = token->id}));
        }
        done = end;
    }
    return done < size ? emit_text(work, piece, done, size) : WEFT_OK;
}

enum weft_status weft_added_cut(const struct weft_added *added, bool is_normalized, struct weft_text_work *work)
{
    struct search search = {added, is_normalized ? &added->normal : &added->raw};

    return search.trie->count == 0 ? WEFT_OK : weft_text_work_cut(work, cut_piece, &search);
}

const struct weft_added_token *weft_added_find(const struct weft_added *added, const char *text, size_t size)
{
    int32_t index = weft_vocab_find(&added->index, text, size);

    return index < 0 ? NULL : &added->tokens[index];
}

/* ---- reading ---- */

struct reader {
    struct weft_added *out;
    const struct weft_added_args *args;
    const char *path;
    uint32_t next_id; /* for spellings that the vocabulary has not */
    struct weft_text_work work;
};

/* The spelling that is looked for in normalized text. */
static enum weft_status normalize_spelling(struct reader *reader, struct weft_added_token *token)
{
    struct weft_text_work *work = &reader->work;

    work->text.size = work->next_pieces.count = 0;
    WEFT_TRY(weft_bytes_append(&work->text, token->text, token->size));
    WEFT_TRY(weft_text_work_add(work, (struct weft_piece){.size = token->size, .id = -1, .is_head = true}));
    struct weft_pieces pieces = work->pieces;
    work->pieces = work->next_pieces;
    work->next_pieces = pieces;
    WEFT_TRY(weft_normalizers_run(reader->args->normalizers, work));
    token->normal_size = work->pieces.count == 0 ? 0 : work->pieces.data[0].size;
    if (token->normal_size > WEFT_ADDED_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: \"%.64s\": %zu bytes when normalized, at most %d", reader->path,
                 token->text, token->normal_size, WEFT_ADDED_SIZE_MAX);
        return WEFT_ERR_LIMIT;
    }
    token->normal =
        weft_arena_text(reader->args->arena, token->normal_size == 0 ? "" : work->text.data, token->normal_size);
    return token->normal == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

static enum weft_status read_flags(const struct reader *reader, const json_t *object, struct weft_added_token *token)
{
    WEFT_TRY(weft_json_bool(object, reader->path, "special", false, &token->is_special));
    WEFT_TRY(weft_json_bool(object, reader->path, "single_word", false, &token->is_single_word));
    WEFT_TRY(weft_json_bool(object, reader->path, "lstrip", false, &token->is_left_stripped));
    WEFT_TRY(weft_json_bool(object, reader->path, "rstrip", false, &token->is_right_stripped));
    return weft_json_bool(object, reader->path, "normalized", !token->is_special, &token->is_normalized);
}

/* The id by the package's rule; a spelling seen before keeps its own. */
static enum weft_status choose_id(struct reader *reader, const json_t *object, const struct weft_added_token *old,
                                  struct weft_added_token *token)
{
    struct weft_json_int_args args = {
        .name = reader->path, .key = "id", .min = 0, .max = WEFT_VOCAB_ID_MAX, .has_fallback = false};
    int64_t named;

    WEFT_TRY(weft_json_int(object, &args, &named));
    token->id = old != NULL ? old->id : weft_vocab_find(reader->args->vocab, token->text, token->size);
    if (token->id < 0) {
        if (reader->next_id > WEFT_VOCAB_ID_MAX) {
            weft_log(WEFT_LOG_ERROR, where, "%s: more than %d ids", reader->path, WEFT_VOCAB_ID_MAX);
            return WEFT_ERR_LIMIT;
        }
        token->id = (int32_t)reader->next_id++;
    }
    if (token->id != named) {
        weft_log(WEFT_LOG_WARN, where, "%s: \"%.64s\" has id %lld in the file, but gets %d", reader->path, token->text,
                 (long long)named, token->id);
    }
    return WEFT_OK;
}

static enum weft_status read_token(struct reader *reader, const json_t *object)
{
    struct weft_added *out = reader->out;
    struct weft_added_token token = {0};
    const char *text;

    WEFT_TRY(weft_text_member(object, reader->path, "content", false, &text, &token.size));
    if (token.size > WEFT_ADDED_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: \"%.64s...\": %zu bytes, at most %d", reader->path, text, token.size,
                 WEFT_ADDED_SIZE_MAX);
        return WEFT_ERR_LIMIT;
    }
    if (token.size == 0) {
        return WEFT_OK; /* ignored, as in the package */
    }
    struct weft_added_token *old = (struct weft_added_token *)weft_added_find(out, text, token.size);
    token.text = token.normal = weft_arena_text(reader->args->arena, text, token.size);
    token.normal_size = token.size;
    if (token.text == NULL) {
        return WEFT_ERR_MEMORY;
    }
    WEFT_TRY(read_flags(reader, object, &token));
    WEFT_TRY(choose_id(reader, object, old, &token));
    if (token.is_normalized) {
        WEFT_TRY(normalize_spelling(reader, &token));
    }
    if (old != NULL) {
        token.is_special = token.is_special || old->is_special;
        *old = token;
        return WEFT_OK;
    }
    WEFT_TRY(weft_vocab_add(&out->index, token.text, token.size, (uint32_t)out->count));
    out->tokens[out->count++] = token;
    return WEFT_OK;
}

static enum weft_status read_list(struct reader *reader, const json_t *list)
{
    struct weft_added *out = reader->out;
    const json_t *item;
    size_t index;

    if (!json_is_array(list) || json_array_size(list) > WEFT_ADDED_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected a list of at most %d tokens", reader->path, WEFT_ADDED_COUNT_MAX);
        return WEFT_ERR_FORMAT;
    }
    out->tokens = calloc(json_array_size(list) + 1, sizeof(out->tokens[0]));
    if (out->tokens == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory for %zu tokens", reader->path, json_array_size(list));
        return WEFT_ERR_MEMORY;
    }
    json_array_foreach(list, index, item)
    {
        WEFT_TRY(read_token(reader, item));
    }
    for (size_t i = 0; i < out->count; i++) {
        const struct weft_added_token *token = &out->tokens[i];
        if (token->normal_size > 0) {
            WEFT_TRY(add_spelling(token->is_normalized ? &out->normal : &out->raw, token->normal, token->normal_size,
                                  (int32_t)i));
        }
    }
    return WEFT_OK;
}

enum weft_status weft_added_init(struct weft_added *out, const struct weft_added_args *args)
{
    char path[256];
    struct reader reader = {.out = out, .args = args, .path = path};
    enum weft_status status;

    snprintf(path, sizeof(path), "%.200s: added_tokens", args->name);
    *out = (struct weft_added){0};
    reader.next_id = (uint32_t)args->vocab->used;
    status = weft_vocab_init(&out->index, args->arena, 16);
    if (status == WEFT_OK && args->list != NULL && !json_is_null(args->list)) {
        status = read_list(&reader, args->list);
    }
    weft_text_work_fini(&reader.work);
    if (status != WEFT_OK) {
        weft_added_fini(out);
    }
    return status;
}

void weft_added_fini(struct weft_added *added)
{
    free(added->tokens);
    weft_vocab_fini(&added->index);
    free(added->raw.nodes);
    free(added->normal.nodes);
    *added = (struct weft_added){0};
}
