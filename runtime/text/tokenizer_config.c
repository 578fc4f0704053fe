/* tokenizer_config.json: names of the special tokens and the chat template. Nothing here changes encode or decode. */
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "json_text.h"
#include "tokenizer_impl.h"
#include "weft/log.h"

/* "bos_token": "<s>" or {"content": "<s>", ...}; absent or null: none. */
static enum weft_status read_role(struct weft_tokenizer *tokenizer, const char *path, const json_t *root,
                                  const char *key, enum weft_token_role role)
{
    const json_t *member = json_object_get(root, key);
    const char *text;
    size_t size;

    if (json_is_object(member)) {
        WEFT_TRY(weft_text_member(member, path, "content", false, &text, &size));
    } else {
        WEFT_TRY(weft_text_member(root, path, key, true, &text, &size));
    }
    if (text == NULL) {
        return WEFT_OK;
    }
    tokenizer->roles[role] = weft_arena_text(&tokenizer->arena, text, size);
    tokenizer->role_ids[role] = weft_tokenizer_id(tokenizer, text, size);
    return tokenizer->roles[role] == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

/* One template, or a list of named ones, of which "default" counts. */
static enum weft_status read_chat_template(struct weft_tokenizer *tokenizer, const char *path, const json_t *root)
{
    const json_t *member = json_object_get(root, "chat_template"), *item, *chosen = NULL;
    size_t index, size;
    const char *text;

    if (json_is_array(member)) {
        json_array_foreach(member, index, item)
        {
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name != NULL && strcmp(name, "default") == 0) {
                chosen = item;
            }
        }
        if (chosen == NULL) {
            return WEFT_OK;
        }
        WEFT_TRY(weft_text_member(chosen, path, "template", false, &text, &size));
    } else {
        WEFT_TRY(weft_text_member(root, path, "chat_template", true, &text, &size));
    }
    if (text == NULL) {
        return WEFT_OK;
    }
    tokenizer->chat_template = weft_arena_text(&tokenizer->arena, text, size);
    return tokenizer->chat_template == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
}

static enum weft_status read_root(struct weft_tokenizer *tokenizer, const char *path, const json_t *root)
{
    static const char *const keys[WEFT_TOKEN_ROLE_COUNT] = {
        [WEFT_TOKEN_BOS] = "bos_token",
        [WEFT_TOKEN_EOS] = "eos_token",
        [WEFT_TOKEN_PAD] = "pad_token",
        [WEFT_TOKEN_UNK] = "unk_token",
    };

    if (!json_is_object(root)) {
        weft_log(WEFT_LOG_ERROR, "text/tokenizer", "%s: expected an object", path);
        return WEFT_ERR_FORMAT;
    }
    for (int role = 0; role < WEFT_TOKEN_ROLE_COUNT; role++) {
        WEFT_TRY(read_role(tokenizer, path, root, keys[role], (enum weft_token_role)role));
    }
    return read_chat_template(tokenizer, path, root);
}

enum weft_status weft_tokenizer_read_config(struct weft_tokenizer *tokenizer, const char *name, const char *text,
                                            size_t size)
{
    char path[256];
    json_t *root;

    for (int role = 0; role < WEFT_TOKEN_ROLE_COUNT; role++) {
        tokenizer->role_ids[role] = -1;
    }
    if (text != NULL) {
        snprintf(path, sizeof(path), "tokenizer_config.json beside %.200s", name);
        WEFT_TRY(weft_json_parse(path, text, size, &root));
        enum weft_status status = read_root(tokenizer, path, root);
        json_decref(root);
        WEFT_TRY(status);
    }
    if (tokenizer->roles[WEFT_TOKEN_UNK] == NULL && tokenizer->bpe.unk_text != NULL) {
        const char *unk = tokenizer->bpe.unk_text;
        tokenizer->roles[WEFT_TOKEN_UNK] = unk;
        tokenizer->role_ids[WEFT_TOKEN_UNK] = weft_tokenizer_id(tokenizer, unk, strlen(unk));
    }
    return WEFT_OK;
}
