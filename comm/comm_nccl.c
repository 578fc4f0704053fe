/*
 * NCCL: activations in device memory, in the order of the device's stream. Only its point-to-point calls: bytes move,
 * our kernel adds.
 *
 * Nothing here waits inside NCCL. Its communicator is non-blocking: a call that is not done at once says so, and is
 * polled, with the bootstrap and the deadline in sight; so is the stream. After a failure the communicator is aborted
 * at once, which ends what NCCL has running on the GPU. That, and closing, may hang inside NCCL, so they happen on a
 * thread that is watched and, when it takes too long, left behind together with what it uses.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "comm_nccl_api.h"
#include "weft/log.h"

/* For an abort, and for an orderly end, which needs the peers. */
#define ABORT_MS 2000u
#define CLOSE_MS 500u
/* How long the bootstrap may take to name the rank whose death NCCL has noticed as an error of its own. */
#define VERDICT_MS 200u
/* The mark behind all that was issued (weft/comm.h); staging.c has the lower ones. */
#define MARK_LAST (WEFT_COMM_MARK_COUNT - 1u)

/* What rank 0 publishes. */
_Static_assert(sizeof(ncclUniqueId) <= WEFT_ADDRESS_SIZE, "must fit its blob");

/* The end of a communicator, on a thread of its own; freed by the last of the two that look at it. */
struct nccl_end {
    struct nccl_api api;
    ncclComm_t comm;
    bool is_abort;
    atomic_bool is_done;
    atomic_int user_count;
};

struct nccl_channel {
    struct weft_channel base;
    struct nccl_api api;
    struct weft_comm_device device;
    char *greeting;       /* owned device memory: [2][rank_count], sent and received by greet() */
    ncclComm_t comm;      /* NULL: not connected, or its end is under way */
    struct nccl_end *end; /* when that is under way */
    bool has_failed;
};

static void sleep_a_little(void)
{
    const struct timespec pause = {.tv_nsec = 20000};

    (void)nanosleep(&pause, NULL);
}

/* ---- the end ---- */

static void release_end(struct nccl_end *end)
{
    if (atomic_fetch_sub(&end->user_count, 1) == 1) {
        free(end);
    }
}

/* Finalize tells the peers and waits for them, within CLOSE_MS; only then may destroy() be called. */
static bool finalize(struct nccl_end *end)
{
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)CLOSE_MS * 1000000u;
    ncclResult_t result = end->api.ncclCommFinalize(end->comm);

    while (result == ncclInProgress && weft_comm_clock_ns() < deadline_ns) {
        sleep_a_little();
        if (end->api.ncclCommGetAsyncError(end->comm, &result) != ncclSuccess) {
            return false;
        }
    }
    return result == ncclSuccess;
}

static void *run_end(void *argument)
{
    struct nccl_end *end = argument;

    if (!end->is_abort && finalize(end)) {
        (void)end->api.ncclCommDestroy(end->comm);
    } else {
        (void)end->api.ncclCommAbort(end->comm);
    }
    atomic_store(&end->is_done, true);
    release_end(end);
    return NULL;
}

/* Sets the end of the communicator in motion. Without memory or thread for it, the communicator is left as it is. */
static void begin_end(struct nccl_channel *nccl, bool is_abort)
{
    struct nccl_end *end = calloc(1, sizeof(*end));
    pthread_t thread;

    nccl->has_failed = nccl->has_failed || is_abort;
    if (end != NULL) {
        *end = (struct nccl_end){.api = nccl->api, .comm = nccl->comm, .is_abort = is_abort};
        atomic_init(&end->is_done, false);
        atomic_init(&end->user_count, 2);
    }
    nccl->comm = NULL;
    if (end == NULL || pthread_create(&thread, NULL, run_end, end) != 0) {
        free(end);
        weft_log(WEFT_LOG_WARN, "comm/nccl", "no thread to close the communicator: left behind");
        return;
    }
    (void)pthread_detach(thread);
    nccl->end = end;
}

/* Waits for it; what has not ended by then is left behind. */
static void await_end(struct nccl_channel *nccl)
{
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)(ABORT_MS + CLOSE_MS) * 1000000u;
    bool is_done = nccl->end == NULL;

    while (!is_done && weft_comm_clock_ns() < deadline_ns) {
        sleep_a_little();
        is_done = atomic_load(&nccl->end->is_done);
    }
    if (!is_done) {
        weft_log(WEFT_LOG_WARN, "comm/nccl", "NCCL has not given its communicator up within %u ms: left behind",
                 ABORT_MS + CLOSE_MS);
    }
    if (nccl->end != NULL) {
        release_end(nccl->end);
        nccl->end = NULL;
    }
}

static void nccl_close(struct weft_channel **channel)
{
    struct nccl_channel *nccl = (struct nccl_channel *)*channel;

    if (nccl != NULL) {
        if (nccl->comm != NULL) {
            begin_end(nccl, nccl->has_failed || weft_bootstrap_failed_rank(nccl->base.options.bootstrap) >= 0);
        }
        await_end(nccl);
        if (nccl->greeting != NULL) {
            nccl->device.free(nccl->device.context, nccl->greeting);
        }
        free(nccl);
    }
    *channel = NULL;
}

/* ---- errors ---- */

/* What every failure after connecting goes through: the GPU is not to wait for peers any longer. */
static enum weft_status give_up(struct nccl_channel *nccl, enum weft_status status)
{
    if (nccl->comm != NULL) {
        begin_end(nccl, true);
    }
    return status;
}

static enum weft_status ask_bootstrap(struct nccl_channel *nccl)
{
    enum weft_status status = weft_bootstrap_check(nccl->base.options.bootstrap);

    if (status != WEFT_OK) {
        nccl->base.failed_rank = weft_bootstrap_failed_rank(nccl->base.options.bootstrap);
    }
    return status;
}

/* An error of NCCL. It may be the echo of somebody's death, which the bootstrap is about to report; else it is ours. */
static enum weft_status status_from_nccl(struct nccl_channel *nccl, const char *what, ncclResult_t result)
{
    const char *more = nccl->api.ncclGetLastError(nccl->comm);
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)VERDICT_MS * 1000000u;

    while (weft_comm_clock_ns() < deadline_ns) {
        WEFT_TRY(ask_bootstrap(nccl));
        sleep_a_little();
    }
    weft_log(WEFT_LOG_ERROR, "comm/nccl", "%s: %s%s%s", what, nccl->api.ncclGetErrorString(result),
             more != NULL && more[0] != '\0' ? ": " : "", more != NULL ? more : "");
    return WEFT_ERR_IO;
}

/*
 * Until NCCL has taken in what it was told: its state leaves ncclInProgress. ERR_TIMEOUT names nobody: NCCL does not
 * say whom it waits for.
 */
static enum weft_status await_state(struct nccl_channel *nccl, const char *what, ncclResult_t result,
                                    uint32_t timeout_ms)
{
    struct weft_wait wait;

    weft_wait_begin(&wait, &nccl->base, timeout_ms);
    while (result == ncclInProgress) {
        ncclResult_t asked = nccl->api.ncclCommGetAsyncError(nccl->comm, &result);

        if (asked != ncclSuccess) {
            return status_from_nccl(nccl, what, asked);
        }
        if (result == ncclInProgress && !weft_wait_spin(&wait)) {
            WEFT_TRY(weft_wait_check(&wait, WEFT_WAIT_ANYBODY));
            sleep_a_little();
        }
    }
    return result == ncclSuccess ? WEFT_OK : status_from_nccl(nccl, what, result);
}

/* ---- opening ---- */

static bool nccl_is_usable(const struct weft_channel_options *options, bool is_forced, char *reason_out,
                           size_t reason_size)
{
    struct nccl_api api;

    (void)is_forced;
    if (options->device == NULL || options->device->stream == NULL) {
        snprintf(reason_out, reason_size, options->device == NULL ? "no GPU" : "no CUDA stream");
        return false;
    }
    return weft_nccl_load(&api, reason_out, reason_size);
}

static enum weft_status nccl_prepare(const struct weft_channel_options *options, void *address_out,
                                     struct weft_channel **out)
{
    struct nccl_channel *nccl = calloc(1, sizeof(*nccl));
    struct weft_channel *channel = (struct weft_channel *)nccl;
    char reason[96] = "out of memory";
    ncclUniqueId id;
    ncclResult_t result;

    if (nccl == NULL || !weft_nccl_load(&nccl->api, reason, sizeof(reason))) {
        free(nccl);
        weft_log(WEFT_LOG_ERROR, "comm/nccl", "%s", reason);
        return WEFT_ERR_UNSUPPORTED;
    }
    weft_channel_init(channel, &weft_backend_nccl, options);
    nccl->device = *options->device;
    nccl->greeting = nccl->device.alloc(nccl->device.context, 2 * (size_t)options->rank_count);
    if (nccl->greeting == NULL) {
        nccl_close(&channel);
        return WEFT_ERR_MEMORY; /* logged by the device */
    }
    if (options->rank == 0) {
        result = nccl->api.ncclGetUniqueId(&id);
        if (result != ncclSuccess) {
            weft_log(WEFT_LOG_ERROR, "comm/nccl", "unique id: %s", nccl->api.ncclGetErrorString(result));
            nccl_close(&channel);
            return WEFT_ERR_IO;
        }
        memcpy(address_out, &id, sizeof(id));
    }
    *out = channel;
    return WEFT_OK;
}

/*
 * One byte to and from everyone: NCCL connects with the first message, and takes memory then. Both are wanted now, and
 * so is a peer that cannot be reached.
 */
static enum weft_status greet(struct nccl_channel *nccl)
{
    const struct weft_channel_options *options = &nccl->base.options;
    char *bytes = nccl->greeting;
    struct weft_transfer transfers[64];
    size_t count = 0;

    for (uint32_t m = 0; m < options->member_count; m++) {
        uint32_t peer = options->members[m];

        if (peer != options->rank) {
            transfers[count++] = (struct weft_transfer){peer, bytes + peer, 1, bytes + options->rank_count + peer, 1};
        }
    }
    WEFT_TRY(weft_backend_nccl.transfer(&nccl->base, transfers, count, options->timeout_ms));
    return weft_backend_nccl.finish(&nccl->base, options->timeout_ms);
}

static enum weft_status nccl_connect(struct weft_channel *channel, const void *addresses)
{
    struct nccl_channel *nccl = (struct nccl_channel *)channel;
    const struct weft_channel_options *options = &channel->options;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    enum weft_status status;
    ncclResult_t result;

    config.blocking = 0;
    memcpy(&id, addresses, sizeof(id)); /* rank 0's */
    result = nccl->api.ncclCommInitRankConfig(&nccl->comm, (int)options->rank_count, id, (int)options->rank, &config);
    if (nccl->comm == NULL) {
        return status_from_nccl(nccl, "opening", result);
    }
    status = await_state(nccl, "opening", result, options->timeout_ms);
    if (status == WEFT_OK) {
        status = greet(nccl);
    }
    return status == WEFT_OK ? WEFT_OK : give_up(nccl, status);
}

/* ---- messages ---- */

static ncclResult_t issue(struct nccl_channel *nccl, const struct weft_transfer *transfers, size_t count)
{
    ncclResult_t result = nccl->api.ncclGroupStart(), end;
    cudaStream_t stream = nccl->device.stream;

    for (size_t i = 0; i < count && result == ncclSuccess; i++) {
        const struct weft_transfer *transfer = &transfers[i];

        if (transfer->send_size > 0) {
            result = nccl->api.ncclSend(transfer->send, transfer->send_size, ncclInt8, (int)transfer->peer, nccl->comm,
                                        stream);
        }
        if (transfer->recv_size > 0 && result == ncclSuccess) {
            result = nccl->api.ncclRecv(transfer->recv, transfer->recv_size, ncclInt8, (int)transfer->peer, nccl->comm,
                                        stream);
        }
    }
    end = nccl->api.ncclGroupEnd();
    return result != ncclSuccess ? result : end;
}

/* What has been recorded is launched with the recording. */
static bool is_replayed(const struct nccl_channel *nccl)
{
    return nccl->device.recording != NULL && nccl->device.recording(nccl->device.context) == WEFT_COMM_REPLAYED;
}

/* Done when NCCL has put everything into the stream, or the stream's recording: only then may work that depends on it
 * follow. */
static enum weft_status nccl_transfer(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                      uint32_t timeout_ms)
{
    struct nccl_channel *nccl = (struct nccl_channel *)channel;
    enum weft_status status;

    if (count == 0 || is_replayed(nccl)) {
        return WEFT_OK;
    }
    status = await_state(nccl, "sending", issue(nccl, transfers, count), timeout_ms);
    return status == WEFT_OK ? WEFT_OK : give_up(nccl, status);
}

static enum weft_status poll_stream(struct nccl_channel *nccl, uint32_t timeout_ms)
{
    const struct weft_comm_device *device = &nccl->device;
    struct weft_wait wait;
    enum weft_status status;

    weft_wait_begin(&wait, &nccl->base, timeout_ms);
    device->mark(device->context, MARK_LAST);
    status = device->wait(device->context, MARK_LAST, WEFT_WAIT_SLEEP_MS);
    while (status == WEFT_ERR_TIMEOUT) {
        ncclResult_t result = ncclSuccess;
        ncclResult_t asked = nccl->api.ncclCommGetAsyncError(nccl->comm, &result);

        result = asked != ncclSuccess ? asked : result;
        if (result != ncclSuccess && result != ncclInProgress) {
            return status_from_nccl(nccl, "exchanging", result);
        }
        WEFT_TRY(weft_wait_check(&wait, WEFT_WAIT_ANYBODY));
        status = device->wait(device->context, MARK_LAST, WEFT_WAIT_SLEEP_MS);
    }
    return status;
}

static enum weft_status nccl_finish(struct weft_channel *channel, uint32_t timeout_ms)
{
    struct nccl_channel *nccl = (struct nccl_channel *)channel;
    enum weft_status status = poll_stream(nccl, timeout_ms);

    return status == WEFT_OK ? WEFT_OK : give_up(nccl, status);
}

const struct weft_backend weft_backend_nccl = {
    .name = "nccl",
    .is_usable = nccl_is_usable,
    .prepare = nccl_prepare,
    .connect = nccl_connect,
    .transfer = nccl_transfer,
    .finish = nccl_finish,
    .close = nccl_close,
};
