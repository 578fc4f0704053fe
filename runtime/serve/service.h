/*
 * What every protocol does with the engine, apart from how it is spoken: jobs go in, their events come out by callback,
 * and the state of the group is known. One thread polls the engine. A job gets exactly one event whose finish is not
 * WEFT_FINISH_NONE, whatever happens.
 *
 * Locks: a caller may hold its own lock around submit and cancel; callbacks run without any lock of the service.
 */
#ifndef WEFT_SERVE_SERVICE_H
#define WEFT_SERVE_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"
#include "weft/weft.h"

struct weft_service;

/* In the order in which they may follow each other. */
enum weft_service_state {
    WEFT_SERVICE_LOADING = 0, /* no engine yet */
    WEFT_SERVICE_SERVING = 1,
    WEFT_SERVICE_DRAINING = 2, /* takes nothing new */
    WEFT_SERVICE_FAILED = 3,   /* the group is gone */
};

/* One request on its way. Caller's storage, which must stay until the last event or a failed submit. */
struct weft_service_job {
    void (*on_event)(void *context, const struct weft_event *event);
    void *context;
    /* Private to the service. */
    struct weft_service_job *next;
    struct weft_service_job *previous;
    uint64_t id;
    bool is_listed;
};

/* Called once per change, from any thread. */
typedef void weft_service_state_callback(void *context, enum weft_service_state state);

/* Loading until start, which takes the engine (borrowed until close) and polls it. */
WEFT_MUST_CHECK enum weft_status weft_service_open(weft_service_state_callback *on_state, void *context,
                                                   struct weft_service **out);
WEFT_MUST_CHECK enum weft_status weft_service_start(struct weft_service *service, struct weft_engine *engine);
/* Polls no more: jobs still running get their last event here. The service refuses everything new but stays valid. */
void weft_service_stop(struct weft_service *service);
/* Stops it, too. */
void weft_service_close(struct weft_service **service);

/*
 * weft_engine_submit() for `job`, whose on_event and context are set; request->user is ignored. ERR_STATE when
 * loading, draining or failed. On an error no event comes.
 */
WEFT_MUST_CHECK enum weft_status weft_service_submit(struct weft_service *service, const struct weft_request *request,
                                                     struct weft_service_job *job);
void weft_service_cancel(struct weft_service *service, struct weft_service_job *job);

void weft_service_drain(struct weft_service *service);
/* Cancels all jobs and waits up to timeout_ms for their last events. */
void weft_service_cancel_all(struct weft_service *service, uint32_t timeout_ms);

enum weft_service_state weft_service_state(struct weft_service *service);
/* Why it takes nothing: it loads, it shuts down, or "rank 3 on node-b failed: ...". */
enum { WEFT_SERVICE_REASON_SIZE = 384 };
void weft_service_reason(struct weft_service *service, char text_out[WEFT_SERVICE_REASON_SIZE]);
uint32_t weft_service_job_count(struct weft_service *service);
/* NULL: loading. */
struct weft_engine *weft_service_engine(struct weft_service *service);

#endif
