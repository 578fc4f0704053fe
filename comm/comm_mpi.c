/*
 * MPI point to point: wherever MPI runs and nothing else does. Needs the mpi bootstrap, which owns MPI_Init; works on a
 * communicator of its own, so that nobody else's messages are met. No blocking MPI call: a peer that is gone would keep
 * it for ever, so everything is started and then tested until the deadline.
 *
 * MPI counts a short send as done when it has taken the bytes over, and moves them on only inside later calls: a rank
 * that stops calling may leave the end of its last message with itself. It reaches the peer with the next call.
 */
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "mpi_turn.h"
#include "weft/log.h"

enum { MESSAGE_TAG = 1 };

/* What a request stands for. */
struct mpi_operation {
    uint32_t rank;
    bool is_recv;
    size_t size;
};

struct mpi_channel {
    struct weft_channel base;
    MPI_Comm comm;             /* ours; MPI_COMM_NULL before connect() */
    MPI_Request *requests;     /* [2 * transfer_count_max] */
    MPI_Status *statuses;      /* the same */
    int *completed;            /* the same: what MPI_Testsome() found */
    struct mpi_operation *ops; /* the same, by request */
    int request_count;         /* posted in this transfer */
    bool has_failed;
};

static bool mpi_is_usable(const struct weft_channel_options *options, bool is_forced, char *reason_out,
                          size_t reason_size)
{
    (void)is_forced;
    if (strcmp(weft_bootstrap_kind(options->bootstrap), "mpi") != 0) {
        snprintf(reason_out, reason_size, "not started by MPI (bootstrap is %s)",
                 weft_bootstrap_kind(options->bootstrap));
        return false;
    }
    return true;
}

/* Without waiting: after a failure nothing collective can be expected of the others. */
static void let_go(struct mpi_channel *mpi)
{
    for (int i = 0; i < mpi->request_count; i++) {
        if (mpi->requests[i] != MPI_REQUEST_NULL) {
            if (mpi->ops[i].is_recv) {
                (void)MPI_Cancel(&mpi->requests[i]);
            }
            (void)MPI_Request_free(&mpi->requests[i]);
        }
    }
    if (mpi->comm != MPI_COMM_NULL && !mpi->has_failed) {
        (void)MPI_Comm_free(&mpi->comm);
    }
}

static void mpi_close(struct weft_channel **channel)
{
    struct mpi_channel *mpi = (struct mpi_channel *)*channel;

    if (mpi != NULL) {
        if (weft_mpi_turn_begin(mpi->base.options.bootstrap)) {
            let_go(mpi);
            weft_mpi_turn_end(mpi->base.options.bootstrap);
        }
        free(mpi->requests);
        free(mpi->statuses);
        free(mpi->completed);
        free(mpi->ops);
        free(mpi);
    }
    *channel = NULL;
}

static enum weft_status mpi_prepare(const struct weft_channel_options *options, void *address_out,
                                    struct weft_channel **out)
{
    struct mpi_channel *mpi = calloc(1, sizeof(*mpi));
    struct weft_channel *channel = (struct weft_channel *)mpi;
    size_t room = 2 * (size_t)options->transfer_count_max + 2;

    (void)address_out; /* MPI knows its ranks, and they are ours */
    if (mpi != NULL) {
        weft_channel_init(channel, &weft_backend_mpi, options);
        mpi->comm = MPI_COMM_NULL;
        mpi->requests = calloc(room, sizeof(mpi->requests[0]));
        mpi->statuses = calloc(room, sizeof(mpi->statuses[0]));
        mpi->completed = calloc(room, sizeof(mpi->completed[0]));
        mpi->ops = calloc(room, sizeof(mpi->ops[0]));
    }
    if (mpi == NULL || mpi->requests == NULL || mpi->statuses == NULL || mpi->completed == NULL || mpi->ops == NULL) {
        mpi_close(&channel);
        weft_log(WEFT_LOG_ERROR, "comm/mpi", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    *out = channel;
    return WEFT_OK;
}

/* MPI offers nothing to sleep on. */
static void sleep_a_little(void)
{
    const struct timespec pause = {.tv_nsec = 50000};

    (void)nanosleep(&pause, NULL);
}

static enum weft_status mpi_fault(struct mpi_channel *mpi, const char *what, int error)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int size = 0;

    mpi->has_failed = true;
    (void)MPI_Error_string(error, text, &size);
    weft_log(WEFT_LOG_ERROR, "comm/mpi", "%s: %s", what, text);
    return WEFT_ERR_IO;
}

/* Duplicates MPI_COMM_WORLD; the only collective call of MPI here, and it does not block either. */
static enum weft_status duplicate(struct mpi_channel *mpi)
{
    struct weft_channel *channel = &mpi->base;
    struct weft_wait wait;
    MPI_Request request;
    int is_done = 0;
    int error = MPI_Comm_idup(MPI_COMM_WORLD, &mpi->comm, &request);

    if (error != MPI_SUCCESS) {
        mpi->comm = MPI_COMM_NULL;
        return mpi_fault(mpi, "MPI_Comm_idup", error);
    }
    mpi->has_failed = true; /* until the duplicate is there */
    weft_wait_begin(&wait, channel, channel->options.timeout_ms);
    while ((error = MPI_Test(&request, &is_done, MPI_STATUS_IGNORE)) == MPI_SUCCESS && !is_done) {
        if (!weft_wait_spin(&wait)) {
            WEFT_TRY(weft_wait_check(&wait, channel->options.rank));
            sleep_a_little();
        }
    }
    if (error != MPI_SUCCESS) {
        return mpi_fault(mpi, "MPI_Comm_idup", error);
    }
    mpi->has_failed = false;
    error = MPI_Comm_set_errhandler(mpi->comm, MPI_ERRORS_RETURN);
    return error == MPI_SUCCESS ? WEFT_OK : mpi_fault(mpi, "MPI_Comm_set_errhandler", error);
}

static enum weft_status mpi_connect(struct weft_channel *channel, const void *addresses)
{
    enum weft_status status;

    (void)addresses;
    if (!weft_mpi_turn_begin(channel->options.bootstrap)) {
        return WEFT_ERR_PEER;
    }
    status = duplicate((struct mpi_channel *)channel);
    weft_mpi_turn_end(channel->options.bootstrap);
    return status;
}

static enum weft_status start(struct mpi_channel *mpi, uint32_t rank, bool is_recv, void *data, size_t size)
{
    int at = mpi->request_count;
    int error;

    if (size > INT_MAX) {
        weft_log(WEFT_LOG_ERROR, "comm/mpi", "%zu bytes in one message, at most %d", size, INT_MAX);
        return WEFT_ERR_LIMIT;
    }
    mpi->ops[at] = (struct mpi_operation){.rank = rank, .is_recv = is_recv, .size = size};
    if (is_recv) {
        error = MPI_Irecv(data, (int)size, MPI_BYTE, (int)rank, MESSAGE_TAG, mpi->comm, &mpi->requests[at]);
    } else {
        error = MPI_Isend(data, (int)size, MPI_BYTE, (int)rank, MESSAGE_TAG, mpi->comm, &mpi->requests[at]);
    }
    if (error != MPI_SUCCESS) {
        return mpi_fault(mpi, is_recv ? "MPI_Irecv" : "MPI_Isend", error);
    }
    mpi->request_count++;
    return WEFT_OK;
}

static enum weft_status start_all(struct mpi_channel *mpi, const struct weft_transfer *transfers, size_t count)
{
    mpi->request_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (transfers[i].recv_size > 0) {
            WEFT_TRY(start(mpi, transfers[i].peer, true, transfers[i].recv, transfers[i].recv_size));
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (transfers[i].send_size > 0) {
            WEFT_TRY(
                start(mpi, transfers[i].peer, false, (void *)(uintptr_t)transfers[i].send, transfers[i].send_size));
        }
    }
    return WEFT_OK;
}

/* A completed request: did it bring what was due? */
static enum weft_status judge(struct mpi_channel *mpi, const struct mpi_operation *op, MPI_Status *status)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int class = MPI_SUCCESS;
    int size = 0;

    if (status->MPI_ERROR != MPI_SUCCESS) {
        (void)MPI_Error_class(status->MPI_ERROR, &class);
        (void)MPI_Error_string(status->MPI_ERROR, text, &size);
    }
    if (class != MPI_SUCCESS && class != MPI_ERR_TRUNCATE) {
        return weft_channel_lost(&mpi->base, op->rank, text);
    }
    if (op->is_recv) {
        (void)MPI_Get_count(status, MPI_BYTE, &size);
        if (class == MPI_ERR_TRUNCATE || (size_t)size != op->size) {
            return weft_channel_mismatch(&mpi->base, op->rank, op->size, (size_t)size);
        }
    }
    return WEFT_OK;
}

static uint32_t first_missing(const struct mpi_channel *mpi)
{
    for (int i = 0; i < mpi->request_count; i++) {
        if (mpi->requests[i] != MPI_REQUEST_NULL) {
            return mpi->ops[i].rank;
        }
    }
    return mpi->base.options.rank;
}

/*
 * One look at all requests; *done_out how many more are done.
 *
 * Who is dead is asked before MPI is, every time (half a microsecond): over TCP, Open MPI 4 answers the end of a
 * connection by aborting inside the call, waits there to be killed, and nobody gets to say which rank it was.
 */
static enum weft_status look(struct mpi_channel *mpi, struct weft_wait *wait, int *done_out)
{
    int count = 0;
    int error;

    WEFT_TRY(weft_wait_check(wait, first_missing(mpi)));
    for (int i = 0; i < mpi->request_count; i++) {
        mpi->statuses[i].MPI_ERROR = MPI_SUCCESS; /* MPI sets it only when Testsome as a whole reports an error */
    }
    error = MPI_Testsome(mpi->request_count, mpi->requests, &count, mpi->completed, mpi->statuses);
    if (error != MPI_SUCCESS && error != MPI_ERR_IN_STATUS) {
        return mpi_fault(mpi, "MPI_Testsome", error);
    }
    for (int i = 0; i < count && count != MPI_UNDEFINED; i++) {
        if (error == MPI_SUCCESS) {
            mpi->statuses[i].MPI_ERROR = MPI_SUCCESS;
        }
        WEFT_TRY(judge(mpi, &mpi->ops[mpi->completed[i]], &mpi->statuses[i]));
    }
    *done_out = count == MPI_UNDEFINED ? 0 : count;
    return WEFT_OK;
}

/* MPI in turns: between them another thread may end it, when the group was ended. */
static enum weft_status start_in_turn(struct mpi_channel *mpi, const struct weft_transfer *transfers, size_t count)
{
    enum weft_status status;

    if (!weft_mpi_turn_begin(mpi->base.options.bootstrap)) {
        return WEFT_ERR_PEER;
    }
    status = start_all(mpi, transfers, count);
    weft_mpi_turn_end(mpi->base.options.bootstrap);
    return status;
}

static enum weft_status look_in_turn(struct mpi_channel *mpi, struct weft_wait *wait, int *done_out)
{
    enum weft_status status;

    if (!weft_mpi_turn_begin(mpi->base.options.bootstrap)) {
        return WEFT_ERR_PEER;
    }
    status = look(mpi, wait, done_out);
    weft_mpi_turn_end(mpi->base.options.bootstrap);
    return status;
}

static enum weft_status run(struct mpi_channel *mpi, const struct weft_transfer *transfers, size_t count,
                            uint32_t timeout_ms)
{
    struct weft_wait wait;
    int left;

    weft_wait_begin(&wait, &mpi->base, timeout_ms);
    WEFT_TRY(weft_wait_check(&wait, mpi->base.options.rank));
    WEFT_TRY(start_in_turn(mpi, transfers, count));
    left = mpi->request_count;
    while (left > 0) {
        int done = 0;

        WEFT_TRY(look_in_turn(mpi, &wait, &done));
        left -= done;
        if (done > 0) {
            weft_wait_progress(&wait);
        } else if (!weft_wait_spin(&wait)) {
            sleep_a_little();
        }
    }
    mpi->request_count = 0;
    return WEFT_OK;
}

static enum weft_status mpi_transfer(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                     uint32_t timeout_ms)
{
    struct mpi_channel *mpi = (struct mpi_channel *)channel;
    enum weft_status status = run(mpi, transfers, count, timeout_ms);

    mpi->has_failed = mpi->has_failed || status != WEFT_OK;
    return status;
}

const struct weft_backend weft_backend_mpi = {
    .name = "mpi",
    .is_usable = mpi_is_usable,
    .prepare = mpi_prepare,
    .connect = mpi_connect,
    .transfer = mpi_transfer,
    .close = mpi_close,
};
