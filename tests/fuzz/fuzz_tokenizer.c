/*
 * libFuzzer: the tokenizer. The first byte chooses: an arbitrary tokenizer.json (and, after a NUL byte, a text for it),
 * or text and ids for one of two fixed tokenizers. A stream must equal the whole, and both must be valid UTF-8.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#include "tiny.h"
#include "utf8.h"

static struct weft_tokenizer *fixed[2];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_silence();
    fixed[0] = tiny_open(tiny_sentencepiece);
    fixed[1] = tiny_open(tiny_byte_level);
    return 0;
}

/* Decodes ids[count] at once and one by one. */
static void check_decode(const struct weft_tokenizer *tokenizer, const int32_t *ids, size_t count)
{
    struct weft_detokenizer *stream;
    const char *piece;
    char *whole;
    size_t whole_size, size, at = 0;

    if (weft_tokenizer_decode(tokenizer, ids, count, true, &whole, &whole_size) != WEFT_OK) {
        return; /* an expression of the file gave up */
    }
    fuzz_require(whole[whole_size] == '\0' && weft_utf8_valid_size(whole, whole_size) == whole_size);
    fuzz_require(weft_detokenizer_open(tokenizer, true, &stream) == WEFT_OK);
    for (size_t i = 0; i <= count; i++) {
        fuzz_require((i < count ? weft_detokenizer_push(stream, ids[i], &piece, &size)
                                : weft_detokenizer_flush(stream, &piece, &size)) == WEFT_OK);
        fuzz_require(size <= whole_size - at && memcmp(whole + at, piece, size) == 0);
        fuzz_require(weft_utf8_valid_size(piece, size) == size);
        at += size;
    }
    fuzz_require(at == whole_size);
    weft_detokenizer_close(&stream);
    free(whole);
}

static void check_text(const struct weft_tokenizer *tokenizer, const char *text, size_t size)
{
    int32_t *ids;
    size_t count;

    if (weft_tokenizer_encode(tokenizer, text, size, WEFT_ENCODE_ADD_SPECIAL, &ids, &count) == WEFT_OK) {
        check_decode(tokenizer, ids, count);
        free(ids);
    }
}

static void check_file(const char *data, size_t size)
{
    const char *end = size == 0 ? NULL : memchr(data, '\0', size);
    size_t file_size = end == NULL ? size : (size_t)(end - data);
    struct weft_tokenizer *tokenizer = NULL;

    if (weft_tokenizer_parse("fuzz", data, file_size, NULL, 0, &tokenizer) == WEFT_OK) {
        check_text(tokenizer, "Hello, a \xF0\x9F\x98\x80 ab\n", 17);
        check_text(tokenizer, data + file_size, size - file_size);
        for (uint32_t id = 0; id < weft_tokenizer_count(tokenizer) && id < 1000; id++) {
            size_t token_size = 0;
            const char *token = weft_tokenizer_token(tokenizer, (int32_t)id, &token_size);
            fuzz_require((token == NULL) == (weft_tokenizer_bytes(tokenizer, (int32_t)id, NULL) == NULL));
            fuzz_require(token == NULL || weft_tokenizer_id(tokenizer, token, token_size) >= 0);
        }
    } else {
        fuzz_require(tokenizer == NULL);
    }
    weft_tokenizer_close(&tokenizer);
}

static void check_ids(const struct weft_tokenizer *tokenizer, const uint8_t *data, size_t size)
{
    int32_t ids[256];
    size_t count = 0;

    for (size_t i = 0; i + 1 < size && count < 256; i += 2) {
        ids[count++] = (int32_t)(data[i] | (data[i + 1] & 1) << 8); /* the fixed ones have some 270 tokens */
    }
    check_decode(tokenizer, ids, count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    switch (data[0]) {
    case '0':
    case '1': check_text(fixed[data[0] - '0'], (const char *)data + 1, size - 1); break;
    case '2':
    case '3': check_ids(fixed[data[0] - '2'], data + 1, size - 1); break;
    default: check_file((const char *)data, size); break;
    }
    return 0;
}
