/*
 * Ranks as threads. Each rank decides the next token from the full logits row, gathered over the communicator: the rows
 * have the same bits everywhere, so all ranks take the same one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

#include "group.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "weft/bootstrap.h"
#include "weft/comm.h"
#include "weft/log.h"

enum { LEAF_COUNT = 8, PAGES = 64, TOKEN_MAX = 300, RANK_MAX = 8, TIMEOUT_MS = 60000 };

/* Two sequences at most: the golden one, and a second one that must not change its bits. */
struct rank {
    const struct group_options *options;
    const struct golden *golden;
    struct group_result *result; /* written by rank 0 */
    struct weft_bootstrap *bootstrap;
    struct weft_range leaves[RANK_MAX];
    uint32_t rank;
    pthread_t thread;
    int line; /* where it went wrong, 0: nowhere */
    /* opened by the rank itself */
    struct weft_model_config config;
    struct weft_slice slices[RANK_MAX];
    struct weft_device *device;
    struct weft_comm *comm;
    struct weft_model *model;
    float *local;    /* [N of this rank] one row, host */
    float *gathered; /* one row, host */
    int32_t *tokens; /* [prompt + tokens] of the golden sequence */
};

/* cmocka's assertions belong to the test's own thread. */
#define RANK_CHECK(rank_, condition)                                                                                   \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            (rank_)->line = __LINE__;                                                                                  \
            return -1;                                                                                                 \
        }                                                                                                              \
    } while (0)

static uint32_t token_count_max(const struct rank *rank)
{
    return rank->options->chunk * (rank->options->is_mixed ? 2 : 1);
}

static int open_rank(struct rank *rank)
{
    const struct group_options *options = rank->options;
    const struct weft_device_options device = {
        .kind = "cpu", .thread_count = options->thread_count, .cpu_level = options->cpu_level, .wait = WEFT_WAIT_YIELD};
    struct weft_comm_options comm = {
        .timeout_ms = TIMEOUT_MS, .leaf_count = LEAF_COUNT, .leaves = rank->leaves, .wait = WEFT_WAIT_YIELD};
    struct weft_model_options model = {.folder = options->folder,
                                       .config = &rank->config,
                                       .slices = rank->slices,
                                       .rank = rank->rank,
                                       .rank_count = options->rank_count};

    RANK_CHECK(rank, weft_model_config_read(options->folder, &rank->config) == WEFT_OK);
    rank->config.quantise = options->quantise;
    RANK_CHECK(rank, rank->config.vocab_size == rank->golden->vocab_size);
    for (uint32_t i = 0; i < options->rank_count; i++) {
        weft_slice_init(&rank->config, LEAF_COUNT, rank->leaves[i], &rank->slices[i]);
    }
    model.limits = (struct weft_model_limits){.token_count_max = token_count_max(rank),
                                              .logit_row_max = token_count_max(rank),
                                              .page_count = PAGES,
                                              .kv_dtype = options->kv_dtype};
    comm.sum_count_max = weft_model_sum_count_max(&rank->config, &model.limits);
    comm.gather_size_max = rank->config.vocab_size * sizeof(float);
    RANK_CHECK(rank, weft_device_open(&device, &rank->device) == WEFT_OK);
    model.device = rank->device;
    RANK_CHECK(rank, weft_comm_open(rank->bootstrap, &comm, &rank->comm) == WEFT_OK);
    if (options->is_streamed) {
        model.stream = rank->comm;
        model.folder = rank->rank == 0 ? options->folder : "/nonexistent";
    }
    RANK_CHECK(rank, weft_model_open(&model, &rank->model) == WEFT_OK);
    if (rank->rank == 0) {
        weft_model_load_stats(rank->model, &rank->result->read_size, &(uint64_t){0});
    }
    rank->local = calloc(rank->config.vocab_size, sizeof(float));
    rank->gathered = calloc(rank->config.vocab_size, sizeof(float));
    rank->tokens = calloc(rank->golden->prompt_count + rank->golden->token_count + 1, sizeof(int32_t));
    RANK_CHECK(rank, rank->local != NULL && rank->gathered != NULL && rank->tokens != NULL);
    memcpy(rank->tokens, rank->golden->prompt, rank->golden->prompt_count * sizeof(int32_t));
    return 0;
}

static void close_rank(struct rank *rank)
{
    free(rank->local);
    free(rank->gathered);
    free(rank->tokens);
    weft_model_close(&rank->model);
    if (rank->comm != NULL) {
        weft_comm_close(&rank->comm);
    }
    if (rank->device != NULL) {
        weft_device_close(&rank->device);
    }
}

/* gathered <- every rank's part of one row, on every rank. */
static int gather_row(struct rank *rank)
{
    size_t sizes[RANK_MAX];

    for (uint32_t i = 0; i < rank->options->rank_count; i++) {
        sizes[i] = weft_range_count(rank->slices[i].vocab) * sizeof(float);
    }
    RANK_CHECK(rank, weft_comm_all_gather_host(rank->comm, rank->local, sizes, rank->gathered) == WEFT_OK);
    return 0;
}

static int32_t best_of(const float *row, uint32_t count)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < count; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return (int32_t)best;
}

/* Runs positions [position, position + count) of the golden sequence; its logits into the result, the next token. */
static int step(struct rank *rank, uint32_t position, uint32_t count)
{
    uint32_t pages[2][PAGES / 2];
    struct weft_batch_sequence sequences[2];
    int32_t ids[2 * TOKEN_MAX];
    uint32_t rows[TOKEN_MAX];
    uint32_t sequence_count = rank->options->is_mixed ? 2 : 1;
    struct weft_forward_args args = {.comm = rank->comm, .token_ids = ids, .logit_rows = rows};
    uint32_t wanted[TOKEN_MAX]; /* of the count, in the order of rows */
    float *logits = NULL;
    uint32_t vocab = rank->config.vocab_size, width = weft_range_count(rank->slices[rank->rank].vocab);

    for (uint32_t i = 0; i < PAGES; i++) { /* out of order, and the two sequences' interleaved */
        pages[i % 2][i / 2] = (i * 37 + 11) % PAGES;
    }
    for (uint32_t s = 0; s < sequence_count; s++) {
        sequences[s] = (struct weft_batch_sequence){.token_begin = s * count,
                                                    .token_count = count,
                                                    .position = position,
                                                    .page_count = PAGES / 2,
                                                    .pages = pages[s]};
    }
    for (uint32_t i = 0; i < count; i++) { /* the golden sequence comes last, so that its rows move */
        int32_t id = rank->tokens[position + i];
        ids[(sequence_count - 1) * count + i] = id;
        if (!rank->options->is_sparse || position + i + 1 >= rank->golden->prompt_count) {
            rows[args.logit_row_count] = (sequence_count - 1) * count + i;
            wanted[args.logit_row_count++] = i;
        }
        if (sequence_count == 2) {
            ids[i] = (int32_t)vocab - 1 - id;
        }
    }
    args.batch = (struct weft_batch){
        .token_count = count * sequence_count, .sequence_count = sequence_count, .sequences = sequences};
    RANK_CHECK(rank, weft_model_forward(rank->model, &args, &logits) == WEFT_OK);
    RANK_CHECK(rank, weft_device_sync(rank->device) == WEFT_OK);
    for (uint32_t i = 0; i < args.logit_row_count; i++) {
        RANK_CHECK(rank, weft_device_read(rank->device, rank->local, logits + (size_t)i * width,
                                          width * sizeof(float)) == WEFT_OK);
        if (gather_row(rank) != 0) {
            return -1;
        }
        if (rank->rank == 0) {
            memcpy(rank->result->logits + (size_t)(position + wanted[i]) * vocab, rank->gathered,
                   vocab * sizeof(float));
        }
    }
    if (position + count >= rank->golden->prompt_count) {
        rank->tokens[position + count] = best_of(rank->gathered, vocab);
    }
    return 0;
}

static int run_rank(struct rank *rank)
{
    uint32_t prompt = rank->golden->prompt_count, total = prompt + rank->golden->token_count;

    if (open_rank(rank) != 0) {
        return -1;
    }
    for (uint32_t position = 0; position < total;) {
        uint32_t left = position < prompt ? prompt - position : 1;
        uint32_t count = left < rank->options->chunk ? left : rank->options->chunk;
        if (step(rank, position, count) != 0) {
            return -1;
        }
        position += count;
    }
    if (rank->rank == 0) {
        memcpy(rank->result->tokens, rank->tokens + prompt, rank->golden->token_count * sizeof(int32_t));
    }
    return 0;
}

static void *rank_main(void *context)
{
    struct rank *rank = context;

    weft_log_set_rank((int)rank->rank);
    if (run_rank(rank) != 0) {
        weft_bootstrap_abort(rank->bootstrap, rank->rank, "test failed");
    }
    close_rank(rank);
    return NULL;
}

void group_run(const struct group_options *options, const struct golden *golden, struct group_result *result)
{
    struct weft_bootstrap *bootstraps[RANK_MAX] = {NULL};
    struct rank *ranks = calloc(options->rank_count, sizeof(*ranks));

    assert_non_null(ranks);
    assert_true(options->rank_count <= RANK_MAX && options->chunk <= TOKEN_MAX);
    result->vocab_size = golden->vocab_size;
    result->position_count = golden->prompt_count + golden->token_count;
    result->logits = calloc((size_t)result->position_count * golden->vocab_size, sizeof(float));
    result->tokens = calloc(golden->token_count, sizeof(int32_t));
    assert_true(result->logits != NULL && result->tokens != NULL);
    assert_int_equal(weft_bootstrap_open_threads(options->rank_count, bootstraps), WEFT_OK);
    for (uint32_t i = 0; i < options->rank_count; i++) {
        ranks[i].options = options;
        ranks[i].golden = golden;
        ranks[i].result = result;
        ranks[i].bootstrap = bootstraps[i];
        ranks[i].rank = i;
        assert_int_equal(weft_tree_deal(LEAF_COUNT, options->rank_count, options->shares, ranks[i].leaves), 0);
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (uint32_t i = 0; i < options->rank_count; i++) {
        assert_int_equal(pthread_join(ranks[i].thread, NULL), 0);
    }
    for (uint32_t i = 0; i < options->rank_count; i++) {
        weft_bootstrap_close(&bootstraps[i]);
    }
    for (uint32_t i = 0; i < options->rank_count; i++) {
        if (ranks[i].line != 0) {
            fail_msg("%s: rank %u of %u failed at group.c:%d", options->folder, i, options->rank_count, ranks[i].line);
        }
    }
    free(ranks);
}

void group_result_fini(struct group_result *result)
{
    free(result->logits);
    free(result->tokens);
}
