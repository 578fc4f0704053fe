/*
 * The leaf tree: pure arithmetic, no I/O. Why Weft's bits do not depend on the number of ranks.
 *
 * A summed dimension is cut into V leaves that depend on the model alone. The canonical tree over V leaves is found by
 * halving recursively, the left half the larger: a node of v leaves has children of ceil(v/2) and floor(v/2). A rank
 * owns a contiguous range of leaves, adds up the maximal tree nodes inside its range and sends just those; whoever
 * receives all nodes finishes the tree. Every addition any rank ever makes is an edge of the canonical tree, hence the
 * same bits for every split. See DESIGN "The leaf tree".
 */
#ifndef WEFT_TREE_H
#define WEFT_TREE_H

#include <stddef.h>
#include <stdint.h>

#define WEFT_LEAF_COUNT_MAX 64
/* A contiguous range of at most 64 leaves has at most 2*(log2(64)-1) maximal nodes; 12 checked exhaustively. */
#define WEFT_TREE_NODE_MAX 12

/* Half-open [begin, end). */
struct weft_range {
    uint32_t begin;
    uint32_t end;
};

/* slot[left] <- slot[left] + slot[right]; the result is the node that covers both. */
struct weft_tree_add {
    uint8_t left;
    uint8_t right;
};

struct weft_peer_sum_args;

/* One sum along the tree, as devices compute it: slots start as inputs, adds[] run in order, slot 0 is the result. */
struct weft_tree_add_args {
    const float *const *inputs; /* [input_count] host; each [count] in device memory, borrowed */
    uint32_t input_count;       /* 1 to WEFT_LEAF_COUNT_MAX, ascending nodes that make up the whole tree */
    const struct weft_tree_add
        *adds; /* [input_count - 1] host, from weft_tree_adds(); borrowed until the call returns */
    size_t count;
    float *out; /* [count] in device memory; overlaps no input */
    /* NULL, or a sum between devices (weft/peer.h) that is to be made before: inputs[0], the only one, is its result.
     */
    const struct weft_peer_sum_args *before;
};

static inline uint32_t weft_range_count(struct weft_range range)
{
    return range.end - range.begin;
}

/*
 * The units (query heads, 32-column blocks, vocabulary panels) of leaves [leaves.begin, leaves.end) when unit_count
 * units are dealt over leaf_count leaves along the canonical tree: a node with v leaves and n units gives its left
 * child ceil(n * v_left / v). A leaf may be empty when unit_count < leaf_count; its sum is +0.0. 1 <= leaf_count <= 64;
 * leaves inside [0, leaf_count].
 */
struct weft_range weft_tree_units(uint32_t unit_count, uint32_t leaf_count, struct weft_range leaves);

/* Maximal canonical nodes inside `leaves`, in leaf order, into nodes_out[WEFT_TREE_NODE_MAX]. Returns their count. */
size_t weft_tree_nodes(uint32_t leaf_count, struct weft_range leaves, struct weft_range *nodes_out);

/*
 * Additions that combine `inputs` (ascending canonical nodes, gaps allowed; leaves are nodes too) as far as the tree
 * allows, in an order that respects children before parents. Slot i starts as input i; a merged node stays in its
 * leftmost slot. adds_out has room for input_count - 1. Returns the number of additions. With the leaves of one rank as
 * inputs this yields its maximal nodes; with all ranks' nodes it yields the sum in slot 0.
 */
size_t weft_tree_adds(uint32_t leaf_count, const struct weft_range *inputs, size_t input_count,
                      struct weft_tree_add *adds_out);

/*
 * Deals leaf_count leaves to rank_count ranks in proportion to shares[rank_count] (NULL: equal), each rank at least
 * one, contiguous and ascending, into ranges_out[rank_count]. Returns 0, or -1 when rank_count is 0 or > leaf_count, or
 * a share is 0.
 */
int weft_tree_deal(uint32_t leaf_count, uint32_t rank_count, const uint32_t *shares, struct weft_range *ranges_out);

#endif
