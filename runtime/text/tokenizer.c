/* Opening a tokenizer and looking things up. Encoding is in encode.c, decoding in detokenizer.c. */
#include "weft/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "tokenizer_impl.h"
#include "weft/log.h"

static const char where[] = "text/tokenizer";

enum { FILE_SIZE_MAX = 256 * 1024 * 1024 };

/* ---- the table by id ---- */

static void fill_token(struct weft_token *token, const char *text, size_t size)
{
    *token = (struct weft_token){.text = text, .string = text, .size = (uint32_t)size, .string_size = (uint32_t)size};
}

/* The package compares strings, not ids: a token is skipped when what decoders get is spelled like a special token. */
static void mark_skipped(struct weft_tokenizer *tokenizer)
{
    for (size_t i = 0; i < tokenizer->added.count; i++) {
        const struct weft_added_token *added = &tokenizer->added.tokens[i];
        struct weft_token *token = &tokenizer->tokens[added->id];
        const struct weft_added_token *same = weft_added_find(&tokenizer->added, token->string, token->string_size);
        token->is_special = added->is_special;
        token->is_skipped = same != NULL && same->is_special;
    }
}

/* Appends the bytes of every token and a NUL to `all`. */
static enum weft_status collect_bytes(struct weft_tokenizer *tokenizer, struct weft_decoders_scratch *scratch,
                                      struct weft_bytes *all)
{
    for (uint32_t id = 0; id < tokenizer->token_count; id++) {
        struct weft_token *token = &tokenizer->tokens[id];
        if (token->text != NULL) {
            WEFT_TRY(weft_decoders_bytes(&tokenizer->decoders, scratch, token->string, token->string_size));
            token->bytes_size = (uint32_t)scratch->in.size;
            WEFT_TRY(weft_bytes_append(all, scratch->in.data, scratch->in.size));
            WEFT_TRY(weft_bytes_append(all, "", 1));
        }
    }
    return WEFT_OK;
}

/* tokens[].bytes, one after the other in one block. */
static enum weft_status fill_bytes(struct weft_tokenizer *tokenizer)
{
    struct weft_decoders_scratch scratch = {0};
    struct weft_bytes all = {0};
    enum weft_status status = collect_bytes(tokenizer, &scratch, &all);

    const char *copy = status == WEFT_OK ? weft_arena_text(&tokenizer->arena, all.data, all.size) : NULL;
    for (uint32_t id = 0; id < tokenizer->token_count && copy != NULL; id++) {
        struct weft_token *token = &tokenizer->tokens[id];
        if (token->text != NULL) {
            token->bytes = copy;
            copy += token->bytes_size + 1;
        }
    }
    weft_bytes_fini(&all);
    weft_decoders_scratch_fini(&scratch);
    return status == WEFT_OK && copy == NULL ? WEFT_ERR_MEMORY : status;
}

static enum weft_status fill_tokens(struct weft_tokenizer *tokenizer)
{
    const struct weft_vocab *vocab = &tokenizer->bpe.vocab;
    size_t count = vocab->count;

    for (size_t i = 0; i < tokenizer->added.count; i++) {
        size_t id = (size_t)tokenizer->added.tokens[i].id;
        count = id >= count ? id + 1 : count;
    }
    tokenizer->tokens = calloc(count + 1, sizeof(tokenizer->tokens[0]));
    if (tokenizer->tokens == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory for %zu tokens", count);
        return WEFT_ERR_MEMORY;
    }
    tokenizer->token_count = (uint32_t)count;
    for (size_t id = 0; id < vocab->count; id++) {
        fill_token(&tokenizer->tokens[id], vocab->tokens[id].text, vocab->tokens[id].size);
    }
    for (size_t i = 0; i < tokenizer->added.count; i++) {
        const struct weft_added_token *added = &tokenizer->added.tokens[i];
        fill_token(&tokenizer->tokens[added->id], added->text, added->size);
        tokenizer->tokens[added->id].string = added->normal;
        tokenizer->tokens[added->id].string_size = (uint32_t)added->normal_size;
    }
    mark_skipped(tokenizer);
    return fill_bytes(tokenizer);
}

/* ---- open ---- */

static enum weft_status check_version(const char *name, const json_t *root)
{
    const char *version = json_string_value(json_object_get(root, "version"));

    if (!json_is_object(root)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected an object", name);
        return WEFT_ERR_FORMAT;
    }
    if (version != NULL && strcmp(version, "1.0") != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: version \"%.32s\" is not supported (supported: 1.0)", name, version);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status read_root(struct weft_tokenizer *tokenizer, const char *name, const json_t *root,
                                  const struct weft_model_json *large)
{
    struct weft_arena *arena = &tokenizer->arena;

    WEFT_TRY(check_version(name, root));
    WEFT_TRY(weft_bpe_init(&tokenizer->bpe, name, json_object_get(root, "model"), large, arena));
    WEFT_TRY(weft_normalizers_init(&tokenizer->normalizers, name, json_object_get(root, "normalizer"), arena));
    WEFT_TRY(weft_pretokenizers_init(&tokenizer->pretokenizers, name, json_object_get(root, "pre_tokenizer"), arena));
    WEFT_TRY(weft_template_init(&tokenizer->template, name, json_object_get(root, "post_processor")));
    WEFT_TRY(weft_decoders_init(&tokenizer->decoders, name, json_object_get(root, "decoder"), arena));
    struct weft_added_args args = {.name = name,
                                   .list = json_object_get(root, "added_tokens"),
                                   .vocab = &tokenizer->bpe.vocab,
                                   .normalizers = &tokenizer->normalizers,
                                   .arena = arena};
    WEFT_TRY(weft_added_init(&tokenizer->added, &args));
    return fill_tokens(tokenizer);
}

static enum weft_status parse(struct weft_tokenizer *tokenizer, const char *name, const char *text, size_t size)
{
    struct weft_model_json large;
    struct weft_bytes rest = {0};
    json_t *root;

    if (size > FILE_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %zu bytes, at most %d are read", name, size, FILE_SIZE_MAX);
        return WEFT_ERR_LIMIT;
    }
    enum weft_status status = weft_model_json_cut(text, size, &large, &rest);
    if (status == WEFT_OK) {
        status = weft_json_parse(name, rest.data, rest.size, &root);
    }
    weft_bytes_fini(&rest);
    WEFT_TRY(status);
    status = read_root(tokenizer, name, root, &large);
    json_decref(root);
    return status;
}

enum weft_status weft_tokenizer_parse(const char *name, const char *text, size_t size, const char *config_text,
                                      size_t config_size, struct weft_tokenizer **out)
{
    struct weft_tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));

    if (tokenizer == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", name);
        return WEFT_ERR_MEMORY;
    }
    enum weft_status status = parse(tokenizer, name, text, size);
    if (status == WEFT_OK) {
        status = weft_tokenizer_read_config(tokenizer, name, config_text, config_size);
    }
    if (status != WEFT_OK) {
        weft_tokenizer_close(&tokenizer);
        return status;
    }
    *out = tokenizer;
    return WEFT_OK;
}

/* An optional file of the folder: *text_out stays NULL when it does not exist. */
static enum weft_status read_optional(const char *folder, const char *file, char **text_out, size_t *size_out)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", folder, file);
    return access(path, F_OK) == 0 ? weft_file_read(path, FILE_SIZE_MAX, text_out, size_out) : WEFT_OK;
}

/* chat_template.jinja: newer folders keep the template in a file of its own. */
static enum weft_status read_template_file(struct weft_tokenizer *tokenizer, const char *folder)
{
    char *text = NULL;
    size_t size = 0;

    WEFT_TRY(read_optional(folder, "chat_template.jinja", &text, &size));
    if (text == NULL) {
        return WEFT_OK;
    }
    const char *copy = weft_arena_text(&tokenizer->arena, text, size);
    free(text);
    if (copy == NULL) {
        return WEFT_ERR_MEMORY;
    }
    tokenizer->chat_template = copy;
    return WEFT_OK;
}

enum weft_status weft_tokenizer_open(const char *model_folder, struct weft_tokenizer **out)
{
    char path[4096];
    char *text = NULL, *config = NULL;
    size_t size = 0, config_size = 0;
    struct weft_tokenizer *tokenizer = NULL;

    if ((size_t)snprintf(path, sizeof(path), "%s/tokenizer.json", model_folder) + 16 >= sizeof(path)) {
        weft_log(WEFT_LOG_ERROR, where, "%.200s...: the path is too long", model_folder);
        return WEFT_ERR_ARGUMENT;
    }
    enum weft_status status = weft_file_read(path, FILE_SIZE_MAX, &text, &size);
    if (status == WEFT_OK) {
        status = read_optional(model_folder, "tokenizer_config.json", &config, &config_size);
    }
    if (status == WEFT_OK) {
        status = weft_tokenizer_parse(path, text, size, config, config_size, &tokenizer);
    }
    if (status == WEFT_OK) {
        status = read_template_file(tokenizer, model_folder);
    }
    free(text);
    free(config);
    if (status != WEFT_OK) {
        weft_tokenizer_close(&tokenizer);
        return status;
    }
    *out = tokenizer;
    return WEFT_OK;
}

void weft_tokenizer_close(struct weft_tokenizer **tokenizer)
{
    struct weft_tokenizer *old = *tokenizer;

    if (old == NULL) {
        return;
    }
    weft_bpe_fini(&old->bpe);
    weft_normalizers_fini(&old->normalizers);
    weft_pretokenizers_fini(&old->pretokenizers);
    weft_added_fini(&old->added);
    weft_template_fini(&old->template);
    weft_decoders_fini(&old->decoders);
    free(old->tokens);
    weft_arena_fini(&old->arena);
    free(old);
    *tokenizer = NULL;
}

/* ---- looking up ---- */

uint32_t weft_tokenizer_count(const struct weft_tokenizer *tokenizer)
{
    return tokenizer->token_count;
}

static const struct weft_token *find_token(const struct weft_tokenizer *tokenizer, int32_t id)
{
    bool is_token = id >= 0 && (uint32_t)id < tokenizer->token_count && tokenizer->tokens[id].text != NULL;

    return is_token ? &tokenizer->tokens[id] : NULL;
}

const char *weft_tokenizer_token(const struct weft_tokenizer *tokenizer, int32_t id, size_t *size_out)
{
    const struct weft_token *token = find_token(tokenizer, id);

    if (token != NULL && size_out != NULL) {
        *size_out = token->size;
    }
    return token == NULL ? NULL : token->text;
}

const char *weft_tokenizer_bytes(const struct weft_tokenizer *tokenizer, int32_t id, size_t *size_out)
{
    const struct weft_token *token = find_token(tokenizer, id);

    if (token != NULL && size_out != NULL) {
        *size_out = token->bytes_size;
    }
    return token == NULL ? NULL : token->bytes;
}

int32_t weft_tokenizer_id(const struct weft_tokenizer *tokenizer, const char *text, size_t size)
{
    const struct weft_added_token *added = weft_added_find(&tokenizer->added, text, size);

    return added != NULL ? added->id : weft_vocab_find(&tokenizer->bpe.vocab, text, size);
}

bool weft_tokenizer_is_special(const struct weft_tokenizer *tokenizer, int32_t id)
{
    const struct weft_token *token = find_token(tokenizer, id);

    return token != NULL && token->is_special;
}

const char *weft_tokenizer_role(const struct weft_tokenizer *tokenizer, enum weft_token_role role)
{
    return role < WEFT_TOKEN_ROLE_COUNT ? tokenizer->roles[role] : NULL;
}

int32_t weft_tokenizer_role_id(const struct weft_tokenizer *tokenizer, enum weft_token_role role)
{
    return role < WEFT_TOKEN_ROLE_COUNT ? tokenizer->role_ids[role] : -1;
}

const char *weft_tokenizer_chat_template(const struct weft_tokenizer *tokenizer)
{
    return tokenizer->chat_template;
}
