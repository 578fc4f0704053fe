/*
 * Sums between devices of one host that reach each other's memory: what comm (who decides and waits) and the device
 * (who stores, polls and adds) agree on.
 *
 * Every rank owns an *inbox*, [2][nodes of all ranks][room_count] f32 in shared device memory. A sum is one operation
 * of the stream: it stores the rank's own nodes into every peer's inbox, polls its own until the others' are there,
 * adds in tree order. Data is its own flag: an empty word of an inbox holds WEFT_PEER_EMPTY, which no sum contains.
 *
 * Sums use the two halves of the inboxes in turn, and a thread empties a word as soon as it has read it. That suffices:
 * a peer writes into the half of sum k again in its sum k + 2, which it begins after its sum k + 1, which needs what
 * this rank stores in its own sum k + 1, which this rank begins when its sum k, emptying included, is over.
 */
#ifndef WEFT_PEER_H
#define WEFT_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "weft/tree.h"

/* A quiet NaN with a payload; additions on a GPU give the canonical NaN only. A node that holds it all the same is sent
 * as WEFT_PEER_NAN. */
#define WEFT_PEER_EMPTY 0x7fc5157fu
#define WEFT_PEER_NAN   0x7fc00000u

/* How another rank of this host finds shared memory; only the device looks inside. */
#define WEFT_PEER_HANDLE_SIZE 128
struct weft_peer_handle {
    unsigned char bytes[WEFT_PEER_HANDLE_SIZE];
};

/* Words of weft_peer_sum_args.state. */
#define WEFT_PEER_STATE_COUNT 16

struct weft_peer_sum_args {
    const float *nodes;          /* [own nodes][count] device memory */
    float *out;                  /* [count] device memory; overlaps no node */
    size_t count;                /* at most room_count */
    float *const *inboxes;       /* [rank_count] host; every rank's inbox as this device reaches it, 16-byte aligned */
    const uint32_t *first_nodes; /* [rank_count + 1] host; nodes [first_nodes[r], first_nodes[r + 1]) are rank r's */
    const struct weft_tree_add *adds; /* [nodes of all - 1] host, from weft_tree_adds() */
    uint32_t rank;
    uint32_t rank_count;
    size_t room_count;    /* a multiple of 4 */
    uint32_t *state;      /* [WEFT_PEER_STATE_COUNT] device memory, zero before the first sum; then the sums' own */
    const uint32_t *stop; /* host memory of alloc_host(); once it is not 0, sums end without a result, later ones too */
};

#endif
