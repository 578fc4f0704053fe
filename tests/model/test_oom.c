/* Opening a model with the n-th allocation on the host failing, for every n: an error that is said once, nothing lost.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "fp8_model.h"
#include "model/config.h"
#include "model/model.h"
#include "support.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static int64_t fail_at; /* 0: never; n: the n-th allocation from now fails */

static int is_failing(void)
{
    return fail_at > 0 && --fail_at == 0;
}

void *__wrap_malloc(size_t size)
{
    return is_failing() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return is_failing() ? NULL : __real_calloc(count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return is_failing() ? NULL : __real_aligned_alloc(alignment, size);
}

static enum weft_status open_and_close(const char *folder, struct weft_device *device)
{
    struct weft_model_config config;
    struct weft_slice slice;
    struct weft_model *model = NULL;

    WEFT_TRY(weft_model_config_read(folder, &config));
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
    const struct weft_model_options options = {.folder = folder,
                                               .config = &config,
                                               .slices = &slice,
                                               .rank_count = 1,
                                               .limits = {.token_count_max = 1, .logit_row_max = 1, .page_count = 1},
                                               .device = device};
    enum weft_status status = weft_model_open(&options, &model);
    weft_model_close(&model);
    return status;
}

/* n-th allocation, for every n. */
static void fail_each(const char *folder)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_device *device = NULL;
    int64_t n = 0;

    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    json_set_alloc_funcs(__wrap_malloc, free);
    log_capture_begin();
    for (enum weft_status status = WEFT_ERR_MEMORY; status != WEFT_OK;) {
        int before = log_capture_count();
        fail_at = ++n;
        status = open_and_close(folder, device);
        if (status != WEFT_OK && log_capture_count() != before + 1) {
            fail_msg("allocation %d: status %d, %d lines, the last: %s", (int)n, (int)status,
                     log_capture_count() - before, log_capture_line());
        }
        if (status == WEFT_OK && fail_at == 0) {
            status = WEFT_ERR_MEMORY; /* something could do without: go on */
        }
    }
    log_capture_end();
    fail_at = 0;
    print_message("%d allocations, each failed once\n", (int)n - 1);
    assert_true(n > 100);
    weft_device_close(&device);
}

static void test_any_host_allocation_may_fail(void **state)
{
    (void)state;
    fail_each(GOLDEN_FOLDER "/llama3");
}

static void test_any_host_allocation_may_fail_with_fp8(void **state)
{
    static const struct fp8_form form = {
        .golden = "llama3",
        .config = "{\"quant_method\": \"fp8\", \"weight_block_size\": [32, 32]}",
        .ending = "_scale_inv",
        .block_rows = 32,
        .block_cols = 32,
        .scale_type = "F32",
    };
    char folder[4096];

    (void)state;
    fp8_model_make(&form, folder, NULL);
    fail_each(folder);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_host_allocation_may_fail),
        cmocka_unit_test(test_any_host_allocation_may_fail_with_fp8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
