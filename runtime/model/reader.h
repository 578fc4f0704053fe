/*
 * Reading parts of tensors into device memory: a list of reads, done in file order through one bounded staging buffer,
 * in reads as large as the buffer wherever the parts adjoin.
 */
#ifndef WEFT_MODEL_READER_H
#define WEFT_MODEL_READER_H

#include <stddef.h>
#include <stdint.h>

#include "model/checkpoint.h"
#include "model/fp8.h"
#include "model/model.h"
#include "weft/device.h"

/* Rows of a tensor, or a column range of them, and where they go. */
struct weft_read {
    uint32_t file;          /* of the checkpoint */
    enum weft_element from; /* in the file */
    /* FP8 only: the tensor, its scales, and which of its rows is the first wanted */
    const struct weft_tensor *tensor;
    const struct weft_tensor *scale;
    uint32_t tensor_row;
    uint64_t offset;    /* of the first row wanted, in the file */
    uint32_t row_count; /* rows wanted, adjacent */
    uint32_t row_width; /* elements of a whole row in the file */
    uint32_t col_begin; /* columns wanted, [col_begin, col_begin + col_count) */
    uint32_t col_count;
    struct weft_matrix *matrix; /* destination, rows from row_begin, written as type `to`; or NULL and */
    enum weft_dtype to;
    uint32_t row_begin;
    float *vector; /* destination [row_count] f32 in device memory, row_width 1 */
};

/* 8 MiB: far above the size from which one NVMe or network read is efficient, small next to any model. */
#define WEFT_STAGING_SIZE ((size_t)8 << 20)

/* Bytes for a staging buffer's rows when they are converted: those of the longest row, which may take all of it as f32,
 * take a quarter more as FP8 with a scale for each byte. */
static inline size_t weft_converted_size(size_t staging_size, const struct weft_fp8 *fp8)
{
    return fp8 != NULL && fp8->is_there ? staging_size + staging_size / 4 : staging_size;
}

/* Where rows of a read go, and what is needed on the way. */
struct weft_deliver_args {
    struct weft_device *device;
    const struct weft_read *read; /* its destination, from, col_count */
    size_t stride;                /* bytes from one row to the next, as they lie in host memory */
    const struct weft_fp8 *fp8;   /* with FP8: its form, */
    const float *table;           /* [256] weft_fp8_table(), */
    const float *scales;          /* [count][weft_fp8_row_scales()] of the rows */
    float *converted;             /* converted_size bytes: at least one row in f32 */
    size_t converted_size;
};

/* Rows [first, first + count) of the read, wanted columns only, from host memory to their destination. */
WEFT_MUST_CHECK enum weft_status weft_read_deliver(const struct weft_deliver_args *args, uint32_t first, uint32_t count,
                                                   const void *rows);

struct weft_reader_stats {
    uint64_t byte_count; /* read from files */
    uint64_t call_count; /* of pread() */
    uint64_t time_ns;
};

struct weft_reader_args {
    struct weft_device *device;
    const struct weft_checkpoint *checkpoint;
    const struct weft_fp8 *fp8; /* may be NULL when no read is of FP8 */
    struct weft_read *reads;    /* [read_count]; sorted by place, reads of nothing are skipped */
    size_t read_count;
    weft_model_progress *progress; /* or NULL */
    void *progress_context;
};

/* Does all reads. Host memory: 16 MiB, or twice the longest row when that is more, and with FP8 the scales of one
 * tensor. ERR_IO, ERR_MEMORY: logged. */
WEFT_MUST_CHECK enum weft_status weft_reader_run(const struct weft_reader_args *args,
                                                 struct weft_reader_stats *stats_out);

#endif
