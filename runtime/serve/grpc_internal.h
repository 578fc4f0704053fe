/*
 * The gRPC server inside: calls, methods, batches. C-core's rules, kept here in one place:
 *   - a call lives until all its batches have completed: every batch, and every job of the engine, holds a reference;
 *   - at most one SEND_MESSAGE is under way per call: who has more to say waits for on_sent;
 *   - RECV_CLOSE_ON_SERVER is posted at once and is the only sure sign that the client is gone (cancel, disconnect,
 *     deadline): it calls on_closed;
 *   - all completions of one call come from one thread (its queue's), so begin, on_sent and on_closed never overlap;
 *     only the engine's events and changes of state come from other threads, hence the mutex.
 */
#ifndef WEFT_SERVE_GRPC_INTERNAL_H
#define WEFT_SERVE_GRPC_INTERNAL_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "serve.h"
#include "service.h"

enum weft_rpc_batch { WEFT_RPC_ACCEPT, WEFT_RPC_CLOSE, WEFT_RPC_SEND, WEFT_RPC_BATCH_COUNT };

struct weft_rpc_call;

struct weft_rpc_tag {
    struct weft_rpc_call *call; /* NULL: the server's own shutdown */
    enum weft_rpc_batch batch;
};

/* One method: constant. Absent callbacks are NULL. */
struct weft_rpc_method {
    const char *path;
    bool is_for_engine;                            /* while there is none, every call gets UNAVAILABLE */
    void (*begin)(struct weft_rpc_call *call);     /* call->payload has come; must lead to a status */
    void (*on_sent)(struct weft_rpc_call *call);   /* a message without status has left; under the call's mutex */
    void (*on_closed)(struct weft_rpc_call *call); /* the client is gone or everything is said; no lock held */
    void (*fini)(struct weft_rpc_call *call);      /* frees call->state */
};

struct weft_rpc_call {
    struct weft_server *server;
    const struct weft_rpc_method *method; /* NULL: none of ours */
    uint32_t method_index;
    uint32_t queue_index;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
    struct weft_rpc_tag tags[WEFT_RPC_BATCH_COUNT];
    int was_cancelled; /* C-core's to write until the CLOSE batch completes */
    void *state;       /* the method's */
    pthread_mutex_t mutex;
    /* Under mutex. */
    uint32_t reference_count;
    bool is_sending;
    bool is_header_sent;
    bool is_status_sent; /* or not needed any more: nothing may follow */
};

/* What a batch sends; absent parts are NULL or false. UNAVAILABLE always comes with a retry hint. */
struct weft_rpc_reply {
    grpc_byte_buffer *message; /* taken over */
    bool has_status;
    grpc_status_code status;
    const char *details;
};

/* Trailing metadata that says when to try again (grpc_retry.c). */
enum { WEFT_RPC_RETRY_COUNT = 2 };
struct weft_rpc_retry {
    grpc_metadata metadata[WEFT_RPC_RETRY_COUNT];
};
void weft_rpc_retry_init(struct weft_rpc_retry *retry, uint32_t retry_ms, grpc_status_code status, const char *details);
void weft_rpc_retry_fini(struct weft_rpc_retry *retry);
/* How long until a group that took load_ms to load serves again. */
uint32_t weft_rpc_retry_ms(double load_ms);

enum { WEFT_RPC_DETAILS_SIZE = WEFT_SERVICE_REASON_SIZE };

/* Under the call's mutex, nothing under way and no status sent yet. */
void weft_rpc_send_locked(struct weft_rpc_call *call, const struct weft_rpc_reply *reply);
/* The only answer of a unary call, or a refusal: takes the mutex itself. */
void weft_rpc_finish(struct weft_rpc_call *call, grpc_byte_buffer *message, grpc_status_code status,
                     const char *details);

struct weft_rpc_call *weft_rpc_call_create(struct weft_server *server, uint32_t method_index, uint32_t queue_index);
void weft_rpc_acquire(struct weft_rpc_call *call);
void weft_rpc_release(struct weft_rpc_call *call);
/* Runs in the queue's thread for every completion of one of the call's batches. */
void weft_rpc_complete(struct weft_rpc_call *call, enum weft_rpc_batch batch, bool is_ok);

/* Asks C-core for one more call of a method (WEFT_RPC_METHOD_COUNT: anything else). */
void weft_rpc_post(struct weft_server *server, uint32_t method_index, uint32_t queue_index);

enum { WEFT_RPC_METHOD_COUNT = 6, WEFT_RPC_QUEUE_COUNT = 2 };
extern const struct weft_rpc_method weft_rpc_generate;
extern const struct weft_rpc_method weft_rpc_tokenize;
extern const struct weft_rpc_method weft_rpc_detokenize;
extern const struct weft_rpc_method weft_rpc_get_model;
extern const struct weft_rpc_method weft_rpc_health_check;
extern const struct weft_rpc_method weft_rpc_health_watch;

/* Open Watch calls. */
struct weft_health {
    pthread_mutex_t mutex; /* may be held when a call's mutex is taken, never the other way round */
    struct weft_health_watch *watches;
    bool is_closing;
};
/* Tells every watcher that the state has changed. */
void weft_health_notify(struct weft_server *server);
/* Ends every Watch: the server is closing. */
void weft_health_close(struct weft_server *server);

struct weft_server {
    struct weft_service *service;
    struct weft_http_server *http; /* NULL: off */
    grpc_server *server;
    struct {
        struct weft_server *server;
        grpc_completion_queue *queue;
        pthread_t thread;
        bool is_started;
        uint32_t index;
    } queues[WEFT_RPC_QUEUE_COUNT];
    void *registered[WEFT_RPC_METHOD_COUNT];
    struct weft_rpc_tag shutdown_tag;
    struct weft_health health;
    int failure_fd;
    uint32_t port;
    size_t reply_size_max;
    _Atomic uint32_t retry_ms;
    struct weft_engine_info info; /* once the service has its engine */
    /* Shutdown: under mutex. */
    pthread_mutex_t mutex;
    pthread_cond_t is_shut;
    bool is_shutdown_done;
    uint32_t call_count; /* accepted and not yet freed */
};

/* The method table, WEFT_RPC_METHOD_COUNT entries. */
const struct weft_rpc_method *weft_rpc_method(uint32_t index);

#endif
