/* The backend of a rank that is alone: its own bytes are everybody's bytes. Keeps comm.c free of special cases. */
#include "backend.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "weft/log.h"

/* Cache line; areas are aligned to it. */
#define LINE 64u

struct self_channel {
    struct weft_channel base;
    void *areas[WEFT_AREA_COUNT];
};

static bool self_is_usable(const struct weft_channel_options *options, bool is_forced, char *reason_out,
                           size_t reason_size)
{
    (void)is_forced;
    if (options->rank_count != 1) {
        snprintf(reason_out, reason_size, "there are %u ranks", options->rank_count);
        return false;
    }
    return true;
}

static void self_close(struct weft_channel **channel)
{
    struct self_channel *self = (struct self_channel *)*channel;

    if (self != NULL) {
        free(self->areas[WEFT_AREA_SUM]);
        free(self->areas[WEFT_AREA_SCRATCH]);
        free(self);
    }
    *channel = NULL;
}

static enum weft_status self_prepare(const struct weft_channel_options *options, void *address_out,
                                     struct weft_channel **out)
{
    const size_t sizes[WEFT_AREA_COUNT] = {options->sum_sizes[0], options->scratch_size};
    struct self_channel *self = calloc(1, sizeof(*self));
    struct weft_channel *channel = (struct weft_channel *)self;

    (void)address_out;
    assert(options->member_count == 1);
    if (self == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/self", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    weft_channel_init(&self->base, &weft_backend_self, options);
    for (int area = 0; area < WEFT_AREA_COUNT; area++) {
        self->areas[area] = aligned_alloc(LINE, (sizes[area] / LINE + 1) * LINE);
        if (self->areas[area] == NULL) {
            weft_log(WEFT_LOG_ERROR, "comm/self", "out of memory: %zu bytes", sizes[area]);
            self_close(&channel);
            return WEFT_ERR_MEMORY;
        }
    }
    *out = channel;
    return WEFT_OK;
}

static enum weft_status self_connect(struct weft_channel *channel, const void *addresses)
{
    (void)channel;
    (void)addresses;
    return WEFT_OK;
}

static enum weft_status self_transfer(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                      uint32_t timeout_ms)
{
    (void)channel;
    (void)transfers;
    (void)timeout_ms;
    assert(count == 0); /* there is no peer */
    return WEFT_OK;
}

static void *self_buffer(struct weft_channel *channel, enum weft_area area)
{
    return ((struct self_channel *)channel)->areas[area];
}

static enum weft_status self_exchange(struct weft_channel *channel, const struct weft_exchange *exchange)
{
    (void)channel;
    exchange->views_out[0] = exchange->in;
    return WEFT_OK;
}

const struct weft_backend weft_backend_self = {
    .name = "self",
    .is_usable = self_is_usable,
    .prepare = self_prepare,
    .connect = self_connect,
    .transfer = self_transfer,
    .buffer = self_buffer,
    .exchange = self_exchange,
    .close = self_close,
};
