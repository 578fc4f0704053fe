/* How the ranks of a group meet: the bootstrap that a launch gives, how long they wait for each other. */
#ifndef WEFT_ENGINE_RENDEZVOUS_H
#define WEFT_ENGINE_RENDEZVOUS_H

#include <stdint.h>

#include "weft/bootstrap.h"
#include "weft/status.h"
#include "weft/weft.h"

/* Until all ranks have come; then for each sign of life while they load. */
uint32_t weft_rendezvous_timeout_ms(const struct weft_engine_options *options);

/* Every kind but THREADS, which the engine opens itself; with heartbeats. Forks with LOCAL. Errors are those of the
 * bootstrap. */
WEFT_MUST_CHECK enum weft_status weft_rendezvous_open(const struct weft_engine_options *options,
                                                      struct weft_bootstrap **out);

/* The leader's last act when its own step takes too long, after weft_bootstrap_end(): may not come back. */
void weft_rendezvous_leave(const struct weft_engine_options *options, struct weft_bootstrap *bootstrap);

/*
 * For a rank that cannot take part: where the others would wait for it (TCP), goes there to say why, quietly; the
 * leader fails with the same status. Takes until they know, at most as long as the rendezvous.
 */
void weft_rendezvous_excuse(const struct weft_engine_options *options, enum weft_status status, const char *trouble);

#endif
