/* The reader: every way of reading gives the same bytes as the file, and no more is read than was asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/fp8.h"
#include "model/reader.h"
#include "support.h"
#include "weft/numeric.h"

enum { ROWS = 24, NARROW = 100, WIDE = 12000, LONG = 2200000, LONG_ROWS = 3 };

/* One file: narrow [24, 100] f32, wide [24, 12000] bf16, vector [500] f16, long [3, 2200000] f32 (rows above 8 MiB). */
struct fixture {
    char folder[4096];
    unsigned char *bytes;
    struct weft_checkpoint *checkpoint;
    struct weft_device *device;
    uint64_t progress_done;
    uint64_t progress_total;
};

static int fixture_begin(void **state)
{
    static const char *const names[] = {"narrow", "wide", "vector", "long"};
    static const char *const dtypes[] = {"F32", "BF16", "F16", "F32"};
    static const uint32_t dims[][2] = {{ROWS, NARROW}, {ROWS, WIDE}, {500, 1}, {LONG_ROWS, LONG}};
    static const uint32_t sizes[] = {4, 2, 2, 4};
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    char header[1024], path[4200];
    size_t used = 1, offset = 0;
    uint32_t random = 1;

    assert_non_null(fixture);
    header[0] = '{';
    for (int i = 0; i < 4; i++) {
        size_t end = offset + (size_t)dims[i][0] * dims[i][1] * sizes[i];
        used += (size_t)snprintf(header + used, sizeof(header) - used,
                                 "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}",
                                 i == 0 ? "" : ",", names[i], dtypes[i], dims[i][0], dims[i][1], offset, end);
        offset = end;
    }
    used += (size_t)snprintf(header + used, sizeof(header) - used, "}");
    size_t size = 8 + used + offset;
    fixture->bytes = calloc(1, size);
    assert_non_null(fixture->bytes);
    fixture->bytes[0] = (unsigned char)(used & 0xff);
    fixture->bytes[1] = (unsigned char)(used >> 8);
    memcpy(fixture->bytes + 8, header, used);
    for (size_t i = 8 + used; i < size; i++) {
        random = random * 1664525U + 1013904223U;
        /* no exponent of all ones in any of the three types: values that compare equal to themselves */
        fixture->bytes[i] = (unsigned char)(random >> 24 & 0xbb);
    }
    folder_copy(NULL, fixture->folder);
    snprintf(path, sizeof(path), "%s/model.safetensors", fixture->folder);
    file_write(path, fixture->bytes, size);
    assert_int_equal(weft_checkpoint_open(fixture->folder, &fixture->checkpoint), WEFT_OK);
    assert_int_equal(weft_device_open(&options, &fixture->device), WEFT_OK);
    *state = fixture;
    return 0;
}

static int fixture_end(void **state)
{
    struct fixture *fixture = *state;

    weft_checkpoint_close(&fixture->checkpoint);
    weft_device_close(&fixture->device);
    folder_remove(fixture->folder);
    free(fixture->bytes);
    free(fixture);
    return 0;
}

static enum weft_status progress(void *context, uint64_t done, uint64_t total)
{
    struct fixture *fixture = context;

    assert_true(done >= fixture->progress_done && done <= total);
    fixture->progress_done = done;
    fixture->progress_total = total;
    return WEFT_OK;
}

/* Reads rows and columns of a tensor into a new matrix of type `to`. */
static struct weft_read plan(struct fixture *fixture, const char *name, struct weft_range rows, struct weft_range cols,
                             enum weft_dtype to)
{
    const struct weft_tensor *tensor = weft_checkpoint_find(fixture->checkpoint, name);
    struct weft_read read = {.row_count = weft_range_count(rows),
                             .row_width = (uint32_t)tensor->dims[1],
                             .col_begin = cols.begin,
                             .col_count = weft_range_count(cols),
                             .to = to};
    const struct weft_matrix_desc desc = {.dtype = to, .row_count = read.row_count, .col_count = read.col_count};

    assert_int_equal(weft_tensor_element(tensor, &read.from), 0);
    read.offset = tensor->offset + (uint64_t)rows.begin * read.row_width * weft_element_size(read.from);
    assert_int_equal(weft_matrix_open(fixture->device, &desc, &read.matrix), WEFT_OK);
    return read;
}

static void run(struct fixture *fixture, struct weft_read *reads, size_t count, struct weft_reader_stats *stats)
{
    const struct weft_reader_args args = {.device = fixture->device,
                                          .checkpoint = fixture->checkpoint,
                                          .reads = reads,
                                          .read_count = count,
                                          .progress = progress,
                                          .progress_context = fixture};

    fixture->progress_done = 0;
    assert_int_equal(weft_reader_run(&args, stats), WEFT_OK);
    assert_int_equal(fixture->progress_done, fixture->progress_total);
    assert_int_equal(fixture->progress_done, stats->byte_count);
}

static float value_at(const unsigned char *bytes, enum weft_dtype dtype)
{
    uint16_t half;
    float value;

    memcpy(&half, bytes, sizeof(half));
    memcpy(&value, bytes, dtype == WEFT_F32 ? sizeof(value) : 0);
    return dtype == WEFT_F32 ? value : (dtype == WEFT_F16 ? weft_f16_to_f32(half) : weft_bf16_to_f32(half));
}

/* Every element of the matrix against the file; closes it. */
static void check(struct fixture *fixture, struct weft_read *read)
{
    float *row = weft_device_alloc(fixture->device, read->col_count * sizeof(float));
    size_t size = weft_element_size(read->from);

    assert_non_null(row);
    for (uint32_t i = 0; i < read->row_count; i++) {
        const unsigned char *from =
            fixture->bytes + read->offset + ((size_t)i * read->row_width + read->col_begin) * size;
        weft_device_embed(fixture->device, read->matrix, &i, 1, row);
        assert_int_equal(weft_device_sync(fixture->device), WEFT_OK);
        for (uint32_t j = 0; j < read->col_count; j++) {
            if (row[j] != value_at(from + j * size, weft_element_dtype(read->from))) {
                fail_msg("row %u, column %u differs", i, j);
            }
        }
    }
    weft_device_free(fixture->device, row);
    weft_matrix_close(fixture->device, &read->matrix);
}

static void check_one(struct fixture *fixture, const char *name, struct weft_range rows, struct weft_range cols,
                      enum weft_dtype to, uint64_t byte_count, uint64_t call_count)
{
    struct weft_read read = plan(fixture, name, rows, cols, to);
    struct weft_reader_stats stats;

    run(fixture, &read, 1, &stats);
    assert_int_equal(stats.byte_count, byte_count);
    assert_int_equal(stats.call_count, call_count);
    check(fixture, &read);
}

static void test_parts_of_matrices(void **state)
{
    struct fixture *f = *state;

    check_one(f, "narrow", (struct weft_range){0, ROWS}, (struct weft_range){0, NARROW}, WEFT_F32, 24 * 400, 1);
    check_one(f, "narrow", (struct weft_range){5, 11}, (struct weft_range){0, NARROW}, WEFT_F32, 6 * 400, 1);
    /* a gap below a page is read over, in one go */
    check_one(f, "narrow", (struct weft_range){0, ROWS}, (struct weft_range){40, 42}, WEFT_F32, 23 * 400 + 8, 1);
    /* a wide gap is not: just the columns, row by row */
    check_one(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){3000, 9000}, WEFT_BF16, 24 * 12000, 24);
    check_one(f, "wide", (struct weft_range){2, 4}, (struct weft_range){11998, 12000}, WEFT_BF16, 2 * 4, 2);
    /* nearly all of each row: read over again */
    check_one(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){0, 9600}, WEFT_BF16, 23 * 24000 + 19200, 1);
    /* converted on the way */
    check_one(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){0, WIDE}, WEFT_F32, 24 * 24000, 1);
    check_one(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){100, 300}, WEFT_F32, 24 * 400, 24);
}

static void test_rows_longer_than_the_buffer(void **state)
{
    struct fixture *f = *state;

    check_one(f, "long", (struct weft_range){0, LONG_ROWS}, (struct weft_range){0, LONG}, WEFT_F32, 3 * 8800000ULL, 3);
    check_one(f, "long", (struct weft_range){1, 3}, (struct weft_range){7, 20}, WEFT_F32, 2 * 52, 2);
}

/* Adjacent parts are read together, whatever order they were asked for in; each byte once. */
static void test_adjacent_parts_share_reads(void **state)
{
    struct fixture *f = *state;
    const struct weft_tensor *vector = weft_checkpoint_find(f->checkpoint, "vector");
    float *values = weft_device_alloc(f->device, 500 * sizeof(float));
    struct weft_reader_stats stats;
    struct weft_read reads[] = {
        plan(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){0, WIDE}, WEFT_BF16),
        {.from = WEFT_ELEMENT_F16,
         .offset = vector->offset,
         .row_count = 500,
         .row_width = 1,
         .col_count = 1,
         .vector = values},
        plan(f, "narrow", (struct weft_range){12, ROWS}, (struct weft_range){0, NARROW}, WEFT_F32),
        plan(f, "narrow", (struct weft_range){0, 12}, (struct weft_range){0, NARROW}, WEFT_F32),
        plan(f, "narrow", (struct weft_range){0, 0}, (struct weft_range){0, NARROW}, WEFT_F32), /* nothing */
        plan(f, "long", (struct weft_range){0, LONG_ROWS}, (struct weft_range){0, LONG}, WEFT_F32),
    };

    assert_non_null(values);
    run(f, reads, 6, &stats);
    assert_int_equal(stats.byte_count, 24 * 400 + 24 * 24000 + 1000 + 3 * 8800000ULL);
    assert_int_equal(stats.call_count, 4); /* 27 MB through a buffer of 8.8 MB, one row of `long` each */
    for (uint32_t i = 0; i < 500; i++) {
        assert_true(values[i] == value_at(f->bytes + vector->offset + i * 2, WEFT_F16));
    }
    for (size_t i = 0; i < 6; i++) {
        if (reads[i].matrix != NULL) {
            check(f, &reads[i]);
        }
    }
    weft_device_free(f->device, values);
}

static void test_a_file_that_shrinks_is_an_error(void **state)
{
    struct fixture *f = *state;
    struct weft_read read = plan(f, "wide", (struct weft_range){0, ROWS}, (struct weft_range){0, WIDE}, WEFT_BF16);
    const struct weft_reader_args args = {
        .device = f->device, .checkpoint = f->checkpoint, .reads = &read, .read_count = 1};
    struct weft_reader_stats stats;
    char path[4200];

    snprintf(path, sizeof(path), "%s/model.safetensors", f->folder);
    assert_int_equal(truncate(path, 20000), 0);
    log_capture_begin();
    assert_int_equal(weft_reader_run(&args, &stats), WEFT_ERR_IO);
    log_capture_end();
    assert_int_equal(log_capture_count(), 1);
    assert_non_null(strstr(log_capture_line(), "end of file"));
    weft_matrix_close(f->device, &read.matrix);
}

/* ---- FP8 ---- */

enum {
    FP8_ROWS = 11,
    FP8_BLOCK_ROWS = 5,
    FP8_BLOCK_COLS = 4096,
    FP8_BLOCKS = (LONG + FP8_BLOCK_COLS - 1) / FP8_BLOCK_COLS
};

/* w [11, 2200000] FP8 and its scales [3, 538] f32 in a folder of its own. */
static unsigned char *write_fp8(const char *folder, size_t *header_size_out)
{
    size_t weights = (size_t)FP8_ROWS * LONG, scales = (size_t)3 * FP8_BLOCKS * sizeof(float);
    char header[400], path[4200];
    size_t used = (size_t)snprintf(header, sizeof(header),
                                   "{\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[%u,%u],\"data_offsets\":[0,%zu]},"
                                   "\"w_scale_inv\":{\"dtype\":\"F32\",\"shape\":[3,%u],\"data_offsets\":[%zu,%zu]}}",
                                   FP8_ROWS, LONG, weights, FP8_BLOCKS, weights, weights + scales);
    unsigned char *bytes = calloc(1, 8 + used + weights + scales);

    assert_non_null(bytes);
    bytes[0] = (unsigned char)used;
    bytes[1] = (unsigned char)(used >> 8);
    memcpy(bytes + 8, header, used);
    for (size_t i = 0; i < weights; i++) {
        bytes[8 + used + i] = (unsigned char)(i * 2654435761U >> 13 & 0xf7); /* never NaN */
    }
    for (size_t i = 0; i < (size_t)3 * FP8_BLOCKS; i++) {
        float scale = 1.0f / (float)(1 + i);
        memcpy(bytes + 8 + used + weights + i * sizeof(scale), &scale, sizeof(scale));
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    file_write(path, bytes, 8 + used + weights + scales);
    *header_size_out = 8 + used;
    return bytes;
}

/* Rows [2, 11) and a range of columns, which take several fillings of the buffer: every value with its own scale. */
static void test_fp8_through_several_fillings(void **state)
{
    const struct weft_fp8 fp8 = {.is_there = true, .block_rows = FP8_BLOCK_ROWS, .block_cols = FP8_BLOCK_COLS};
    const struct weft_matrix_desc desc = {.dtype = WEFT_F32, .row_count = 9, .col_count = LONG - 5000};
    struct fixture *fixture = *state;
    struct weft_checkpoint *checkpoint = NULL;
    struct weft_reader_stats stats;
    struct weft_read read = {.from = WEFT_ELEMENT_F8_E4M3,
                             .tensor_row = 2,
                             .row_count = 9,
                             .row_width = LONG,
                             .col_begin = 5000,
                             .col_count = LONG - 5000,
                             .to = WEFT_F32};
    char folder[4096];
    float table[256];
    size_t header_size;

    folder_copy(NULL, folder);
    unsigned char *bytes = write_fp8(folder, &header_size);
    float *row = weft_device_alloc(fixture->device, desc.col_count * sizeof(float));
    assert_non_null(row);
    weft_fp8_table(table);
    assert_int_equal(weft_checkpoint_open(folder, &checkpoint), WEFT_OK);
    read.tensor = weft_checkpoint_find(checkpoint, "w");
    read.offset = read.tensor->offset + (size_t)2 * LONG;
    assert_int_equal(weft_fp8_scale_find(checkpoint, &fp8, read.tensor, &read.scale), WEFT_OK);
    assert_int_equal(weft_matrix_open(fixture->device, &desc, &read.matrix), WEFT_OK);
    const struct weft_reader_args args = {.device = fixture->device,
                                          .checkpoint = checkpoint,
                                          .fp8 = &fp8,
                                          .reads = &read,
                                          .read_count = 1,
                                          .progress = progress,
                                          .progress_context = fixture};
    fixture->progress_done = 0;
    assert_int_equal(weft_reader_run(&args, &stats), WEFT_OK);
    assert_int_equal(stats.byte_count, (size_t)9 * LONG - 5000 + 3 * FP8_BLOCKS * sizeof(float));
    assert_true(stats.call_count > 2);
    for (uint32_t i = 0; i < 9; i++) {
        weft_device_embed(fixture->device, read.matrix, &i, 1, row);
        assert_int_equal(weft_device_sync(fixture->device), WEFT_OK);
        for (uint32_t j = 0; j < desc.col_count; j++) {
            uint32_t block = (2 + i) / FP8_BLOCK_ROWS * FP8_BLOCKS + (5000 + j) / FP8_BLOCK_COLS;
            float value = table[bytes[header_size + (size_t)(2 + i) * LONG + 5000 + j]];
            if (row[j] != value * (1.0f / (float)(1 + block))) {
                fail_msg("row %u, column %u differs", i, j);
            }
        }
    }
    weft_device_free(fixture->device, row);
    weft_matrix_close(fixture->device, &read.matrix);
    weft_checkpoint_close(&checkpoint);
    folder_remove(folder);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_parts_of_matrices, fixture_begin, fixture_end),
        cmocka_unit_test_setup_teardown(test_rows_longer_than_the_buffer, fixture_begin, fixture_end),
        cmocka_unit_test_setup_teardown(test_adjacent_parts_share_reads, fixture_begin, fixture_end),
        cmocka_unit_test_setup_teardown(test_fp8_through_several_fillings, fixture_begin, fixture_end),
        cmocka_unit_test_setup_teardown(test_a_file_that_shrinks_is_an_error, fixture_begin, fixture_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
