/* libmicrohttpd: daemon, connections, the table of routes. */
#include "http_server.h"

#include <microhttpd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "address.h"
#include "weft/log.h"

enum {
    /* Connections in all: few enough that they take none of the descriptors gRPC needs (often 1024 in a container). */
    LIMIT_CONNECTIONS = 128,
    /* Of one address, so that one bad client leaves room for the others. */
    LIMIT_CONNECTIONS_PER_ADDRESS = 64,
    /* Silence after which one is cut: two of Prometheus' usual periods, so that it can keep its connection. */
    LIMIT_SILENCE_S = 60,
    /* Bytes of a connection's buffers, and so of its request line and headers. */
    LIMIT_HEADER_SIZE = 32 << 10,
    /* Of a body. No route takes one yet: it is read and dropped, so that the client can read its answer. */
    LIMIT_BODY_SIZE = 1 << 20,
};

static const char plain_text[] = "text/plain; charset=utf-8";

struct weft_http_server {
    struct MHD_Daemon *daemon;
    const struct weft_http_route *routes;
    size_t route_count;
    void *context;
    uint32_t port;
};

/* One request while it is read. */
struct exchange {
    size_t body_size;
};

static void reply_text(struct weft_http_reply *reply, unsigned status, const char *text)
{
    reply->status = status;
    reply->body = strdup(text);
    reply->body_size = reply->body != NULL ? strlen(text) : 0;
}

/* Takes reply->body over. */
static enum MHD_Result reply_send(struct MHD_Connection *connection, struct weft_http_reply *reply, const char *allow)
{
    static char no_memory[] = "out of memory\n";
    bool is_short = reply->body == NULL;
    struct MHD_Response *response =
        is_short ? MHD_create_response_from_buffer(sizeof(no_memory) - 1, no_memory, MHD_RESPMEM_PERSISTENT)
                 : MHD_create_response_from_buffer(reply->body_size, reply->body, MHD_RESPMEM_MUST_FREE);
    enum MHD_Result result;

    if (response == NULL) {
        free(reply->body);
        return MHD_NO; /* the connection is cut */
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, is_short ? plain_text : reply->content_type);
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (allow != NULL) {
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow);
    }
    result = MHD_queue_response(connection, is_short ? MHD_HTTP_INTERNAL_SERVER_ERROR : reply->status, response);
    MHD_destroy_response(response);
    return result;
}

static bool is_method(const struct weft_http_route *route, const char *method)
{
    return strcmp(route->method, method) == 0 ||
           (strcmp(method, MHD_HTTP_METHOD_HEAD) == 0 && strcmp(route->method, MHD_HTTP_METHOD_GET) == 0);
}

static void allow_add(char *allow, size_t size, const char *method)
{
    size_t used = strlen(allow);
    bool is_get = strcmp(method, MHD_HTTP_METHOD_GET) == 0;

    (void)snprintf(allow + used, size - used, "%s%s%s", used > 0 ? ", " : "", method, is_get ? ", HEAD" : "");
}

static enum MHD_Result answer(const struct weft_http_server *server, struct MHD_Connection *connection,
                              const char *method, const char *path)
{
    struct weft_http_reply reply = {.status = MHD_HTTP_OK, .content_type = plain_text};
    char allow[64] = "";

    for (size_t i = 0; i < server->route_count; i++) {
        const struct weft_http_route *route = &server->routes[i];

        if (strcmp(route->path, path) != 0) {
            continue;
        }
        if (is_method(route, method)) {
            route->handler(server->context, &reply);
            return reply_send(connection, &reply, NULL);
        }
        allow_add(allow, sizeof(allow), route->method);
    }
    if (allow[0] != '\0') {
        reply_text(&reply, MHD_HTTP_METHOD_NOT_ALLOWED, "this method is not for this path\n");
        return reply_send(connection, &reply, allow);
    }
    reply_text(&reply, MHD_HTTP_NOT_FOUND, "no such path\n");
    return reply_send(connection, &reply, NULL);
}

/* Whether the headers announce a body beyond the limit. */
static bool is_too_large(struct MHD_Connection *connection)
{
    const char *size = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);

    return size != NULL && strtoull(size, NULL, 10) > LIMIT_BODY_SIZE;
}

/* libmicrohttpd calls this with the headers, then once per piece of the body, then once at its end. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data, size_t *data_size,
                                  void **state)
{
    struct exchange *exchange = *state;

    (void)version;
    (void)data;
    if (exchange == NULL) {
        exchange = calloc(1, sizeof(*exchange));
        *state = exchange;
        if (exchange != NULL && is_too_large(connection)) {
            struct weft_http_reply reply = {.content_type = plain_text};

            reply_text(&reply, MHD_HTTP_CONTENT_TOO_LARGE, "the body is too large\n");
            return reply_send(connection, &reply, NULL);
        }
        return exchange != NULL ? MHD_YES : MHD_NO;
    }
    if (*data_size > 0) {
        exchange->body_size += *data_size;
        *data_size = 0;
        return exchange->body_size <= LIMIT_BODY_SIZE ? MHD_YES : MHD_NO;
    }
    return answer(context, connection, method, path);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode how)
{
    (void)context;
    (void)connection;
    (void)how;
    free(*state);
    *state = NULL;
}

/* Mostly about what clients did wrong. */
static void on_log(void *context, const char *format, va_list arguments)
{
    char line[256];

    (void)context;
    (void)vsnprintf(line, sizeof(line), format, arguments);
    line[strcspn(line, "\n")] = '\0';
    weft_log(WEFT_LOG_DEBUG, "serve/http", "%s", line);
}

enum weft_status weft_http_server_open(const char *address, const struct weft_http_route *routes, size_t route_count,
                                       void *context, struct weft_http_server **out)
{
    struct weft_http_server *server = calloc(1, sizeof(*server));
    enum weft_status status;
    int fd;

    if (server == NULL) {
        weft_log(WEFT_LOG_ERROR, "serve/http", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    server->routes = routes;
    server->route_count = route_count;
    server->context = context;
    status = weft_address_listen(address, &fd, &server->port);
    if (status != WEFT_OK) {
        free(server);
        return status;
    }
    server->daemon = MHD_start_daemon(
        MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, server,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)LIMIT_CONNECTIONS, MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)LIMIT_CONNECTIONS_PER_ADDRESS,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)LIMIT_SILENCE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)LIMIT_HEADER_SIZE, MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_END);
    if (server->daemon == NULL) {
        weft_log(WEFT_LOG_ERROR, "serve/http", "cannot start the HTTP server on %s", address);
        free(server);
        return WEFT_ERR_IO;
    }
    *out = server;
    return WEFT_OK;
}

uint32_t weft_http_server_port(const struct weft_http_server *server)
{
    return server->port;
}

void weft_http_server_close(struct weft_http_server **server)
{
    if (*server == NULL) {
        return;
    }
    MHD_stop_daemon((*server)->daemon); /* closes the socket, too */
    free(*server);
    *server = NULL;
}
