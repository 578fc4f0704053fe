/* Exhaustive tests of the leaf tree. The reference is an independent, naive model of the tree: a list of all nodes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "weft/tree.h"

/* All 2V-1 nodes of the tree over V leaves, breadth first: node i > 0 has parent parent[i]. */
struct model {
    struct weft_range nodes[2 * WEFT_LEAF_COUNT_MAX];
    size_t parent[2 * WEFT_LEAF_COUNT_MAX];
    size_t count;
};

static void model_init(struct model *model, uint32_t leaf_count)
{
    model->nodes[0] = (struct weft_range){0, leaf_count};
    model->parent[0] = 0;
    model->count = 1;
    for (size_t i = 0; i < model->count; i++) {
        struct weft_range node = model->nodes[i];
        uint32_t half = node.begin + (node.end - node.begin + 1) / 2;

        if (node.end - node.begin > 1) {
            model->nodes[model->count] = (struct weft_range){node.begin, half};
            model->parent[model->count++] = i;
            model->nodes[model->count] = (struct weft_range){half, node.end};
            model->parent[model->count++] = i;
        }
    }
    assert_int_equal(model->count, 2 * leaf_count - 1);
}

static bool is_inside(struct weft_range inner, struct weft_range outer)
{
    return inner.begin >= outer.begin && inner.end <= outer.end;
}

/* A node is maximal in a range when it lies inside and its parent does not. */
static void check_nodes(const struct model *model, uint32_t leaf_count, struct weft_range leaves, size_t *most)
{
    struct weft_range nodes[WEFT_TREE_NODE_MAX];
    size_t count = weft_tree_nodes(leaf_count, leaves, nodes);
    size_t expected = 0;
    uint32_t next = leaves.begin;

    assert_true(count <= WEFT_TREE_NODE_MAX);
    *most = count > *most ? count : *most;
    for (size_t i = 0; i < model->count; i++) {
        bool is_root = i == 0;

        if (is_inside(model->nodes[i], leaves) && (is_root || !is_inside(model->nodes[model->parent[i]], leaves))) {
            bool is_found = false;

            for (size_t j = 0; j < count; j++) {
                is_found = is_found || memcmp(&nodes[j], &model->nodes[i], sizeof(nodes[j])) == 0;
            }
            assert_true(is_found);
            expected++;
        }
    }
    assert_int_equal(count, expected);
    for (size_t j = 0; j < count; j++) {
        assert_int_equal(nodes[j].begin, next);
        next = nodes[j].end;
    }
    assert_int_equal(next, leaves.end);
}

static void test_nodes_are_the_maximal_ones(void **state)
{
    size_t most = 0;

    (void)state;
    for (uint32_t v = 1; v <= WEFT_LEAF_COUNT_MAX; v++) {
        struct model model;

        model_init(&model, v);
        for (uint32_t begin = 0; begin < v; begin++) {
            for (uint32_t end = begin + 1; end <= v; end++) {
                check_nodes(&model, v, (struct weft_range){begin, end}, &most);
            }
        }
    }
    assert_true(most >= 10); /* the bound is not idle */
}

static void test_empty_range_has_no_nodes(void **state)
{
    struct weft_range nodes[WEFT_TREE_NODE_MAX];

    (void)state;
    for (uint32_t at = 0; at <= 8; at++) {
        assert_int_equal(weft_tree_nodes(8, (struct weft_range){at, at}, nodes), 0);
    }
}

/* Values whose sum depends on the order: mantissas full, exponents far apart, signs mixed. */
static float leaf_value(uint32_t leaf, uint32_t seed)
{
    uint32_t x = leaf * 2654435761u + seed * 40503u + 12345u;
    int exponent;

    x ^= x >> 13;
    x *= 0x5bd1e995u;
    x ^= x >> 15;
    exponent = (int)(x % 24) - 12;
    return ((x & 0x100) != 0 ? 1.0f : -1.0f) * (1.0f + (float)(x >> 9) * 0x1p-23f) *
           (exponent >= 0 ? (float)(1 << exponent) : 1.0f / (float)(1 << -exponent));
}

/* The definition of the sum. */
static float sum_by_definition(uint32_t begin, uint32_t end, uint32_t seed)
{
    uint32_t half = begin + (end - begin + 1) / 2;

    return end - begin == 1 ? leaf_value(begin, seed)
                            : sum_by_definition(begin, half, seed) + sum_by_definition(half, end, seed);
}

/* What a rank does: leaves to maximal nodes. Appends to nodes/values. */
static size_t rank_partials(uint32_t leaf_count, struct weft_range leaves, uint32_t seed, struct weft_range *nodes_out,
                            float *values_out)
{
    struct weft_range inputs[WEFT_LEAF_COUNT_MAX], nodes[WEFT_TREE_NODE_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    float slots[WEFT_LEAF_COUNT_MAX];
    uint32_t count = weft_range_count(leaves);
    size_t node_count = weft_tree_nodes(leaf_count, leaves, nodes);
    size_t add_count;

    for (uint32_t i = 0; i < count; i++) {
        inputs[i] = (struct weft_range){leaves.begin + i, leaves.begin + i + 1};
        slots[i] = leaf_value(leaves.begin + i, seed);
    }
    add_count = weft_tree_adds(leaf_count, inputs, count, adds);
    assert_int_equal(add_count, count - node_count);
    for (size_t a = 0; a < add_count; a++) {
        assert_true(adds[a].left < adds[a].right && adds[a].right < count);
        slots[adds[a].left] += slots[adds[a].right];
    }
    for (size_t n = 0; n < node_count; n++) {
        nodes_out[n] = nodes[n];
        values_out[n] = slots[nodes[n].begin - leaves.begin];
    }
    return node_count;
}

/* All ranks' partials, then the receiver's part; bits against the definition. */
static void check_split(uint32_t leaf_count, const struct weft_range *ranges, uint32_t rank_count, uint32_t seed)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    float slots[WEFT_LEAF_COUNT_MAX];
    float expected = sum_by_definition(0, leaf_count, seed);
    size_t count = 0, add_count;

    for (uint32_t r = 0; r < rank_count; r++) {
        count += rank_partials(leaf_count, ranges[r], seed, nodes + count, slots + count);
    }
    add_count = weft_tree_adds(leaf_count, nodes, count, adds);
    assert_int_equal(add_count, count - 1);
    for (size_t a = 0; a < add_count; a++) {
        slots[adds[a].left] += slots[adds[a].right];
    }
    assert_memory_equal(&slots[0], &expected, sizeof(expected));
}

/* Bit b of `cuts` set: a rank border after leaf b. */
static uint32_t split_from_cuts(uint32_t leaf_count, uint64_t cuts, struct weft_range *ranges_out)
{
    uint32_t count = 0, begin = 0;

    for (uint32_t b = 1; b <= leaf_count; b++) {
        if (b == leaf_count || ((cuts >> (b - 1)) & 1) != 0) {
            ranges_out[count++] = (struct weft_range){begin, b};
            begin = b;
        }
    }
    return count;
}

static void test_every_small_split_gives_the_same_bits(void **state)
{
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX];

    (void)state;
    for (uint32_t v = 1; v <= 10; v++) {
        for (uint64_t cuts = 0; cuts < (uint64_t)1 << (v - 1); cuts++) {
            uint32_t rank_count = split_from_cuts(v, cuts, ranges);

            for (uint32_t seed = 0; seed < 4; seed++) {
                check_split(v, ranges, rank_count, seed);
            }
        }
    }
}

static void test_random_splits_give_the_same_bits(void **state)
{
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX];
    uint64_t random = 88172645463325252u;

    (void)state;
    for (uint32_t v = 11; v <= WEFT_LEAF_COUNT_MAX; v++) {
        for (uint32_t trial = 0; trial < 200; trial++) {
            uint64_t cuts;

            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            cuts = random & (random >> (trial % 3 * 7)); /* few and many borders */
            check_split(v, ranges, split_from_cuts(v, cuts, ranges), trial);
        }
    }
}

/* Two hosts that own interleaved leaves: each adds what it can, then both together give the same bits. */
static void check_interleaved(uint32_t v, uint64_t owners, uint32_t seed)
{
    struct weft_range nodes[WEFT_LEAF_COUNT_MAX], all[WEFT_LEAF_COUNT_MAX];
    float slots[WEFT_LEAF_COUNT_MAX], values[WEFT_LEAF_COUNT_MAX] = {0};
    bool is_merged[WEFT_LEAF_COUNT_MAX] = {false};
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    float expected = sum_by_definition(0, v, seed);
    size_t total = 0;

    for (uint64_t owner = 0; owner < 2; owner++) {
        size_t count = 0, add_count;

        for (uint32_t leaf = 0; leaf < v; leaf++) {
            if (((owners >> leaf) & 1) == owner) {
                slots[count] = leaf_value(leaf, seed);
                nodes[count++] = (struct weft_range){leaf, leaf + 1};
            }
        }
        memset(is_merged, 0, sizeof(is_merged));
        add_count = weft_tree_adds(v, nodes, count, adds);
        for (size_t a = 0; a < add_count; a++) {
            assert_int_equal(nodes[adds[a].left].end, nodes[adds[a].right].begin);
            slots[adds[a].left] += slots[adds[a].right];
            nodes[adds[a].left].end = nodes[adds[a].right].end;
            is_merged[adds[a].right] = true;
        }
        for (size_t i = 0; i < count; i++) {
            if (!is_merged[i]) { /* ascending insertion */
                size_t at = total++;

                for (; at > 0 && all[at - 1].begin > nodes[i].begin; at--) {
                    all[at] = all[at - 1];
                    values[at] = values[at - 1];
                }
                all[at] = nodes[i];
                values[at] = slots[i];
            }
        }
    }
    assert_int_equal(weft_tree_adds(v, all, total, adds), total - 1);
    for (size_t a = 0; a + 1 < total; a++) {
        values[adds[a].left] += values[adds[a].right];
    }
    assert_memory_equal(&values[0], &expected, sizeof(expected));
}

static void test_interleaved_owners_give_the_same_bits(void **state)
{
    (void)state;
    for (uint32_t v = 1; v <= 10; v++) {
        for (uint64_t owners = 0; owners < (uint64_t)1 << v; owners++) {
            check_interleaved(v, owners, (uint32_t)owners);
        }
    }
}

static void test_plain_left_to_right_sum_differs(void **state)
{
    uint32_t differing = 0;

    (void)state;
    for (uint32_t seed = 0; seed < 100; seed++) {
        float expected = sum_by_definition(0, 8, seed), plain = 0.0f;

        for (uint32_t leaf = 0; leaf < 8; leaf++) {
            plain += leaf_value(leaf, seed);
        }
        differing += memcmp(&plain, &expected, sizeof(plain)) != 0;
    }
    assert_true(differing > 20); /* otherwise the values could not show a wrong order */
}

static void check_units(uint32_t v, uint32_t unit_count)
{
    uint32_t next = 0;

    for (uint32_t leaf = 0; leaf < v; leaf++) {
        struct weft_range units = weft_tree_units(unit_count, v, (struct weft_range){leaf, leaf + 1});
        uint32_t count = weft_range_count(units);

        assert_int_equal(units.begin, next);
        assert_true(count == unit_count / v || count == unit_count / v + (unit_count % v != 0));
        next = units.end;
    }
    assert_int_equal(next, unit_count);
}

static void test_units_tile_evenly(void **state)
{
    (void)state;
    for (uint32_t v = 1; v <= WEFT_LEAF_COUNT_MAX; v++) {
        for (uint32_t unit_count = 0; unit_count <= 300; unit_count++) {
            check_units(v, unit_count);
        }
        check_units(v, UINT32_MAX);
    }
}

static void test_units_of_a_range_are_those_of_its_leaves(void **state)
{
    (void)state;
    for (uint32_t v = 1; v <= 16; v++) {
        for (uint32_t begin = 0; begin <= v; begin++) {
            for (uint32_t end = begin; end <= v; end++) {
                struct weft_range units = weft_tree_units(14, v, (struct weft_range){begin, end});
                uint32_t count = 0;

                for (uint32_t leaf = begin; leaf < end; leaf++) {
                    count += weft_range_count(weft_tree_units(14, v, (struct weft_range){leaf, leaf + 1}));
                }
                assert_int_equal(weft_range_count(units), count);
            }
        }
    }
}

static void test_units_follow_the_tree(void **state)
{
    (void)state;
    for (uint32_t v = 2; v <= WEFT_LEAF_COUNT_MAX; v++) {
        struct model model;

        model_init(&model, v);
        for (size_t i = 1; i < model.count; i += 2) { /* left children */
            struct weft_range parent = weft_tree_units(1000, v, model.nodes[model.parent[i]]);
            uint32_t n = weft_range_count(parent);
            uint32_t v_parent = weft_range_count(model.nodes[model.parent[i]]);
            uint32_t v_left = weft_range_count(model.nodes[i]);

            assert_int_equal(weft_range_count(weft_tree_units(1000, v, model.nodes[i])),
                             (n * v_left + v_parent - 1) / v_parent);
        }
    }
}

static void check_tiling(const struct weft_range *ranges, uint32_t rank_count, uint32_t leaf_count)
{
    uint32_t next = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        assert_int_equal(ranges[r].begin, next);
        assert_true(ranges[r].end > ranges[r].begin);
        next = ranges[r].end;
    }
    assert_int_equal(next, leaf_count);
}

static void test_deal_equal(void **state)
{
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX], shared[WEFT_LEAF_COUNT_MAX], nodes[WEFT_TREE_NODE_MAX];
    uint32_t shares[WEFT_LEAF_COUNT_MAX];

    (void)state;
    for (uint32_t r = 0; r < WEFT_LEAF_COUNT_MAX; r++) {
        shares[r] = UINT32_MAX;
    }
    for (uint32_t v = 1; v <= WEFT_LEAF_COUNT_MAX; v++) {
        for (uint32_t p = 1; p <= v; p++) {
            assert_int_equal(weft_tree_deal(v, p, NULL, ranges), 0);
            check_tiling(ranges, p, v);
            for (uint32_t r = 0; r < p; r++) {
                uint32_t count = weft_range_count(ranges[r]);

                assert_true(count == v / p || count == (v + p - 1) / p);
                if ((p & (p - 1)) == 0) { /* a power of two: one partial sum per rank */
                    assert_int_equal(weft_tree_nodes(v, ranges[r], nodes), 1);
                }
            }
            assert_int_equal(weft_tree_deal(v, p, shares, shared), 0);
            assert_memory_equal(shared, ranges, p * sizeof(ranges[0]));
        }
    }
}

static void check_deal(uint32_t v, uint32_t p, const uint32_t *shares, const uint32_t *expected)
{
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX];

    assert_int_equal(weft_tree_deal(v, p, shares, ranges), 0);
    check_tiling(ranges, p, v);
    for (uint32_t r = 0; r < p; r++) {
        assert_int_equal(weft_range_count(ranges[r]), expected[r]);
    }
}

static void test_deal_by_shares(void **state)
{
    (void)state;
    check_deal(8, 2, (uint32_t[]){3, 1}, (uint32_t[]){6, 2});
    check_deal(8, 2, (uint32_t[]){1, 3}, (uint32_t[]){2, 6});
    check_deal(8, 3, (uint32_t[]){2, 1, 1}, (uint32_t[]){4, 2, 2});
    check_deal(8, 2, (uint32_t[]){1000000, 1}, (uint32_t[]){7, 1});
    check_deal(8, 2, (uint32_t[]){1, UINT32_MAX}, (uint32_t[]){1, 7});
    check_deal(8, 4, (uint32_t[]){1, 1, 1, 5}, (uint32_t[]){1, 1, 1, 5});
    check_deal(4, 4, (uint32_t[]){1, 100, 1, 100}, (uint32_t[]){1, 1, 1, 1});
    check_deal(64, 3, (uint32_t[]){4, 2, 2}, (uint32_t[]){32, 16, 16});
    check_deal(1, 1, (uint32_t[]){7}, (uint32_t[]){1});
}

static void test_deal_refuses(void **state)
{
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX];
    const uint32_t shares[] = {1, 0, 1};

    (void)state;
    assert_int_equal(weft_tree_deal(8, 0, NULL, ranges), -1);
    assert_int_equal(weft_tree_deal(8, 9, NULL, ranges), -1);
    assert_int_equal(weft_tree_deal(8, 3, shares, ranges), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nodes_are_the_maximal_ones),
        cmocka_unit_test(test_empty_range_has_no_nodes),
        cmocka_unit_test(test_every_small_split_gives_the_same_bits),
        cmocka_unit_test(test_random_splits_give_the_same_bits),
        cmocka_unit_test(test_interleaved_owners_give_the_same_bits),
        cmocka_unit_test(test_plain_left_to_right_sum_differs),
        cmocka_unit_test(test_units_tile_evenly),
        cmocka_unit_test(test_units_of_a_range_are_those_of_its_leaves),
        cmocka_unit_test(test_units_follow_the_tree),
        cmocka_unit_test(test_deal_equal),
        cmocka_unit_test(test_deal_by_shares),
        cmocka_unit_test(test_deal_refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
