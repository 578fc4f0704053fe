/* One function of comm's seat for each of the device table. Contract in seat.h. */
#include "model/seat.h"

_Static_assert((int)WEFT_COMM_MARK_COUNT <= (int)WEFT_DEVICE_MARK_COUNT, "comm has marks of its own");

static void *seat_alloc(void *context, size_t size)
{
    return weft_device_alloc(context, size);
}

static void seat_free(void *context, void *memory)
{
    weft_device_free(context, memory);
}

static void *seat_alloc_host(void *context, size_t size)
{
    return weft_device_alloc_host(context, size);
}

static void seat_free_host(void *context, void *memory)
{
    weft_device_free_host(context, memory);
}

static void seat_read(void *context, void *to_host, const void *from, size_t size)
{
    weft_device_begin_read(context, to_host, from, size);
}

static void seat_write(void *context, void *to, const void *from_host, size_t size)
{
    weft_device_begin_write(context, to, from_host, size);
}

static void seat_copy(void *context, void *to, const void *from, size_t size)
{
    weft_device_copy(context, to, from, size);
}

static void seat_tree_add(void *context, const struct weft_tree_add_args *args)
{
    weft_device_tree_add(context, args);
}

static void seat_mark(void *context, uint32_t mark)
{
    weft_device_mark(context, mark);
}

static enum weft_status seat_wait(void *context, uint32_t mark, uint32_t timeout_ms)
{
    return weft_device_wait(context, mark, timeout_ms);
}

static void *seat_alloc_shared(void *context, size_t size, struct weft_peer_handle *handle_out, char *reason_out,
                               size_t reason_size)
{
    return weft_device_alloc_shared(context, size, handle_out, reason_out, reason_size);
}

static void seat_free_shared(void *context, void *memory)
{
    weft_device_free_shared(context, memory);
}

static void *seat_peer_open(void *context, const struct weft_peer_handle *handle, char *reason_out, size_t reason_size)
{
    return weft_device_peer_open(context, handle, reason_out, reason_size);
}

static void seat_peer_close(void *context, void *memory)
{
    weft_device_peer_close(context, memory);
}

static void seat_peer_sum(void *context, const struct weft_peer_sum_args *args)
{
    weft_device_peer_sum(context, args);
}

_Static_assert((int)WEFT_COMM_ISSUED == (int)WEFT_RECORDING_NONE &&
                   (int)WEFT_COMM_RECORDED == (int)WEFT_RECORDING_MADE &&
                   (int)WEFT_COMM_REPLAYED == (int)WEFT_RECORDING_PLAYED,
               "the same");

static enum weft_comm_recording seat_recording(void *context)
{
    return (enum weft_comm_recording)weft_device_recording(context);
}

bool weft_seat_init(struct weft_device *device, struct weft_comm_device *seat_out)
{
    if (weft_device_is_host(device)) {
        return false;
    }
    *seat_out = (struct weft_comm_device){.context = device,
                                          .stream = weft_device_stream(device),
                                          .alloc = seat_alloc,
                                          .free = seat_free,
                                          .alloc_host = seat_alloc_host,
                                          .free_host = seat_free_host,
                                          .read = seat_read,
                                          .write = seat_write,
                                          .copy = seat_copy,
                                          .tree_add = seat_tree_add,
                                          .mark = seat_mark,
                                          .wait = seat_wait,
                                          .alloc_shared = seat_alloc_shared,
                                          .free_shared = seat_free_shared,
                                          .peer_open = seat_peer_open,
                                          .peer_close = seat_peer_close,
                                          .peer_sum = seat_peer_sum,
                                          .recording = seat_recording};
    _Static_assert(sizeof(seat_out->id) == WEFT_DEVICE_ID_SIZE, "the same id");
    weft_device_id(device, seat_out->id);
    return true;
}
