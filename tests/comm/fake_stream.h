/* What nccl_stub.c, a library of its own, needs to know of a stream: fake_device.c's and the emulated GPUs' begin so.
 */
#ifndef WEFT_TESTS_COMM_FAKE_STREAM_H
#define WEFT_TESTS_COMM_FAKE_STREAM_H

struct fake_stream {
    /* Runs function(argument) on the stream, after all issued before, and then release(argument). While the stream is
     * captured: runs it whenever the graph is launched, and releases it when that is destroyed. */
    void (*enqueue)(struct fake_stream *stream, void (*function)(void *argument), void (*release)(void *argument),
                    void *argument);
    /* The memory behind a device pointer; for functions that run on the stream. */
    void *(*memory)(struct fake_stream *stream, const void *pointer);
};

#endif
