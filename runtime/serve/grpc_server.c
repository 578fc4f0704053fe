/*
 * The gRPC server: C-core's start and shutdown, completion queues and their threads, the table of methods.
 *
 * Two completion queues with one thread each: with one, an idle server answers at half the speed (poller hand-off), and
 * more threads than queues do not help.
 */
#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "address.h"
#include "grpc_internal.h"
#include "http_routes.h"
#include "weft/log.h"

enum {
    /* Calls that may arrive at once per method and queue before they wait inside C-core; each costs about 700 bytes. */
    POSTED_CALL_COUNT = 32,
    /* What a client is given to read its last status before its connection is closed. */
    CLOSE_GRACE_MS = 200,
    CANCEL_GRACE_MS = 300,
    CLOSE_LIMIT_MS = 5000,
};

static const struct weft_rpc_method *const methods[WEFT_RPC_METHOD_COUNT] = {
    &weft_rpc_generate,  &weft_rpc_tokenize,     &weft_rpc_detokenize,
    &weft_rpc_get_model, &weft_rpc_health_check, &weft_rpc_health_watch,
};

const struct weft_rpc_method *weft_rpc_method(uint32_t index)
{
    return methods[index];
}

void weft_rpc_post(struct weft_server *server, uint32_t method_index, uint32_t queue_index)
{
    struct weft_rpc_call *call = weft_rpc_call_create(server, method_index, queue_index);
    grpc_completion_queue *queue = server->queues[queue_index].queue;
    struct weft_rpc_tag *tag;
    grpc_call_error error;

    if (call == NULL) {
        weft_log(WEFT_LOG_ERROR, "serve/grpc", "out of memory: one fewer call can arrive at once");
        return;
    }
    tag = &call->tags[WEFT_RPC_ACCEPT];
    if (method_index < WEFT_RPC_METHOD_COUNT) {
        error =
            grpc_server_request_registered_call(server->server, server->registered[method_index], &call->call,
                                                &call->deadline, &call->metadata, &call->payload, queue, queue, tag);
    } else {
        error =
            grpc_server_request_call(server->server, &call->call, &call->details, &call->metadata, queue, queue, tag);
    }
    if (error != GRPC_CALL_OK) {
        weft_rpc_release(call); /* shutting down */
    }
}

static void *queue_main(void *argument)
{
    grpc_completion_queue *queue = argument;

    for (;;) {
        grpc_event event = grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        struct weft_rpc_tag *tag = event.tag;

        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (tag->call != NULL) {
            weft_rpc_complete(tag->call, tag->batch, event.success != 0);
        } else {
            struct weft_server *server =
                (struct weft_server *)((char *)tag - offsetof(struct weft_server, shutdown_tag));

            pthread_mutex_lock(&server->mutex);
            server->is_shutdown_done = true;
            pthread_cond_broadcast(&server->is_shut);
            pthread_mutex_unlock(&server->mutex);
        }
    }
}

static void on_state(void *context, enum weft_service_state state)
{
    struct weft_server *server = context;
    const uint64_t one = 1;

    weft_health_notify(server);
    if (state == WEFT_SERVICE_FAILED && write(server->failure_fd, &one, sizeof(one)) < 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "eventfd: %s", strerror(errno));
    }
}

/* C-core's own lines are for its developers; what matters to an operator we say ourselves. */
static void core_log(gpr_log_func_args *line)
{
    weft_log(WEFT_LOG_DEBUG, "grpc", "%s", line->message);
}

static grpc_arg integer_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key};

    arg.value.integer = value;
    return arg;
}

static grpc_server *core_server_create(const struct weft_server_options *options)
{
    int keepalive_time = options->keepalive_time_ms != 0 ? (int)options->keepalive_time_ms : 20000;
    int keepalive_limit = options->keepalive_limit_ms != 0 ? (int)options->keepalive_limit_ms : 10000;
    int request_size = options->request_size_max != 0 ? (int)options->request_size_max : 16 << 20;
    grpc_arg args[] = {
        /* Else a second server on the same port starts without a word and takes half of the requests. */
        integer_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, request_size),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive_time),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, keepalive_limit),
        integer_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        /* Else clients that ping more often than every five minutes are sent away ("too_many_pings"). */
        integer_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000),
    };
    grpc_channel_args list = {sizeof(args) / sizeof(args[0]), args};

    return grpc_server_create(&list, NULL);
}

static enum weft_status queues_start(struct weft_server *server)
{
    for (uint32_t i = 0; i < WEFT_RPC_QUEUE_COUNT; i++) {
        int error = pthread_create(&server->queues[i].thread, NULL, queue_main, server->queues[i].queue);

        if (error != 0) {
            weft_log(WEFT_LOG_ERROR, "serve/grpc", "cannot start a thread: %s", strerror(error));
            return WEFT_ERR_IO;
        }
        server->queues[i].is_started = true;
        for (uint32_t method = 0; method <= WEFT_RPC_METHOD_COUNT; method++) {
            for (int k = 0; k < POSTED_CALL_COUNT; k++) {
                weft_rpc_post(server, method, i);
            }
        }
    }
    return WEFT_OK;
}

static enum weft_status core_start(struct weft_server *server, const struct weft_server_options *options)
{
    grpc_server_credentials *credentials;

    server->server = core_server_create(options);
    for (uint32_t i = 0; i < WEFT_RPC_QUEUE_COUNT; i++) {
        server->queues[i].queue = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(server->server, server->queues[i].queue, NULL);
    }
    for (uint32_t i = 0; i < WEFT_RPC_METHOD_COUNT; i++) {
        server->registered[i] = grpc_server_register_method(server->server, methods[i]->path, NULL,
                                                            GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    }
    credentials = grpc_insecure_server_credentials_create();
    server->port = (uint32_t)grpc_server_add_http2_port(server->server, options->address, credentials);
    grpc_server_credentials_release(credentials);
    /* Started even when the port failed: C-core can only shut down what it has started. */
    grpc_server_start(server->server);
    if (server->port == 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "cannot listen on %s", options->address);
        return WEFT_ERR_IO;
    }
    return queues_start(server);
}

/* C-core does not say why it cannot have a port. */
static enum weft_status check_free(const char *address)
{
    uint32_t port;
    int fd;

    WEFT_TRY(weft_address_listen(address, &fd, &port));
    close(fd);
    return WEFT_OK;
}

enum weft_status weft_server_open(const struct weft_server_options *options, struct weft_server **out)
{
    struct weft_server *server;
    enum weft_status status;

    WEFT_TRY(check_free(options->address));
    server = calloc(1, sizeof(*server));
    if (server == NULL) {
        weft_log(WEFT_LOG_ERROR, "serve", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    server->reply_size_max = options->reply_size_max != 0 ? options->reply_size_max : (size_t)1 << 20;
    atomic_store(&server->retry_ms, weft_rpc_retry_ms(0));
    pthread_mutex_init(&server->mutex, NULL);
    pthread_cond_init(&server->is_shut, NULL);
    pthread_mutex_init(&server->health.mutex, NULL);
    gpr_set_log_function(core_log);
    grpc_init();
    server->failure_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->failure_fd < 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "eventfd: %s", strerror(errno));
        status = WEFT_ERR_IO;
    } else {
        status = weft_service_open(on_state, server, &server->service);
    }
    if (status == WEFT_OK) {
        status = core_start(server, options);
    }
    if (status == WEFT_OK && options->http_address != NULL) {
        status = weft_http_open(options->http_address, server->service, &server->http);
    }
    if (status != WEFT_OK) {
        weft_server_close(&server);
        return status;
    }
    *out = server;
    return WEFT_OK;
}

enum weft_status weft_server_start(struct weft_server *server, struct weft_engine *engine)
{
    weft_engine_info(engine, &server->info);
    atomic_store(&server->retry_ms, weft_rpc_retry_ms(server->info.load_ms));
    return weft_service_start(server->service, engine);
}

/* Waits until C-core has shut down and every call is freed; false after timeout_ms. */
static bool shutdown_wait(struct weft_server *server, uint32_t timeout_ms)
{
    struct timespec until;
    bool is_done;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&server->mutex);
    for (;;) {
        is_done = server->is_shutdown_done && server->call_count == 0;
        if (is_done || pthread_cond_timedwait(&server->is_shut, &server->mutex, &until) == ETIMEDOUT) {
            break;
        }
    }
    pthread_mutex_unlock(&server->mutex);
    return is_done;
}

static void core_stop(struct weft_server *server)
{
    grpc_server_shutdown_and_notify(server->server, server->queues[0].queue, &server->shutdown_tag);
    if (!server->queues[0].is_started) {
        /* Nobody polls: a failed start. */
        (void)grpc_completion_queue_next(server->queues[0].queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    } else if (!shutdown_wait(server, CLOSE_GRACE_MS)) {
        grpc_server_cancel_all_calls(server->server);
    }
}

void weft_server_close(struct weft_server **server)
{
    struct weft_server *s = *server;

    if (s == NULL) {
        return;
    }
    *server = NULL;
    if (s->server != NULL) {
        weft_service_drain(s->service);
        weft_service_cancel_all(s->service, CANCEL_GRACE_MS);
        weft_service_stop(s->service);
        weft_health_close(s);
        core_stop(s);
        if (s->queues[0].is_started && !shutdown_wait(s, CLOSE_LIMIT_MS)) {
            weft_log(WEFT_LOG_WARN, "serve/grpc", "shutdown: %u calls never ended", s->call_count);
        }
        for (uint32_t i = 0; i < WEFT_RPC_QUEUE_COUNT; i++) {
            grpc_completion_queue_shutdown(s->queues[i].queue);
            if (s->queues[i].is_started) {
                pthread_join(s->queues[i].thread, NULL);
            } else {
                (void)queue_main(s->queues[i].queue);
            }
        }
        grpc_server_destroy(s->server);
        for (uint32_t i = 0; i < WEFT_RPC_QUEUE_COUNT; i++) {
            grpc_completion_queue_destroy(s->queues[i].queue);
        }
    }
    weft_http_server_close(&s->http);
    weft_service_close(&s->service); /* last: calls use it until their queues are empty */
    grpc_shutdown_blocking();
    if (s->failure_fd >= 0) {
        close(s->failure_fd);
    }
    pthread_mutex_destroy(&s->health.mutex);
    pthread_cond_destroy(&s->is_shut);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

uint32_t weft_server_port(const struct weft_server *server)
{
    return server->port;
}

uint32_t weft_server_http_port(const struct weft_server *server)
{
    return server->http != NULL ? weft_http_server_port(server->http) : 0;
}

int weft_server_failure_fd(const struct weft_server *server)
{
    return server->failure_fd;
}

void weft_server_drain(struct weft_server *server)
{
    weft_service_drain(server->service);
}

uint32_t weft_server_active_count(struct weft_server *server)
{
    return weft_service_job_count(server->service);
}
