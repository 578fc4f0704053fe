/* One rank of a test group: an open communicator and data whose sums are known. */
#ifndef WEFT_TESTS_COMM_MEMBER_H
#define WEFT_TESTS_COMM_MEMBER_H

#include "ranks.h"
#include "values.h"
#include "weft/comm.h"

struct group {
    uint32_t rank_count;
    uint32_t leaf_count;
    const uint32_t *shares; /* NULL: equal */
    size_t count_max;
    uint32_t timeout_ms;
    const char *interface;
};

struct member {
    struct weft_comm *comm;
    uint32_t rank;
    uint32_t rank_count;
    struct weft_range ranges[WEFT_LEAF_COUNT_MAX];
    struct weft_range nodes[WEFT_TREE_NODE_MAX];
    size_t node_count;
    uint32_t leaf_count;
    float *input; /* [node_count][count_max] */
    float *output;
    float *expected;
};

/*
 * From the command line: BACKEND threads|processes|mpirun [real|block|cyclic]. "block" and "cyclic" pretend that the
 * machine is several hosts of two ranks each, neighbours or interleaved, by answering weft_bootstrap_host_id()
 * differently. Prints usage and ends the program when wrong; ends it with 77 where ucx is not usable.
 */
enum ranks_mode member_configure(int argument_count, char **arguments);

/* BACKEND. */
const char *member_backend(void);

bool member_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member);
void member_close(struct member *member);

/* One sum; checked against the definition, by bits. */
bool member_check_sum(struct member *member, size_t count, uint32_t seed, bool is_in_place);

/* The same call without looking at the result, for groups that are about to fail. */
enum weft_status member_sum(struct member *member, size_t count);

#endif
