/* Wrapping any backend: times and faults. Contract in trace.h. */
#include "trace.h"

#include <assert.h>
#include <stdlib.h>
#include <time.h>

#include "comm_internal.h"
#include "weft/log.h"

/* What the two channels of one communicator share; counted, the last one frees it. */
struct trace_state {
    struct weft_fault fault;
    uint64_t call_count;
    struct weft_trace_times times;
    uint32_t user_count;
};

struct trace_channel {
    struct weft_channel base;
    struct weft_channel *wrapped;    /* owned */
    struct trace_state *state;       /* shared */
    struct weft_transfer *transfers; /* owned [transfer_count_max]: what DROP leaves */
};

/* Waits, with the bootstrap in sight, until the others have given this rank up or the deadline has passed. */
static enum weft_status be_silent(struct weft_channel *channel, uint32_t timeout_ms)
{
    const struct timespec moment = {.tv_nsec = WEFT_WAIT_SLEEP_MS * 1000000};
    struct weft_wait wait;
    enum weft_status status = WEFT_OK;

    weft_wait_begin(&wait, channel, timeout_ms);
    while (status == WEFT_OK) {
        status = weft_wait_check(&wait, channel->options.rank);
        nanosleep(&moment, NULL);
    }
    return status;
}

/* Applies the fault that is due; *is_dropping_out: messages with the fault's peer are to vanish. */
static enum weft_status begin_call(struct trace_channel *trace, uint32_t timeout_ms, bool *is_dropping_out)
{
    const struct weft_fault *fault = &trace->state->fault;
    uint64_t call = trace->state->call_count++;
    const struct timespec delay = {fault->delay_us / 1000000, fault->delay_us % 1000000 * 1000};

    *is_dropping_out = false;
    if (call < fault->call_index) {
        return WEFT_OK;
    }
    switch (fault->kind) {
    case WEFT_FAULT_NONE: return WEFT_OK;
    case WEFT_FAULT_DELAY: nanosleep(&delay, NULL); return WEFT_OK;
    case WEFT_FAULT_SILENT: return be_silent(&trace->base, timeout_ms);
    case WEFT_FAULT_DROP: *is_dropping_out = true; return WEFT_OK;
    case WEFT_FAULT_FAIL:
        if (call == fault->call_index) {
            weft_log(WEFT_LOG_ERROR, "comm/trace", "call %llu fails on purpose", (unsigned long long)call);
            return WEFT_ERR_IO;
        }
        return WEFT_OK;
    }
    return WEFT_OK;
}

static enum weft_status trace_transfer(struct weft_channel *channel, const struct weft_transfer *transfers,
                                       size_t count, uint32_t timeout_ms)
{
    struct trace_channel *trace = (struct trace_channel *)channel;
    uint64_t begin_ns = weft_comm_clock_ns();
    bool is_dropping;
    size_t kept = 0;
    enum weft_status status;

    WEFT_TRY(begin_call(trace, timeout_ms, &is_dropping));
    for (size_t i = 0; i < count; i++) {
        if (!is_dropping || transfers[i].peer != trace->state->fault.peer) {
            trace->transfers[kept++] = transfers[i];
        }
    }
    status = trace->wrapped->backend->transfer(trace->wrapped, trace->transfers, kept, timeout_ms);
    channel->failed_rank = trace->wrapped->failed_rank;
    trace->state->times.transfer_count++;
    trace->state->times.transfer_ns += weft_comm_clock_ns() - begin_ns;
    return status;
}

static enum weft_status trace_exchange(struct weft_channel *channel, const struct weft_exchange *exchange)
{
    struct trace_channel *trace = (struct trace_channel *)channel;
    uint64_t begin_ns = weft_comm_clock_ns();
    bool is_dropping;
    enum weft_status status;

    WEFT_TRY(begin_call(trace, exchange->timeout_ms, &is_dropping));
    if (is_dropping) {
        return be_silent(channel, exchange->timeout_ms);
    }
    status = trace->wrapped->backend->exchange(trace->wrapped, exchange);
    channel->failed_rank = trace->wrapped->failed_rank;
    trace->state->times.exchange_count++;
    trace->state->times.exchange_ns += weft_comm_clock_ns() - begin_ns;
    return status;
}

static enum weft_status trace_finish(struct weft_channel *channel, uint32_t timeout_ms)
{
    struct trace_channel *trace = (struct trace_channel *)channel;
    enum weft_status status = trace->wrapped->backend->finish(trace->wrapped, timeout_ms);

    channel->failed_rank = trace->wrapped->failed_rank;
    return status;
}

static void *trace_buffer(struct weft_channel *channel, enum weft_area area)
{
    struct trace_channel *trace = (struct trace_channel *)channel;

    return trace->wrapped->backend->buffer(trace->wrapped, area);
}

static void trace_close(struct weft_channel **channel)
{
    struct trace_channel *trace = (struct trace_channel *)*channel;

    if (trace != NULL) {
        trace->wrapped->backend->close(&trace->wrapped);
        if (--trace->state->user_count == 0) {
            free(trace->state);
        }
        free(trace->transfers);
        free(trace);
    }
    *channel = NULL;
}

static const struct weft_backend TRACE = {
    .name = "trace",
    .transfer = trace_transfer,
    .finish = trace_finish,
    .buffer = trace_buffer,
    .exchange = trace_exchange,
    .close = trace_close,
};

/* Puts a wrapper where *channel points. */
static enum weft_status wrap(struct weft_channel **channel, struct trace_state *state)
{
    struct trace_channel *trace = calloc(1, sizeof(*trace));
    struct weft_transfer *transfers = calloc((*channel)->options.transfer_count_max, sizeof(*transfers));

    if (trace == NULL || transfers == NULL) {
        free(trace);
        free(transfers);
        weft_log(WEFT_LOG_ERROR, "comm/trace", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    weft_channel_init(&trace->base, &TRACE, &(*channel)->options);
    trace->wrapped = *channel;
    trace->transfers = transfers;
    trace->state = state;
    state->user_count++;
    *channel = &trace->base;
    return WEFT_OK;
}

enum weft_status weft_comm_trace(struct weft_comm *comm, const struct weft_fault *fault)
{
    struct trace_state *state = calloc(1, sizeof(*state));
    enum weft_status status;

    assert(comm->inner->backend != &TRACE);
    if (state == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/trace", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    if (fault != NULL) {
        state->fault = *fault;
    }
    status = wrap(&comm->inner, state);
    if (status == WEFT_OK && comm->outer != NULL) {
        status = wrap(&comm->outer, state);
    }
    if (status == WEFT_OK && comm->exchange.channel != NULL) {
        status = wrap(&comm->exchange.channel, state);
    }
    if (state->user_count == 0) {
        free(state);
    }
    return status;
}

struct weft_trace_times weft_comm_trace_times(const struct weft_comm *comm)
{
    assert(comm->inner->backend == &TRACE);
    return ((const struct trace_channel *)comm->inner)->state->times;
}
