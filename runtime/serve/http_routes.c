/* /metrics and /health. */
#include "http_routes.h"

#include <stdio.h>
#include <string.h>

#include "metrics.h"
#include "weft/weft.h"

static void metrics(void *context, struct weft_http_reply *reply)
{
    struct weft_service *service = context;
    const struct weft_engine *engine = weft_service_engine(service);
    struct weft_engine_info info;
    struct weft_engine_stats stats;
    struct weft_metrics values = {.is_serving = weft_service_state(service) == WEFT_SERVICE_SERVING};

    if (engine != NULL) {
        weft_engine_info(engine, &info);
        weft_engine_stats(engine, &stats);
        values.info = &info;
        values.stats = &stats;
    }
    reply->content_type = WEFT_METRICS_CONTENT_TYPE;
    if (weft_metrics_render(&values, &reply->body, &reply->body_size) != WEFT_OK) {
        reply->body = NULL;
    }
}

/* The same truth as grpc.health.v1.Health for readiness, and why not. */
static void health(void *context, struct weft_http_reply *reply)
{
    struct weft_service *service = context;
    enum weft_service_state state = weft_service_state(service);
    char text[WEFT_SERVICE_REASON_SIZE] = "serving";

    reply->status = state == WEFT_SERVICE_SERVING ? 200 : 503;
    if (state != WEFT_SERVICE_SERVING) {
        weft_service_reason(service, text);
    }
    reply->body_size = strlen(text) + 1;
    if (asprintf(&reply->body, "%s\n", text) < 0) {
        reply->body = NULL;
    }
}

static const struct weft_http_route routes[] = {
    {"GET", "/metrics", metrics},
    {"GET", "/health", health},
};

enum weft_status weft_http_open(const char *address, struct weft_service *service, struct weft_http_server **out)
{
    return weft_http_server_open(address, routes, sizeof(routes) / sizeof(routes[0]), service, out);
}
