/* The leaf tree's arithmetic: one recursion (halve, left the larger) seen from four sides. Recursion depth is 7. */
#include "weft/tree.h"

#include <assert.h>
#include <stdbool.h>

static bool is_equal(struct weft_range a, struct weft_range b)
{
    return a.begin == b.begin && a.end == b.end;
}

static bool is_inside(struct weft_range inner, struct weft_range outer)
{
    return inner.begin >= outer.begin && inner.end <= outer.end;
}

static bool is_disjoint(struct weft_range a, struct weft_range b)
{
    return a.end <= b.begin || b.end <= a.begin;
}

static uint32_t middle_of(struct weft_range node)
{
    return node.begin + (weft_range_count(node) + 1) / 2;
}

/* Units to the left of leaf boundary `leaf`, walking down from the root. */
static uint32_t units_before(uint32_t unit_count, uint32_t leaf_count, uint32_t leaf)
{
    struct weft_range node = {0, leaf_count};
    uint32_t before = 0;
    uint32_t units = unit_count;

    while (leaf > node.begin && leaf < node.end) {
        uint64_t v = weft_range_count(node);
        uint64_t v_left = middle_of(node) - node.begin;
        uint32_t units_left = (uint32_t)((units * v_left + v - 1) / v);

        if (leaf < node.begin + v_left) {
            node.end = node.begin + (uint32_t)v_left;
            units = units_left;
        } else {
            node.begin += (uint32_t)v_left;
            before += units_left;
            units -= units_left;
        }
    }
    return leaf == node.begin ? before : before + units;
}

struct weft_range weft_tree_units(uint32_t unit_count, uint32_t leaf_count, struct weft_range leaves)
{
    assert(leaf_count >= 1 && leaf_count <= WEFT_LEAF_COUNT_MAX);
    assert(leaves.begin <= leaves.end && leaves.end <= leaf_count);
    return (struct weft_range){
        units_before(unit_count, leaf_count, leaves.begin),
        units_before(unit_count, leaf_count, leaves.end),
    };
}

static size_t collect_nodes(struct weft_range node, struct weft_range leaves, struct weft_range *nodes_out,
                            size_t count)
{
    if (is_disjoint(node, leaves)) {
        return count;
    }
    if (is_inside(node, leaves)) {
        assert(count < WEFT_TREE_NODE_MAX);
        nodes_out[count] = node;
        return count + 1;
    }
    count = collect_nodes((struct weft_range){node.begin, middle_of(node)}, leaves, nodes_out, count);
    return collect_nodes((struct weft_range){middle_of(node), node.end}, leaves, nodes_out, count);
}

size_t weft_tree_nodes(uint32_t leaf_count, struct weft_range leaves, struct weft_range *nodes_out)
{
    assert(leaf_count >= 1 && leaf_count <= WEFT_LEAF_COUNT_MAX);
    assert(leaves.begin <= leaves.end && leaves.end <= leaf_count);
    if (leaves.begin == leaves.end) {
        return 0;
    }
    return collect_nodes((struct weft_range){0, leaf_count}, leaves, nodes_out, 0);
}

struct merge {
    const struct weft_range *inputs;
    size_t input_count;
    size_t next; /* first input not yet met by the walk */
    struct weft_tree_add *adds;
    size_t add_count;
};

/* Combines what lies under `node`. Returns the slot of its complete sum, or -1 when inputs do not cover all of it. */
static int merge_node(struct merge *merge, struct weft_range node)
{
    struct weft_range left = {node.begin, middle_of(node)};
    struct weft_range right = {left.end, node.end};
    int left_slot, right_slot;

    if (merge->next == merge->input_count || node.end <= merge->inputs[merge->next].begin) {
        return -1;
    }
    if (is_equal(merge->inputs[merge->next], node)) {
        return (int)merge->next++;
    }
    if (weft_range_count(node) == 1) {
        return -1;
    }
    left_slot = merge_node(merge, left);
    right_slot = merge_node(merge, right);
    if (left_slot < 0 || right_slot < 0) {
        return -1;
    }
    merge->adds[merge->add_count++] = (struct weft_tree_add){(uint8_t)left_slot, (uint8_t)right_slot};
    return left_slot;
}

size_t weft_tree_adds(uint32_t leaf_count, const struct weft_range *inputs, size_t input_count,
                      struct weft_tree_add *adds_out)
{
    struct merge merge = {.inputs = inputs, .input_count = input_count, .adds = adds_out};

    assert(leaf_count >= 1 && leaf_count <= WEFT_LEAF_COUNT_MAX);
    assert(input_count <= leaf_count);
    (void)merge_node(&merge, (struct weft_range){0, leaf_count});
    assert(merge.next == input_count); /* otherwise an input was not a canonical node */
    return merge.add_count;
}

/*
 * Halves the ranks as the tree halves leaves and gives the left half its share, rounded to nearest (half up): so equal
 * shares over a power of two of ranks land exactly on canonical nodes, and a rank never differs from its due by more
 * than the roundings on its path.
 */
static void deal_ranks(struct weft_range leaves, const uint32_t *shares, uint32_t rank_count,
                       struct weft_range *ranges_out)
{
    uint32_t left_ranks = (rank_count + 1) / 2;
    uint32_t right_ranks = rank_count - left_ranks;
    uint32_t count = weft_range_count(leaves);
    uint64_t total = 0, total_left = 0;
    uint32_t left;

    if (rank_count == 1) {
        ranges_out[0] = leaves;
        return;
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        uint64_t share = shares == NULL ? 1 : shares[r];

        total += share;
        total_left += r < left_ranks ? share : 0;
    }
    left = (uint32_t)((2 * count * total_left + total) / (2 * total));
    left = left < left_ranks ? left_ranks : left;
    left = left > count - right_ranks ? count - right_ranks : left;
    deal_ranks((struct weft_range){leaves.begin, leaves.begin + left}, shares, left_ranks, ranges_out);
    deal_ranks((struct weft_range){leaves.begin + left, leaves.end}, shares == NULL ? NULL : shares + left_ranks,
               right_ranks, ranges_out + left_ranks);
}

int weft_tree_deal(uint32_t leaf_count, uint32_t rank_count, const uint32_t *shares, struct weft_range *ranges_out)
{
    if (rank_count == 0 || rank_count > leaf_count) {
        return -1;
    }
    for (uint32_t r = 0; shares != NULL && r < rank_count; r++) {
        if (shares[r] == 0) {
            return -1;
        }
    }
    deal_ranks((struct weft_range){0, leaf_count}, shares, rank_count, ranges_out);
    return 0;
}
