/*
 * Rank 0 goes through the tensors in file order, strip by strip: reads a strip of whole rows, then hands every rank the
 * rows and columns it holds; its own go straight to its device. The kernel reads ahead meanwhile. A message is a header
 * and, apart, its bytes.
 */
#include "model/stream.h"

#define XXH_INLINE_ALL
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "model/fp8.h"
#include "model/tensors.h"
#include "weft/log.h"

static const char where[] = "model/stream";

/* Half of what even a short deadline between ranks is likely to be. */
enum { SIGN_INTERVAL_NS = 1000000000 };

/* `tensor` of a message without rows. */
#define TENSOR_BEGIN UINT32_MAX       /* size: bytes that will follow in all */
#define TENSOR_SIGN  (UINT32_MAX - 1) /* a sign of life */
#define TENSOR_END   (UINT32_MAX - 2)

/* Little endian, like the bytes it announces. */
struct message {
    uint32_t tensor;   /* number, weft_tensor_part() */
    uint32_t from;     /* enum weft_element of the bytes */
    uint32_t first;    /* of the rows that the receiver holds of the tensor */
    uint32_t count;    /* rows */
    uint64_t size;     /* bytes: count rows of the receiver's columns; FP8: their scales (fp8.h) come before them */
    uint64_t checksum; /* XXH3 of the bytes */
};
_Static_assert(sizeof(struct message) == 32, "the same on every rank");

/* What both sides keep. */
struct stream {
    const struct weft_stream_args *args;
    struct weft_reader_stats stats;
    uint64_t byte_total;
    uint32_t tensor_count;
    size_t staging_size;
    size_t scales_size;         /* bytes of scales that come with so many rows, at most; 0 without FP8 */
    unsigned char *staging;     /* [scales_size + staging_size] rows as they lie in the file, or as received */
    unsigned char *packed;      /* [scales_size + staging_size] what one rank holds of them; rank 0 */
    float *converted;           /* staging_size bytes */
    struct weft_fp8_reader fp8; /* rank 0 */
    float table[256];
    struct weft_part_list *lists; /* [rank_count], or [1] of the own slice */
    int64_t *sent_ns;             /* [rank_count] when each was last sent something; rank 0 */
    uint32_t *order;              /* [tensor_count] tensors by place; rank 0, else NULL */
    uint32_t *next_rows;          /* [tensor_count] received so far; other ranks */
};

static uint32_t width_of(const struct weft_part *part)
{
    return part->col_count == 0 ? 1 : part->col_count;
}

static struct weft_part part_of(const struct stream *stream, uint32_t rank, uint32_t tensor)
{
    const struct weft_part_list *list = &stream->lists[stream->args->rank == 0 ? rank : 0];

    return weft_tensor_part(stream->args->config, &stream->args->slices[rank], list, tensor);
}

static enum weft_status report(const struct stream *stream)
{
    const struct weft_reader_args *reader = &stream->args->reader;

    if (reader->progress == NULL) {
        return WEFT_OK;
    }
    return reader->progress(reader->progress_context, stream->stats.byte_count, stream->byte_total);
}

/* Rows and their scales, of which only FP8 has any. */
struct rows {
    const void *bytes;
    size_t stride;
    const float *scales;
};

static enum weft_status deliver(const struct stream *stream, uint32_t tensor, uint32_t first, uint32_t count,
                                const struct rows *rows)
{
    const struct weft_deliver_args args = {.device = stream->args->reader.device,
                                           .read = &stream->args->reader.reads[tensor],
                                           .stride = rows->stride,
                                           .fp8 = &stream->args->config->fp8,
                                           .table = stream->table,
                                           .scales = rows->scales,
                                           .converted = stream->converted,
                                           .converted_size =
                                               weft_converted_size(stream->staging_size, &stream->args->config->fp8)};

    return weft_read_deliver(&args, first, count, rows->bytes);
}

/* Bytes of scales that travel with `count` rows of these columns. */
static uint64_t scales_size(const struct stream *stream, enum weft_element from, struct weft_range cols, uint64_t count)
{
    if (from != WEFT_ELEMENT_F8_E4M3) {
        return 0;
    }
    return count * weft_fp8_row_scales(&stream->args->config->fp8, cols) * sizeof(float);
}

/* ---- rank 0 ---- */

static enum weft_status send_message(struct stream *stream, uint32_t rank, const struct message *message,
                                     const void *bytes)
{
    struct weft_comm *comm = stream->args->comm;

    WEFT_TRY(weft_comm_send(comm, rank, message, sizeof(*message)));
    if (message->size > 0 && bytes != NULL) {
        WEFT_TRY(weft_comm_send(comm, rank, bytes, message->size));
    }
    stream->sent_ns[rank] = weft_clock_ns();
    return WEFT_OK;
}

static enum weft_status send_to_all(struct stream *stream, uint32_t tensor)
{
    const struct message message = {.tensor = tensor};

    for (uint32_t r = 1; r < stream->args->rank_count; r++) {
        WEFT_TRY(send_message(stream, r, &message, NULL));
    }
    return WEFT_OK;
}

/* Ranks that nothing was sent to for a while, because what is being read belongs to others. */
static enum weft_status send_signs(struct stream *stream)
{
    const struct message message = {.tensor = TENSOR_SIGN};
    int64_t now = weft_clock_ns();

    for (uint32_t r = 1; r < stream->args->rank_count; r++) {
        if (now - stream->sent_ns[r] > SIGN_INTERVAL_NS) {
            WEFT_TRY(send_message(stream, r, &message, NULL));
        }
    }
    return WEFT_OK;
}

static enum weft_status send_totals(struct stream *stream)
{
    for (uint32_t r = 1; r < stream->args->rank_count; r++) {
        struct message message = {.tensor = TENSOR_BEGIN};
        for (uint32_t i = 0; i < stream->tensor_count; i++) {
            const struct weft_part part = part_of(stream, r, i);
            enum weft_element from = stream->args->reader.reads[i].from;
            uint64_t rows = weft_range_count(part.cols) == 0 ? 0 : weft_range_count(part.rows);
            message.size += rows * weft_range_count(part.cols) * weft_element_size(from) +
                            scales_size(stream, from, part.cols, rows);
        }
        WEFT_TRY(send_message(stream, r, &message, NULL));
    }
    return WEFT_OK;
}

/* A strip in the staging buffer: rows [begin, end) of a tensor, whole. */
struct strip {
    uint32_t tensor;
    uint32_t begin;
    uint32_t end;
    size_t row_size; /* bytes */
};

/* What of the strip's tensor lies in these rows and columns, FP8. */
static struct weft_fp8_part fp8_part(const struct stream *stream, const struct strip *strip, struct weft_range rows,
                                     struct weft_range cols)
{
    const struct weft_read *read = &stream->args->reader.reads[strip->tensor];

    return (struct weft_fp8_part){.tensor = read->tensor, .scale = read->scale, .rows = rows, .cols = cols};
}

/* packed <- scales of the rows and columns, FP8. */
static enum weft_status pack_scales(struct stream *stream, const struct strip *strip, struct weft_range rows,
                                    struct weft_range cols)
{
    const struct weft_fp8_part part = fp8_part(stream, strip, rows, cols);
    const struct weft_range wanted = {0, (uint32_t)part.tensor->dims[0]};

    return weft_fp8_scales(&stream->fp8, &part, wanted, (float *)stream->packed, &stream->stats.byte_count,
                           &stream->stats.call_count);
}

/* What one rank holds of the strip goes to it. */
static enum weft_status hand_over(struct stream *stream, const struct strip *strip, uint32_t rank)
{
    const struct weft_part part = part_of(stream, rank, strip->tensor);
    enum weft_element from = stream->args->reader.reads[strip->tensor].from;
    size_t col_size = (size_t)weft_range_count(part.cols) * weft_element_size(from);
    uint32_t begin = part.rows.begin > strip->begin ? part.rows.begin : strip->begin;
    uint32_t end = part.rows.end < strip->end ? part.rows.end : strip->end;

    if (begin >= end || col_size == 0) {
        return WEFT_OK;
    }
    const unsigned char *rows = stream->staging + (size_t)(begin - strip->begin) * strip->row_size +
                                (size_t)part.cols.begin * weft_element_size(from);
    size_t scales = (size_t)scales_size(stream, from, part.cols, end - begin);
    struct message message = {.tensor = strip->tensor,
                              .from = (uint32_t)from,
                              .first = begin - part.rows.begin,
                              .count = end - begin,
                              .size = scales + (uint64_t)(end - begin) * col_size};
    if (scales > 0) {
        WEFT_TRY(pack_scales(stream, strip, (struct weft_range){begin, end}, part.cols));
    }
    if (rank == 0) {
        const struct rows own = {.bytes = rows, .stride = strip->row_size, .scales = (const float *)stream->packed};
        return deliver(stream, strip->tensor, message.first, message.count, &own);
    }
    if (col_size < strip->row_size || scales > 0) {
        for (uint32_t i = 0; i < message.count; i++) {
            memcpy(stream->packed + scales + i * col_size, rows + i * strip->row_size, col_size);
        }
        rows = stream->packed;
    }
    message.checksum = XXH3_64bits(rows, message.size);
    return send_message(stream, rank, &message, rows);
}

/* Where a tensor begins: a read begins at this rank's first row of it. */
static uint64_t tensor_offset(const struct weft_read *read, const struct weft_part *part)
{
    return read->offset - (uint64_t)part->rows.begin * width_of(part) * weft_element_size(read->from);
}

static enum weft_status send_tensor(struct stream *stream, uint32_t tensor)
{
    const struct weft_checkpoint *checkpoint = stream->args->reader.checkpoint;
    const struct weft_read *read = &stream->args->reader.reads[tensor];
    const struct weft_part part = part_of(stream, 0, tensor);
    size_t row_size = (size_t)width_of(&part) * weft_element_size(read->from);
    uint32_t most = (uint32_t)(stream->staging_size / row_size);
    uint64_t offset = tensor_offset(read, &part);

    for (uint32_t row = 0; row < part.row_count;) {
        uint32_t count = part.row_count - row < most ? part.row_count - row : most;
        struct strip strip = {.tensor = tensor, .begin = row, .end = row + count, .row_size = row_size};
        size_t size = count * row_size;
        WEFT_TRY(
            weft_checkpoint_read(checkpoint, read->file, offset, stream->staging, size, &stream->stats.call_count));
        stream->stats.byte_count += size;
        if (read->from == WEFT_ELEMENT_F8_E4M3) {
            const struct weft_range cols = {0, part.col_count};
            const struct weft_fp8_part whole = fp8_part(stream, &strip, (struct weft_range){row, row + count}, cols);
            WEFT_TRY(weft_fp8_check(checkpoint, &whole, stream->staging, row_size));
        }
        /* What lies behind is the next strip or, in file order, the next tensor. */
        weft_checkpoint_read_ahead(checkpoint, read->file, offset + size, 2 * stream->staging_size);
        for (uint32_t r = 0; r < stream->args->rank_count; r++) {
            WEFT_TRY(hand_over(stream, &strip, r));
        }
        WEFT_TRY(send_signs(stream));
        WEFT_TRY(report(stream));
        row += count;
        offset += size;
    }
    return WEFT_OK;
}

struct place {
    uint32_t tensor;
    uint32_t file;
    uint64_t offset;
};

static int compare_places(const void *a, const void *b)
{
    const struct place *left = a, *right = b;

    if (left->file != right->file) {
        return left->file < right->file ? -1 : 1;
    }
    return left->offset < right->offset ? -1 : left->offset > right->offset;
}

static enum weft_status sort_tensors(struct stream *stream)
{
    struct place *places = calloc(stream->tensor_count, sizeof(*places));

    stream->order = calloc(stream->tensor_count, sizeof(stream->order[0]));
    if (places == NULL || stream->order == NULL) {
        free(places);
        weft_log(WEFT_LOG_ERROR, where, "out of memory for %u tensors", stream->tensor_count);
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t i = 0; i < stream->tensor_count; i++) {
        const struct weft_read *read = &stream->args->reader.reads[i];
        const struct weft_part part = part_of(stream, 0, i);
        places[i] = (struct place){i, read->file, tensor_offset(read, &part)};
        stream->byte_total += (uint64_t)part.row_count * width_of(&part) * weft_element_size(read->from);
        if (read->from == WEFT_ELEMENT_F8_E4M3) {
            stream->byte_total += weft_fp8_scales_size(&stream->args->config->fp8, read->tensor, read->scale,
                                                       (struct weft_range){0, part.row_count});
        }
    }
    qsort(places, stream->tensor_count, sizeof(*places), compare_places);
    for (uint32_t i = 0; i < stream->tensor_count; i++) {
        stream->order[i] = places[i].tensor;
    }
    free(places);
    return WEFT_OK;
}

static enum weft_status send_all(struct stream *stream)
{
    WEFT_TRY(sort_tensors(stream));
    WEFT_TRY(send_totals(stream));
    WEFT_TRY(report(stream));
    for (uint32_t i = 0; i < stream->tensor_count; i++) {
        WEFT_TRY(send_tensor(stream, stream->order[i]));
    }
    return send_to_all(stream, TENSOR_END);
}

/* ---- the others ---- */

static enum weft_status refuse(const struct message *message, const char *expected)
{
    weft_log(WEFT_LOG_ERROR, where,
             "the leader sent rows [%u, %u) of tensor %u in %" PRIu64 " bytes of type %u: expected %s", message->first,
             message->first + message->count, message->tensor, message->size, message->from, expected);
    return WEFT_ERR_FORMAT;
}

/* Only rows that are still lacking, in order, in the size that they have. */
static enum weft_status check_message(const struct stream *stream, const struct message *message)
{
    if (message->tensor >= stream->tensor_count) {
        return refuse(message, "a tensor of this model");
    }
    const struct weft_part part = part_of(stream, stream->args->rank, message->tensor);
    uint32_t rows = weft_range_count(part.rows);
    bool is_fp8 = stream->args->config->fp8.is_there && part.matrix >= 0;
    if (message->from > (is_fp8 ? WEFT_ELEMENT_F8_E4M3 : WEFT_ELEMENT_BF16) ||
        message->first != stream->next_rows[message->tensor] || message->count == 0 ||
        message->count > rows - message->first) {
        return refuse(message, "the next rows of this rank's slice");
    }
    enum weft_element from = (enum weft_element)message->from;
    const struct weft_read *read = &stream->args->reader.reads[message->tensor];
    if (read->matrix != NULL && read->to == WEFT_F8_E4M3 && from != WEFT_ELEMENT_F8_E4M3) {
        return refuse(message, "FP8, which the matrix is kept as");
    }
    uint64_t row_size = (uint64_t)weft_range_count(part.cols) * weft_element_size(from);
    uint64_t scales = scales_size(stream, from, part.cols, message->count);
    if (row_size == 0 || message->size != scales + message->count * row_size || scales > stream->scales_size ||
        message->size - scales > stream->staging_size) {
        return refuse(message, "whole rows of this rank's columns");
    }
    return WEFT_OK;
}

static enum weft_status take_rows(struct stream *stream, const struct message *message)
{
    WEFT_TRY(check_message(stream, message));
    WEFT_TRY(weft_comm_recv(stream->args->comm, 0, stream->staging, message->size));
    uint64_t checksum = XXH3_64bits(stream->staging, message->size);
    if (checksum != message->checksum) {
        weft_log(WEFT_LOG_ERROR, where,
                 "rows [%u, %u) of tensor %u arrived damaged: checksum %016" PRIx64 ", the leader's is %016" PRIx64,
                 message->first, message->first + message->count, message->tensor, checksum, message->checksum);
        return WEFT_ERR_IO;
    }
    struct weft_read *read = &stream->args->reader.reads[message->tensor];
    read->from = (enum weft_element)message->from;
    size_t scales = (size_t)scales_size(
        stream, read->from, (struct weft_range){read->col_begin, read->col_begin + read->col_count}, message->count);
    const struct rows rows = {.bytes = stream->staging + scales,
                              .stride = (message->size - scales) / message->count,
                              .scales = (const float *)stream->staging};
    WEFT_TRY(deliver(stream, message->tensor, message->first, message->count, &rows));
    stream->next_rows[message->tensor] += message->count;
    stream->stats.byte_count += message->size;
    stream->stats.call_count++;
    return WEFT_OK;
}

static enum weft_status check_complete(const struct stream *stream)
{
    for (uint32_t i = 0; i < stream->tensor_count; i++) {
        const struct weft_part part = part_of(stream, stream->args->rank, i);
        uint32_t wanted = weft_range_count(part.cols) == 0 ? 0 : weft_range_count(part.rows);
        if (stream->next_rows[i] != wanted) {
            weft_log(WEFT_LOG_ERROR, where, "the leader ended the stream with %u of %u rows of tensor %u",
                     stream->next_rows[i], wanted, i);
            return WEFT_ERR_FORMAT;
        }
    }
    return WEFT_OK;
}

static enum weft_status recv_all(struct stream *stream)
{
    struct message message;

    for (;;) {
        WEFT_TRY(weft_comm_recv(stream->args->comm, 0, &message, sizeof(message)));
        if (message.tensor == TENSOR_END) {
            return check_complete(stream);
        }
        if (message.tensor == TENSOR_BEGIN) {
            stream->byte_total = message.size;
        } else if (message.tensor != TENSOR_SIGN) {
            WEFT_TRY(take_rows(stream, &message));
        }
        WEFT_TRY(report(stream));
    }
}

/* ---- both ---- */

static void close_stream(struct stream *stream)
{
    free(stream->staging);
    free(stream->packed);
    free(stream->converted);
    free(stream->lists);
    free(stream->sent_ns);
    free(stream->order);
    free(stream->next_rows);
    weft_fp8_reader_fini(&stream->fp8);
}

/* Sizes of what is staged: the same on all ranks, since they follow from whole tensors. */
static void size_staging(struct stream *stream)
{
    for (uint32_t i = 0; i < stream->tensor_count; i++) {
        const struct weft_part part = part_of(stream, stream->args->rank, i);
        size_t longest = (size_t)width_of(&part) * sizeof(float);
        stream->staging_size = longest > stream->staging_size ? longest : stream->staging_size;
    }
    for (uint32_t i = 0; i < stream->tensor_count && stream->args->config->fp8.is_there; i++) {
        const struct weft_part part = part_of(stream, stream->args->rank, i);
        size_t most = stream->staging_size / width_of(&part);
        size_t rows = part.row_count < most ? part.row_count : most;
        size_t size = (size_t)scales_size(stream, WEFT_ELEMENT_F8_E4M3, (struct weft_range){0, part.col_count}, rows);
        stream->scales_size = size > stream->scales_size ? size : stream->scales_size;
    }
}

static enum weft_status open_stream(const struct weft_stream_args *args, struct stream *stream)
{
    uint32_t list_count = args->rank == 0 ? args->rank_count : 1;

    *stream = (struct stream){.args = args,
                              .staging_size = WEFT_STAGING_SIZE,
                              .fp8 = {.checkpoint = args->reader.checkpoint, .fp8 = &args->config->fp8}};
    weft_fp8_table(stream->table);
    stream->lists = calloc(list_count, sizeof(stream->lists[0]));
    if (stream->lists != NULL) {
        for (uint32_t i = 0; i < list_count; i++) {
            weft_part_list_layer(args->config, &args->slices[args->rank == 0 ? i : args->rank], &stream->lists[i]);
        }
        stream->tensor_count = weft_tensor_count(args->config, &stream->lists[0]);
        size_staging(stream);
        stream->staging = malloc(stream->scales_size + stream->staging_size);
        stream->converted = malloc(weft_converted_size(stream->staging_size, &args->config->fp8));
        stream->packed = malloc(args->rank == 0 ? stream->scales_size + stream->staging_size : 1);
        stream->sent_ns = calloc(args->rank_count, sizeof(stream->sent_ns[0]));
        stream->next_rows = calloc(stream->tensor_count, sizeof(stream->next_rows[0]));
    }
    if (stream->lists == NULL || stream->staging == NULL || stream->converted == NULL || stream->packed == NULL ||
        stream->sent_ns == NULL || stream->next_rows == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "out of memory for 3 x %zu bytes of staging", stream->staging_size);
        close_stream(stream);
        return WEFT_ERR_MEMORY;
    }
    return WEFT_OK;
}

enum weft_status weft_stream_run(const struct weft_stream_args *args, struct weft_reader_stats *stats_out)
{
    struct stream stream;
    int64_t begin = weft_clock_ns();

    WEFT_TRY(open_stream(args, &stream));
    enum weft_status status = args->rank == 0 ? send_all(&stream) : recv_all(&stream);
    stream.stats.time_ns = (uint64_t)(weft_clock_ns() - begin);
    if (status == WEFT_OK) {
        *stats_out = stream.stats;
    }
    close_stream(&stream);
    return status;
}
