/*
 * UCX: InfiniBand, RoCE, and wherever it is asked for. Chosen by itself only where there is an RDMA device: over plain
 * Ethernet comm_tcp.c is several times faster.
 *
 * Ranks of one host are joined without UCX's peer-failure handling, since that would rule its shared memory out;
 * between hosts with it. Neither is relied upon: the bootstrap says who is dead, and every wait has our own deadline.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "comm_ucx_api.h"
#include "netif.h"
#include "weft/log.h"

/* Of an orderly farewell; a peer that closes at the same time answers within microseconds. */
#define CLOSE_MS 500
/* Of one attempt to hand everything to the network; see flush(). */
#define FLUSH_US 2000

/* What a rank publishes. */
struct ucx_address {
    uint64_t host_id;
    uint32_t size;
    unsigned char worker[WEFT_ADDRESS_SIZE - 16];
};
_Static_assert(sizeof(struct ucx_address) <= WEFT_ADDRESS_SIZE, "must fit its blob");

struct ucx_peer {
    ucp_ep_h endpoint; /* NULL: oneself */
    bool has_peer_handling;
    ucs_status_t error; /* from UCX's own failure detection; UCS_OK */
};

/* One message under way. */
struct ucx_operation {
    void *request;
    uint32_t rank;
    bool is_recv;
    size_t size;
};

struct ucx_channel {
    struct weft_channel base;
    struct ucx_api api;
    ucp_context_h context;
    ucp_worker_h worker;
    struct ucx_peer *peers;           /* [member_count] */
    struct ucx_operation *operations; /* [2 * transfer_count_max + 2 * member_count] */
    size_t operation_count;           /* under way */
    void *flush;                      /* request, or NULL */
    bool has_failed;
};

static bool has_rdma_device(void)
{
    DIR *directory = opendir("/sys/class/infiniband");
    struct dirent *entry;
    bool is_found = false;

    if (directory == NULL) {
        return false;
    }
    while (!is_found && (entry = readdir(directory)) != NULL) {
        is_found = entry->d_name[0] != '.';
    }
    closedir(directory);
    return is_found;
}

static bool ucx_is_usable(const struct weft_channel_options *options, bool is_forced, char *reason_out,
                          size_t reason_size)
{
    struct ucx_api api;

    (void)options;
    if (!is_forced && !has_rdma_device()) {
        snprintf(reason_out, reason_size, "no RDMA device");
        return false;
    }
    return weft_ucx_load(&api, reason_out, reason_size);
}

static bool is_pending(void *request)
{
    return UCS_PTR_IS_PTR(request);
}

/* Lets UCX work until the request is done or the time is up; releases it either way. True when it was done. */
static bool settle(struct ucx_channel *ucx, void *request, uint64_t deadline_ns)
{
    bool is_done = true;

    if (is_pending(request)) {
        while (ucx->api.ucp_request_check_status(request) == UCS_INPROGRESS && weft_comm_clock_ns() < deadline_ns) {
            (void)ucx->api.ucp_worker_progress(ucx->worker);
        }
        is_done = ucx->api.ucp_request_check_status(request) != UCS_INPROGRESS;
        ucx->api.ucp_request_free(request);
    }
    return is_done;
}

/* True when all are closed. */
static bool close_endpoints(struct ucx_channel *ucx)
{
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)CLOSE_MS * 1000000u;
    bool is_all = true;

    for (uint32_t m = 0; m < ucx->base.options.member_count; m++) {
        struct ucx_peer *peer = &ucx->peers[m];
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS};

        if (peer->endpoint == NULL) {
            continue;
        }
        if (ucx->has_failed && !peer->has_peer_handling) {
            is_all = false; /* UCX has no forced close for it, and an orderly one would wait for the peer */
            continue;
        }
        param.flags = ucx->has_failed || peer->error != UCS_OK ? UCP_EP_CLOSE_FLAG_FORCE : 0;
        is_all = settle(ucx, ucx->api.ucp_ep_close_nbx(peer->endpoint, &param), deadline_ns) && is_all;
    }
    return is_all;
}

static void drop_operations(struct ucx_channel *ucx)
{
    for (size_t i = 0; i < ucx->operation_count; i++) {
        if (ucx->operations[i].is_recv) {
            ucx->api.ucp_request_cancel(ucx->worker, ucx->operations[i].request);
        }
        ucx->api.ucp_request_free(ucx->operations[i].request);
    }
    if (ucx->flush != NULL) {
        ucx->api.ucp_request_free(ucx->flush);
    }
}

/*
 * After a failure of the group the worker is left to the end of the process, which is usually near: UCX 1.13 aborts the
 * process (an assertion) when a worker is destroyed that a peer was just connecting to. Its endpoints are closed as far
 * as UCX can close them by force, so that no device goes on writing into our memory.
 */
static void ucx_close(struct weft_channel **channel)
{
    struct ucx_channel *ucx = (struct ucx_channel *)*channel;
    bool is_closed = true;

    if (ucx != NULL) {
        ucx->has_failed = ucx->has_failed || weft_bootstrap_failed_rank(ucx->base.options.bootstrap) >= 0;
        if (ucx->worker != NULL) {
            drop_operations(ucx);
            is_closed = close_endpoints(ucx) && !ucx->has_failed;
        }
        if (ucx->worker != NULL && is_closed) {
            ucx->api.ucp_worker_destroy(ucx->worker);
        }
        if (ucx->context != NULL && is_closed) {
            ucx->api.ucp_cleanup(ucx->context);
        }
        free(ucx->peers);
        free(ucx->operations);
        free(ucx);
    }
    *channel = NULL;
}

static enum weft_status ucx_fault(struct ucx_channel *ucx, const char *what, ucs_status_t status)
{
    ucx->has_failed = true;
    weft_log(WEFT_LOG_ERROR, "comm/ucx", "%s: %s", what, ucx->api.ucs_status_string(status));
    return WEFT_ERR_IO;
}

/*
 * A context that uses the wanted interfaces only; not the kernel's cross-memory copy: on a peer that has died UCX
 * answers its error by aborting the process; and of UCX's kinds of shared memory not posix, whose files stay in
 * /dev/shm when a rank is killed. Whoever sets UCX_TLS decides alone. Over TCP no PUT: an acknowledgement that comes
 * after the other side has closed its endpoint ends the process by an assertion in UCX.
 */
static enum weft_status open_context(struct ucx_channel *ucx)
{
    const char *interface = ucx->base.options.interface;
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG};
    char devices[256];
    ucp_config_t *config;
    ucs_status_t status = ucx->api.ucp_config_read(NULL, NULL, &config);

    if (status != UCS_OK) {
        return ucx_fault(ucx, "configuration", status);
    }
    if (interface != NULL && weft_netif_names(interface, devices, sizeof(devices))) {
        interface = devices;
    }
    if (interface != NULL) {
        status = ucx->api.ucp_config_modify(config, "NET_DEVICES", interface);
    }
    if (status == UCS_OK && getenv("UCX_TLS") == NULL) {
        status = ucx->api.ucp_config_modify(config, "TLS", "^cma,posix");
    }
    if (status == UCS_OK && getenv("UCX_TCP_PUT_ENABLE") == NULL) {
        status = ucx->api.ucp_config_modify(config, "TCP_PUT_ENABLE", "n");
    }
    if (status == UCS_OK) {
        status = ucx->api.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &ucx->context);
    }
    ucx->api.ucp_config_release(config);
    return status == UCS_OK ? WEFT_OK : ucx_fault(ucx, interface != NULL ? interface : "init", status);
}

static enum weft_status open_worker(struct ucx_channel *ucx, struct ucx_address *address)
{
    /* SERIALIZED: a communicator may move between threads. */
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucp_address_t *worker_address;
    size_t size;
    ucs_status_t status = ucx->api.ucp_worker_create(ucx->context, &params, &ucx->worker);

    if (status != UCS_OK) {
        ucx->worker = NULL;
        return ucx_fault(ucx, "worker", status);
    }
    status = ucx->api.ucp_worker_get_address(ucx->worker, &worker_address, &size);
    if (status != UCS_OK) {
        return ucx_fault(ucx, "address", status);
    }
    if (size <= sizeof(address->worker)) {
        address->host_id = weft_bootstrap_host_id(ucx->base.options.bootstrap);
        address->size = (uint32_t)size;
        memcpy(address->worker, worker_address, size);
    }
    ucx->api.ucp_worker_release_address(ucx->worker, worker_address);
    if (size > sizeof(address->worker)) {
        weft_log(WEFT_LOG_ERROR, "comm/ucx", "address of %zu bytes, at most %zu: name one interface", size,
                 sizeof(address->worker));
        return WEFT_ERR_LIMIT;
    }
    return WEFT_OK;
}

static enum weft_status ucx_prepare(const struct weft_channel_options *options, void *address_out,
                                    struct weft_channel **out)
{
    struct ucx_channel *ucx = calloc(1, sizeof(*ucx));
    struct weft_channel *channel = (struct weft_channel *)ucx;
    struct ucx_address address = {0};
    char reason[64];
    enum weft_status status = WEFT_OK;

    if (ucx != NULL) {
        weft_channel_init(channel, &weft_backend_ucx, options);
        ucx->peers = calloc(options->member_count, sizeof(ucx->peers[0]));
        ucx->operations = calloc(2 * (size_t)options->transfer_count_max + 2 * (size_t)options->member_count,
                                 sizeof(ucx->operations[0]));
    }
    if (ucx == NULL || ucx->peers == NULL || ucx->operations == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/ucx", "out of memory");
        status = WEFT_ERR_MEMORY;
    } else if (!weft_ucx_load(&ucx->api, reason, sizeof(reason))) {
        weft_log(WEFT_LOG_ERROR, "comm/ucx", "%s", reason);
        status = WEFT_ERR_UNSUPPORTED;
    }
    if (status == WEFT_OK) {
        status = open_context(ucx);
    }
    if (status == WEFT_OK) {
        status = open_worker(ucx, &address);
    }
    if (status != WEFT_OK) {
        ucx_close(&channel);
        return status;
    }
    memcpy(address_out, &address, sizeof(address));
    *out = channel;
    return WEFT_OK;
}

/* ---- messages ---- */

/* Remembers what is not done at once. */
static enum weft_status keep(struct ucx_channel *ucx, struct ucx_operation operation)
{
    if (is_pending(operation.request)) {
        ucx->operations[ucx->operation_count++] = operation;
        return WEFT_OK;
    }
    if (operation.request == NULL) {
        return WEFT_OK;
    }
    ucx->has_failed = true;
    return weft_channel_lost(&ucx->base, operation.rank, ucx->api.ucs_status_string(UCS_PTR_STATUS(operation.request)));
}

static enum weft_status check_recv(struct ucx_channel *ucx, uint32_t rank, size_t expected_size, ucs_status_t status,
                                   size_t found_size)
{
    if (status == UCS_ERR_MESSAGE_TRUNCATED || (status == UCS_OK && found_size != expected_size)) {
        ucx->has_failed = true;
        return weft_channel_mismatch(&ucx->base, rank, expected_size, found_size);
    }
    if (status != UCS_OK) {
        ucx->has_failed = true;
        return weft_channel_lost(&ucx->base, rank, ucx->api.ucs_status_string(status));
    }
    return WEFT_OK;
}

/* The tag is the sender's rank; UCX keeps messages of one sender and tag in order. */
static enum weft_status start_recv(struct ucx_channel *ucx, uint32_t rank, void *data, size_t size)
{
    /* Always a request: UCX 1.13 does not say how long a message was that it had already. */
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FLAG_NO_IMM_CMPL};
    void *request = ucx->api.ucp_tag_recv_nbx(ucx->worker, data, size, rank, ~(ucp_tag_t)0, &param);

    return keep(ucx, (struct ucx_operation){.request = request, .rank = rank, .is_recv = true, .size = size});
}

static enum weft_status start_send(struct ucx_channel *ucx, uint32_t rank, const void *data, size_t size)
{
    ucp_request_param_t param = {0};
    int member = weft_channel_member_index(&ucx->base, rank);
    void *request = ucx->api.ucp_tag_send_nbx(ucx->peers[member].endpoint, data, size, ucx->base.options.rank, &param);

    return keep(ucx, (struct ucx_operation){.request = request, .rank = rank, .is_recv = false, .size = size});
}

/* One operation; *is_done_out when it is over. */
static enum weft_status look_at(struct ucx_channel *ucx, const struct ucx_operation *operation, bool *is_done_out)
{
    ucp_tag_recv_info_t info = {0};
    ucs_status_t status = operation->is_recv ? ucx->api.ucp_tag_recv_request_test(operation->request, &info)
                                             : ucx->api.ucp_request_check_status(operation->request);

    *is_done_out = status != UCS_INPROGRESS;
    if (status == UCS_INPROGRESS) {
        return WEFT_OK;
    }
    if (operation->is_recv) {
        return check_recv(ucx, operation->rank, operation->size, status, info.length);
    }
    if (status != UCS_OK) {
        ucx->has_failed = true;
        return weft_channel_lost(&ucx->base, operation->rank, ucx->api.ucs_status_string(status));
    }
    return WEFT_OK;
}

/* Progress, then a look at everything under way. */
static enum weft_status sweep(struct ucx_channel *ucx, bool *has_moved_out)
{
    size_t i = 0;

    *has_moved_out = false;
    (void)ucx->api.ucp_worker_progress(ucx->worker);
    while (i < ucx->operation_count) {
        bool is_done;

        WEFT_TRY(look_at(ucx, &ucx->operations[i], &is_done));
        if (is_done) {
            ucx->api.ucp_request_free(ucx->operations[i].request);
            ucx->operations[i] = ucx->operations[--ucx->operation_count];
            *has_moved_out = true;
        } else {
            i++;
        }
    }
    return WEFT_OK;
}

/* ERR_PEER when UCX itself reports a rank as lost: of those that we wait for, or of all. */
static enum weft_status find_lost(struct ucx_channel *ucx, bool is_waited_for)
{
    const struct weft_channel_options *options = &ucx->base.options;

    for (uint32_t m = 0; m < options->member_count; m++) {
        bool is_meant = !is_waited_for;

        for (size_t i = 0; i < ucx->operation_count && !is_meant; i++) {
            is_meant = ucx->operations[i].rank == options->members[m];
        }
        if (is_meant && ucx->peers[m].error != UCS_OK) {
            ucx->has_failed = true;
            return weft_channel_lost(&ucx->base, options->members[m], ucx->api.ucs_status_string(ucx->peers[m].error));
        }
    }
    return WEFT_OK;
}

/* A peer that has gone fails the flush, too. Whom UCX does not name the bootstrap may. */
static enum weft_status flush_failed(struct ucx_channel *ucx, ucs_status_t status)
{
    char reason[64];

    ucx->has_failed = true;
    WEFT_TRY(find_lost(ucx, false));
    snprintf(reason, sizeof(reason), "flush: %s", ucx->api.ucs_status_string(status));
    return weft_channel_lost(&ucx->base, ucx->base.options.rank, reason);
}

/*
 * Bytes of a short send are UCX's when the send counts as done, and leave it only as it is driven. A rank that goes to
 * sleep afterwards should not take them along. Not longer than FLUSH_US, though: some flushes need the peer to be
 * driven as well, and that one may be asleep already. Then the next transfer drives them on.
 */
static enum weft_status flush(struct ucx_channel *ucx)
{
    const ucp_request_param_t param = {0};
    uint64_t deadline_ns = weft_comm_clock_ns() + (uint64_t)FLUSH_US * 1000u;
    ucs_status_t status = UCS_OK;

    if (ucx->flush == NULL) {
        void *request = ucx->api.ucp_worker_flush_nbx(ucx->worker, &param);

        if (!is_pending(request)) {
            status = UCS_PTR_STATUS(request);
            return status == UCS_OK ? WEFT_OK : flush_failed(ucx, status);
        }
        ucx->flush = request;
    }
    do {
        (void)ucx->api.ucp_worker_progress(ucx->worker);
        status = ucx->api.ucp_request_check_status(ucx->flush);
    } while (status == UCS_INPROGRESS && weft_comm_clock_ns() < deadline_ns);
    if (status == UCS_INPROGRESS) {
        return WEFT_OK;
    }
    ucx->api.ucp_request_free(ucx->flush);
    ucx->flush = NULL;
    return status == UCS_OK ? WEFT_OK : flush_failed(ucx, status);
}

/* Until everything started is over. */
static enum weft_status finish(struct ucx_channel *ucx, uint32_t timeout_ms)
{
    const struct timespec pause = {.tv_nsec = 50000};
    struct weft_wait wait;
    bool has_moved;

    weft_wait_begin(&wait, &ucx->base, timeout_ms);
    for (;;) {
        WEFT_TRY(sweep(ucx, &has_moved));
        if (ucx->operation_count == 0) {
            return flush(ucx);
        }
        if (has_moved) {
            weft_wait_progress(&wait);
        } else if (!weft_wait_spin(&wait)) {
            WEFT_TRY(find_lost(ucx, true));
            WEFT_TRY(weft_wait_check(&wait, ucx->operations[0].rank));
            (void)nanosleep(&pause, NULL);
        }
    }
}

static enum weft_status run(struct ucx_channel *ucx, const struct weft_transfer *transfers, size_t count,
                            uint32_t timeout_ms)
{
    for (size_t i = 0; i < count; i++) {
        if (transfers[i].recv_size > 0) {
            WEFT_TRY(start_recv(ucx, transfers[i].peer, transfers[i].recv, transfers[i].recv_size));
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (transfers[i].send_size > 0) {
            WEFT_TRY(start_send(ucx, transfers[i].peer, transfers[i].send, transfers[i].send_size));
        }
    }
    return finish(ucx, timeout_ms);
}

static enum weft_status ucx_transfer(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                     uint32_t timeout_ms)
{
    struct ucx_channel *ucx = (struct ucx_channel *)channel;
    enum weft_status status = run(ucx, transfers, count, timeout_ms);

    ucx->has_failed = ucx->has_failed || status != WEFT_OK;
    return status;
}

/* ---- connecting ---- */

/* Called by ucp_worker_progress(). */
static void note_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    struct ucx_peer *peer = argument;

    (void)endpoint;
    peer->error = status;
}

static enum weft_status create_endpoint(struct ucx_channel *ucx, uint32_t member, const struct ucx_address *own,
                                        const struct ucx_address *other)
{
    struct ucx_peer *peer = &ucx->peers[member];
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
                              .address = (const ucp_address_t *)(const void *)other->worker};
    char reason[96];
    ucs_status_t status;

    peer->has_peer_handling = own->host_id != other->host_id;
    if (peer->has_peer_handling) {
        params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler = (ucp_err_handler_t){.cb = note_error, .arg = peer};
    }
    status = ucx->api.ucp_ep_create(ucx->worker, &params, &peer->endpoint);
    if (status != UCS_OK) {
        /* Between ranks of one host it maps the other's memory, which is gone once that one has died. */
        peer->endpoint = NULL;
        ucx->has_failed = true;
        snprintf(reason, sizeof(reason), "cannot connect to it: %s", ucx->api.ucs_status_string(status));
        return weft_channel_lost(&ucx->base, ucx->base.options.members[member], reason);
    }
    return WEFT_OK;
}

/* Both ways with every member, all at the same time. */
static enum weft_status greet_once(struct ucx_channel *ucx)
{
    const struct weft_channel_options *options = &ucx->base.options;
    uint64_t heard[64] = {0};

    for (uint32_t m = 0; m < options->member_count; m++) {
        if (ucx->peers[m].endpoint != NULL) {
            WEFT_TRY(start_recv(ucx, options->members[m], &heard[m], sizeof(heard[m])));
            WEFT_TRY(start_send(ucx, options->members[m], &options->nonce, sizeof(options->nonce)));
        }
    }
    WEFT_TRY(finish(ucx, options->timeout_ms));
    for (uint32_t m = 0; m < options->member_count; m++) {
        if (ucx->peers[m].endpoint != NULL && heard[m] != options->nonce) {
            ucx->has_failed = true;
            return weft_channel_lost(&ucx->base, options->members[m], "another group answered");
        }
    }
    return WEFT_OK;
}

/*
 * UCX connects with the first message, and goes on connecting only while it is driven. A peer's second message says
 * that it has had our first: so after two rounds nothing hangs on a rank that is not in here any more.
 */
static enum weft_status greet(struct ucx_channel *ucx)
{
    WEFT_TRY(greet_once(ucx));
    return greet_once(ucx);
}

static enum weft_status ucx_connect(struct weft_channel *channel, const void *addresses)
{
    struct ucx_channel *ucx = (struct ucx_channel *)channel;
    const struct weft_channel_options *options = &channel->options;
    struct ucx_address own, other;
    enum weft_status status;

    memcpy(&own, (const char *)addresses + (size_t)options->rank * WEFT_ADDRESS_SIZE, sizeof(own));
    for (uint32_t m = 0; m < options->member_count; m++) {
        if (options->members[m] != options->rank) {
            memcpy(&other, (const char *)addresses + (size_t)options->members[m] * WEFT_ADDRESS_SIZE, sizeof(other));
            WEFT_TRY(create_endpoint(ucx, m, &own, &other));
        }
    }
    status = greet(ucx);
    ucx->has_failed = ucx->has_failed || status != WEFT_OK;
    return status;
}

const struct weft_backend weft_backend_ucx = {
    .name = "ucx",
    .is_usable = ucx_is_usable,
    .prepare = ucx_prepare,
    .connect = ucx_connect,
    .transfer = ucx_transfer,
    .close = ucx_close,
};
