/* One rank of a test group: an open communicator and data whose sums are known. */
#ifndef WEFT_TESTS_COMM_MEMBER_H
#define WEFT_TESTS_COMM_MEMBER_H

#include "fake_device.h"
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
    struct fake_device *device; /* NULL: activations in host memory */
    float *device_input;        /* [node_count][count_max] device memory */
    float *device_output;       /* [count_max] */
    char *gather_input;         /* [MEMBER_GATHER_MAX] device memory */
    char *gather_output;
};

#define MEMBER_GATHER_MAX 2000000u

/*
 * From the command line: BACKEND threads|processes|mpirun [real|block|cyclic [host|device|gpu]]. "block" and "cyclic"
 * pretend that the machine is several hosts of two ranks each, neighbours or interleaved, by answering
 * weft_bootstrap_host_id() differently. "device": activations lie on a fake device; "gpu": on one that NCCL can use.
 * Prints usage and ends the program when wrong; ends it with 77 where ucx is not usable.
 */
enum ranks_mode member_configure(int argument_count, char **arguments);

/* BACKEND. */
const char *member_backend(void);

bool member_has_device(void);
/* Small sums go through the memory of the peers' GPUs. */
bool member_has_peers(void);

/* A fake device for this rank, NULL without "device"; what weft_comm_options.device gets. */
struct fake_device *member_open_device(const struct weft_bootstrap *bootstrap);
const struct weft_comm_device *member_seat(struct fake_device *device);

bool member_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member);
/* The same where weft_comm_open() may fail, quietly; member_close() also after that. */
bool member_try_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member);
/* Closes the communicator and opens one of another group, on the same device. */
bool member_regroup(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member);
/* False when device memory was not given back. */
bool member_close(struct member *member);

/* This rank's nodes of a sum with known result, where tree_sum() takes them from: in its own buffer or the caller's. */
const float *member_produce(struct member *member, size_t count, uint32_t seed, bool is_in_place);
/* member->output <- a result of tree_sum(), which went to member_result(). */
float *member_result(struct member *member);
void member_fetch(struct member *member, size_t count);
/* weft_comm_all_gather() between host memory, over the device when there is one. */
enum weft_status member_gather(struct member *member, const void *in, const size_t *sizes, void *out);

/* One sum; checked against the definition, by bits. */
bool member_check_sum(struct member *member, size_t count, uint32_t seed, bool is_in_place);

/* The same call without looking at the result, for groups that are about to fail. */
enum weft_status member_sum(struct member *member, size_t count);

#endif
