/*
 * An HTTP/1.1 listener with a table of routes: the one place that knows libmicrohttpd. One thread of its own answers
 * all connections, so a handler must not wait for anything; nothing a client does (slow, silent, malformed, many)
 * reaches further than this thread and LIMIT_* of http_server.c.
 *
 * Answered here, without a handler: 404 for a path that no route has, 405 with Allow for a method that it has not, 413
 * for a body that is too large, 431 for headers that are, 400 for what is no HTTP. HEAD is answered as GET without a
 * body.
 */
#ifndef WEFT_SERVE_HTTP_SERVER_H
#define WEFT_SERVE_HTTP_SERVER_H

#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

struct weft_http_server;

struct weft_http_reply {
    unsigned status;          /* 200 unless the handler says otherwise */
    const char *content_type; /* constant text; plain text unless the handler says otherwise */
    char *body;               /* [body_size] from malloc, taken over; NULL: out of memory, becomes 500 */
    size_t body_size;
};

/* Fills in *reply. From the server's thread. */
typedef void weft_http_handler(void *context, struct weft_http_reply *reply);

struct weft_http_route {
    const char *method; /* "GET" */
    const char *path;   /* "/metrics" */
    weft_http_handler *handler;
};

/* Listens on `address` (address.h) when it returns. routes[route_count] and context are borrowed until close. */
WEFT_MUST_CHECK enum weft_status weft_http_server_open(const char *address, const struct weft_http_route *routes,
                                                       size_t route_count, void *context,
                                                       struct weft_http_server **out);
uint32_t weft_http_server_port(const struct weft_http_server *server);
/* Cuts every connection and returns at once; no handler runs any more. Sets *server to NULL; NULL inside is fine. */
void weft_http_server_close(struct weft_http_server **server);

#endif
