/*
 * Text to token ids and back, as the `tokenizers` package does it with the same tokenizer.json: BPE, byte-level (GPT-2,
 * Llama 3, Qwen) and SentencePiece-style with byte fallback (Llama 2, Mistral), with added tokens, normalizers,
 * pre-tokenizers, post-processors and decoders. Not here: chat templates (only their text), padding, truncation.
 *
 * A tokenizer is immutable after open: any number of threads may encode and decode with it at once. A detokenizer
 * belongs to one stream. Whatever a tokenizer.json asks for that is not implemented is refused at open, by name.
 */
#ifndef WEFT_TOKENIZER_H
#define WEFT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

struct weft_tokenizer;
struct weft_detokenizer;

/*
 * Reads FOLDER/tokenizer.json and, when present, FOLDER/tokenizer_config.json (names of the special tokens and the chat
 * template only; it never changes what encode and decode do) and FOLDER/chat_template.jinja (wins over the former).
 * Logged: ERR_MISSING (no such file), ERR_IO (cannot read), ERR_FORMAT (damaged: which member, expected, found),
 * ERR_UNSUPPORTED (a model, normalizer, pre-tokenizer, post-processor, decoder or option that is not implemented),
 * ERR_LIMIT (larger than 256 MiB), ERR_MEMORY.
 */
WEFT_MUST_CHECK enum weft_status weft_tokenizer_open(const char *model_folder, struct weft_tokenizer **out);

/* The same from text[size] of a tokenizer.json and, unless NULL, of a tokenizer_config.json; `name` appears in errors.
 */
WEFT_MUST_CHECK enum weft_status weft_tokenizer_parse(const char *name, const char *text, size_t size,
                                                      const char *config_text, size_t config_size,
                                                      struct weft_tokenizer **out);

/* Sets *tokenizer to NULL; NULL inside is fine. No detokenizer of it may be used afterwards. */
void weft_tokenizer_close(struct weft_tokenizer **tokenizer);

enum weft_encode_flag {
    WEFT_ENCODE_ADD_SPECIAL = 1, /* run the post-processor: adds BOS and EOS where tokenizer.json says so */
};

/*
 * Token ids of text[size]. Special tokens spelled out in the text become their ids, as in the package. Invalid UTF-8
 * reads as U+FFFD, one for each maximal invalid part (as Rust's from_utf8_lossy and Python's errors="replace").
 *
 * flags   any of enum weft_encode_flag.
 * ids_out [*count_out], from malloc, the caller frees; never NULL on success.
 *
 * ERR_MEMORY; ERR_LIMIT above 1 GiB of text or when a regular expression gives up; ERR_FORMAT when a character is
 * unknown and the file's unk_token is too (all logged). Cost: O(size * log size).
 */
WEFT_MUST_CHECK enum weft_status weft_tokenizer_encode(const struct weft_tokenizer *tokenizer, const char *text,
                                                       size_t size, unsigned flags, int32_t **ids_out,
                                                       size_t *count_out);

/*
 * Text of ids[count]: valid UTF-8, NUL-terminated, from malloc, the caller frees. Ids that are no token are skipped, as
 * in the package; with is_special_skipped so are special tokens (but not those few whose "normalized" spelling differs
 * from their own: the package does not know them again either). Bytes that are no UTF-8 read as U+FFFD. ERR_MEMORY;
 * ERR_LIMIT when a regular expression of the decoder gives up.
 */
WEFT_MUST_CHECK enum weft_status weft_tokenizer_decode(const struct weft_tokenizer *tokenizer, const int32_t *ids,
                                                       size_t count, bool is_special_skipped, char **text_out,
                                                       size_t *size_out);

/* ---- looking things up; all strings are owned by the tokenizer ---- */

/* Largest id + 1. May be smaller than the model's vocabulary (padded) and has holes where ids are not used. */
uint32_t weft_tokenizer_count(const struct weft_tokenizer *tokenizer);
/* The token as spelled in the vocabulary ("Ġthe", "▁the", "<0x0A>", "<s>"), NUL-terminated; NULL when id is no token.
 * size_out (may be NULL) is needed for the rare token that contains a NUL. */
const char *weft_tokenizer_token(const struct weft_tokenizer *tokenizer, int32_t id, size_t *size_out);
/* The bytes that the token alone stands for ("Ġthe" is " the", "<0x0A>" is "\n"); may be no valid UTF-8. NULL when id
 * is no token. */
const char *weft_tokenizer_bytes(const struct weft_tokenizer *tokenizer, int32_t id, size_t *size_out);
/* Id of the token spelled text[size] in the vocabulary, -1 when there is none. */
int32_t weft_tokenizer_id(const struct weft_tokenizer *tokenizer, const char *text, size_t size);
/* True for tokens that the file marks special. */
bool weft_tokenizer_is_special(const struct weft_tokenizer *tokenizer, int32_t id);

enum weft_token_role { WEFT_TOKEN_BOS, WEFT_TOKEN_EOS, WEFT_TOKEN_PAD, WEFT_TOKEN_UNK, WEFT_TOKEN_ROLE_COUNT };

/* Spelling of the token that tokenizer_config.json names for `role` (unk: else the model's unk_token), NULL when none.
 */
const char *weft_tokenizer_role(const struct weft_tokenizer *tokenizer, enum weft_token_role role);
/* Its id, -1 when there is none. */
int32_t weft_tokenizer_role_id(const struct weft_tokenizer *tokenizer, enum weft_token_role role);

/* Text of the chat template (Jinja), NULL when none; the one named "default" when there are several. */
const char *weft_tokenizer_chat_template(const struct weft_tokenizer *tokenizer);

/* ---- streaming ---- */

/*
 * Incremental decode: for every sequence of ids the pieces of push() and the one of flush(), put together, are the
 * bytes of weft_tokenizer_decode() with the same is_special_skipped. A piece holds whole characters only and is never
 * taken back. The tokenizer is borrowed until close. ERR_MEMORY.
 */
WEFT_MUST_CHECK enum weft_status weft_detokenizer_open(const struct weft_tokenizer *tokenizer, bool is_special_skipped,
                                                       struct weft_detokenizer **out);
void weft_detokenizer_close(struct weft_detokenizer **detokenizer);

/* Adds one id. *text_out [*size_out] is what became final, possibly empty; NUL-terminated, owned by the detokenizer,
 * valid until its next call. ERR_MEMORY leaves the detokenizer unusable until reset. */
WEFT_MUST_CHECK enum weft_status weft_detokenizer_push(struct weft_detokenizer *detokenizer, int32_t id,
                                                       const char **text_out, size_t *size_out);

/* Ends the stream: what was held back (bytes of an unfinished character as U+FFFD). Then it is as new. */
WEFT_MUST_CHECK enum weft_status weft_detokenizer_flush(struct weft_detokenizer *detokenizer, const char **text_out,
                                                        size_t *size_out);

/* Forgets everything, ready for a new stream. */
void weft_detokenizer_reset(struct weft_detokenizer *detokenizer);

#endif
