/* weft.h beyond exactness: text and stop strings, cancelling, limits, refusals, closing, many clients at once. */
#include "harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "weft/log.h"

static const int32_t prompt[] = {5, 17, 200, 33, 9};

static void make_request(struct weft_request *request, uint32_t max_tokens)
{
    weft_request_init(request);
    request->token_ids = prompt;
    request->token_count = TEST_COUNT(prompt);
    request->max_tokens = max_tokens;
    request->is_eos_ignored = true;
}

static int set_up(void **state)
{
    (void)state;
    log_capture();
    return 0;
}

/* ---- text ---- */

static void test_text_and_stop_strings(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer whole;
    struct answer cut;
    char stop_text[8] = {0};
    const char *stop[] = {"never seen in any answer", stop_text};

    (void)state;
    test_options(&options, model_with_tokenizer(), 2);
    struct weft_engine *engine = open_engine(&options);
    make_request(&request, 60);
    request.token_ids = NULL;
    request.prompt = "Hello";
    request.prompt_size = 5;
    request.temperature = 1.0f;
    request.seed = 3;
    run_requests(engine, &request, 1, &whole);
    assert_int_equal(whole.prompt_token_count, 5);
    assert_int_equal(whole.finish, WEFT_FINISH_LENGTH);
    char *text;
    size_t text_size;
    assert_int_equal(weft_engine_detokenize(engine, whole.token_ids, whole.token_count, &text, &text_size), WEFT_OK);
    assert_int_equal(text_size, whole.text_size);
    assert_memory_equal(text, whole.text, text_size);
    /* Three bytes from the middle of what it says, borders of characters included. */
    size_t at = whole.text_size / 2;
    while (((unsigned char)whole.text[at] & 0xC0) == 0x80) {
        at++;
    }
    memcpy(stop_text, whole.text + at, 3);
    size_t first = (size_t)(strstr(whole.text, stop_text) - whole.text);
    request.stop = stop;
    request.stop_count = 2;
    run_requests(engine, &request, 1, &cut);
    assert_int_equal(cut.finish, WEFT_FINISH_STOP);
    assert_int_equal(cut.text_size, first);
    assert_memory_equal(cut.text, whole.text, first);
    assert_true(cut.token_count < whole.token_count);
    assert_memory_equal(cut.token_ids, whole.token_ids, cut.token_count * sizeof(int32_t));
    free(text);
    weft_engine_close(&engine);
    model_with_tokenizer_remove();
}

static void test_tokenize(void **state)
{
    struct weft_engine_options options;
    int32_t *ids;
    size_t count;

    (void)state;
    test_options(&options, model_with_tokenizer(), 1);
    struct weft_engine *engine = open_engine(&options);
    assert_int_equal(weft_engine_tokenize(engine, "abc", 3, false, &ids, &count), WEFT_OK);
    assert_int_equal(count, 3);
    assert_int_equal(ids[0], 'a');
    free(ids);
    weft_engine_close(&engine);
    model_with_tokenizer_remove();
}

static void test_eos_ends_and_can_be_ignored(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answer;
    uint32_t stopped = 0;

    (void)state;
    test_options(&options, golden_model("mistral"), 1); /* EOS 2 and 7 of 250 tokens */
    struct weft_engine *engine = open_engine(&options);
    make_request(&request, 100);
    request.temperature = 5.0f;
    for (request.seed = 0; request.seed < 12; request.seed++) {
        request.is_eos_ignored = false;
        run_requests(engine, &request, 1, &answer);
        for (uint32_t i = 0; i < answer.token_count; i++) {
            bool is_eos = answer.token_ids[i] == 2 || answer.token_ids[i] == 7;
            assert_int_equal(is_eos, answer.finish == WEFT_FINISH_STOP && i == answer.token_count - 1);
        }
        stopped += answer.finish == WEFT_FINISH_STOP;
        request.is_eos_ignored = true;
        run_requests(engine, &request, 1, &answer);
        assert_int_equal(answer.token_count, 100);
    }
    assert_true(stopped > 0);
    weft_engine_close(&engine);
}

static void test_penalties_do_what_they_say(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answer;

    (void)state;
    test_options(&options, golden_model("qwen2"), 2);
    struct weft_engine *engine = open_engine(&options);
    make_request(&request, 100);
    request.presence_penalty = 100.0f; /* nothing is said twice */
    run_requests(engine, &request, 1, &answer);
    for (uint32_t i = 0; i < answer.token_count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            assert_int_not_equal(answer.token_ids[i], answer.token_ids[j]);
        }
    }
    make_request(&request, 20);
    request.frequency_penalty = -100.0f; /* only the first token, again and again */
    run_requests(engine, &request, 1, &answer);
    for (uint32_t i = 1; i < answer.token_count; i++) {
        assert_int_equal(answer.token_ids[i], answer.token_ids[0]);
    }
    /* Almost zero: whatever was seen with a positive logit wins, prompt included; its logits are 1000 times larger. */
    make_request(&request, 20);
    request.repetition_penalty = 0.001f;
    run_requests(engine, &request, 1, &answer);
    for (uint32_t i = 0; i < answer.token_count; i++) {
        bool is_seen = false;
        for (uint32_t j = 0; j < TEST_COUNT(prompt); j++) {
            is_seen = is_seen || answer.token_ids[i] == prompt[j];
        }
        for (uint32_t j = 0; j < i; j++) {
            is_seen = is_seen || answer.token_ids[i] == answer.token_ids[j];
        }
        assert_true(is_seen || i == 0);
    }
    weft_engine_close(&engine);
}

/* ---- limits ---- */

static void test_bad_requests_are_refused_with_a_reason(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    const int32_t bad_ids[] = {5, 256};
    int32_t long_prompt[128] = {0};
    const char *stop[] = {""};
    uint64_t id = 77;

    (void)state;
    test_options(&options, golden_model("qwen2"), 1);
    struct weft_engine *engine = open_engine(&options);
    log_clear();
#define REFUSED(setting, status, reason)                                                                               \
    do {                                                                                                               \
        make_request(&request, 8);                                                                                     \
        setting;                                                                                                       \
        assert_int_equal(weft_engine_submit(engine, &request, &id), status);                                           \
        assert_non_null(strstr(weft_engine_error(), reason));                                                          \
    } while (0)
    REFUSED(request.max_tokens = 0, WEFT_ERR_ARGUMENT, "max_tokens");
    REFUSED(request.temperature = -1.0f, WEFT_ERR_ARGUMENT, "temperature");
    REFUSED(request.temperature = __builtin_nanf(""), WEFT_ERR_ARGUMENT, "temperature");
    REFUSED(request.top_p = 0.0f, WEFT_ERR_ARGUMENT, "top_p");
    REFUSED(request.top_p = 1.5f, WEFT_ERR_ARGUMENT, "top_p");
    REFUSED(request.min_p = 1.0f, WEFT_ERR_ARGUMENT, "min_p");
    REFUSED(request.repetition_penalty = 0.0f, WEFT_ERR_ARGUMENT, "repetition_penalty");
    REFUSED(request.frequency_penalty = 1e9f, WEFT_ERR_ARGUMENT, "frequency_penalty");
    REFUSED(request.token_ids = NULL, WEFT_ERR_ARGUMENT, "no prompt");
    REFUSED(request.token_count = 0, WEFT_ERR_ARGUMENT, "no tokens");
    REFUSED((request.token_ids = bad_ids, request.token_count = 2), WEFT_ERR_ARGUMENT, "token id 256");
    REFUSED((request.token_ids = long_prompt, request.token_count = 128), WEFT_ERR_LIMIT, "context");
    REFUSED((request.stop = stop, request.stop_count = 1), WEFT_ERR_ARGUMENT, "stop string");
    REFUSED((request.token_ids = NULL, request.prompt = "x", request.prompt_size = 1), WEFT_ERR_UNSUPPORTED,
            "tokenizer.json");
    assert_int_equal(id, 77);
    assert_int_equal(log_error_count(), 0); /* the client is told, the server's log is not filled */
    /* The longest prompt that leaves room for an answer, and an answer that the context ends. */
    struct answer answer;
    make_request(&request, 1000);
    request.token_ids = long_prompt;
    request.token_count = 127;
    run_requests(engine, &request, 1, &answer);
    assert_int_equal(answer.finish, WEFT_FINISH_LENGTH);
    assert_int_equal(answer.token_count, 1);
    weft_engine_close(&engine);
}

static void test_full_queue(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answers[64] = {0};
    uint32_t accepted = 0;
    uint32_t refused = 0;

    (void)state;
    test_options(&options, golden_model("qwen2"), 1);
    options.sequence_count_max = 1;
    options.queue_count_max = 3;
    struct weft_engine *engine = open_engine(&options);
    make_request(&request, 100);
    while (accepted < TEST_COUNT(answers) && refused == 0) {
        enum weft_status status = weft_engine_submit(engine, &request, &answers[accepted].id);
        if (status == WEFT_OK) {
            accepted++;
        } else {
            assert_int_equal(status, WEFT_ERR_LIMIT);
            assert_non_null(strstr(weft_engine_error(), "waiting"));
            refused++;
        }
    }
    assert_int_equal(refused, 1);
    assert_true(accepted >= 3);
    collect(engine, answers, accepted);
    for (uint32_t i = 0; i < accepted; i++) {
        assert_int_equal(answers[i].finish, WEFT_FINISH_LENGTH);
    }
    weft_engine_close(&engine);
}

/* ---- cancelling and closing ---- */

/* A first that runs and a last that waits, most likely, are cancelled; false when they had ended by then. */
static bool cancel_in_time(struct weft_engine *engine, struct answer answers[4])
{
    struct weft_request request;

    memset(answers, 0, 4 * sizeof(*answers));
    for (uint32_t i = 0; i < 4; i++) {
        make_request(&request, 100);
        assert_int_equal(weft_engine_submit(engine, &request, &answers[i].id), WEFT_OK);
    }
    weft_engine_cancel(engine, answers[3].id);
    weft_engine_cancel(engine, answers[0].id);
    weft_engine_cancel(engine, 4711);
    collect(engine, answers, 4);
    assert_int_equal(answers[1].finish, WEFT_FINISH_LENGTH);
    assert_int_equal(answers[2].finish, WEFT_FINISH_LENGTH);
    for (uint32_t i = 0; i < 4; i += 3) {
        bool is_cancelled = answers[i].finish == WEFT_FINISH_CANCELLED;

        assert_true(is_cancelled || answers[i].finish == WEFT_FINISH_LENGTH);
        assert_int_equal(answers[i].status, is_cancelled ? WEFT_ERR_CANCELLED : WEFT_OK);
    }
    return answers[0].finish == WEFT_FINISH_CANCELLED && answers[3].finish == WEFT_FINISH_CANCELLED;
}

static void test_cancel_running_and_waiting(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answers[4];
    uint32_t attempts = 1;

    (void)state;
    test_options(&options, golden_model("qwen2"), 3);
    options.sequence_count_max = 2;
    struct weft_engine *engine = open_engine(&options);
    while (!cancel_in_time(engine, answers)) { /* this thread may sleep for long between two calls */
        assert_true(attempts++ < 100);
    }
    make_request(&request, 100);
    weft_engine_cancel(engine, answers[1].id); /* finished long ago */
    run_requests(engine, &request, 1, answers);
    assert_int_equal(answers[0].finish, WEFT_FINISH_LENGTH);
    weft_engine_close(&engine);
}

static void test_closing_while_steps_run(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    uint64_t id;

    (void)state;
    for (uint32_t round = 0; round < 8; round++) {
        test_options(&options, golden_model("qwen2"), 1 + round % 4);
        struct weft_engine *engine = open_engine(&options);
        for (uint32_t i = 0; i < 6; i++) {
            make_request(&request, 120);
            assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
        }
        usleep(500 * round);
        weft_engine_close(&engine);
        assert_null(engine);
    }
    weft_engine_close(&(struct weft_engine *){NULL});
    assert_int_equal(log_error_count(), 0);
}

static void test_two_engines_at_once(void **state)
{
    struct weft_engine_options options;
    struct weft_request request;
    struct answer answers[2];

    (void)state;
    test_options(&options, golden_model("qwen2"), 2);
    struct weft_engine *first = open_engine(&options);
    struct weft_engine *second = open_engine(&options);
    make_request(&request, 10);
    request.has_logits_digest = true;
    run_requests(second, &request, 1, &answers[1]);
    run_requests(first, &request, 1, &answers[0]);
    assert_same_answer(&answers[0], &answers[1]);
    weft_engine_close(&first);
    weft_engine_close(&second);
}

/* ---- many clients ---- */

enum { CLIENTS = 4, PER_CLIENT = 6 };

static void *submit_some(void *context)
{
    struct weft_request request;
    uint64_t id;

    for (uint32_t i = 0; i < PER_CLIENT; i++) {
        make_request(&request, 5 + i);
        if (weft_engine_submit(context, &request, &id) != WEFT_OK) {
            return (void *)"submit failed";
        }
        if (i == 2) {
            weft_engine_cancel(context, id);
        }
    }
    return NULL;
}

static uint64_t histogram_count(const struct weft_histogram *histogram)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i <= WEFT_HISTOGRAM_BOUND_COUNT; i++) {
        count += histogram->buckets[i];
    }
    return count;
}

static void test_clients_in_many_threads(void **state)
{
    struct weft_engine_options options;
    pthread_t threads[CLIENTS];
    uint32_t ended = 0;
    uint32_t whole = 0;
    uint64_t made = 0;
    double ttft_ms = 0;
    struct weft_engine_stats now;
    void *trouble;

    (void)state;
    test_options(&options, golden_model("llama3"), 3);
    options.is_traced = true;
    struct weft_engine *engine = open_engine(&options);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, submit_some, engine), 0);
    }
    for (uint32_t polls = 0; ended < CLIENTS * PER_CLIENT && polls < 60000; polls++) {
        struct weft_event events[2];
        uint32_t count;
        assert_int_equal(weft_engine_poll(engine, 100, events, 2, &count), WEFT_OK);
        weft_engine_stats(engine, &now);
        assert_true(now.running_count <= now.running_max && now.kv_page_used_count <= now.kv_page_count);
        for (uint32_t i = 0; i < count; i++) {
            ended += events[i].finish != WEFT_FINISH_NONE;
            whole += events[i].finish == WEFT_FINISH_LENGTH;
            made += events[i].token_count;
            ttft_ms += events[i].finish != WEFT_FINISH_NONE ? events[i].timings.ttft_ms : 0.0;
        }
        assert_true(now.output_token_count >= made);
    }
    weft_engine_stats(engine, &now);
    assert_int_equal(now.rank_count, 3);
    assert_int_equal(now.output_token_count, made);
    assert_int_equal(now.finish_counts[WEFT_FINISH_LENGTH], whole);
    assert_int_equal(now.finish_counts[WEFT_FINISH_CANCELLED], ended - whole);
    assert_int_equal(histogram_count(&now.request), whole);
    assert_int_equal(histogram_count(&now.inter_token), made - histogram_count(&now.ttft));
    assert_int_equal(now.prompt_token_count, histogram_count(&now.ttft) * TEST_COUNT(prompt));
    assert_true(now.ttft.sum_ms > 0.999 * ttft_ms && now.ttft.sum_ms < 1.001 * ttft_ms);
    assert_true(now.step_count > 0 && now.running_count + now.waiting_count + now.kv_page_used_count == 0);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        assert_int_equal(pthread_join(threads[i], &trouble), 0);
        assert_null(trouble);
    }
    assert_int_equal(ended, CLIENTS * PER_CLIENT);
    struct weft_collective_stats stats[8];
    assert_int_equal(weft_engine_collectives(engine, stats, 8), 4);
    assert_string_equal(stats[0].name, "tree_sum");
    assert_true(stats[0].call_count > 0);
    weft_engine_close(&engine);
}

static void test_poll_times_out(void **state)
{
    struct weft_engine_options options;
    struct weft_event event;
    uint32_t count = 7;

    (void)state;
    test_options(&options, golden_model("qwen2"), 2);
    struct weft_engine *engine = open_engine(&options);
    assert_int_equal(weft_engine_poll(engine, 20, &event, 1, &count), WEFT_OK);
    assert_int_equal(count, 0);
    assert_int_equal(weft_engine_failed_rank(engine), -1);
    weft_engine_close(&engine);
}

/* ---- refusals at open ---- */

static void assert_refused(const struct weft_engine_options *options, enum weft_status status, const char *reason)
{
    struct weft_engine *engine = NULL;

    log_clear();
    assert_int_equal(weft_engine_open(options, &engine), status);
    assert_null(engine);
    if (!log_has(reason) || log_error_count() != 1) {
        fail_msg("expected one line with \"%s\", found %d: %s", reason, log_error_count(), weft_engine_error());
    }
}

static void test_open_refuses_with_one_line(void **state)
{
    struct weft_engine_options options;

    (void)state;
    test_options(&options, golden_model("qwen2"), 9);
    assert_refused(&options, WEFT_ERR_ARGUMENT, "--leaves 16");
    test_options(&options, "/nowhere", 2);
    assert_refused(&options, WEFT_ERR_MISSING, "/nowhere");
    test_options(&options, golden_model("qwen2"), 2);
    options.comm = "pigeon";
    assert_refused(&options, WEFT_ERR_ARGUMENT, "pigeon");
    test_options(&options, golden_model("qwen2"), 3);
    options.memory_limit = 1000;
    assert_refused(&options, WEFT_ERR_LIMIT, "needs");
    test_options(&options, golden_model("qwen2"), 2);
    options.kv_token_count = UINT32_MAX;
    assert_refused(&options, WEFT_ERR_LIMIT, "needs");
    test_options(&options, golden_model("qwen2"), 4);
    options.cpu_level = "mmx";
    assert_refused(&options, WEFT_ERR_ARGUMENT, "mmx");
}

/* The weights are damaged: every rank finds out, the leader says it, once. */
static void test_damaged_weights_are_reported_once(void **state)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;
    char path[600];

    (void)state;
    test_options(&options, model_with_tokenizer(), 3);
    snprintf(path, sizeof(path), "%s/model.safetensors", options.model);
    assert_int_equal(truncate(path, 100000), 0);
    log_clear();
    assert_int_not_equal(weft_engine_open(&options, &engine), WEFT_OK);
    assert_null(engine);
    assert_true(log_has("model.safetensors"));
    assert_int_equal(log_error_count(), 1);
    model_with_tokenizer_remove();
}

/* Called between the look at the files and the reading of the weights. */
static void truncate_weights(void *context, const char *line)
{
    (void)line;
    assert_int_equal(truncate(context, 300000), 0);
}

static void test_weights_that_end_while_loading(void **state)
{
    struct weft_engine_options options;
    struct weft_engine *engine = NULL;
    char path[600];

    (void)state;
    test_options(&options, model_with_tokenizer(), 3);
    snprintf(path, sizeof(path), "%s/model.safetensors", options.model);
    options.memory_table = truncate_weights;
    options.callback_context = path;
    log_clear();
    assert_int_not_equal(weft_engine_open(&options, &engine), WEFT_OK);
    assert_null(engine);
    assert_true(log_has("model.safetensors"));
    assert_non_null(strstr(weft_engine_error(), "model.safetensors"));
    assert_int_equal(log_error_count(), 1);
    model_with_tokenizer_remove();
}

static void test_inspect(void **state)
{
    struct weft_engine_options options;
    struct weft_model_summary summary;
    struct weft_rank_summary ranks[4];

    (void)state;
    test_options(&options, golden_model("qwen2"), 3);
    assert_int_equal(weft_engine_inspect(&options, &summary, ranks, 4), WEFT_OK);
    assert_string_equal(summary.architecture, "Qwen2ForCausalLM");
    assert_int_equal(summary.head_count, 14);
    assert_int_equal(summary.rank_count, 3);
    assert_int_equal(ranks[0].leaf_begin, 0);
    assert_int_equal(ranks[2].leaf_end, 8);
    assert_int_equal(ranks[2].head_end, 14);
    for (int r = 0; r < 3; r++) {
        assert_true(ranks[r].weight_size > 0 && ranks[r].activation_size > 0 && ranks[r].kv_token_size > 0);
        assert_true(ranks[r].kv_size >= 512 * ranks[r].kv_token_size);
    }
    assert_string_equal(summary.weight_dtype, "bf16");
    assert_string_equal(summary.weight_text, "bf16");
    uint64_t stored_size = ranks[0].weight_size;
    options.quantize = "q4_0";
    assert_int_equal(weft_engine_inspect(&options, &summary, ranks, 4), WEFT_OK);
    assert_string_equal(summary.weight_dtype, "q4_0");
    assert_string_equal(summary.weight_text, "q4_0 (embedding and head q8_0), quantised while loading, from bf16");
    assert_true(ranks[0].weight_size < stored_size * 2 / 3);
    options.quantize = "q5_0";
    log_clear();
    assert_int_equal(weft_engine_inspect(&options, &summary, ranks, 4), WEFT_ERR_ARGUMENT);
    assert_true(log_has("quantize \"q5_0\": expected one of none, bf16, q8_0, q4_0"));
    options.quantize = NULL;
    options.rank_count = 9;
    log_clear();
    assert_int_equal(weft_engine_inspect(&options, &summary, ranks, 4), WEFT_ERR_ARGUMENT);
    assert_true(log_has("--leaves 16"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_text_and_stop_strings, set_up),
        cmocka_unit_test_setup(test_tokenize, set_up),
        cmocka_unit_test_setup(test_eos_ends_and_can_be_ignored, set_up),
        cmocka_unit_test_setup(test_penalties_do_what_they_say, set_up),
        cmocka_unit_test_setup(test_bad_requests_are_refused_with_a_reason, set_up),
        cmocka_unit_test_setup(test_full_queue, set_up),
        cmocka_unit_test_setup(test_cancel_running_and_waiting, set_up),
        cmocka_unit_test_setup(test_closing_while_steps_run, set_up),
        cmocka_unit_test_setup(test_two_engines_at_once, set_up),
        cmocka_unit_test_setup(test_clients_in_many_threads, set_up),
        cmocka_unit_test_setup(test_poll_times_out, set_up),
        cmocka_unit_test_setup(test_open_refuses_with_one_line, set_up),
        cmocka_unit_test_setup(test_damaged_weights_are_reported_once, set_up),
        cmocka_unit_test_setup(test_weights_that_end_while_loading, set_up),
        cmocka_unit_test_setup(test_inspect, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
