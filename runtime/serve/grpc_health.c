/*
 * grpc.health.v1.Health: Check and Watch. C-core has neither; kubelet uses Check, load balancers Watch.
 *
 *   service                                   loading   serving   draining   failed
 *   "", weft.v1.Inference, readiness          NOT       SERVING   NOT        NOT
 *   startup                                   NOT       SERVING   SERVING    NOT
 *   liveness                                  SERVING   SERVING   SERVING    NOT
 */
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "grpc_internal.h"
#include "health_wire.pb-c.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

#define SERVING         GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

enum probe { PROBE_READY, PROBE_STARTED, PROBE_ALIVE, PROBE_UNKNOWN };

struct weft_health_watch {
    struct weft_rpc_call *call;
    enum probe probe;
    /* Under health.mutex. */
    struct weft_health_watch *next;
    /* Under the call's mutex. */
    bool has_reported;
    serving_status reported;
    bool is_closing;
};

static enum probe probe_find(const ProtobufCBinaryData *service)
{
    static const struct {
        const char *name;
        enum probe probe;
    } probes[] = {
        {"", PROBE_READY},          {"weft.v1.Inference", PROBE_READY}, {"readiness", PROBE_READY},
        {"startup", PROBE_STARTED}, {"liveness", PROBE_ALIVE},
    };

    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        if (strlen(probes[i].name) == service->len &&
            (service->len == 0 || memcmp(probes[i].name, service->data, service->len) == 0)) {
            return probes[i].probe;
        }
    }
    return PROBE_UNKNOWN;
}

static serving_status status_of(struct weft_server *server, enum probe probe)
{
    bool is_serving = false;

    switch (weft_service_state(server->service)) {
    case WEFT_SERVICE_LOADING: is_serving = probe == PROBE_ALIVE; break;
    case WEFT_SERVICE_SERVING: is_serving = true; break;
    case WEFT_SERVICE_DRAINING: is_serving = probe != PROBE_READY; break;
    case WEFT_SERVICE_FAILED: break;
    }
    return probe == PROBE_UNKNOWN ? SERVICE_UNKNOWN : is_serving ? SERVING : NOT_SERVING;
}

static grpc_byte_buffer *encode(serving_status status)
{
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    response.status = status;
    return weft_codec_encode(&response.base);
}

/* False when the request was malformed, which has then been answered. */
static bool probe_decode(struct weft_rpc_call *call, enum probe *probe_out)
{
    Grpc__Health__V1__HealthCheckRequest *message = (Grpc__Health__V1__HealthCheckRequest *)weft_codec_decode(
        &grpc__health__v1__health_check_request__descriptor, call->payload);

    if (message == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_INVALID_ARGUMENT, "not a grpc.health.v1.HealthCheckRequest");
        return false;
    }
    *probe_out = probe_find(&message->service);
    protobuf_c_message_free_unpacked(&message->base, NULL);
    return true;
}

static void check(struct weft_rpc_call *call)
{
    enum probe probe;

    if (!probe_decode(call, &probe)) {
        return;
    }
    if (probe == PROBE_UNKNOWN) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_NOT_FOUND,
                        "unknown service; known: \"\", weft.v1.Inference, readiness, startup, liveness");
        return;
    }
    weft_rpc_finish(call, encode(status_of(call->server, probe)), GRPC_STATUS_OK, "");
}

/* Under the call's mutex: reports the state unless it is what the client knows, or ends the call. */
static void watch_pump(struct weft_rpc_call *call)
{
    struct weft_health_watch *watch = call->state;
    struct weft_rpc_reply reply = {.message = NULL};
    char text[WEFT_RPC_DETAILS_SIZE];
    serving_status status = status_of(call->server, watch->probe);
    bool is_news = !watch->has_reported || watch->reported != status;

    if (call->is_sending || call->is_status_sent || (!is_news && !watch->is_closing)) {
        return;
    }
    if (is_news) {
        reply.message = encode(status);
        watch->has_reported = true;
        watch->reported = status;
    }
    if (watch->is_closing) {
        reply.has_status = true;
        reply.status = GRPC_STATUS_UNAVAILABLE;
        weft_service_reason(call->server->service, text);
        reply.details = text;
    }
    weft_rpc_send_locked(call, &reply);
}

static void watch_begin(struct weft_rpc_call *call)
{
    struct weft_health *health = &call->server->health;
    struct weft_health_watch *watch;
    enum probe probe;

    if (!probe_decode(call, &probe)) {
        return;
    }
    watch = calloc(1, sizeof(*watch));
    if (watch == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    watch->call = call;
    watch->probe = probe;
    call->state = watch;
    pthread_mutex_lock(&health->mutex);
    watch->next = health->watches;
    health->watches = watch;
    pthread_mutex_lock(&call->mutex);
    watch->is_closing = health->is_closing;
    watch_pump(call);
    pthread_mutex_unlock(&call->mutex);
    pthread_mutex_unlock(&health->mutex);
}

static void watch_closed(struct weft_rpc_call *call)
{
    struct weft_health *health = &call->server->health;
    struct weft_health_watch *watch = call->state;

    if (watch == NULL) {
        return;
    }
    pthread_mutex_lock(&health->mutex);
    for (struct weft_health_watch **link = &health->watches; *link != NULL; link = &(*link)->next) {
        if (*link == watch) {
            *link = watch->next;
            break;
        }
    }
    pthread_mutex_unlock(&health->mutex);
}

static void watch_fini(struct weft_rpc_call *call)
{
    free(call->state);
}

static void watches_pump(struct weft_server *server, bool is_closing)
{
    pthread_mutex_lock(&server->health.mutex);
    server->health.is_closing = server->health.is_closing || is_closing;
    for (struct weft_health_watch *watch = server->health.watches; watch != NULL; watch = watch->next) {
        pthread_mutex_lock(&watch->call->mutex);
        watch->is_closing = watch->is_closing || is_closing;
        watch_pump(watch->call);
        pthread_mutex_unlock(&watch->call->mutex);
    }
    pthread_mutex_unlock(&server->health.mutex);
}

void weft_health_notify(struct weft_server *server)
{
    watches_pump(server, false);
}

void weft_health_close(struct weft_server *server)
{
    watches_pump(server, true);
}

const struct weft_rpc_method weft_rpc_health_check = {.path = "/grpc.health.v1.Health/Check", .begin = check};
const struct weft_rpc_method weft_rpc_health_watch = {
    .path = "/grpc.health.v1.Health/Watch",
    .begin = watch_begin,
    .on_sent = watch_pump,
    .on_closed = watch_closed,
    .fini = watch_fini,
};
