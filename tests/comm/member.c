/* One rank of a test group. Contract in member.h. */
#include "member.h"

#include <stdlib.h>
#include <string.h>

enum hosts { HOSTS_REAL, HOSTS_BLOCK, HOSTS_CYCLIC };

static const char *backend_name;
static enum hosts hosts;
enum activations { IN_HOST, IN_DEVICE, IN_GPU };

static enum activations activations;

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

bool member_has_peers(void)
{
    return strcmp(backend_name, "peer") == 0;
}

bool member_has_device(void)
{
    return activations != IN_HOST;
}

struct fake_device *member_open_device(const struct weft_bootstrap *bootstrap)
{
    struct fake_device *device =
        activations == IN_HOST ? NULL : fake_device_open(weft_bootstrap_rank(bootstrap) + 1, activations == IN_GPU);

    if (device != NULL && member_has_peers()) {
        fake_device_share(device);
    }
    return device;
}

const struct weft_comm_device *member_seat(struct fake_device *device)
{
    return device == NULL ? NULL : fake_device_seat(device);
}

/* Device memory of the test itself. */
static void open_device_buffers(struct member *member, const struct group *group)
{
    const struct weft_comm_device *seat = member_seat(member->device);

    member->device_input = seat->alloc(seat->context, member->node_count * group->count_max * sizeof(float));
    member->device_output = seat->alloc(seat->context, group->count_max * sizeof(float));
    member->gather_input = seat->alloc(seat->context, MEMBER_GATHER_MAX);
    member->gather_output = seat->alloc(seat->context, MEMBER_GATHER_MAX);
}

static void close_device_buffers(struct member *member)
{
    const struct weft_comm_device *seat = member_seat(member->device);

    seat->free(seat->context, member->device_input);
    seat->free(seat->context, member->device_output);
    seat->free(seat->context, member->gather_input);
    seat->free(seat->context, member->gather_output);
}

/* On `device`, which may be NULL. */
static bool open_on(struct fake_device *device, struct weft_bootstrap *bootstrap, const struct group *group,
                    struct member *member)
{
    struct weft_comm_options options = {
        .backend = backend_name,
        .interface = group->interface,
        .timeout_ms = group->timeout_ms,
        .leaf_count = group->leaf_count,
        .leaves = member->ranges,
        .sum_count_max = group->count_max,
        .gather_size_max = MEMBER_GATHER_MAX,
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
    member->device = device;
    options.device = member_seat(member->device);
    if (member->device != NULL) {
        open_device_buffers(member, group);
    }
    return weft_comm_open(bootstrap, &options, &member->comm) == WEFT_OK;
}

bool member_try_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member)
{
    return open_on(member_open_device(bootstrap), bootstrap, group, member);
}

bool member_open(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member)
{
    CHECK(member_try_open(bootstrap, group, member));
    CHECK(weft_comm_failed_rank(member->comm) == -1);
    return true;
}

/* All but the device. */
static void leave(struct member *member)
{
    weft_comm_close(&member->comm);
    free(member->input);
    free(member->output);
    free(member->expected);
    if (member->device != NULL) {
        close_device_buffers(member);
    }
}

bool member_regroup(struct weft_bootstrap *bootstrap, const struct group *group, struct member *member)
{
    leave(member);
    CHECK(open_on(member->device, bootstrap, group, member));
    CHECK(weft_comm_failed_rank(member->comm) == -1);
    return true;
}

bool member_close(struct member *member)
{
    leave(member);
    return member->device == NULL || fake_device_close(&member->device);
}

const float *member_produce(struct member *member, size_t count, uint32_t seed, bool is_in_place)
{
    float *buffer = weft_comm_sum_buffer(member->comm, count);
    float *host = is_in_place && member->device == NULL ? buffer : member->input;

    for (size_t n = 0; n < member->node_count; n++) {
        values_fill(member->nodes[n], seed, count, host + n * count);
    }
    if (member->device == NULL) {
        return host;
    }
    buffer = is_in_place ? buffer : member->device_input;
    fake_device_put(member->device, buffer, host, member->node_count * count * sizeof(float));
    return buffer;
}

float *member_result(struct member *member)
{
    return member->device == NULL ? member->output : member->device_output;
}

void member_fetch(struct member *member, size_t count)
{
    if (member->device != NULL) {
        fake_device_get(member->device, member->output, member->device_output, count * sizeof(float));
    }
}

/* The same sum again, with tree_gather() and the additions that it leaves. */
static bool check_gathered(struct member *member, size_t count, uint32_t seed, bool is_in_place)
{
    const float *nodes = member_produce(member, count, seed, is_in_place);
    struct weft_tree_add_args left;

    memset(member->output, 0xff, count * sizeof(float));
    CHECK(weft_comm_tree_gather(member->comm, nodes, count, member_result(member), &left) == WEFT_OK);
    CHECK(left.count == count && left.input_count >= 1);
    CHECK(left.before == NULL || member_has_peers());
    if (count > 0 && (left.before != NULL ||
                      left.inputs[0] != member_result(member))) { /* only ever on devices; alone it is one own node */
        const struct weft_comm_device *seat = member_seat(member->device);

        CHECK(seat != NULL);
        seat->tree_add(seat->context, &left);
    }
    CHECK(weft_comm_sync(member->comm) == WEFT_OK);
    member_fetch(member, count);
    CHECK(memcmp(member->output, member->expected, count * sizeof(float)) == 0);
    return true;
}

bool member_check_sum(struct member *member, size_t count, uint32_t seed, bool is_in_place)
{
    const float *nodes = member_produce(member, count, seed, is_in_place);

    CHECK(((uintptr_t)weft_comm_sum_buffer(member->comm, count) & 63) == 0);
    memset(member->output, 0xff, count * sizeof(float));
    CHECK(weft_comm_tree_sum(member->comm, nodes, count, member_result(member)) == WEFT_OK);
    CHECK(weft_comm_sync(member->comm) == WEFT_OK);
    member_fetch(member, count);
    values_fill((struct weft_range){0, member->leaf_count}, seed, count, member->expected);
    CHECK(memcmp(member->output, member->expected, count * sizeof(float)) == 0);
    return check_gathered(member, count, seed, is_in_place);
}

enum weft_status member_gather(struct member *member, const void *in, const size_t *sizes, void *out)
{
    size_t total = 0;

    if (member->device == NULL) {
        return weft_comm_all_gather(member->comm, in, sizes, out);
    }
    for (uint32_t r = 0; r < member->rank_count; r++) {
        total += sizes[r];
    }
    fake_device_put(member->device, member->gather_input, in, sizes[member->rank]);
    WEFT_TRY(weft_comm_all_gather(member->comm, member->gather_input, sizes, member->gather_output));
    WEFT_TRY(weft_comm_sync(member->comm));
    fake_device_get(member->device, out, member->gather_output, total);
    return WEFT_OK;
}

enum weft_status member_sum(struct member *member, size_t count)
{
    const float *nodes = member->device == NULL ? member->input : member->device_input;

    WEFT_TRY(weft_comm_tree_sum(member->comm, nodes, count, member_result(member)));
    return weft_comm_sync(member->comm);
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
    static const char *const places[] = {"host", "device", "gpu"};
    int mode = argument_count < 3 ? -1 : find(arguments[2], modes, 3);
    int kind = argument_count < 4 ? 0 : find(arguments[3], kinds, 3);

    int where = argument_count < 5 ? 0 : find(arguments[4], places, 3);

    if (mode < 0 || kind < 0 || where < 0) {
        fprintf(stderr, "usage: %s BACKEND threads|processes|mpirun [real|block|cyclic [host|device|gpu]]\n",
                arguments[0]);
        exit(2);
    }
    backend_name = arguments[1];
    hosts = (enum hosts)kind;
    activations = (enum activations)where;
    /* In processes: a library that dislikes fork() must not be started in this one. */
    if (strcmp(backend_name, "ucx") == 0 && !ranks_run(RANKS_PROCESSES, 2, is_usable_body, backend_name, -1)) {
        printf("SKIP: %s is not usable here\n", backend_name);
        exit(77);
    }
    return (enum ranks_mode)mode;
}
