/* What HTTP offers: GET /metrics for Prometheus, GET /health for probes and load balancers. */
#ifndef WEFT_SERVE_HTTP_ROUTES_H
#define WEFT_SERVE_HTTP_ROUTES_H

#include "http_server.h"
#include "service.h"

/* As weft_http_server_open(); the service is borrowed until the server is closed. */
WEFT_MUST_CHECK enum weft_status weft_http_open(const char *address, struct weft_service *service,
                                                struct weft_http_server **out);

#endif
