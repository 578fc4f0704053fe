/* One call: references, batches, completions. What the call is about is its method's business. */
#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <stdlib.h>
#include <string.h>

#include "grpc_internal.h"
#include "weft/log.h"

struct weft_rpc_call *weft_rpc_call_create(struct weft_server *server, uint32_t method_index, uint32_t queue_index)
{
    struct weft_rpc_call *call = calloc(1, sizeof(*call));

    if (call == NULL) {
        return NULL;
    }
    call->server = server;
    call->method_index = method_index;
    call->method = method_index < WEFT_RPC_METHOD_COUNT ? weft_rpc_method(method_index) : NULL;
    call->queue_index = queue_index;
    call->reference_count = 1;
    pthread_mutex_init(&call->mutex, NULL);
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    for (int i = 0; i < WEFT_RPC_BATCH_COUNT; i++) {
        call->tags[i] = (struct weft_rpc_tag){call, (enum weft_rpc_batch)i};
    }
    return call;
}

void weft_rpc_acquire(struct weft_rpc_call *call)
{
    pthread_mutex_lock(&call->mutex);
    call->reference_count++;
    pthread_mutex_unlock(&call->mutex);
}

void weft_rpc_release(struct weft_rpc_call *call)
{
    struct weft_server *server = call->server;
    bool was_accepted = call->call != NULL;
    uint32_t left;

    pthread_mutex_lock(&call->mutex);
    left = --call->reference_count;
    pthread_mutex_unlock(&call->mutex);
    if (left > 0) {
        return;
    }
    if (call->state != NULL && call->method != NULL && call->method->fini != NULL) {
        call->method->fini(call);
    }
    grpc_byte_buffer_destroy(call->payload);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    if (was_accepted) {
        grpc_call_unref(call->call);
    }
    pthread_mutex_destroy(&call->mutex);
    free(call);
    if (was_accepted) {
        pthread_mutex_lock(&server->mutex);
        server->call_count--;
        pthread_cond_broadcast(&server->is_shut);
        pthread_mutex_unlock(&server->mutex);
    }
}

/* Under mutex. The batch's reference is dropped by its completion. */
static void batch_start(struct weft_rpc_call *call, const grpc_op *ops, size_t count, enum weft_rpc_batch batch)
{
    grpc_call_error error = grpc_call_start_batch(call->call, ops, count, &call->tags[batch], NULL);

    if (error == GRPC_CALL_OK) {
        call->reference_count++;
        return;
    }
    /* Only a mistake of ours gets here; the client learns it from the cancelled call. */
    weft_log(WEFT_LOG_ERROR, "serve/grpc", "batch refused: %s", grpc_call_error_to_string(error));
    call->is_status_sent = true;
    call->is_sending = false;
    (void)grpc_call_cancel(call->call, NULL);
}

void weft_rpc_send_locked(struct weft_rpc_call *call, const struct weft_rpc_reply *reply)
{
    grpc_slice details = grpc_slice_from_copied_string(reply->details != NULL ? reply->details : "");
    bool has_hint = reply->has_status && reply->status == GRPC_STATUS_UNAVAILABLE;
    struct weft_rpc_retry retry;
    grpc_op ops[3];
    size_t count = 0;

    memset(ops, 0, sizeof(ops));
    if (!call->is_header_sent) {
        ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
        call->is_header_sent = true;
    }
    if (reply->message != NULL) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = reply->message;
    }
    if (reply->has_status) {
        ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        if (has_hint) {
            weft_rpc_retry_init(&retry, atomic_load(&call->server->retry_ms), reply->status,
                                reply->details != NULL ? reply->details : "");
            ops[count].data.send_status_from_server.trailing_metadata = retry.metadata;
            ops[count].data.send_status_from_server.trailing_metadata_count = WEFT_RPC_RETRY_COUNT;
        }
        ops[count].data.send_status_from_server.status = reply->status;
        ops[count++].data.send_status_from_server.status_details = &details;
        call->is_status_sent = true;
    }
    call->is_sending = true;
    batch_start(call, ops, count, WEFT_RPC_SEND);
    grpc_byte_buffer_destroy(reply->message);
    grpc_slice_unref(details);
    if (has_hint) {
        weft_rpc_retry_fini(&retry); /* C-core has its own references */
    }
}

void weft_rpc_finish(struct weft_rpc_call *call, grpc_byte_buffer *message, grpc_status_code status,
                     const char *details)
{
    struct weft_rpc_reply reply = {.message = message, .has_status = true, .status = status, .details = details};

    pthread_mutex_lock(&call->mutex);
    weft_rpc_send_locked(call, &reply);
    pthread_mutex_unlock(&call->mutex);
}

static void accepted(struct weft_rpc_call *call)
{
    grpc_op op;

    pthread_mutex_lock(&call->server->mutex);
    call->server->call_count++;
    pthread_mutex_unlock(&call->server->mutex);

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->was_cancelled;
    pthread_mutex_lock(&call->mutex);
    batch_start(call, &op, 1, WEFT_RPC_CLOSE);
    pthread_mutex_unlock(&call->mutex);
    if (call->method == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_UNIMPLEMENTED, "unknown service or method");
        return;
    }
    if (call->method->is_for_engine && weft_service_engine(call->server->service) == NULL) {
        char reason[WEFT_RPC_DETAILS_SIZE];

        weft_service_reason(call->server->service, reason);
        weft_rpc_finish(call, NULL, GRPC_STATUS_UNAVAILABLE, reason);
        return;
    }
    call->method->begin(call);
}

static void sent(struct weft_rpc_call *call, bool is_ok)
{
    pthread_mutex_lock(&call->mutex);
    call->is_sending = false;
    if (!is_ok) {
        call->is_status_sent = true; /* the call is dead; CLOSE follows */
    } else if (!call->is_status_sent && call->method != NULL && call->method->on_sent != NULL) {
        call->method->on_sent(call);
    }
    pthread_mutex_unlock(&call->mutex);
}

void weft_rpc_complete(struct weft_rpc_call *call, enum weft_rpc_batch batch, bool is_ok)
{
    switch (batch) {
    case WEFT_RPC_ACCEPT:
        if (is_ok) {
            /* First of all the next one can come; after a shutdown C-core refuses and nothing is posted. */
            weft_rpc_post(call->server, call->method_index, call->queue_index);
            accepted(call);
        }
        break;
    case WEFT_RPC_CLOSE:
        if (call->was_cancelled) {
            pthread_mutex_lock(&call->mutex);
            call->is_status_sent = true;
            pthread_mutex_unlock(&call->mutex);
        }
        if (call->method != NULL && call->method->on_closed != NULL) {
            call->method->on_closed(call);
        }
        break;
    case WEFT_RPC_SEND: sent(call, is_ok); break;
    case WEFT_RPC_BATCH_COUNT: break;
    }
    weft_rpc_release(call);
}
