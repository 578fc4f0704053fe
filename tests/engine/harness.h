/* Whole engines for tests: tiny golden models, requests in, collected answers out. */
#ifndef WEFT_TESTS_ENGINE_HARNESS_H
#define WEFT_TESTS_ENGINE_HARNESS_H

#include "engine_test.h"

#include <stdbool.h>

#include "weft/weft.h"

enum { ANSWER_TOKENS_MAX = 128, ANSWER_TEXT_MAX = 2048 };

struct answer {
    uint64_t id;
    int32_t token_ids[ANSWER_TOKENS_MAX];
    uint32_t token_count;
    char text[ANSWER_TEXT_MAX];
    size_t text_size;
    enum weft_finish finish;
    enum weft_status status;
    uint32_t prompt_token_count;
    char logits_sha256[65];
    struct weft_timings timings;
};

/* Path of a golden model of tests/model. */
const char *golden_model(const char *name);

/* A folder under /tmp with the files of a golden model and a byte-level tokenizer of 256 tokens: token i is one byte.
 * Removed by model_with_tokenizer_remove(). */
const char *model_with_tokenizer(void);
void model_with_tokenizer_remove(void);

/* Small defaults for tests on `model` with rank_count ranks as threads. */
void test_options(struct weft_engine_options *options, const char *model, uint32_t rank_count);

struct weft_engine *open_engine(const struct weft_engine_options *options);

/* Submits requests[count] at once and polls until all have ended. Fails the test after 60 s. */
void run_requests(struct weft_engine *engine, const struct weft_request *requests, uint32_t count,
                  struct answer *answers);

/* Polls until the answers of ids[count] have ended; answers[i].id says which is which. */
void collect(struct weft_engine *engine, struct answer *answers, uint32_t count);

void assert_same_answer(const struct answer *a, const struct answer *b);

/* Lines that the engine logged since the last call of log_clear(); errors included. Installed by log_capture(). */
void log_capture(void);
void log_clear(void);
bool log_has(const char *text);
int log_error_count(void);

#endif
