/*
 * The messages that form a group (Hello, Setup, Speed, Model, Ready of wire.proto) as plain structs, sent and received
 * whole.
 *
 * What arrives is checked as far as one message can be; whether it fits the group is group.c's to say.
 */
#ifndef WEFT_ENGINE_HANDSHAKE_H
#define WEFT_ENGINE_HANDSHAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/deal.h"
#include "engine/identity.h"
#include "engine/plan.h"
#include "weft/bootstrap.h"
#include "weft/status.h"

#define WEFT_REASON_SIZE 512

struct weft_hello {
    uint32_t protocol;
    char version[32];
    uint8_t model[WEFT_SHA256_SIZE];
    uint8_t options[WEFT_SHA256_SIZE];
    struct weft_member member;
    enum weft_status status; /* not OK: cannot take part, `reason` says why */
    char reason[WEFT_REASON_SIZE];
    bool lacks_model; /* has no folder to read */
    enum weft_quantise quantise;
};

/* How fast a rank is, for dealing leaves by speed. */
struct weft_speed {
    double bytes_per_second; /* > 0, finite */
    enum weft_status status; /* not OK: could not be measured, `reason` says why */
    char reason[WEFT_REASON_SIZE];
};

/* What a rank computes on. */
struct weft_rank_seat {
    uint32_t thread_count;
    int32_t gpu; /* WEFT_NO_GPU: CPUs */
    enum weft_wait_policy wait;
};

/* What weights are multiplied to measure speed. */
struct weft_speed_weights {
    enum weft_dtype dtype;
    uint32_t scale_cols; /* f8_e4m3: columns that share a scale; 0: rows have their own */
};

struct weft_setup {
    bool is_probe; /* only `seat` and `weights` are set: to be answered with a speed; the real Setup follows */
    struct weft_rank_seat seat;
    struct weft_speed_weights weights;
    uint64_t generation;
    struct weft_range leaves[WEFT_RANK_COUNT_MAX]; /* [rank_count] */
    struct weft_plan_limits limits;
    enum weft_status status; /* not OK: refused, `reason` says why; nothing else is set */
    char reason[WEFT_REASON_SIZE];
};

struct weft_ready {
    uint64_t generation;
    uint64_t byte_count;
    uint64_t byte_total;
    bool is_final;
    enum weft_status status;
    char reason[WEFT_REASON_SIZE];
};

/* Errors of the bootstrap are passed on; ERR_FORMAT (logged, names the rank) for what cannot be decoded. */
WEFT_MUST_CHECK enum weft_status weft_hello_send(struct weft_bootstrap *bootstrap, const struct weft_hello *hello,
                                                 uint32_t timeout_ms);
WEFT_MUST_CHECK enum weft_status weft_hello_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                                 struct weft_hello *hello_out);
WEFT_MUST_CHECK enum weft_status weft_speed_send(struct weft_bootstrap *bootstrap, const struct weft_speed *speed,
                                                 uint32_t timeout_ms);
WEFT_MUST_CHECK enum weft_status weft_speed_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                                 struct weft_speed *speed_out);
WEFT_MUST_CHECK enum weft_status weft_setup_send(struct weft_bootstrap *bootstrap, uint32_t rank,
                                                 const struct weft_setup *setup, uint32_t timeout_ms);
WEFT_MUST_CHECK enum weft_status weft_setup_recv(struct weft_bootstrap *bootstrap, uint32_t timeout_ms,
                                                 struct weft_setup *setup_out);
/* The configuration in `folder`, with what its tensors say (`config`), for a rank that lacks it. Logged. */
WEFT_MUST_CHECK enum weft_status weft_model_send(struct weft_bootstrap *bootstrap, uint32_t rank, const char *folder,
                                                 const struct weft_model_config *config, uint32_t timeout_ms);
WEFT_MUST_CHECK enum weft_status weft_model_recv(struct weft_bootstrap *bootstrap, uint32_t timeout_ms,
                                                 struct weft_model_config *config_out);
WEFT_MUST_CHECK enum weft_status weft_ready_send(struct weft_bootstrap *bootstrap, const struct weft_ready *ready,
                                                 uint32_t timeout_ms);
WEFT_MUST_CHECK enum weft_status weft_ready_recv(struct weft_bootstrap *bootstrap, uint32_t rank, uint32_t timeout_ms,
                                                 struct weft_ready *ready_out);

#endif
