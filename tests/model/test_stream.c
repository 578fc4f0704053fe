/*
 * Weights that rank 0 reads and sends: the same logits as when every rank reads, each byte of the checkpoint read once,
 * no folder anywhere else; and messages that are damaged, out of order or about something else are refused in one line.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <glob.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fp8_model.h"
#include "group.h"
#include "model/model.h"
#include "support.h"
#include "weft/comm.h"
#include "weft/log.h"

/* ---- the same model ---- */

static const char *const families[] = {"llama2", "llama3", "mistral", "qwen2", "qwen3", NULL};
static const uint32_t uneven[] = {3, 1, 1, 2, 1, 1, 1, 1};

/* Bytes of the checkpoint's files, headers included. */
static uint64_t checkpoint_size(const char *folder)
{
    char pattern[4200];
    glob_t found;
    uint64_t size = 0;

    snprintf(pattern, sizeof(pattern), "%s/model*.safetensors", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct stat info;
        assert_int_equal(stat(found.gl_pathv[i], &info), 0);
        size += (uint64_t)info.st_size;
    }
    globfree(&found);
    return size;
}

static void test_streamed_is_read(void **state)
{
    static const uint32_t rank_counts[] = {1, 2, 3, 5, 8};

    (void)state;
    for (int f = 0; families[f] != NULL; f++) {
        char folder[4096];
        struct golden golden;
        struct group_result wanted;

        snprintf(folder, sizeof(folder), "%s/%s", GOLDEN_FOLDER, families[f]);
        golden_open(folder, &golden);
        golden.token_count = golden.token_count > 4 ? 4 : golden.token_count;
        struct group_options options = {.folder = folder, .rank_count = 1, .thread_count = 1, .chunk = 64};
        group_run(&options, &golden, &wanted);
        options.is_streamed = true;
        for (size_t i = 0; i < sizeof(rank_counts) / sizeof(rank_counts[0]); i++) {
            struct group_result got;

            options.rank_count = rank_counts[i];
            options.shares = i % 2 == 1 ? uneven : NULL;
            group_run(&options, &golden, &got);
            assert_memory_equal(got.logits, wanted.logits, (size_t)got.position_count * got.vocab_size * sizeof(float));
            assert_memory_equal(got.tokens, wanted.tokens, golden.token_count * sizeof(int32_t));
            assert_true(got.read_size > 0 && got.read_size <= checkpoint_size(folder));
            group_result_fini(&got);
        }
        group_result_fini(&wanted);
        golden_close(&golden);
    }
}

/* ---- what arrives is not what was sent ---- */

enum { LEAF_COUNT = 8, HEADER_SIZE = 32 };

/* Changes one 32-bit word of what rank 1 receives: of the nth header, or of the nth message's bytes. */
struct damage {
    bool is_header;
    uint32_t nth;
    uint32_t word;
    uint32_t flip;
};

static _Thread_local const struct damage *damage;
static _Thread_local uint32_t seen;

enum weft_status __real_weft_comm_recv(struct weft_comm *comm, uint32_t peer, void *data, size_t size);
enum weft_status __wrap_weft_comm_recv(struct weft_comm *comm, uint32_t peer, void *data, size_t size);

enum weft_status __wrap_weft_comm_recv(struct weft_comm *comm, uint32_t peer, void *data, size_t size)
{
    enum weft_status status = __real_weft_comm_recv(comm, peer, data, size);

    if (status == WEFT_OK && damage != NULL && (size == HEADER_SIZE) == damage->is_header) {
        if (seen++ == damage->nth) {
            ((uint32_t *)data)[damage->word] ^= damage->flip;
        }
    }
    return status;
}

struct side {
    const struct damage *damage;
    const char *folder; /* rank 0's */
    struct weft_bootstrap *bootstrap;
    uint32_t rank;
    enum weft_status status;
    char line[512]; /* of this rank's error */
    pthread_t thread;
};

static void open_and_close(struct side *side)
{
    struct weft_model_config *config = malloc(sizeof(*config));
    struct weft_device *device = NULL;
    struct weft_comm *comm = NULL;
    struct weft_model *model = NULL;
    struct weft_slice slices[2];
    struct weft_range leaves[2] = {{0, 4}, {4, LEAF_COUNT}};
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_comm_options comm_options = {
        .timeout_ms = 20000, .leaf_count = LEAF_COUNT, .leaves = leaves, .wait = WEFT_WAIT_YIELD};
    struct weft_model_options options = {
        .folder = side->rank == 0 ? side->folder : "/nonexistent",
        .config = config,
        .slices = slices,
        .rank = side->rank,
        .rank_count = 2,
        .limits = {.token_count_max = 8, .logit_row_max = 8, .page_count = 4, .kv_dtype = WEFT_F32}};

    side->status = weft_model_config_read(side->folder, config);
    for (uint32_t r = 0; r < 2; r++) {
        weft_slice_init(config, LEAF_COUNT, leaves[r], &slices[r]);
    }
    comm_options.sum_count_max = weft_model_sum_count_max(config, &options.limits);
    if (side->status == WEFT_OK) {
        side->status = weft_device_open(&device_options, &device);
    }
    if (side->status == WEFT_OK) {
        side->status = weft_comm_open(side->bootstrap, &comm_options, &comm);
    }
    if (side->status == WEFT_OK) {
        options.device = device;
        options.stream = comm;
        damage = side->damage;
        seen = 0;
        side->status = weft_model_open(&options, &model);
        damage = NULL;
    }
    snprintf(side->line, sizeof(side->line), "%s", side->status == WEFT_OK ? "" : weft_log_last_error());
    if (side->status != WEFT_OK) {
        weft_bootstrap_abort(side->bootstrap, side->rank, side->line);
    }
    weft_model_close(&model);
    weft_comm_close(&comm);
    weft_device_close(&device);
    free(config);
}

static void *side_main(void *context)
{
    struct side *side = context;

    weft_log_set_rank((int)side->rank);
    (void)weft_log_set_quiet(true);
    open_and_close(side);
    return NULL;
}

/* Runs both ranks; sides_out[1] has what the receiver made of it. */
static void run_sides(const char *folder, const struct damage *done_to_it, struct side sides_out[2])
{
    struct weft_bootstrap *bootstraps[2];

    assert_int_equal(weft_bootstrap_open_threads(2, bootstraps), WEFT_OK);
    for (uint32_t r = 0; r < 2; r++) {
        sides_out[r] = (struct side){
            .damage = r == 1 ? done_to_it : NULL, .folder = folder, .bootstrap = bootstraps[r], .rank = r};
        assert_int_equal(pthread_create(&sides_out[r].thread, NULL, side_main, &sides_out[r]), 0);
    }
    for (uint32_t r = 0; r < 2; r++) {
        assert_int_equal(pthread_join(sides_out[r].thread, NULL), 0);
    }
    for (uint32_t r = 0; r < 2; r++) {
        weft_bootstrap_close(&bootstraps[r]);
    }
}

static void test_damage_is_noticed(void **state)
{
    static const struct {
        struct damage damage;
        enum weft_status status;
        const char *text;
    } cases[] = {
        {{false, 0, 0, 1}, WEFT_ERR_IO, "arrived damaged: checksum"},
        {{false, 3, 5, 0x80000000U}, WEFT_ERR_IO, "arrived damaged: checksum"},
        {{true, 1, 6, 1}, WEFT_ERR_IO, "arrived damaged: checksum"}, /* the checksum itself */
        {{true, 1, 0, 0x40000000U}, WEFT_ERR_FORMAT, "expected a tensor of this model"},
        {{true, 1, 1, 0x100}, WEFT_ERR_FORMAT, "expected the next rows"},       /* type */
        {{true, 1, 1, 3}, WEFT_ERR_FORMAT, "expected the next rows"},           /* FP8, of which config.json has none */
        {{true, 1, 2, 0x80000000U}, WEFT_ERR_FORMAT, "expected the next rows"}, /* first */
        {{true, 2, 3, 0x80000000U}, WEFT_ERR_FORMAT, "expected the next rows"}, /* count */
        {{true, 2, 4, 0x4}, WEFT_ERR_FORMAT, "expected whole rows"},            /* size */
        {{true, 2, 0, 0}, WEFT_OK, ""},                                         /* nothing is changed */
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct side sides[2];

        run_sides(GOLDEN_FOLDER "/llama2", &cases[i].damage, sides);
        if (sides[1].status != cases[i].status || strstr(sides[1].line, cases[i].text) == NULL) {
            fail_msg("case %zu: status %d, \"%s\"", i, sides[1].status, sides[1].line);
        }
    }
}

/* An end that comes too early: the second message turned into one. */
static void test_missing_rows_are_noticed(void **state)
{
    struct side sides[2];
    const struct damage nothing = {true, UINT32_MAX, 0, 0};
    struct damage early = {true, 1, 0, 0};

    (void)state;
    for (uint32_t tensor = 0; tensor < 64; tensor++) { /* whichever comes second in the file */
        early.flip = tensor ^ (UINT32_MAX - 2);
        run_sides(GOLDEN_FOLDER "/llama2", &early, sides);
        if (strstr(sides[1].line, "ended the stream with 0 of") != NULL) {
            break;
        }
    }
    assert_non_null(strstr(sides[1].line, "ended the stream with 0 of"));
    assert_int_equal(sides[1].status, WEFT_ERR_FORMAT);
    run_sides(GOLDEN_FOLDER "/llama2", &nothing, sides);
    assert_int_equal(sides[1].status, WEFT_OK);
}

static const struct fp8_form fp8_form = {
    .golden = "llama2",
    .config = "{\"quant_method\": \"fp8\", \"weight_block_size\": [32, 32]}",
    .ending = "_scale_inv",
    .block_rows = 32,
    .block_cols = 32,
    .scale_type = "F32",
    .has_ends = true,
};

/* Rows and scales are one message: the first is the embedding's, of this rank's half of the vocabulary. */
static void test_damaged_fp8_is_noticed(void **state)
{
    static const struct {
        struct damage damage;
        enum weft_status status;
        const char *text;
    } cases[] = {
        {{false, 0, 0, 1}, WEFT_ERR_IO, "arrived damaged: checksum"},   /* a scale */
        {{false, 0, 300, 1}, WEFT_ERR_IO, "arrived damaged: checksum"}, /* weights */
        {{true, 1, 1, 3}, WEFT_ERR_FORMAT, "expected FP8"},             /* f32 of that size */
        {{true, 1, 4, 4}, WEFT_ERR_FORMAT, "expected whole rows"},      /* a scale more, or less */
        {{true, 1, 0, 0}, WEFT_OK, ""},
    };
    char folder[4096];

    (void)state;
    fp8_model_make(&fp8_form, folder, NULL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct side sides[2];

        run_sides(folder, &cases[i].damage, sides);
        if (sides[1].status != cases[i].status || strstr(sides[1].line, cases[i].text) == NULL) {
            fail_msg("case %zu: status %d, \"%s\"", i, sides[1].status, sides[1].line);
        }
    }
    folder_remove(folder);
}

/* Rank 0 sees it before anybody gets it, also in what is not its own. */
static void test_nan_is_found_by_who_reads(void **state)
{
    struct fp8_form form = fp8_form;
    struct side sides[2];
    char folder[4096];

    (void)state;
    form.damage = FP8_NAN;
    fp8_model_make(&form, folder, NULL);
    run_sides(folder, NULL, sides);
    assert_int_equal(sides[0].status, WEFT_ERR_FORMAT);
    assert_non_null(strstr(sides[0].line, "row 3, column 5: expected a number, found NaN"));
    assert_int_not_equal(sides[1].status, WEFT_OK);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streamed_is_read),          cmocka_unit_test(test_damage_is_noticed),
        cmocka_unit_test(test_missing_rows_are_noticed),  cmocka_unit_test(test_damaged_fp8_is_noticed),
        cmocka_unit_test(test_nan_is_found_by_who_reads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
