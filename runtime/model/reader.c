/*
 * Reads in file order. Two ways per read: whole rows through a sliding window (a part of all columns, or nearly all),
 * or just the wanted columns row by row (a narrow column range, o_proj and down_proj at several ranks).
 */
#include "model/reader.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "weft/f8.h"
#include "weft/log.h"
#include "weft/numeric.h"

static const char where[] = "model/reader";

/* A gap of up to a page between wanted columns costs no extra disk traffic: the page cache reads whole pages. */
enum { GAP_MIN = 4096 };

struct reader {
    const struct weft_reader_args *args;
    struct weft_reader_stats stats;
    uint64_t byte_total;
    size_t staging_size;
    unsigned char *staging; /* [staging_size]: the window, or gathered column ranges */
    float *converted;       /* staging_size bytes: rows in another element type */
    struct weft_fp8_reader fp8;
    float *scales; /* of the rows that are delivered next; NULL without FP8 */
    float table[256];
    uint32_t file; /* the window holds [begin, end) of this file */
    uint64_t begin;
    uint64_t end;
};

static uint64_t row_size(const struct weft_read *read)
{
    return (uint64_t)read->row_width * weft_element_size(read->from);
}

static uint64_t col_size(const struct weft_read *read)
{
    return (uint64_t)read->col_count * weft_element_size(read->from);
}

/* Row by row when less than three quarters of each row, or more than a page of it, would be read for nothing. */
static bool is_strided(const struct weft_read *read)
{
    return row_size(read) - col_size(read) > GAP_MIN && col_size(read) * 4 < row_size(read) * 3;
}

static bool is_empty(const struct weft_read *read)
{
    return read->row_count == 0 || read->col_count == 0;
}

/* First and last byte that a read asks of the file. */
static uint64_t read_begin(const struct weft_read *read)
{
    return read->offset + (uint64_t)read->col_begin * weft_element_size(read->from);
}

static uint64_t read_end(const struct weft_read *read)
{
    return read_begin(read) + (read->row_count - 1) * row_size(read) + col_size(read);
}

static uint64_t read_size(const struct weft_read *read)
{
    if (is_empty(read)) {
        return 0;
    }
    return is_strided(read) ? read->row_count * col_size(read) : read_end(read) - read_begin(read);
}

static int compare_reads(const void *a, const void *b)
{
    const struct weft_read *left = a, *right = b;

    if (left->file != right->file) {
        return left->file < right->file ? -1 : 1;
    }
    if (left->offset != right->offset) {
        return left->offset < right->offset ? -1 : 1;
    }
    return 0;
}

static enum weft_status read_bytes(struct reader *reader, uint32_t file, uint64_t offset, void *to, size_t size)
{
    WEFT_TRY(weft_checkpoint_read(reader->args->checkpoint, file, offset, to, size, &reader->stats.call_count));
    reader->stats.byte_count += size;
    return WEFT_OK;
}

static enum weft_status report(const struct reader *reader)
{
    if (reader->args->progress == NULL) {
        return WEFT_OK;
    }
    return reader->args->progress(reader->args->progress_context, reader->stats.byte_count, reader->byte_total);
}

/*
 * Moves the window so that it begins at `offset` and holds at least min(size, staging) bytes, reading on up to run_end:
 * where the bytes that somebody wants, adjacent to these, end. What the window already has is kept, not read again.
 */
static enum weft_status slide(struct reader *reader, uint32_t file, uint64_t offset, uint64_t size, uint64_t run_end)
{
    size_t kept = 0;

    if (reader->file == file && offset >= reader->begin && offset + size <= reader->end) {
        return WEFT_OK;
    }
    if (reader->file == file && offset >= reader->begin && offset < reader->end) {
        kept = (size_t)(reader->end - offset);
        memmove(reader->staging, reader->staging + (offset - reader->begin), kept);
    }
    uint64_t wanted = run_end - offset < reader->staging_size ? run_end - offset : reader->staging_size;
    reader->file = file;
    reader->begin = offset;
    reader->end = offset + kept;
    WEFT_TRY(read_bytes(reader, file, reader->end, reader->staging + kept, (size_t)(wanted - kept)));
    reader->end = offset + wanted;
    uint64_t rest = run_end - reader->end;
    weft_checkpoint_read_ahead(reader->args->checkpoint, file, reader->end,
                               rest < reader->staging_size ? rest : reader->staging_size);
    return report(reader);
}

static struct weft_range cols_of(const struct weft_read *read)
{
    return (struct weft_range){read->col_begin, read->col_begin + read->col_count};
}

/* to[col_count] <- row `row` of those that `args` is about, its wanted columns at `bytes`. */
static void convert(const struct weft_deliver_args *args, uint32_t row, const unsigned char *bytes, float *to)
{
    const struct weft_read *read = args->read;
    size_t size = weft_element_size(read->from);

    if (read->from == WEFT_ELEMENT_F8_E4M3) {
        struct weft_range cols = cols_of(read);
        const float *scales = args->scales + (size_t)row * weft_fp8_row_scales(args->fp8, cols);
        weft_fp8_decode(args->fp8, args->table, bytes, cols, scales, to);
        return;
    }
    for (uint32_t j = 0; j < read->col_count; j++) {
        to[j] = weft_element_value(bytes + j * size, read->from);
    }
}

/* Rounds values[count] to bf16, in their place. */
static void narrow(float *values, size_t count)
{
    unsigned char *to = (unsigned char *)values;

    for (size_t i = 0; i < count; i++) {
        uint16_t half = weft_f32_to_bf16(values[i]);
        memcpy(to + i * sizeof(half), &half, sizeof(half));
    }
}

/* Bytes of a row as it is converted: f32 first, or FP8 as it is, with its scales. */
static size_t converted_row_size(const struct weft_deliver_args *args)
{
    const struct weft_read *read = args->read;

    if (read->to != WEFT_F8_E4M3 || read->matrix == NULL) {
        return read->col_count * sizeof(float);
    }
    uint32_t block = args->fp8->block_cols;
    return weft_f8_row_size(read->col_count, block, block == 0 ? 0 : read->col_begin % block);
}

/* Rows [done, done + count) of FP8 that stays FP8: each behind its scales. */
static enum weft_status deliver_f8(const struct weft_deliver_args *args, uint32_t first, uint32_t done, uint32_t count,
                                   const unsigned char *rows)
{
    const struct weft_read *read = args->read;
    size_t size = converted_row_size(args), scales_size = size - read->col_count;
    unsigned char *to = (unsigned char *)args->converted;

    for (uint32_t i = done; i < done + count; i++) {
        memcpy(to, (const unsigned char *)args->scales + i * scales_size, scales_size);
        memcpy(to + scales_size, rows + i * args->stride, read->col_count);
        to += size;
    }
    return weft_matrix_write_rows(args->device, read->matrix, read->row_begin + first + done, count, args->converted,
                                  size);
}

/* Rows [done, done + count) of those that come from `first` on: they fit into `converted`. */
static enum weft_status deliver_batch(const struct weft_deliver_args *args, uint32_t first, uint32_t done,
                                      uint32_t count, const unsigned char *rows)
{
    const struct weft_read *read = args->read;
    size_t width = read->col_count;

    if (read->matrix != NULL && read->to == WEFT_F8_E4M3) {
        return deliver_f8(args, first, done, count, rows);
    }
    for (uint32_t i = done; i < done + count; i++) {
        convert(args, i, rows + i * args->stride, args->converted + (i - done) * width);
    }
    if (read->matrix == NULL) {
        return weft_device_write(args->device, read->vector + first + done, args->converted, count * sizeof(float));
    }
    if (read->to == WEFT_BF16) {
        narrow(args->converted, count * width);
    }
    return weft_matrix_write_rows(args->device, read->matrix, read->row_begin + first + done, count, args->converted,
                                  width * weft_dtype_size(read->to));
}

enum weft_status weft_read_deliver(const struct weft_deliver_args *args, uint32_t first, uint32_t count,
                                   const void *rows)
{
    const struct weft_read *read = args->read;
    const unsigned char *bytes = rows;
    uint32_t most = (uint32_t)(args->converted_size / converted_row_size(args));

    if (read->matrix != NULL && read->from != WEFT_ELEMENT_F8_E4M3 && read->to == weft_element_dtype(read->from)) {
        return weft_matrix_write_rows(args->device, read->matrix, read->row_begin + first, count, rows, args->stride);
    }
    for (uint32_t done = 0; done < count;) {
        uint32_t batch = count - done < most ? count - done : most;
        WEFT_TRY(deliver_batch(args, first, done, batch, bytes));
        done += batch;
    }
    return WEFT_OK;
}

static uint32_t min_u64(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

/* Before FP8 rows are delivered: they are numbers, and reader->scales has what belongs to them. */
static enum weft_status prepare_fp8(struct reader *reader, const struct weft_read *read, uint32_t first, uint32_t count,
                                    const unsigned char *rows, size_t stride)
{
    const struct weft_range wanted = {read->tensor_row, read->tensor_row + read->row_count};
    const struct weft_fp8_part part = {.tensor = read->tensor,
                                       .scale = read->scale,
                                       .rows = {wanted.begin + first, wanted.begin + first + count},
                                       .cols = cols_of(read)};

    WEFT_TRY(weft_fp8_check(reader->args->checkpoint, &part, rows, stride));
    return weft_fp8_scales(&reader->fp8, &part, wanted, reader->scales, &reader->stats.byte_count,
                           &reader->stats.call_count);
}

static enum weft_status deliver(struct reader *reader, const struct weft_read *read, uint32_t first, uint32_t count,
                                const unsigned char *rows, size_t stride)
{
    const struct weft_deliver_args args = {.device = reader->args->device,
                                           .read = read,
                                           .stride = stride,
                                           .fp8 = reader->args->fp8,
                                           .table = reader->table,
                                           .scales = reader->scales,
                                           .converted = reader->converted,
                                           .converted_size =
                                               weft_converted_size(reader->staging_size, reader->args->fp8)};

    if (read->from == WEFT_ELEMENT_F8_E4M3) {
        WEFT_TRY(prepare_fp8(reader, read, first, count, rows, stride));
    }
    return weft_read_deliver(&args, first, count, rows);
}

static enum weft_status run_whole(struct reader *reader, const struct weft_read *read, uint64_t run_end)
{
    uint64_t stride = row_size(read), tail = col_size(read);

    for (uint32_t row = 0; row < read->row_count;) {
        uint64_t offset = read_begin(read) + row * stride;
        WEFT_TRY(slide(reader, read->file, offset, tail, run_end));
        uint64_t there = (reader->end - offset - tail) / stride + 1; /* the last row needs no more than its columns */
        uint32_t count = min_u64(there, read->row_count - row);
        WEFT_TRY(deliver(reader, read, row, count, reader->staging + (offset - reader->begin), stride));
        row += count;
    }
    return WEFT_OK;
}

static enum weft_status run_strided(struct reader *reader, const struct weft_read *read)
{
    uint64_t stride = row_size(read), width = col_size(read);
    uint32_t most = min_u64(reader->staging_size / width, read->row_count);

    reader->end = reader->begin; /* the buffer is about to hold something else */
    for (uint32_t row = 0; row < read->row_count;) {
        uint32_t count = min_u64(most, read->row_count - row);
        uint64_t offset = read_begin(read) + row * stride;
        weft_checkpoint_read_ahead(reader->args->checkpoint, read->file, offset, count * stride);
        for (uint32_t i = 0; i < count; i++) {
            WEFT_TRY(read_bytes(reader, read->file, offset + i * stride, reader->staging + i * width, width));
        }
        WEFT_TRY(report(reader));
        WEFT_TRY(deliver(reader, read, row, count, reader->staging, width));
        row += count;
    }
    return WEFT_OK;
}

static enum weft_status run_all(struct reader *reader)
{
    struct weft_read *reads = reader->args->reads;
    size_t count = reader->args->read_count;
    size_t run_last = 0;
    uint64_t run_end = 0;

    for (size_t i = 0; i < count; i++) {
        if (is_empty(&reads[i])) {
            continue;
        }
        if (is_strided(&reads[i])) {
            WEFT_TRY(run_strided(reader, &reads[i]));
            continue;
        }
        if (i >= run_last) { /* find how far the bytes go on without a hole */
            run_end = read_end(&reads[i]);
            for (run_last = i + 1; run_last < count; run_last++) {
                const struct weft_read *next = &reads[run_last];
                if (is_empty(next)) {
                    continue;
                }
                if (next->file != reads[i].file || is_strided(next) || read_begin(next) != run_end) {
                    break;
                }
                run_end = read_end(next);
            }
        }
        WEFT_TRY(run_whole(reader, &reads[i], run_end));
    }
    return WEFT_OK;
}

/* Scales of as many rows as are delivered at once, at most. */
static size_t scale_count(const struct reader *reader, const struct weft_read *read)
{
    if (read->from != WEFT_ELEMENT_F8_E4M3 || is_empty(read)) {
        return 0;
    }
    size_t most = reader->staging_size / col_size(read) + 1;
    size_t rows = read->row_count < most ? read->row_count : most;
    return rows * weft_fp8_row_scales(reader->args->fp8, cols_of(read));
}

/* Sizes of buffers, and the buffers. ERR_MEMORY, logged; what was allocated is close_buffers()'. */
static enum weft_status open_buffers(struct reader *reader)
{
    const struct weft_reader_args *args = reader->args;
    size_t scales = 0;

    for (size_t i = 0; i < args->read_count; i++) {
        const struct weft_read *read = &args->reads[i];
        uint64_t longest = (uint64_t)read->row_width * sizeof(float);
        reader->byte_total += read_size(read);
        if (read->from == WEFT_ELEMENT_F8_E4M3 && !is_empty(read)) {
            struct weft_range rows = {read->tensor_row, read->tensor_row + read->row_count};
            reader->byte_total += weft_fp8_scales_size(args->fp8, read->tensor, read->scale, rows);
        }
        reader->staging_size = longest > reader->staging_size ? longest : reader->staging_size;
    }
    for (size_t i = 0; i < args->read_count; i++) {
        size_t count = scale_count(reader, &args->reads[i]);
        scales = count > scales ? count : scales;
    }
    /* The device's own kind of host memory: a GPU takes from it without another copy. */
    reader->staging = weft_device_alloc_host(args->device, reader->staging_size);
    reader->converted = malloc(weft_converted_size(reader->staging_size, args->fp8));
    reader->scales = scales > 0 ? malloc(scales * sizeof(float)) : NULL;
    if (reader->converted == NULL || (scales > 0 && reader->scales == NULL)) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory for %zu bytes of staging", reader->staging_size);
        return WEFT_ERR_MEMORY;
    }
    return reader->staging != NULL ? WEFT_OK : WEFT_ERR_MEMORY;
}

static void close_buffers(struct reader *reader)
{
    weft_device_free_host(reader->args->device, reader->staging);
    free(reader->converted);
    free(reader->scales);
    weft_fp8_reader_fini(&reader->fp8);
}

enum weft_status weft_reader_run(const struct weft_reader_args *args, struct weft_reader_stats *stats_out)
{
    struct reader reader = {
        .args = args, .staging_size = WEFT_STAGING_SIZE, .fp8 = {.checkpoint = args->checkpoint, .fp8 = args->fp8}};
    int64_t begin = weft_clock_ns();

    weft_fp8_table(reader.table);
    enum weft_status status = open_buffers(&reader);
    if (status == WEFT_OK) {
        qsort(args->reads, args->read_count, sizeof(args->reads[0]), compare_reads);
        status = report(&reader);
    }
    if (status == WEFT_OK) {
        status = run_all(&reader);
    }
    close_buffers(&reader);
    if (status == WEFT_OK) {
        reader.stats.time_ns = (uint64_t)(weft_clock_ns() - begin);
        *stats_out = reader.stats;
    }
    return status;
}
