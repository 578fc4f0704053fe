/*
 * Ranks that come from somewhere: each opens the group itself (WEFT_LAUNCH_TCP), as under mpirun or on other hosts.
 * Here they are threads of the test. Who does not fit is refused, on every rank, and each says why.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fp8_model.h"
#include "support.h"
#include "weft/log.h"

enum { RANKS = 3 };

static char leader_address[32];

static int set_up(void **state)
{
    (void)state;
    log_capture();
    return 0;
}

/* A port that was free a moment ago. */
static void choose_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    snprintf(leader_address, sizeof(leader_address), "127.0.0.1:%d", ntohs(address.sin_port));
    close(fd);
}

struct joiner {
    struct weft_engine_options options;
    char model[512];
    pthread_t thread;
    enum weft_status open_status;
    enum weft_status work_status;
    char error[600];
};

static void *join_and_work(void *context)
{
    struct joiner *joiner = context;
    struct weft_engine *engine = NULL;

    joiner->options.model = joiner->model;
    joiner->open_status = weft_engine_open(&joiner->options, &engine);
    if (joiner->open_status == WEFT_OK) {
        joiner->work_status = weft_engine_is_leader(engine) ? WEFT_ERR_STATE : weft_engine_work(engine);
        weft_engine_close(&engine);
    }
    snprintf(joiner->error, sizeof(joiner->error), "%s", weft_engine_error());
    return NULL;
}

static void joiner_init(struct joiner *joiner, const char *model, uint32_t rank)
{
    *joiner = (struct joiner){.work_status = WEFT_ERR_STATE};
    snprintf(joiner->model, sizeof(joiner->model), "%s", golden_model(model));
    test_options(&joiner->options, joiner->model, RANKS);
    joiner->options.launch = WEFT_LAUNCH_TCP;
    joiner->options.leader = leader_address;
    joiner->options.rank = rank;
    joiner->options.secret = "only for this test";
}

/* Opens joiners[0] here and the others in threads; *out is NULL when refused. */
static enum weft_status open_together(struct joiner *joiners, struct weft_engine **out)
{
    joiners[0].options.model = joiners[0].model;
    for (uint32_t r = 1; r < RANKS; r++) {
        assert_int_equal(pthread_create(&joiners[r].thread, NULL, join_and_work, &joiners[r]), 0);
    }
    return weft_engine_open(&joiners[0].options, out);
}

static void join_threads(struct joiner *joiners)
{
    for (uint32_t r = 1; r < RANKS; r++) {
        assert_int_equal(pthread_join(joiners[r].thread, NULL), 0);
    }
}

static void test_ranks_join_work_and_leave(void **state)
{
    static const int32_t prompt[] = {5, 17, 200, 33, 9};
    struct joiner joiners[RANKS];
    struct weft_engine *engine = NULL;
    struct weft_request request;
    struct answer answer;
    uint64_t id;

    (void)state;
    choose_port();
    for (uint32_t r = 0; r < RANKS; r++) {
        joiner_init(&joiners[r], "qwen2", r);
    }
    assert_int_equal(open_together(joiners, &engine), WEFT_OK);
    assert_true(weft_engine_is_leader(engine));
    assert_int_equal(weft_engine_work(engine), WEFT_ERR_STATE);
    weft_request_init(&request);
    request.token_ids = prompt;
    request.token_count = TEST_COUNT(prompt);
    request.max_tokens = 20;
    request.is_eos_ignored = true;
    run_requests(engine, &request, 1, &answer);
    assert_int_equal(answer.token_count, 20);
    assert_int_equal(weft_engine_submit(engine, &request, &id), WEFT_OK);
    weft_engine_close(&engine);
    join_threads(joiners);
    for (uint32_t r = 1; r < RANKS; r++) {
        assert_int_equal(joiners[r].open_status, WEFT_OK);
        assert_int_equal(joiners[r].work_status, WEFT_OK);
    }
}

/* One answer of the group that the joiners form; all of them leave well. */
static void answer_together(struct joiner *joiners, struct answer *answer)
{
    static const int32_t prompt[] = {5, 17, 200, 33, 9};
    struct weft_engine *engine = NULL;
    struct weft_request request;

    assert_int_equal(open_together(joiners, &engine), WEFT_OK);
    weft_request_init(&request);
    request.token_ids = prompt;
    request.token_count = TEST_COUNT(prompt);
    request.max_tokens = 20;
    request.is_eos_ignored = true;
    request.has_logits_digest = true;
    run_requests(engine, &request, 1, answer);
    weft_engine_close(&engine);
    join_threads(joiners);
    for (uint32_t r = 1; r < RANKS; r++) {
        assert_int_equal(joiners[r].open_status, WEFT_OK);
        assert_int_equal(joiners[r].work_status, WEFT_OK);
    }
}

/* Streamed weights need a folder on the leader only, and the answer is the same. */
static void test_ranks_without_a_folder(void **state)
{
    static const char *const models[] = {"qwen2", "llama3", "mistral"};
    static const char *const quantize[] = {NULL, "q8_0", "q4_0"};

    (void)state;
    for (size_t m = 0; m < TEST_COUNT(models); m++) {
        struct answer wanted;
        struct answer got;

        for (int is_streamed = 0; is_streamed < 2; is_streamed++) {
            struct joiner joiners[RANKS];

            choose_port();
            for (uint32_t r = 0; r < RANKS; r++) {
                joiner_init(&joiners[r], models[m], r);
                joiners[r].options.weights = is_streamed ? "stream" : "local";
                joiners[r].options.quantize = quantize[m];
                if (is_streamed && r > 0) {
                    snprintf(joiners[r].model, sizeof(joiners[r].model), "/nonexistent/%u", r);
                }
            }
            answer_together(joiners, is_streamed ? &got : &wanted);
        }
        assert_same_answer(&got, &wanted);
    }
}

/* Who reads faster gets more leaves; who computes by the reference kernels is far slower. */
static void check_shares_by_speed(const char *folder, const char *quantize)
{
    struct answer wanted;
    struct answer got;

    for (int is_measured = 0; is_measured < 2; is_measured++) {
        struct joiner joiners[RANKS];

        choose_port();
        for (uint32_t r = 0; r < RANKS; r++) {
            joiner_init(&joiners[r], "llama3", r);
            if (folder != NULL) {
                snprintf(joiners[r].model, sizeof(joiners[r].model), "%.511s", folder);
            }
            joiners[r].options.is_share_measured = is_measured;
            joiners[r].options.quantize = quantize;
            joiners[r].options.thread_count = 1;
            joiners[r].options.cpu_level = r == 1 || quantize != NULL ? NULL : "ref"; /* 3.5 x as much to multiply */
        }
        log_clear();
        answer_together(joiners, is_measured ? &got : &wanted);
        assert_int_equal(log_has("rank 1 reads weights at "), is_measured);
    }
    assert_same_answer(&got, &wanted);
}

static void test_shares_by_speed(void **state)
{
    static const struct fp8_form form = {.golden = "llama3",
                                         .config = "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", "
                                                   "\"weight_block_size\": [16, 16]}",
                                         .ending = "_scale_inv",
                                         .block_rows = 16,
                                         .block_cols = 16,
                                         .scale_type = "F32"};
    char folder[4096];

    (void)state;
    check_shares_by_speed(NULL, NULL);
    check_shares_by_speed(NULL, "q4_0");
    fp8_model_make(&form, folder, NULL);
    check_shares_by_speed(folder, NULL);
    folder_remove(folder);
}

static void check_refused(struct joiner *joiners, const char *reason)
{
    struct weft_engine *engine = NULL;

    log_clear();
    assert_int_not_equal(open_together(joiners, &engine), WEFT_OK);
    assert_null(engine);
    assert_non_null(strstr(weft_engine_error(), reason));
    join_threads(joiners);
    for (uint32_t r = 1; r < RANKS; r++) {
        assert_int_not_equal(joiners[r].open_status, WEFT_OK);
        assert_non_null(strstr(joiners[r].error, reason));
    }
    assert_int_equal(log_error_count(), RANKS); /* over TCP each rank has a log of its own, and says it there */
}

static void test_who_does_not_fit_is_refused(void **state)
{
    struct joiner joiners[RANKS];

    (void)state;
    for (int which = 0; which < 7; which++) {
        static const char *const reasons[] = {"rank 2",
                                              "other options",
                                              "rank 1",
                                              "no such model folder",
                                              "other options",
                                              "other options",
                                              "with --quantize q4_0: the leader was with --quantize none"};
        choose_port();
        for (uint32_t r = 0; r < RANKS; r++) {
            joiner_init(&joiners[r], "qwen2", r);
        }
        switch (which) {
        case 0: joiner_init(&joiners[2], "qwen3", 2); break;
        case 1: joiners[1].options.leaf_count = 16; break;
        case 2: joiners[1].options.prefill_chunk = 3; break;
        case 4: joiners[2].options.weights = "stream"; break;
        case 5: joiners[0].options.is_share_measured = true; break;
        case 6: joiners[1].options.quantize = "q4_0"; break;
        default: snprintf(joiners[2].model, sizeof(joiners[2].model), "/nowhere"); break;
        }
        check_refused(joiners, reasons[which]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_ranks_join_work_and_leave, set_up),
        cmocka_unit_test_setup(test_ranks_without_a_folder, set_up),
        cmocka_unit_test_setup(test_shares_by_speed, set_up),
        cmocka_unit_test_setup(test_who_does_not_fit_is_refused, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
