/*
 * weft.v1.Inference/Generate. What the engine makes is collected in `pending` and leaves as one message whenever the
 * message before has left: a fast client gets one per event, a slow one fewer and larger ones, and the decode loop
 * never waits for either. A client that lets more than reply_size_max bytes pile up is cancelled.
 */
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "grpc_internal.h"
#include "weft/log.h"
#include "weft_wire.pb-c.h"

struct generate {
    struct weft_service_job job;
    /* Under the call's mutex. */
    struct {
        char *text;
        size_t text_size;
        size_t text_capacity;
        int32_t *token_ids;
        size_t token_count;
        size_t token_capacity;
    } pending;
    bool is_finished;
    grpc_status_code status;
    char details[WEFT_RPC_DETAILS_SIZE];
    bool has_result; /* of a request that ended by itself */
    struct weft_event result;
};

static bool room_make(void **data, size_t *capacity, size_t wanted, size_t item_size)
{
    size_t grown = *capacity != 0 ? *capacity : 64;
    void *larger;

    if (wanted <= *capacity) {
        return true;
    }
    while (grown < wanted) {
        grown *= 2;
    }
    larger = realloc(*data, grown * item_size);
    if (larger == NULL) {
        return false;
    }
    *data = larger;
    *capacity = grown;
    return true;
}

static bool pending_add(struct generate *g, const struct weft_event *event)
{
    void *text = g->pending.text;
    void *ids = g->pending.token_ids;
    bool is_done =
        room_make(&text, &g->pending.text_capacity, g->pending.text_size + event->text_size, 1) &&
        room_make(&ids, &g->pending.token_capacity, g->pending.token_count + event->token_count, sizeof(int32_t));

    g->pending.text = text;
    g->pending.token_ids = ids;
    if (!is_done) {
        return false;
    }
    if (event->text_size > 0) {
        memcpy(g->pending.text + g->pending.text_size, event->text, event->text_size);
    }
    if (event->token_count > 0) {
        memcpy(g->pending.token_ids + g->pending.token_count, event->token_ids, event->token_count * sizeof(int32_t));
    }
    g->pending.text_size += event->text_size;
    g->pending.token_count += event->token_count;
    return true;
}

static grpc_byte_buffer *message_take(struct generate *g)
{
    Weft__V1__GenerateResponse message = WEFT__V1__GENERATE_RESPONSE__INIT;
    Weft__V1__Usage usage = WEFT__V1__USAGE__INIT;
    Weft__V1__Timings timings = WEFT__V1__TIMINGS__INIT;

    message.text.data = (uint8_t *)g->pending.text;
    message.text.len = g->pending.text_size;
    message.token_ids = g->pending.token_ids;
    message.n_token_ids = g->pending.token_count;
    g->pending.text_size = 0;
    g->pending.token_count = 0;
    if (g->has_result) {
        const struct weft_event *result = &g->result;

        message.finish_reason = result->finish == WEFT_FINISH_STOP ? WEFT__V1__FINISH_REASON__FINISH_REASON_STOP
                                                                   : WEFT__V1__FINISH_REASON__FINISH_REASON_LENGTH;
        usage.prompt_tokens = result->prompt_token_count;
        usage.output_tokens = result->output_token_count;
        timings.queue_ms = result->timings.queue_ms;
        timings.prefill_ms = result->timings.prefill_ms;
        timings.decode_ms = result->timings.decode_ms;
        timings.ttft_ms = result->timings.ttft_ms;
        timings.tokens_per_second = result->timings.tokens_per_second;
        message.usage = &usage;
        message.timings = &timings;
        message.logits_sha256.data = (uint8_t *)result->logits_sha256;
        message.logits_sha256.len = strlen(result->logits_sha256);
    }
    return weft_codec_encode(&message.base);
}

/* Under the call's mutex: sends what there is unless something is under way. */
static void pump(struct weft_rpc_call *call)
{
    struct generate *g = call->state;
    bool has_pending = g->pending.text_size > 0 || g->pending.token_count > 0;
    struct weft_rpc_reply reply;

    if (call->is_sending || call->is_status_sent || (!has_pending && !g->is_finished)) {
        return;
    }
    reply = (struct weft_rpc_reply){.has_status = g->is_finished, .status = g->status, .details = g->details};
    if (has_pending || g->has_result) {
        reply.message = message_take(g);
    }
    weft_rpc_send_locked(call, &reply);
}

static void status_set(struct generate *g, grpc_status_code status, const char *details)
{
    g->is_finished = true;
    g->status = status;
    (void)snprintf(g->details, sizeof(g->details), "%s", details);
}

static void status_set_unavailable(struct weft_rpc_call *call)
{
    char text[WEFT_RPC_DETAILS_SIZE];

    weft_service_reason(call->server->service, text);
    status_set(call->state, GRPC_STATUS_UNAVAILABLE, text);
}

static void finish_set(struct weft_rpc_call *call, const struct weft_event *event)
{
    struct generate *g = call->state;

    switch (event->finish) {
    case WEFT_FINISH_NONE: break;
    case WEFT_FINISH_STOP:
    case WEFT_FINISH_LENGTH:
        g->has_result = true;
        g->result = *event;
        g->result.text = NULL; /* gone after this event; it is in `pending` */
        g->result.token_ids = NULL;
        status_set(g, GRPC_STATUS_OK, "");
        break;
    case WEFT_FINISH_CANCELLED:
        /* By the client (which has gone), or because the server closes. */
        status_set_unavailable(call);
        break;
    case WEFT_FINISH_ERROR:
        /* Whatever a lost group made of a request, it is worth another attempt elsewhere or later. */
        if (event->status == WEFT_ERR_CANCELLED || weft_codec_status(event->status) == GRPC_STATUS_UNAVAILABLE ||
            weft_engine_failed_rank(weft_service_engine(call->server->service)) >= 0) {
            status_set_unavailable(call);
        } else {
            status_set(g, weft_codec_status(event->status), weft_status_name(event->status));
        }
        break;
    }
}

/* From the service's thread. */
static void on_event(void *context, const struct weft_event *event)
{
    struct weft_rpc_call *call = context;
    struct generate *g = call->state;
    bool is_too_slow = false;
    bool is_last = event->finish != WEFT_FINISH_NONE;

    pthread_mutex_lock(&call->mutex);
    if (!call->is_status_sent && !g->is_finished) {
        size_t size;

        if (!pending_add(g, event)) {
            status_set(g, GRPC_STATUS_RESOURCE_EXHAUSTED, "out of memory");
            is_too_slow = true;
        }
        size = g->pending.text_size + g->pending.token_count * sizeof(int32_t);
        if (is_last) {
            finish_set(call, event);
        } else if (size > call->server->reply_size_max) {
            is_too_slow = true;
        }
        if (is_too_slow) {
            /* A message that nobody reads is under way, so no status can follow it: end the call instead. */
            call->is_status_sent = true;
            g->pending.text_size = 0;
            g->pending.token_count = 0;
            (void)grpc_call_cancel_with_status(call->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                               "the client reads too slowly", NULL);
        }
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
    if (is_too_slow && !is_last) {
        weft_service_cancel(call->server->service, &g->job);
    }
    if (is_last) {
        weft_rpc_release(call);
    }
}

/* The ids of the prompt, from malloc unless they are the message's own; NULL with a status and its reason. */
static int32_t *prompt_ids(struct weft_rpc_call *call, const Weft__V1__GenerateRequest *message, size_t *count_out,
                           grpc_status_code *code_out, char *details, size_t details_size)
{
    int32_t *ids = message->prompt_token_ids;
    size_t count = message->n_prompt_token_ids;
    enum weft_status status;

    *code_out = GRPC_STATUS_INVALID_ARGUMENT;
    if (ids != NULL && message->prompt.len > 0) {
        (void)snprintf(details, details_size, "prompt and prompt_token_ids: only one of them");
        return NULL;
    }
    if (ids == NULL) {
        if (!weft_codec_is_utf8(message->prompt.data, message->prompt.len)) {
            (void)snprintf(details, details_size, "prompt: not UTF-8");
            return NULL;
        }
        status = weft_engine_tokenize(weft_service_engine(call->server->service), weft_codec_text(&message->prompt),
                                      message->prompt.len, message->raw, &ids, &count);
        if (status != WEFT_OK) {
            *code_out = weft_codec_status(status);
            (void)snprintf(details, details_size, "%s", weft_engine_error());
            return NULL;
        }
    }
    if (count == 0 || count >= call->server->info.context_length) {
        if (count == 0) {
            (void)snprintf(details, details_size, "prompt: empty");
        } else {
            (void)snprintf(details, details_size, "prompt: %zu tokens, at most %u fit the context", count,
                           call->server->info.context_length - 1);
        }
        if (ids != message->prompt_token_ids) {
            free(ids);
        }
        return NULL;
    }
    *count_out = count;
    return ids;
}

static void submit(struct weft_rpc_call *call, const Weft__V1__GenerateRequest *message)
{
    const char *stop[WEFT_CODEC_STOP_MAX];
    struct generate *g = call->state;
    struct weft_request request;
    const char *mistake = weft_codec_settings(message, &request, stop);
    grpc_status_code code = GRPC_STATUS_INVALID_ARGUMENT;
    enum weft_status status;
    char details[160] = "";
    int32_t *ids = NULL;
    size_t count = 0;

    if (mistake != NULL) {
        weft_rpc_finish(call, NULL, code, mistake);
        weft_codec_settings_fini(&request);
        return;
    }
    ids = prompt_ids(call, message, &count, &code, details, sizeof(details));
    if (ids == NULL) {
        weft_rpc_finish(call, NULL, code, details);
        weft_codec_settings_fini(&request);
        return;
    }
    request.token_ids = ids;
    request.token_count = (uint32_t)count;
    g->job.on_event = on_event;
    g->job.context = call;
    weft_rpc_acquire(call); /* the job's, dropped by its last event */
    status = weft_service_submit(call->server->service, &request, &g->job);
    if (status != WEFT_OK) {
        char reason[WEFT_RPC_DETAILS_SIZE];

        (void)snprintf(reason, sizeof(reason), "%s", weft_engine_error());
        if (weft_codec_status(status) == GRPC_STATUS_UNAVAILABLE) {
            weft_service_reason(call->server->service, reason);
        }
        weft_rpc_finish(call, NULL, weft_codec_status(status), reason);
        weft_rpc_release(call);
    }
    if (ids != message->prompt_token_ids) {
        free(ids);
    }
    weft_codec_settings_fini(&request);
}

static bool is_overdue(const struct weft_rpc_call *call)
{
    gpr_timespec now = gpr_now(call->deadline.clock_type);

    return gpr_time_cmp(call->deadline, now) <= 0;
}

static void begin(struct weft_rpc_call *call)
{
    Weft__V1__GenerateRequest *message;

    if (is_overdue(call)) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_DEADLINE_EXCEEDED, "the deadline has passed");
        return;
    }
    message = (Weft__V1__GenerateRequest *)weft_codec_decode(&weft__v1__generate_request__descriptor, call->payload);
    if (message == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_INVALID_ARGUMENT, "not a weft.v1.GenerateRequest");
        return;
    }
    call->state = calloc(1, sizeof(struct generate));
    if (call->state == NULL) {
        weft_rpc_finish(call, NULL, GRPC_STATUS_RESOURCE_EXHAUSTED, "out of memory");
    } else {
        submit(call, message);
    }
    protobuf_c_message_free_unpacked(&message->base, NULL);
}

/* After a normal end the job is over and nothing is cancelled. */
static void on_closed(struct weft_rpc_call *call)
{
    struct generate *g = call->state;

    if (g != NULL && call->was_cancelled) {
        weft_service_cancel(call->server->service, &g->job);
    }
}

static void fini(struct weft_rpc_call *call)
{
    struct generate *g = call->state;

    free(g->pending.text);
    free(g->pending.token_ids);
    free(g);
}

const struct weft_rpc_method weft_rpc_generate = {
    .path = "/weft.v1.Inference/Generate",
    .is_for_engine = true,
    .begin = begin,
    .on_sent = pump,
    .on_closed = on_closed,
    .fini = fini,
};
