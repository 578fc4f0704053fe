/* What communication asks of a device: sums along the leaf tree, copies in order, marks. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "weft/tree.h"

enum { COUNT_MAX = 1100 };

/* Nodes that make up the whole tree, and the additions that make its sum. */
struct tree {
    uint32_t input_count;
    uint32_t add_count;
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
};

/* Some node of the tree over `leaf_count` leaves; returns its slot. Split at random, always down to the leaves or not.
 */
static uint32_t grow(struct check *check, struct tree *tree, uint32_t leaf_count, bool is_full)
{
    if (leaf_count == 1 || (!is_full && check_below(check, 3) == 0)) {
        return tree->input_count++;
    }
    uint32_t left = grow(check, tree, (leaf_count + 1) / 2, is_full);
    uint32_t right = grow(check, tree, leaf_count / 2, is_full);

    tree->adds[tree->add_count++] = (struct weft_tree_add){(uint8_t)left, (uint8_t)right};
    return left;
}

/* stride >= count: where the next node begins, so that alignment differs between nodes. */
static void sum_case(struct check *check, struct weft_device *device, const struct tree *tree, size_t count,
                     size_t stride, size_t offset)
{
    struct check_buffer nodes = check_floats(tree->input_count * stride, offset);
    struct check_buffer found = check_floats(count, offset);
    float slots[WEFT_LEAF_COUNT_MAX];
    float expected[COUNT_MAX];
    const float *inputs[WEFT_LEAF_COUNT_MAX];
    const float *host = nodes.data;

    check_fill(check, CHECK_EDGE, nodes.data, tree->input_count * stride);
    float *lent = check_lend(device, nodes.data, nodes.size);
    float *lent_out = check_lend(device, found.data, found.size);
    for (size_t i = 0; i < count; i++) {
        for (uint32_t n = 0; n < tree->input_count; n++) {
            slots[n] = host[n * stride + i];
        }
        for (uint32_t a = 0; a < tree->add_count; a++) {
            slots[tree->adds[a].left] += slots[tree->adds[a].right];
        }
        expected[i] = slots[0];
    }
    for (uint32_t n = 0; n < tree->input_count; n++) {
        inputs[n] = lent + n * stride;
    }
    const struct weft_tree_add_args args = {
        .inputs = inputs, .input_count = tree->input_count, .adds = tree->adds, .count = count, .out = lent_out};

    weft_device_tree_add(device, &args);
    check_return(check, device, lent_out, found.data, found.size);
    check_return(check, device, lent, nodes.data, nodes.size);
    check_same(check, found.data, expected, count, "sum of %u nodes, [%zu], stride %zu, offset %zu", tree->input_count,
               count, stride, offset);
    check_buffer_end(check, &nodes, "nodes");
    check_buffer_end(check, &found, "sum");
}

void check_device_tree_add(struct check *check)
{
    static const size_t counts[] = {1, 3, 4, 127, 128, 512, 1029};
    struct weft_device *device = check_device(check, 1);

    for (uint32_t leaf_count = 1; leaf_count <= WEFT_LEAF_COUNT_MAX; leaf_count += leaf_count < 9 ? 1 : 11) {
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            struct tree tree = {0};

            (void)grow(check, &tree, leaf_count, c % 2 == 0);
            sum_case(check, device, &tree, counts[c], counts[c], 0);
            sum_case(check, device, &tree, counts[c], (counts[c] + 3) / 4 * 4 + 4, c % 3);
        }
    }
    weft_device_close(&device);
}

/* ---- copies and marks ---- */

static void expect_bytes(struct check *check, const unsigned char *found, size_t size, unsigned char seed)
{
    for (size_t i = 0; i < size; i++) {
        if (found[i] != (unsigned char)(i * 7 + seed)) {
            check_fail(check, "byte %zu of %zu is not what was copied", i, size);
            return;
        }
    }
    check->compared_count++;
}

/* Issued without waiting: the last write before each read counts, and a mark covers what came before it. */
static void copies_case(struct check *check, struct weft_device *device, size_t size)
{
    unsigned char *sent[2] = {weft_device_alloc_host(device, size), weft_device_alloc_host(device, size)};
    unsigned char *received[2] = {weft_device_alloc_host(device, size), weft_device_alloc_host(device, size)};
    unsigned char *first = weft_device_alloc(device, size), *second = weft_device_alloc(device, size);

    for (unsigned char k = 0; k < 2; k++) {
        if (sent[k] == NULL || received[k] == NULL || (uintptr_t)sent[k] % 64 != 0) {
            check_fail(check, "no host memory of %zu bytes", size);
            return;
        }
        for (size_t i = 0; i < size; i++) {
            sent[k][i] = (unsigned char)(i * 7 + k);
        }
    }
    weft_device_begin_write(device, first, sent[0], size);
    weft_device_copy(device, second, first, size);
    weft_device_begin_write(device, first, sent[1], size);
    weft_device_begin_read(device, received[0], second, size);
    weft_device_mark(device, 1);
    weft_device_begin_read(device, received[1], first, size);
    weft_device_mark(device, WEFT_DEVICE_MARK_COUNT - 1);
    if (weft_device_wait(device, 1, 60000) != WEFT_OK) {
        check_fail(check, "a mark is not reached");
    }
    expect_bytes(check, received[0], size, 0);
    if (weft_device_wait(device, WEFT_DEVICE_MARK_COUNT - 1, 60000) != WEFT_OK ||
        weft_device_wait(device, 1, 0) != WEFT_OK || weft_device_wait(device, 2, 0) != WEFT_OK) {
        check_fail(check, "a mark that was reached, or never set, is waited for");
    }
    expect_bytes(check, received[1], size, 1);
    for (int k = 0; k < 2; k++) {
        weft_device_free_host(device, sent[k]);
        weft_device_free_host(device, received[k]);
    }
    weft_device_free(device, first);
    weft_device_free(device, second);
}

void check_device_ordered(struct check *check)
{
    static const size_t sizes[] = {1, 64, 5000, 3 << 20};
    struct weft_device *device = check_device(check, 1);
    unsigned char id[2][WEFT_DEVICE_ID_SIZE], zeroes[WEFT_DEVICE_ID_SIZE] = {0};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        copies_case(check, device, sizes[i]);
    }
    weft_device_id(device, id[0]);
    weft_device_id(device, id[1]);
    if (memcmp(id[0], id[1], sizeof(id[0])) != 0 ||
        (memcmp(id[0], zeroes, sizeof(zeroes)) == 0) != weft_device_is_host(device)) {
        check_fail(check, "the device's id is none");
    }
    weft_device_free_host(device, NULL);
    weft_device_close(&device);
}
