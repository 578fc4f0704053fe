/* Composes the texts of tiny.h. */
#include "tiny.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

enum { TEXT_SIZE_MAX = 64 * 1024 };

static void add(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(char *text, const char *format, ...)
{
    size_t size = strlen(text);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text + size, TEXT_SIZE_MAX - size, format, arguments);
    va_end(arguments);
}

static char *begin_text(void)
{
    char *text = malloc(TEXT_SIZE_MAX);

    if (text == NULL) {
        abort();
    }
    text[0] = '\0';
    return text;
}

char *tiny_sentencepiece(void)
{
    char *text = begin_text();

    add(text,
        "{\"version\": \"1.0\", \"added_tokens\": ["
        "{\"id\": 0, \"content\": \"<unk>\", \"normalized\": false, \"special\": true},"
        "{\"id\": 1, \"content\": \"<s>\", \"normalized\": false, \"special\": true},"
        "{\"id\": 2, \"content\": \"</s>\", \"normalized\": false, \"special\": true}],"
        "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"\u2581\"},"
        "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\u2581\"}]},"
        "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}},"
        "{\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": {\"<s>\": {\"ids\": [1]}}},"
        "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": "
        "\"\u2581\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"},"
        "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]},"
        "\"model\": {\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true,"
        "\"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2");
    for (int byte = 0; byte < 256; byte++) {
        add(text, ", \"<0x%02X>\": %d", (unsigned)byte, 3 + byte);
    }
    add(text, ", \"\u2581\": 259, \"a\": 260, \"b\": 261, \"aa\": 262, \"aaaa\": 263, \"aaaaaaaa\": 264, "
              "\"\u2581a\": 265, \"ab\": 266, \"\u00e9\": 267},"
              "\"merges\": [\"a a\", \"aa aa\", \"aaaa aaaa\", \"\u2581 a\", \"a b\"]}}");
    return text;
}

char *tiny_byte_level(void)
{
    char *text = begin_text();
    char letter[5];

    add(text, "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 261, \"content\": \"<|end|>\", \"special\": true}],"
              "\"normalizer\": {\"type\": \"NFC\"},"
              "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
              "\"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int byte = 0; byte < 256; byte++) {
        letter[weft_utf8_write(weft_byte_char((unsigned char)byte), letter)] = '\0';
        add(text, "\"%s%s\": %d, ", letter[0] == '"' || letter[0] == '\\' ? "\\" : "", letter, byte);
    }
    add(text,
        "\"aa\": 256, \"aaaa\": 257, \"aaaaaaaa\": 258, \"\u0120a\": 259, \"ab\": 260},"
        "\"merges\": [[\"a\", \"a\"], [\"aa\", \"aa\"], [\"aaaa\", \"aaaa\"], [\"\u0120\", \"a\"], [\"a\", \"b\"]]}}");
    return text;
}

struct weft_tokenizer *tiny_open(char *(*make)(void))
{
    struct weft_tokenizer *tokenizer;
    char *text = make();

    if (weft_tokenizer_parse("tiny", text, strlen(text), NULL, 0, &tokenizer) != WEFT_OK) {
        abort();
    }
    free(text);
    return tokenizer;
}
