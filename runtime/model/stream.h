/*
 * Loading for a cluster where only rank 0 has the model folder: it reads every byte of the checkpoint once, in file
 * order, and sends each rank the rows and columns that belong to its slice, nothing more. Ranks need no folder; every
 * message carries a checksum of its bytes.
 *
 * A rank's slice is a fixed part of every tensor, so what goes to whom follows from the configuration and the slices
 * alone; the messages still say what they carry, and the receiver checks that it is exactly what it lacks.
 */
#ifndef WEFT_MODEL_STREAM_H
#define WEFT_MODEL_STREAM_H

#include "model/reader.h"
#include "weft/comm.h"

struct weft_stream_args {
    /* This rank's reads in the order of weft_tensor_part(), every tensor one; on ranks other than 0 without checkpoint,
     * and only their destination is known. */
    struct weft_reader_args reader;
    struct weft_comm *comm;
    const struct weft_model_config *config;
    const struct weft_slice *slices; /* [rank_count] */
    uint32_t rank;
    uint32_t rank_count;
};

/*
 * Collective. *stats_out: on rank 0 what was read from files, elsewhere what was received. However long the disk takes,
 * rank 0 sends a sign of life every second, so that the deadline of comm is about ranks and not about disks.
 *
 * ERR_IO: logged: the file cannot be read, or bytes arrived damaged. ERR_FORMAT, logged: rank 0 sent something else
 * than was lacking. Errors of comm and of `progress` are passed on. Host memory: 24 MiB, or three times the longest row
 * when that is more.
 */
WEFT_MUST_CHECK enum weft_status weft_stream_run(const struct weft_stream_args *args,
                                                 struct weft_reader_stats *stats_out);

#endif
