/* Measuring the links of a group: a few small messages and a few MiB per pair, one pair at a time. */
#ifndef WEFT_DOCTOR_PROBE_H
#define WEFT_DOCTOR_PROBE_H

#include <stdint.h>

#include "doctor/facts.h"
#include "weft/comm.h"

/* Pairs of ranks inside a host, and pairs of the first ranks of two hosts; a < b. */
struct weft_doctor_link {
    uint32_t a;
    uint32_t b;
    uint32_t is_same_host;
    uint32_t is_measured;
    double latency_us;      /* half a round trip of 8 bytes, median */
    double bandwidth;       /* bytes/s, one direction */
    double clock_offset_us; /* b's wall clock minus a's */
    double clock_error_us;  /* how far off that may be: half the quickest round trip */
};

/* The pairs worth measuring, into links_out[rank_count * (rank_count - 1) / 2]. Returns their count. Pure. */
uint32_t weft_doctor_links_list(const struct weft_doctor_facts *facts, uint32_t rank_count,
                                struct weft_doctor_link *links_out);

/*
 * Collective. Fills the links on rank 0; those that do not fit into budget_ms stay unmeasured. A link's measurement
 * itself is bounded by the timeout of `comm`.
 */
WEFT_MUST_CHECK enum weft_status weft_doctor_links_measure(struct weft_comm *comm, uint32_t rank, uint32_t budget_ms,
                                                           struct weft_doctor_link *links, uint32_t link_count);

#endif
