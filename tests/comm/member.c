/* One rank of a test group. Contract in member.h. */
#include "member.h"

#include <stdlib.h>
#include <string.h>

enum hosts { HOSTS_REAL, HOSTS_BLOCK, HOSTS_CYCLIC };

static const char *backend_name;
static enum hosts hosts;

uint64_t __real_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap);
uint64_t __wrap_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap);

uint64_t __wrap_weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap)
{
    uint64_t real = __real_weft_bootstrap_host_id(bootstrap);
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    uint32_t host_count = (weft_bootstrap_rank_count(bootstrap) + 1) / 2;

    switch (hosts) {
    case HOSTS_REAL: return real;
    case HOSTS_BLOCK: return real + rank / 2;
    case HOSTS_CYCLIC: return real + rank % host_count;
    }
    return real;
}

const char *member_backend(void)
{
    return backend_name;
}

bool member_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member)
{
    struct weft_comm_options options = {
        .backend = backend_name,
        .interface = group->interface,
        .timeout_ms = group->timeout_ms,
        .leaf_count = group->leaf_count,
        .leaves = member->ranges,
        .sum_count_max = group->count_max,
        .gather_size_max = 2000000,
        .wait = WEFT_WAIT_YIELD,
        .is_traced = true,
    };

    *member = (struct member){
        .rank = weft_bootstrap_rank(bootstrap), .rank_count = group->rank_count, .leaf_count = group->leaf_count};
    CHECK(weft_tree_deal(group->leaf_count, group->rank_count, group->shares, member->ranges) == 0);
    member->node_count = weft_tree_nodes(group->leaf_count, member->ranges[member->rank], member->nodes);
    member->input = calloc(member->node_count * group->count_max, sizeof(float));
    member->output = malloc(group->count_max * sizeof(float));
    member->expected = malloc(group->count_max * sizeof(float));
    CHECK(member->input != NULL && member->output != NULL && member->expected != NULL);
    CHECK(weft_comm_open(bootstrap, &options, &member->comm) == WEFT_OK);
    CHECK(weft_comm_failed_rank(member->comm) == -1);
    return true;
}

void member_close(struct member *member)
{
    weft_comm_close(&member->comm);
    free(member->input);
    free(member->output);
    free(member->expected);
}

bool member_check_sum(struct member *member, size_t count, uint32_t seed, bool is_in_place)
{
    float *input = is_in_place ? weft_comm_sum_buffer(member->comm, count) : member->input;

    CHECK(((uintptr_t)weft_comm_sum_buffer(member->comm, count) & 63) == 0);
    for (size_t n = 0; n < member->node_count; n++) {
        values_fill(member->nodes[n], seed, count, input + n * count);
    }
    memset(member->output, 0xff, count * sizeof(float));
    CHECK(weft_comm_tree_sum(member->comm, input, count, member->output) == WEFT_OK);
    values_fill((struct weft_range){0, member->leaf_count}, seed, count, member->expected);
    CHECK(memcmp(member->output, member->expected, count * sizeof(float)) == 0);
    return true;
}

enum weft_status member_sum(struct member *member, size_t count)
{
    return weft_comm_tree_sum(member->comm, member->input, count, member->output);
}

/* True unless this build or machine lacks the backend: any other failure is the tests' business. */
static bool is_usable_body(struct weft_bootstrap *bootstrap, const void *context)
{
    const struct weft_range leaves[2] = {{0, 4}, {4, 8}};
    const struct weft_comm_options options = {
        .backend = context, .timeout_ms = 20000, .leaf_count = 8, .leaves = leaves, .sum_count_max = 100};
    struct weft_comm *comm = NULL;
    enum weft_status status = weft_comm_open(bootstrap, &options, &comm);

    weft_comm_close(&comm);
    return status != WEFT_ERR_UNSUPPORTED && status != WEFT_ERR_ARGUMENT;
}

static int find(const char *text, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

enum ranks_mode member_configure(int argument_count, char **arguments)
{
    static const char *const modes[] = {"threads", "processes", "mpirun"}, *const kinds[] = {"real", "block", "cyclic"};
    int mode = argument_count < 3 ? -1 : find(arguments[2], modes, 3);
    int kind = argument_count < 4 ? 0 : find(arguments[3], kinds, 3);

    if (mode < 0 || kind < 0) {
        fprintf(stderr, "usage: %s BACKEND threads|processes|mpirun [real|block|cyclic]\n", arguments[0]);
        exit(2);
    }
    backend_name = arguments[1];
    hosts = (enum hosts)kind;
    /* In processes: a library that dislikes fork() must not be started in this one. */
    if (strcmp(backend_name, "ucx") == 0 && !ranks_run(RANKS_PROCESSES, 2, is_usable_body, backend_name, -1)) {
        printf("SKIP: %s is not usable here\n", backend_name);
        exit(77);
    }
    return (enum ranks_mode)mode;
}
