/*
 * A wrapper around the channels of an open communicator: times every call and injects faults. For tests and for
 * looking into a slow cluster; costs nothing where it is not put on.
 */
#ifndef WEFT_COMM_TRACE_H
#define WEFT_COMM_TRACE_H

#include <stdint.h>

#include "weft/comm.h"

enum weft_fault_kind {
    WEFT_FAULT_NONE = 0,
    WEFT_FAULT_DELAY = 1,  /* every call from the first on begins delay_us late */
    WEFT_FAULT_FAIL = 2,   /* that one call fails with ERR_IO before anything is sent */
    WEFT_FAULT_SILENT = 3, /* from that call on nothing is sent: the rank looks stuck to the others */
    WEFT_FAULT_DROP = 4,   /* from that call on messages to and from `peer` vanish; an exchange is silent */
};

struct weft_fault {
    enum weft_fault_kind kind;
    uint64_t call_index; /* first call concerned, counted over exchanges and transfers of this rank */
    uint32_t delay_us;
    uint32_t peer;
};

struct weft_trace_times {
    uint64_t exchange_count;
    uint64_t exchange_ns;
    uint64_t transfer_count;
    uint64_t transfer_ns;
};

/* Puts the wrapper on; once per communicator. fault: NULL for none; copied. */
WEFT_MUST_CHECK enum weft_status weft_comm_trace(struct weft_comm *comm, const struct weft_fault *fault);

/* Of this rank since weft_comm_trace(), over all channels. */
struct weft_trace_times weft_comm_trace_times(const struct weft_comm *comm);

#endif
