/* One tokenizer, many threads: the same ids and texts as alone. Run under ThreadSanitizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tiny.h"

enum { THREAD_COUNT = 4, ROUND_COUNT = 300 };

static const char *const texts[] = {
    "a aaa abab aaaaaaaaa",
    "\xC3\xA9 \xE2\x82\xAC\xF0\x9F\x98\x80",
    "<|end|> x</s>y e\xCC\x81",
    "12 !? \n\n  \t a",
};
enum { TEXT_COUNT = sizeof(texts) / sizeof(texts[0]) };

struct worker {
    const struct weft_tokenizer *tokenizer;
    int32_t *const *ids; /* [TEXT_COUNT], as encoded alone */
    const size_t *counts;
    bool is_same;
};

static bool check_round(const struct worker *worker, size_t i)
{
    int32_t *ids = NULL;
    size_t count = 0, size = 0;
    char *text = NULL;

    bool is_good = weft_tokenizer_encode(worker->tokenizer, texts[i], strlen(texts[i]), 0, &ids, &count) == WEFT_OK &&
                   count == worker->counts[i] && memcmp(ids, worker->ids[i], count * sizeof(ids[0])) == 0 &&
                   weft_tokenizer_decode(worker->tokenizer, ids, count, false, &text, &size) == WEFT_OK && size > 0;
    free(ids);
    free(text);
    return is_good;
}

static void *work(void *argument)
{
    struct worker *worker = argument;

    worker->is_same = true;
    for (size_t round = 0; round < ROUND_COUNT; round++) {
        worker->is_same = worker->is_same && check_round(worker, round % TEXT_COUNT);
    }
    return NULL;
}

static void run_threads(char *(*make)(void))
{
    struct weft_tokenizer *tokenizer = tiny_open(make);
    int32_t *ids[TEXT_COUNT];
    size_t counts[TEXT_COUNT];
    struct worker workers[THREAD_COUNT];
    pthread_t threads[THREAD_COUNT];

    for (size_t i = 0; i < TEXT_COUNT; i++) {
        assert_int_equal(weft_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), 0, &ids[i], &counts[i]), WEFT_OK);
    }
    for (int i = 0; i < THREAD_COUNT; i++) {
        workers[i] = (struct worker){.tokenizer = tokenizer, .ids = ids, .counts = counts};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREAD_COUNT; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(workers[i].is_same);
    }
    for (size_t i = 0; i < TEXT_COUNT; i++) {
        free(ids[i]);
    }
    weft_tokenizer_close(&tokenizer);
}

static void test_threads_share_a_tokenizer(void **state)
{
    (void)state;
    run_threads(tiny_byte_level);
    run_threads(tiny_sentencepiece);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads_share_a_tokenizer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
