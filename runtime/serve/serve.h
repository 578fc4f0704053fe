/*
 * The servers of `weft serve`: gRPC (weft.proto, health.proto) and, when asked for, HTTP (/metrics, /health). Not part
 * of libweft; uses the engine through weft.h only.
 */
#ifndef WEFT_SERVE_H
#define WEFT_SERVE_H

#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"
#include "weft/weft.h"

struct weft_server;

struct weft_server_options {
    const char *address;         /* of gRPC: "host:port" or "[v6]:port"; port 0 takes a free one */
    const char *http_address;    /* the same for HTTP; NULL: none */
    size_t reply_size_max;       /* bytes an answer may wait for a slow reader before it is cancelled; 0: 1 MiB */
    uint32_t request_size_max;   /* bytes of one request; 0: 16 MiB */
    uint32_t keepalive_time_ms;  /* ping a silent client after this; 0: 20000 */
    uint32_t keepalive_limit_ms; /* and drop it when it does not answer; 0: 10000 */
};

/*
 * Listens when it returns, and tells everybody that the model is loading: health says NOT_SERVING (liveness SERVING),
 * requests get UNAVAILABLE with a retry hint. Starts threads: call when nothing forks any more (weft_leading_callback),
 * with signals handled. ERR_BUSY (a port that is taken), ERR_MISSING or ERR_IO when an address cannot be bound,
 * ERR_ARGUMENT when it cannot be understood (logged).
 */
WEFT_MUST_CHECK enum weft_status weft_server_open(const struct weft_server_options *options, struct weft_server **out);

/* Serves from now on. engine: the leader's, borrowed until close; only the server may poll it. Once. */
WEFT_MUST_CHECK enum weft_status weft_server_start(struct weft_server *server, struct weft_engine *engine);

/* The ports that were bound; 0: no HTTP. */
uint32_t weft_server_port(const struct weft_server *server);
uint32_t weft_server_http_port(const struct weft_server *server);

/* Becomes readable when the group has failed: every answer has got its status, health says NOT_SERVING, and all that
 * is left to do is to close. */
int weft_server_failure_fd(const struct weft_server *server);

/* Health says NOT_SERVING and new requests are refused from now on; those that run go on. */
void weft_server_drain(struct weft_server *server);

/* Requests that run or wait. */
uint32_t weft_server_active_count(struct weft_server *server);

/* Cancels what still runs, tells every client, and returns within about a second. Sets *server to NULL. */
void weft_server_close(struct weft_server **server);

/* Whether this is "host:port" or "[v6]:port": finds a mistake before anything is started. ERR_ARGUMENT, logged. */
WEFT_MUST_CHECK enum weft_status weft_server_address_check(const char *address);

#endif
