/*
 * The tokenizer behind a pipe, for differential tests: one command a line on stdin, one answer a line on stdout.
 *
 *   tokenize_tool TOKENIZER_JSON
 *   e HEX    encode the bytes, no BOS/EOS      -> ids
 *   E HEX    encode, post-processor included   -> ids
 *   d IDS    decode                            -> HEX
 *   D IDS    decode, special tokens left out   -> HEX
 *   s IDS    the same as D through the incremental detokenizer -> HEX
 *   i HEX    id of a token by its spelling     -> id
 *   t ID     spelling of a token               -> HEX, or "-" when there is none
 *
 * Ids are decimal, separated by single spaces; an empty list is an empty rest of line. An error ends the program.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include "base/json.h"
#include "weft/tokenizer.h"

static void print_hex(const char *text, size_t size)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < size; i++) {
        putchar(digits[(unsigned char)text[i] >> 4]);
        putchar(digits[(unsigned char)text[i] & 15]);
    }
    putchar('\n');
}

static int hex_value(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* In place: hex digits become bytes. */
static size_t read_hex(char *text)
{
    size_t size = strlen(text) / 2;

    for (size_t i = 0; i < size; i++) {
        text[i] = (char)(hex_value(text[2 * i]) * 16 + hex_value(text[2 * i + 1]));
    }
    return size;
}

static size_t read_ids(char *text, int32_t **ids_out)
{
    int32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof(*ids));
    size_t count = 0;

    if (ids == NULL) {
        exit(1);
    }
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) {
        ids[count++] = (int32_t)strtol(word, NULL, 10);
    }
    *ids_out = ids;
    return count;
}

static bool do_encode(const struct weft_tokenizer *tokenizer, char *text, bool is_wrapped)
{
    size_t size = read_hex(text), count;
    int32_t *ids;

    if (weft_tokenizer_encode(tokenizer, text, size, is_wrapped ? WEFT_ENCODE_ADD_SPECIAL : 0, &ids, &count) !=
        WEFT_OK) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        printf(i == 0 ? "%d" : " %d", ids[i]);
    }
    putchar('\n');
    free(ids);
    return true;
}

static bool do_decode(const struct weft_tokenizer *tokenizer, char *text, bool is_skipped)
{
    int32_t *ids;
    size_t count = read_ids(text, &ids), size;
    char *decoded;
    enum weft_status status = weft_tokenizer_decode(tokenizer, ids, count, is_skipped, &decoded, &size);

    free(ids);
    if (status != WEFT_OK) {
        return false;
    }
    print_hex(decoded, size);
    free(decoded);
    return true;
}

static bool do_stream(struct weft_detokenizer *detokenizer, char *text)
{
    int32_t *ids;
    size_t count = read_ids(text, &ids), size, total = 0;
    const char *piece;
    char *all = malloc(1);

    for (size_t i = 0; i <= count && all != NULL; i++) {
        enum weft_status status = i < count ? weft_detokenizer_push(detokenizer, ids[i], &piece, &size)
                                            : weft_detokenizer_flush(detokenizer, &piece, &size);
        char *larger = status == WEFT_OK ? realloc(all, total + size + 1) : NULL;
        if (larger == NULL) {
            free(all);
            free(ids);
            return false;
        }
        all = larger;
        memcpy(all + total, piece, size);
        total += size;
    }
    free(ids);
    print_hex(all, total);
    free(all);
    return true;
}

static bool do_command(const struct weft_tokenizer *tokenizer, struct weft_detokenizer *detokenizer, char *line)
{
    char *rest = strlen(line) > 2 ? line + 2 : line + strlen(line);
    const char *token;
    size_t size;

    switch (line[0]) {
    case 'e':
    case 'E': return do_encode(tokenizer, rest, line[0] == 'E');
    case 'd':
    case 'D': return do_decode(tokenizer, rest, line[0] == 'D');
    case 's': return do_stream(detokenizer, rest);
    case 'i':
        size = read_hex(rest);
        printf("%d\n", weft_tokenizer_id(tokenizer, rest, size));
        return true;
    case 't':
        token = weft_tokenizer_token(tokenizer, (int32_t)strtol(rest, NULL, 10), &size);
        if (token == NULL) {
            puts("-");
        } else {
            print_hex(token, size);
        }
        return true;
    default: return false;
    }
}

static bool run(const struct weft_tokenizer *tokenizer)
{
    struct weft_detokenizer *detokenizer;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    bool is_good = weft_detokenizer_open(tokenizer, true, &detokenizer) == WEFT_OK;

    while (is_good && (size = getline(&line, &capacity, stdin)) > 0) {
        line[strcspn(line, "\n")] = '\0';
        is_good = do_command(tokenizer, detokenizer, line) && fflush(stdout) == 0;
    }
    free(line);
    weft_detokenizer_close(&detokenizer);
    return is_good;
}

static double now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

int main(int argument_count, char **arguments)
{
    struct weft_tokenizer *tokenizer;
    char *text;
    size_t size;

    if (argument_count != 2) {
        fprintf(stderr, "usage: tokenize_tool TOKENIZER_JSON < COMMANDS\n");
        return 2;
    }
    double begin = now_ms();
    if (weft_file_read(arguments[1], (size_t)1 << 28, &text, &size) != WEFT_OK ||
        weft_tokenizer_parse(arguments[1], text, size, NULL, 0, &tokenizer) != WEFT_OK) {
        return 1;
    }
    free(text);
    fprintf(stderr, "%s: %u tokens, opened in %.1f ms\n", arguments[1], weft_tokenizer_count(tokenizer),
            now_ms() - begin);
    bool is_good = run(tokenizer);
    weft_tokenizer_close(&tokenizer);
    return is_good ? 0 : 1;
}
