/* Measuring the links of a group: a few small messages and a few MiB per pair, one pair at a time. */
#ifndef WEFT_DOCTOR_PROBE_H
#define WEFT_DOCTOR_PROBE_H

#include <stdint.h>

#include "doctor/facts.h"
#include "doctor/mtu.h"
#include "weft/comm.h"

/* Pairs of ranks inside a host, and pairs of the first ranks of two hosts; a < b. */
struct weft_doctor_link {
    uint32_t a;
    uint32_t b;
    uint32_t is_same_host;
    uint32_t is_measured;
    double latency_us;      /* half a round trip of 8 bytes, median */
    double bandwidth;       /* bytes/s, one direction; 0: not measured, since large packets vanish */
    double clock_offset_us; /* b's wall clock minus a's */
    double clock_error_us;  /* how far off that may be: half the quickest round trip */
    struct weft_doctor_mtu mtu_ab;
    struct weft_doctor_mtu mtu_ba;
    uint32_t resent_count; /* segments that the network lost while measuring, both ways */
    /* The same between hosts over another transport that a run could use but would not choose; name "" when none. */
    char other[8];
    double other_latency_us;
    double other_bandwidth;
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

/* Large packets vanish between the two. */
bool weft_doctor_link_has_black_hole(const struct weft_doctor_link *link);

#endif
