/* Slices tile the model for every split, planned memory is what is allocated, and ranks read only what they hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "support.h"
#include "weft/log.h"

static const char *const folders[] = {"llama2",       "llama3", "mistral", "qwen2",
                                      "qwen2-window", "qwen3",  "linear",  "yarn"};
enum { FOLDER_COUNT = sizeof(folders) / sizeof(folders[0]) };

/* ---- what the model allocates: its calls of the device pass through here (--wrap) ---- */

static size_t allocated_size; /* weft_device_alloc */
static size_t matrices_size;  /* weft_matrix_open */
static size_t kv_caches_size; /* weft_kv_cache_open */
static int64_t live_count;    /* objects not given back */
static int64_t fail_at;       /* 0: never; n: the n-th allocation from now fails */

void *__real_weft_device_alloc(struct weft_device *device, size_t size);
void __real_weft_device_free(struct weft_device *device, void *memory);
enum weft_status __real_weft_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                         struct weft_matrix **out);
void __real_weft_matrix_close(struct weft_device *device, struct weft_matrix **matrix);
enum weft_status __real_weft_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                           struct weft_kv_cache **out);
void __real_weft_kv_cache_close(struct weft_device *device, struct weft_kv_cache **cache);

void *__wrap_weft_device_alloc(struct weft_device *device, size_t size);
void __wrap_weft_device_free(struct weft_device *device, void *memory);
enum weft_status __wrap_weft_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                         struct weft_matrix **out);
void __wrap_weft_matrix_close(struct weft_device *device, struct weft_matrix **matrix);
enum weft_status __wrap_weft_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                           struct weft_kv_cache **out);
void __wrap_weft_kv_cache_close(struct weft_device *device, struct weft_kv_cache **cache);

static int is_failing(void)
{
    return fail_at > 0 && --fail_at == 0;
}

void *__wrap_weft_device_alloc(struct weft_device *device, size_t size)
{
    if (is_failing()) {
        return NULL;
    }
    allocated_size += size;
    live_count++;
    return __real_weft_device_alloc(device, size);
}

void __wrap_weft_device_free(struct weft_device *device, void *memory)
{
    live_count -= memory != NULL;
    __real_weft_device_free(device, memory);
}

enum weft_status __wrap_weft_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                         struct weft_matrix **out)
{
    if (is_failing()) {
        return WEFT_ERR_MEMORY;
    }
    matrices_size += weft_matrix_size(device, desc);
    live_count++;
    return __real_weft_matrix_open(device, desc, out);
}

void __wrap_weft_matrix_close(struct weft_device *device, struct weft_matrix **matrix)
{
    live_count--;
    __real_weft_matrix_close(device, matrix);
}

enum weft_status __wrap_weft_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                           struct weft_kv_cache **out)
{
    if (is_failing()) {
        return WEFT_ERR_MEMORY;
    }
    kv_caches_size += weft_kv_cache_size(device, desc);
    live_count++;
    return __real_weft_kv_cache_open(device, desc, out);
}

void __wrap_weft_kv_cache_close(struct weft_device *device, struct weft_kv_cache **cache)
{
    live_count--;
    __real_weft_kv_cache_close(device, cache);
}

static struct weft_device *open_device(void)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_device *device = NULL;

    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    return device;
}

static void read_config(const char *name, char *folder, struct weft_model_config *config)
{
    snprintf(folder, 4096, "%s/%s", GOLDEN_FOLDER, name);
    assert_int_equal(weft_model_config_read(folder, config), WEFT_OK);
}

static const struct weft_model_limits limits = {
    .token_count_max = 9, .logit_row_max = 5, .page_count = 7, .kv_dtype = WEFT_BF16};

static enum weft_status open_model(const char *folder, const struct weft_model_config *config,
                                   const struct weft_slice *slices, uint32_t rank, uint32_t rank_count,
                                   struct weft_device *device, struct weft_model **out)
{
    const struct weft_model_options options = {.folder = folder,
                                               .config = config,
                                               .slices = slices,
                                               .rank = rank,
                                               .rank_count = rank_count,
                                               .limits = limits,
                                               .device = device};

    return weft_model_open(&options, out);
}

static void test_memory_is_what_was_planned(void **state)
{
    struct weft_device *device = open_device();
    char folder[4096];
    struct weft_model_config config;
    struct weft_range leaves[8];
    struct weft_slice slices[8];

    (void)state;
    for (size_t i = 0; i < FOLDER_COUNT * 3; i++) {
        uint32_t rank_count = i % 3 == 0 ? 1 : (i % 3 == 1 ? 3 : 8);
        read_config(folders[i / 3], folder, &config);
        assert_int_equal(weft_tree_deal(8, rank_count, NULL, leaves), 0);
        for (uint32_t rank = 0; rank < rank_count; rank++) {
            weft_slice_init(&config, 8, leaves[rank], &slices[rank]);
        }
        for (uint32_t rank = 0; rank < rank_count; rank++) {
            struct weft_model_memory memory;
            struct weft_model *model = NULL;
            weft_model_memory(device, &config, &slices[rank], &limits, &memory);
            allocated_size = matrices_size = kv_caches_size = 0;
            assert_int_equal(open_model(folder, &config, slices, rank, rank_count, device, &model), WEFT_OK);
            assert_int_equal(memory.kv_cache, kv_caches_size);
            assert_int_equal(memory.kv_page * limits.page_count, kv_caches_size);
            assert_int_equal(memory.weights + memory.activations, allocated_size + matrices_size);
            assert_true(memory.weights >= matrices_size);
            weft_model_close(&model);
            assert_int_equal(live_count, 0);
        }
    }
    weft_device_close(&device);
}

/* Whichever allocation fails: an error, and everything given back. */
static void test_any_allocation_may_fail(void **state)
{
    struct weft_device *device = open_device();
    char folder[4096];
    struct weft_model_config config;
    struct weft_slice slice;
    struct weft_model *model = NULL;
    int64_t n = 1;

    (void)state;
    read_config("linear", folder, &config);
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
    log_capture_begin();
    for (enum weft_status status = WEFT_ERR_MEMORY; status != WEFT_OK; n++) {
        fail_at = n;
        status = open_model(folder, &config, &slice, 0, 1, device, &model);
        assert_true(status == WEFT_OK || (status == WEFT_ERR_MEMORY && model == NULL && live_count == 0));
    }
    log_capture_end();
    assert_true(n > 15);
    fail_at = 0;
    weft_model_close(&model);
    weft_device_close(&device);
}

/* The ranks' reads add up to the files' tensors, but for what every rank needs and KV heads that two ranks share. */
static void test_each_rank_reads_its_share(void **state)
{
    struct weft_device *device = open_device();
    char folder[4096];
    struct weft_model_config config;
    struct weft_slice slices[2], whole;
    struct weft_model *model = NULL;
    uint64_t total, parts = 0, bytes, time_ns;

    (void)state;
    read_config("llama2", folder, &config);
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &whole);
    weft_slice_init(&config, 8, (struct weft_range){0, 4}, &slices[0]);
    weft_slice_init(&config, 8, (struct weft_range){4, 8}, &slices[1]);
    assert_int_equal(open_model(folder, &config, &whole, 0, 1, device, &model), WEFT_OK);
    weft_model_load_stats(model, &total, &time_ns);
    weft_model_close(&model);
    assert_int_equal(total, config.parameter_count * sizeof(float));
    for (uint32_t rank = 0; rank < 2; rank++) {
        assert_int_equal(open_model(folder, &config, slices, rank, 2, device, &model), WEFT_OK);
        weft_model_load_stats(model, &bytes, &time_ns);
        parts += bytes;
        weft_model_close(&model);
    }
    /* twice: norms, and the short gaps of column slices, at most the whole of o_proj and down_proj */
    uint64_t norms = (config.layer_count * 2 + 1) * config.width * sizeof(float);
    uint64_t columns = (uint64_t)config.layer_count * config.width *
                       (config.head_count * config.head_size + config.ffn_width) * sizeof(float);
    assert_true(parts >= total + norms && parts <= total + norms + columns);
    weft_device_close(&device);
}

static void check_slices(const struct weft_model_config *config, uint32_t leaf_count, uint32_t rank_count,
                         const uint32_t *shares)
{
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_slice slice, last = {0};
    uint32_t group_size = config->head_count / config->kv_head_count;

    assert_int_equal(weft_tree_deal(leaf_count, rank_count, shares, leaves), 0);
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        weft_slice_init(config, leaf_count, leaves[rank], &slice);
        assert_int_equal(slice.heads.begin, last.heads.end);
        assert_int_equal(slice.ffn.begin, last.ffn.end);
        assert_int_equal(slice.vocab.begin, last.vocab.end);
        assert_true(slice.ffn.begin % 32 == 0 || slice.ffn.begin == config->ffn_width);
        assert_true(slice.vocab.begin % 16 == 0 || slice.vocab.begin == config->vocab_size);
        if (weft_range_count(slice.heads) == 0) {
            assert_int_equal(weft_range_count(slice.kv_heads), 0);
        } else {
            assert_int_equal(slice.kv_heads.begin, slice.heads.begin / group_size);
            assert_int_equal(slice.kv_heads.end, (slice.heads.end - 1) / group_size + 1);
        }
        last = slice;
    }
    assert_int_equal(last.heads.end, config->head_count);
    assert_int_equal(last.ffn.end, config->ffn_width);
    assert_int_equal(last.vocab.end, config->vocab_size);
}

static void test_slices_tile_the_model(void **state)
{
    static const uint32_t shapes[][4] = {/* heads, KV heads, FFN, vocabulary */
                                         {32, 8, 14336, 128256}, {14, 2, 4864, 151936},  {1, 1, 1, 1},
                                         {3, 3, 33, 17},         {28, 4, 18944, 152064}, {64, 8, 28672, 31}};
    static const uint32_t shares[] = {5, 1, 1, 3, 1, 9, 1, 1};
    struct weft_model_config config = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        config.head_count = shapes[i][0];
        config.kv_head_count = shapes[i][1];
        config.ffn_width = shapes[i][2];
        config.vocab_size = shapes[i][3];
        for (uint32_t leaf_count = 1; leaf_count <= WEFT_LEAF_COUNT_MAX; leaf_count++) {
            for (uint32_t rank_count = 1; rank_count <= leaf_count; rank_count++) {
                check_slices(&config, leaf_count, rank_count, NULL);
                if (rank_count <= 8) {
                    check_slices(&config, leaf_count, rank_count, shares);
                }
            }
        }
    }
}

/* Tied embeddings in every form: one matrix unless two different tensors are there. */
static void test_tied_forms(void **state)
{
    static const struct {
        const char *folder;
        int is_tied;
    } cases[] = {{"llama2", 0}, {"llama3", 1}, {"qwen2", 1}, {"qwen2-window", 1}, {"linear", 0}, {"yarn", 0}};
    struct weft_model_config config;
    char folder[4096];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        read_config(cases[i].folder, folder, &config);
        assert_int_equal(config.is_tied, cases[i].is_tied);
    }
    read_config("qwen3", folder, &config); /* q, v bf16 and k f16; gate f32 and up bf16; head f16 */
    assert_int_equal(config.dtypes.qkv[0], WEFT_F32);
    assert_int_equal(config.dtypes.gate_up[1], WEFT_F32);
    assert_int_equal(config.dtypes.down[1], WEFT_BF16);
    assert_int_equal(config.dtypes.embedding, WEFT_BF16);
    assert_int_equal(config.dtypes.head, WEFT_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_what_was_planned),
        cmocka_unit_test(test_any_allocation_may_fail),
        cmocka_unit_test(test_each_rank_reads_its_share),
        cmocka_unit_test(test_slices_tile_the_model),
        cmocka_unit_test(test_tied_forms),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
