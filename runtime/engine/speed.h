/*
 * How fast this rank reads weights, for dealing leaves in proportion (--shares auto). What decides the time of decoding
 * is the bandwidth at which weights pass through the device, so that is what is measured: one token, weights of the
 * type that the model's layers will have, since fewer bits a weight are not read at quite the same rate.
 */
#ifndef WEFT_ENGINE_SPEED_H
#define WEFT_ENGINE_SPEED_H

#include <stdint.h>

#include "engine/handshake.h"
#include "weft/bootstrap.h"
#include "weft/device.h"
#include "weft/status.h"

/*
 * Multiplies one token with matrices of such weights that no cache holds (192 MiB in all, for about a quarter of a
 * second; freed again). *out: bytes of weights per second, the best of three rounds: the best says what the machine can
 * do, the others what disturbed it. ERR_MEMORY, ERR_IO: logged.
 */
WEFT_MUST_CHECK enum weft_status
weft_speed_measure(struct weft_device *device, const struct weft_speed_weights *weights, double *bytes_per_second_out);
/*
 * What to measure for a model of `stored` weights whose layers are quantised so: bf16 stands for all but FP8 that are
 * not. scale_cols: of FP8, columns that share a scale; 0: each row has one, or the tensor has, which config.json does
 * not say.
 */
struct weft_speed_weights weft_speed_weights(enum weft_quantise quantise, enum weft_dtype stored, uint32_t scale_cols);

/* The same in parts, for who wants to choose when: open, passes (about 10 ms each), close. */
struct weft_speed_probe;
WEFT_MUST_CHECK enum weft_status weft_speed_probe_open(struct weft_device *device,
                                                       const struct weft_speed_weights *weights,
                                                       struct weft_speed_probe **out);
/* One pass over all matrices. */
WEFT_MUST_CHECK enum weft_status weft_speed_probe_run(struct weft_speed_probe *probe, double *seconds_out);
/* Bytes of weights in a pass. */
double weft_speed_probe_size(const struct weft_speed_probe *probe);
void weft_speed_probe_close(struct weft_speed_probe **probe);

/*
 * The leader's side: all ranks measure at the same time, since those of one host share its memory, and the leader with
 * them. speeds_out[rank_count]. ERR_IO, logged, naming the rank that could not.
 */
struct weft_speed_args {
    struct weft_bootstrap *bootstrap;
    uint32_t rank_count;
    const struct weft_rank_seat *seats; /* [rank_count] */
    struct weft_device *device;         /* the leader's own */
    struct weft_speed_weights weights;
    uint32_t timeout_ms;
};
WEFT_MUST_CHECK enum weft_status weft_speed_ask(const struct weft_speed_args *args, double *speeds_out);

/* A worker's answer to the leader, measured on its device; or the status and last error with which it could not. */
WEFT_MUST_CHECK enum weft_status weft_speed_answer(struct weft_bootstrap *bootstrap, struct weft_device *device,
                                                   const struct weft_speed_weights *weights, enum weft_status status,
                                                   uint32_t timeout_ms);

/* Speeds as whole numbers for weft_tree_deal(): the fastest has 1000, nobody less than 1. */
void weft_speed_shares(const double *speeds, uint32_t rank_count, uint32_t *shares_out);

#endif
