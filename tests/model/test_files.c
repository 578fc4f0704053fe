/*
 * Damaged model folders: headers, indexes, and every file of small models truncated and corrupted everywhere. Always
 * one clear line and an error, or a model that is still whole; never a crash.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/model.h"
#include "support.h"

/* A file with this header and data_size bytes of data. */
static size_t make_file(const char *header, size_t data_size, unsigned char *bytes, size_t capacity)
{
    size_t length = strlen(header);

    assert_true(8 + length + data_size <= capacity);
    memset(bytes, 0, capacity);
    bytes[0] = (unsigned char)(length & 0xff);
    bytes[1] = (unsigned char)(length >> 8);
    memcpy(bytes + 8, header, length);
    return 8 + length + data_size;
}

static enum weft_status parse(const void *bytes, size_t size, uint64_t file_size, size_t *count_out)
{
    struct weft_arena arena = {0};
    struct weft_tensor *tensors;
    enum weft_status status =
        weft_safetensors_parse("x.safetensors", bytes, size, file_size, &arena, &tensors, count_out);

    weft_arena_fini(&arena);
    return status;
}

static void test_header_damage_is_named(void **state)
{
    static const struct {
        const char *header;
        size_t data_size;
        const char *words;
    } cases[] = {
        {"[]", 0, "expected a JSON object"},
        {"{ ", 0, "not valid JSON"},
        {"{} x", 0, "not valid JSON"},
        {"{}", 1, "the tensors end at byte 10, the file at byte 11"},
        {"{\"a\":1}", 0, "a: expected an object"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "a: dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "a: dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, "a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8.0]}}", 8, "a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "found [8, 0]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "found [-8, 0]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "inside the file's 7 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9223372036854775807]}}", 8, "inside the file's"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9223372036854775808]}}", 8, "not valid JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "F32 [3]: expected 12 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}", 8, "more than"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "begin at byte"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "b: bytes from"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
         16, "duplicate"},
    };
    unsigned char bytes[1024];
    size_t count;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t size = make_file(cases[i].header, cases[i].data_size, bytes, sizeof(bytes));
        log_capture_begin();
        enum weft_status status = parse(bytes, size, size, &count);
        log_capture_end();
        if (status != WEFT_ERR_FORMAT || strstr(log_capture_line(), cases[i].words) == NULL ||
            log_capture_count() != 1) {
            fail_msg("%s: status %d, line: %s", cases[i].header, (int)status, log_capture_line());
        }
        assert_non_null(strstr(log_capture_line(), "x.safetensors"));
    }
}

static void test_header_length_is_checked(void **state)
{
    static const uint64_t lengths[] = {0, 1, 3, 1000, 100000001, UINT64_MAX, UINT64_MAX - 7};
    unsigned char bytes[16] = {0};
    size_t count;

    (void)state;
    bytes[8] = '{';
    bytes[9] = '}';
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        for (int b = 0; b < 8; b++) {
            bytes[b] = (unsigned char)(lengths[i] >> (8 * b));
        }
        log_capture_begin();
        assert_int_equal(parse(bytes, 10, 10, &count), WEFT_ERR_FORMAT);
        log_capture_end();
        assert_non_null(strstr(log_capture_line(), "header length"));
    }
    for (size_t size = 0; size < 8; size++) {
        log_capture_begin();
        assert_int_equal(parse(bytes, size, size, &count), WEFT_ERR_FORMAT);
        log_capture_end();
    }
}

static void test_odd_but_valid_headers(void **state)
{
    unsigned char bytes[1024];
    size_t count, size;

    (void)state;
    size = make_file("{\"__metadata__\":{\"format\":\"pt\"}}  ", 0, bytes, sizeof(bytes));
    assert_int_equal(parse(bytes, size, size, &count), WEFT_OK);
    assert_int_equal(count, 0);
    /* types that we do not have, empty tensors and scalars are no damage */
    size = make_file("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]},"
                     "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[2,10]},"
                     "\"c\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[2,2]}}",
                     10, bytes, sizeof(bytes));
    assert_int_equal(parse(bytes, size, size, &count), WEFT_OK);
    assert_int_equal(count, 3);
}

/* ---- whole folders ---- */

/* Reads the configuration and headers of a folder; on success also every weight, at two ranks. Returns the status. */
static enum weft_status open_folder(const char *folder)
{
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_model_config config;
    struct weft_slice slices[2];
    struct weft_device *device = NULL;
    struct weft_model *model = NULL;

    WEFT_TRY(weft_model_config_read(folder, &config));
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    weft_slice_init(&config, 8, (struct weft_range){0, 5}, &slices[0]);
    weft_slice_init(&config, 8, (struct weft_range){5, 8}, &slices[1]);
    const struct weft_model_options options = {.folder = folder,
                                               .config = &config,
                                               .slices = slices,
                                               .rank = 1,
                                               .rank_count = 2,
                                               .limits = {.token_count_max = 1, .logit_row_max = 1, .page_count = 1},
                                               .device = device};
    enum weft_status status = weft_model_open(&options, &model);
    weft_model_close(&model);
    weft_device_close(&device);
    return status;
}

/* One error and one line about it, or success and silence. */
static enum weft_status open_quietly(const char *folder, const char *what, size_t at)
{
    log_capture_begin();
    enum weft_status status = open_folder(folder);
    log_capture_end();
    if (log_capture_count() != (status == WEFT_OK ? 0 : 1)) {
        fail_msg("%s at %zu: status %d with %d lines: %s", what, at, (int)status, log_capture_count(),
                 log_capture_line());
    }
    return status;
}

static void truncate_everywhere(const char *folder, const char *name, size_t step)
{
    char path[4200];
    size_t size;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unsigned char *bytes = file_bytes(path, &size);
    size_t end = size;
    while (end > 0 && (bytes[end - 1] == '\n' || bytes[end - 1] == ' ')) {
        end--; /* JSON without its last line end is whole */
    }
    for (size_t length = 0; length < end; length += length < 64 || length + 64 > end ? 1 : step) {
        file_write(path, bytes, length);
        if (open_quietly(folder, name, length) == WEFT_OK) {
            fail_msg("%s cut to %zu of %zu bytes was accepted", name, length, size);
        }
    }
    file_write(path, bytes, size);
    free(bytes);
    assert_int_equal(open_quietly(folder, name, size), WEFT_OK);
}

/* Every byte of the first `count`, replaced by several others. */
static void corrupt_everywhere(const char *folder, const char *name, size_t count)
{
    static const unsigned char values[] = {0, ' ', '"', '9', '-', '}', 0xff};
    char path[4200];
    size_t size, refused = 0;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unsigned char *bytes = file_bytes(path, &size);
    for (size_t at = 0; at < size && at < count; at++) {
        unsigned char right = bytes[at];
        bytes[at] = values[at % sizeof(values)];
        file_write(path, bytes, size);
        refused += open_quietly(folder, name, at) != WEFT_OK;
        bytes[at] = right;
    }
    file_write(path, bytes, size);
    free(bytes);
    assert_true(refused > 0);
    assert_int_equal(open_quietly(folder, name, size), WEFT_OK);
}

static void test_truncated_files(void **state)
{
    char folder[4096];

    (void)state;
    folder_copy(GOLDEN_FOLDER "/llama3", folder);
    truncate_everywhere(folder, "config.json", 1);
    truncate_everywhere(folder, "model.safetensors.index.json", 7);
    truncate_everywhere(folder, "model-00001-of-00003.safetensors", 997);
    truncate_everywhere(folder, "model-00003-of-00003.safetensors", 997);
    folder_remove(folder);
}

static void test_corrupted_files(void **state)
{
    char folder[4096];

    (void)state;
    folder_copy(GOLDEN_FOLDER "/llama3", folder);
    corrupt_everywhere(folder, "config.json", SIZE_MAX);
    corrupt_everywhere(folder, "model.safetensors.index.json", SIZE_MAX);
    corrupt_everywhere(folder, "model-00002-of-00003.safetensors", 900); /* its header */
    folder_remove(folder);
}

/* Replaces the first `from` in a file of the folder. */
static void edit(const char *folder, const char *name, const char *from, const char *to)
{
    char path[4200];
    size_t size;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unsigned char *bytes = file_bytes(path, &size);
    unsigned char *at = memmem(bytes, size, from, strlen(from));
    assert_non_null(at);
    size_t before = (size_t)(at - bytes), after = size - before - strlen(from);
    unsigned char *edited = malloc(size + strlen(to) + 1);
    assert_non_null(edited);
    memcpy(edited, bytes, before);
    memcpy(edited + before, to, strlen(to));
    memcpy(edited + before + strlen(to), at + strlen(from), after);
    file_write(path, edited, before + strlen(to) + after);
    free(edited);
    free(bytes);
}

static void expect_edit_refused(const char *model, const char *name, const char *from, const char *to,
                                const char *words)
{
    char folder[4096];

    folder_copy(model, folder);
    edit(folder, name, from, to);
    if (open_quietly(folder, name, 0) == WEFT_OK || strstr(log_capture_line(), words) == NULL) {
        fail_msg("%s: %s -> %s: expected \"%s\" in: %s", name, from, to, words, log_capture_line());
    }
    folder_remove(folder);
}

#define INDEX  "model.safetensors.index.json"
#define LLAMA3 GOLDEN_FOLDER "/llama3"
#define LLAMA2 GOLDEN_FOLDER "/llama2"

static void test_folders_that_do_not_fit_together(void **state)
{
    (void)state;
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003", "../model-00002-of-00003", "the name of a file");
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003.safetensors", "/etc/passwd", "the name of a file");
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003.safetensors", "..", "the name of a file");
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003.safetensors", "", "the name of a file");
    expect_edit_refused(LLAMA3, INDEX, "\"model-00002-of-00003.safetensors\"", "3", "the name of a file");
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003.safetensors", "gone.safetensors", "the index names");
    expect_edit_refused(LLAMA3, INDEX, "model-00002-of-00003.safetensors", "config.json", "config.json: header length");
    expect_edit_refused(LLAMA3, INDEX, "\"weight_map\"", "\"weight_mop\"", "weight_map");
    expect_edit_refused(LLAMA3, "model-00001-of-00003.safetensors", "layers.0.self_attn.q_proj",
                        "layers.0.self_attn.Q_proj", "tensor layers.0.self_attn.q_proj.weight is missing, although");
    expect_edit_refused(LLAMA2, "model.safetensors", "layers.1.mlp.up_proj", "layers.1.mlp.up_pr0j",
                        "tensor model.layers.1.mlp.up_proj.weight is missing");
    expect_edit_refused(LLAMA2, "config.json", "\"intermediate_size\": 160", "\"intermediate_size\": 192",
                        "expected shape [192, 64] from config.json, found [160, 64]");
    expect_edit_refused(LLAMA2, "config.json", "\"vocab_size\": 256", "\"vocab_size\": 255",
                        "expected shape [255, 64]");
    expect_edit_refused(LLAMA2, "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3",
                        "layers.2.input_layernorm.weight is missing");
    expect_edit_refused(LLAMA2, "model.safetensors", "\"dtype\":\"F32\"", "\"dtype\":\"I32\"",
                        "element type I32 is not supported");
}

static void test_folders_without_weights(void **state)
{
    char folder[4096], path[4200];
    struct weft_model_config config;

    (void)state;
    folder_copy(LLAMA2, folder);
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(weft_model_config_read(folder, &config), WEFT_OK); /* the shape alone is known */
    assert_int_equal(open_quietly(folder, "no weights", 0), WEFT_ERR_MISSING);
    assert_non_null(strstr(log_capture_line(), "found neither"));
    snprintf(path, sizeof(path), "%s/pytorch_model.bin", folder);
    file_write(path, "x", 1);
    assert_int_equal(open_quietly(folder, "pickled weights", 0), WEFT_ERR_MISSING);
    assert_non_null(strstr(log_capture_line(), "pytorch_model.bin is not supported"));
    snprintf(path, sizeof(path), "%s/generation_config.json", folder);
    file_write(path, "{", 1);
    assert_int_equal(open_quietly(folder, "damaged generation_config.json", 0), WEFT_ERR_FORMAT);
    folder_remove(folder);
    assert_int_equal(open_quietly(folder, "no folder", 0), WEFT_ERR_MISSING);
}

/* The folder is swapped for another after its configuration was read: refused, not misread. */
static void test_weights_that_change_after_planning(void **state)
{
    const struct weft_device_options device_options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_model_config config;
    struct weft_slice slice;
    struct weft_device *device = NULL;
    struct weft_model *model = NULL;

    (void)state;
    assert_int_equal(weft_model_config_read(LLAMA2, &config), WEFT_OK);
    config.dtypes.down[1] = WEFT_BF16;
    weft_slice_init(&config, 8, (struct weft_range){0, 8}, &slice);
    assert_int_equal(weft_device_open(&device_options, &device), WEFT_OK);
    const struct weft_model_options options = {.folder = LLAMA2,
                                               .config = &config,
                                               .slices = &slice,
                                               .rank_count = 1,
                                               .limits = {.token_count_max = 1, .logit_row_max = 1, .page_count = 1},
                                               .device = device};
    log_capture_begin();
    assert_int_equal(weft_model_open(&options, &model), WEFT_ERR_STATE);
    log_capture_end();
    assert_null(model);
    weft_device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_damage_is_named),  cmocka_unit_test(test_header_length_is_checked),
        cmocka_unit_test(test_odd_but_valid_headers),   cmocka_unit_test(test_truncated_files),
        cmocka_unit_test(test_corrupted_files),         cmocka_unit_test(test_folders_that_do_not_fit_together),
        cmocka_unit_test(test_folders_without_weights), cmocka_unit_test(test_weights_that_change_after_planning),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
