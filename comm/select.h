/* Which backends a group uses: every rank's card, one decision that comes out the same everywhere. */
#ifndef WEFT_COMM_SELECT_H
#define WEFT_COMM_SELECT_H

#include "comm_internal.h"

/* Whether small sums go through the peers' memory, see peer_sum.h. */
enum comm_peer_wish { COMM_PEER_NEVER, COMM_PEER_TRY, COMM_PEER_MUST };

struct comm_choice {
    const struct weft_backend *inner;  /* for hosts with several ranks */
    const struct weft_backend *outer;  /* NULL when there is one host */
    const struct weft_backend *device; /* between device memory; NULL: none, or through host memory */
    enum comm_peer_wish peer;
    uint64_t host_ids[COMM_RANK_MAX]; /* by rank: equal where the inner channel joins */
    uint64_t nonce;
    uint32_t machine_count;
    char name[16];    /* "self", "shm", "tcp", "shm+tcp" */
    char reason[192]; /* for the log */
};

/* Collective over the bootstrap. Refusals are logged on every rank, with the rank and its reason. */
enum weft_status weft_comm_choose(struct weft_bootstrap *bootstrap, const struct weft_comm_options *options,
                                  struct comm_choice *choice_out);

#endif
