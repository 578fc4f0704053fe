/* How large a packet gets from one host to another: datagrams that may not be cut, larger and smaller, until it is
 * known. */
#ifndef WEFT_DOCTOR_MTU_H
#define WEFT_DOCTOR_MTU_H

#include <stdint.h>

#include "weft/comm.h"

/* One direction. Sizes are of IP packets, bytes. */
struct weft_doctor_mtu {
    char interface[16]; /* that they leave through; "" when not known */
    uint32_t interface_mtu;
    uint32_t path_mtu;  /* the largest that arrived; 0: not known, for example because datagrams are filtered */
    uint32_t announced; /* what the network told the sender (ICMP): large packets do not vanish without a word */
};

/*
 * Collective over the two ranks of a pair, each naming the other; small messages over comm, datagrams beside them. The
 * one with is_first asks first. Out: this rank's direction on this rank; all zero where the transport knows no path. A
 * few round trips when all is well, up to 2 s when not.
 */
WEFT_MUST_CHECK enum weft_status weft_doctor_mtu_measure(struct weft_comm *comm, uint32_t peer, bool is_first,
                                                         struct weft_doctor_mtu *mtu_out);

/* True when packets that the sender thinks right never arrive. */
bool weft_doctor_mtu_is_black_hole(const struct weft_doctor_mtu *mtu);

#endif
