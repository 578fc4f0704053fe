/* Test data whose sum shows a wrong order of additions: full mantissas, exponents far apart, mixed signs. */
#ifndef WEFT_TESTS_COMM_VALUES_H
#define WEFT_TESTS_COMM_VALUES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "weft/tree.h"

/* Elements repeat with this period: prime, so that no block or chunk border hides a misplaced piece. */
#define VALUES_PERIOD 4099u

static inline float values_leaf(uint32_t leaf, uint32_t element, uint32_t seed)
{
    uint32_t x = leaf * 2654435761u + element * 2246822519u + seed * 40503u + 12345u;
    int exponent;

    x ^= x >> 13;
    x *= 0x5bd1e995u;
    x ^= x >> 15;
    exponent = (int)(x % 24);
    return ((x & 0x100) != 0 ? 1.0f : -1.0f) * (1.0f + (float)(x >> 9) * 0x1p-23f) * (float)(1 << exponent) * 0x1p-12f;
}

/* The sum by definition over one node of the tree. */
static inline float values_node(struct weft_range node, uint32_t element, uint32_t seed)
{
    uint32_t half = node.begin + (node.end - node.begin + 1) / 2;

    return node.end - node.begin == 1 ? values_leaf(node.begin, element, seed)
                                      : values_node((struct weft_range){node.begin, half}, element, seed) +
                                            values_node((struct weft_range){half, node.end}, element, seed);
}

/* out[0..count) <- the sums of one node. */
static inline void values_fill(struct weft_range node, uint32_t seed, size_t count, float *out)
{
    size_t filled = count < VALUES_PERIOD ? count : VALUES_PERIOD;

    for (size_t i = 0; i < filled; i++) {
        out[i] = values_node(node, (uint32_t)i, seed);
    }
    while (filled < count) { /* whole periods so far: doubling keeps the pattern */
        size_t more = count - filled < filled ? count - filled : filled;

        memcpy(out + filled, out, more * sizeof(out[0]));
        filled += more;
    }
}

#endif
