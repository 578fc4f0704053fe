/*
 * Every allocation of runtime/text and runtime/base fails once: the call says ERR_MEMORY, nothing leaks (the sanitizer
 * build sees to that) and nothing is half done. The linker wraps the allocators of our own objects only (--wrap).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"
#include "weft/log.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

/* Allocations until one fails; negative: none does. */
static long countdown = -1;

static bool fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

static void drop(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

static enum weft_status stream(struct weft_detokenizer *detokenizer, const int32_t *ids, size_t count)
{
    const char *piece;
    size_t size;

    for (size_t i = 0; i < count; i++) {
        WEFT_TRY(weft_detokenizer_push(detokenizer, ids[i], &piece, &size));
    }
    return weft_detokenizer_flush(detokenizer, &piece, &size);
}

static enum weft_status use(const struct weft_tokenizer *tokenizer)
{
    static const char text[] = "a e\xCC\x81 aaaa </s>12<|end|>";
    struct weft_detokenizer *detokenizer = NULL;
    int32_t *ids = NULL;
    char *decoded = NULL;
    size_t count, size;

    WEFT_TRY(weft_tokenizer_encode(tokenizer, text, strlen(text), WEFT_ENCODE_ADD_SPECIAL, &ids, &count));
    enum weft_status status = weft_tokenizer_decode(tokenizer, ids, count, false, &decoded, &size);
    if (status == WEFT_OK) {
        status = weft_detokenizer_open(tokenizer, true, &detokenizer);
    }
    if (status == WEFT_OK) {
        status = stream(detokenizer, ids, count);
    }
    weft_detokenizer_close(&detokenizer);
    free(decoded);
    free(ids);
    return status;
}

static enum weft_status open_and_use(const char *json)
{
    struct weft_tokenizer *tokenizer = NULL;

    WEFT_TRY(weft_tokenizer_parse("memory", json, strlen(json), "{\"bos_token\": \"<s>\"}", 20, &tokenizer));
    enum weft_status status = use(tokenizer);
    weft_tokenizer_close(&tokenizer);
    return status;
}

static void fail_each(char *(*make)(void))
{
    char *json = make();
    enum weft_status status = WEFT_ERR_MEMORY;
    long index = 0;

    for (; status != WEFT_OK; index++) {
        countdown = index;
        status = open_and_use(json);
        bool has_failed = countdown < 0;
        countdown = -1;
        assert_true(status == WEFT_OK || status == WEFT_ERR_MEMORY);
        assert_true((status == WEFT_OK) == !has_failed);
    }
    assert_true(index > 20);
    free(json);
}

static void test_every_allocation_fails_once(void **state)
{
    (void)state;
    fail_each(tiny_sentencepiece);
    fail_each(tiny_byte_level);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation_fails_once)};
    weft_log_configure(WEFT_LOG_ERROR, drop, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
