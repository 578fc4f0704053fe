/* Resolution of the placement. Every rule reads the environment through the request only, so that each case is a test.
 */
#include "placement.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hostlist.h"

enum { RANK_COUNT_MAX = 1024, SLURM_PORT_COUNT = 12000, PORT_MAX = 65535 };

struct resolver {
    const struct weft_placement_request *request;
    struct weft_placement *out;
    char *error; /* [WEFT_PLACEMENT_ERROR_SIZE] */
};

const char *weft_launcher_name(enum weft_launcher launcher)
{
    static const char *const names[] = {
        [WEFT_LAUNCHER_NONE] = "none",         [WEFT_LAUNCHER_OPTIONS] = "options",
        [WEFT_LAUNCHER_SSH] = "ssh",           [WEFT_LAUNCHER_MPI] = "mpirun",
        [WEFT_LAUNCHER_SLURM] = "Slurm",       [WEFT_LAUNCHER_LWS] = "LeaderWorkerSet",
        [WEFT_LAUNCHER_TORCHRUN] = "torchrun", [WEFT_LAUNCHER_KSERVE] = "KServe",
    };

    return names[launcher];
}

static bool refuse(const struct resolver *resolver, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool refuse(const struct resolver *resolver, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(resolver->error, WEFT_PLACEMENT_ERROR_SIZE, format, arguments);
    va_end(arguments);
    return false;
}

/* NULL when unset or empty: manifests leave variables empty rather than out. */
static const char *variable(const struct resolver *resolver, const char *name)
{
    const char *value = resolver->request->variable(resolver->request->context, name);

    return value != NULL && value[0] != 0 ? value : NULL;
}

static void origin_set(char *origin, const char *text)
{
    (void)snprintf(origin, WEFT_PLACEMENT_ORIGIN_SIZE, "%s", text);
}

static bool number_of(const char *text, uint32_t max, uint32_t *out)
{
    char *end;
    unsigned long value = isdigit((unsigned char)text[0]) ? strtoul(text, &end, 10) : 0;

    if (!isdigit((unsigned char)text[0]) || *end != 0 || value > max) {
        return false;
    }
    *out = (uint32_t)value;
    return true;
}

/* A variable that must be there, because `because` is; a whole number in [min, max]. */
static bool number_read(const struct resolver *resolver, const char *name, const char *because, uint32_t min,
                        uint32_t max, uint32_t *out)
{
    const char *text = variable(resolver, name);

    if (text == NULL) {
        return refuse(resolver, "%s is set but %s is not: expected both (or unset %s)", because, name, because);
    }
    if (!number_of(text, max, out) || *out < min) {
        return refuse(resolver, "%s: expected a whole number from %u to %u, found \"%s\"", name, min, max, text);
    }
    return true;
}

/* Rank and count as a launcher's variables have them: both there, and the one below the other. */
static bool ranks_read(const struct resolver *resolver, const char *rank_name, const char *count_name)
{
    struct weft_placement *out = resolver->out;

    if (!number_read(resolver, count_name, rank_name, 1, RANK_COUNT_MAX, &out->rank_count) ||
        !number_read(resolver, rank_name, count_name, 0, RANK_COUNT_MAX - 1, &out->rank)) {
        return false;
    }
    if (out->rank >= out->rank_count) {
        return refuse(resolver, "%s: expected a rank below %s, which is %u, found %u", rank_name, count_name,
                      out->rank_count, out->rank);
    }
    out->has_rank = true;
    origin_set(out->rank_origin, rank_name);
    origin_set(out->rank_count_origin, count_name);
    return true;
}

/* Optional: rank among those of this host, and their number. count_name may be NULL. */
static bool local_read(const struct resolver *resolver, const char *rank_name, const char *count_name)
{
    struct weft_placement *out = resolver->out;

    if (variable(resolver, rank_name) == NULL) {
        return true;
    }
    if (!number_read(resolver, rank_name, rank_name, 0, RANK_COUNT_MAX - 1, &out->local_rank)) {
        return false;
    }
    origin_set(out->local_rank_origin, rank_name);
    if (count_name == NULL || variable(resolver, count_name) == NULL) {
        return true;
    }
    if (!number_read(resolver, count_name, count_name, 1, RANK_COUNT_MAX, &out->local_count)) {
        return false;
    }
    return out->local_rank < out->local_count ||
           refuse(resolver, "%s: expected a number below %s, which is %u, found %u", rank_name, count_name,
                  out->local_count, out->local_rank);
}

/* The leader's address out of its host and a port. IPv6 addresses get their brackets. */
static bool leader_set(const struct resolver *resolver, const char *host, const char *host_origin, uint32_t port,
                       const char *port_origin)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;
    bool is_v6 = strchr(host, ':') != NULL;
    int size;

    if (request->leader != NULL) {
        return true; /* overridden */
    }
    port = request->leader_port > 0 ? request->leader_port : port;
    size = snprintf(out->leader, sizeof(out->leader), is_v6 ? "[%s]:%u" : "%s:%u", host, port);
    if (size < 0 || (size_t)size >= sizeof(out->leader)) {
        return refuse(resolver, "%s: expected a host name of at most %d bytes, found %zu", host_origin,
                      WEFT_PLACEMENT_HOST_SIZE, strlen(host));
    }
    if (request->leader_port > 0) {
        port_origin = "--leader-port";
    }
    if (port_origin != NULL) {
        (void)snprintf(out->leader_origin, sizeof(out->leader_origin), "%s, port from %s", host_origin, port_origin);
    } else {
        (void)snprintf(out->leader_origin, sizeof(out->leader_origin), "%s, default port", host_origin);
    }
    return true;
}

/* ---- one function per launcher: true when it is not there, or all is well ---- */

static bool take_mpi(struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *pmix_rank = variable(resolver, "PMIX_RANK");
    bool has_ompi =
        variable(resolver, "OMPI_COMM_WORLD_RANK") != NULL || variable(resolver, "OMPI_COMM_WORLD_SIZE") != NULL;

    if (has_ompi) {
        out->launcher = WEFT_LAUNCHER_MPI;
        return ranks_read(resolver, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE") &&
               local_read(resolver, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE");
    }
    /* Without MPI in this build a step of srun is still a group over TCP. */
    if (pmix_rank == NULL || (!resolver->request->has_mpi && variable(resolver, "SLURM_STEP_ID") != NULL)) {
        return true;
    }
    if (variable(resolver, "PMIX_NAMESPACE") == NULL) {
        return refuse(resolver, "PMIX_RANK is set but PMIX_NAMESPACE is not: expected both (or unset PMIX_RANK)");
    }
    out->launcher = WEFT_LAUNCHER_MPI;
    out->has_rank = true;
    origin_set(out->rank_origin, "PMIX_RANK");
    origin_set(out->rank_count_origin, "MPI");
    return number_read(resolver, "PMIX_RANK", "PMIX_NAMESPACE", 0, RANK_COUNT_MAX - 1, &out->rank);
}

/* Two groups of one job may start on the same host: the step's number is in the port as well. */
static uint32_t slurm_port(const struct resolver *resolver, const char **origin_out)
{
    const char *job = variable(resolver, "SLURM_JOB_ID");
    const char *step = variable(resolver, "SLURM_STEP_ID");
    uint32_t job_number, step_number = 0;

    if (job == NULL || !number_of(job, UINT32_MAX, &job_number)) {
        *origin_out = NULL;
        return WEFT_PLACEMENT_PORT;
    }
    (void)number_of(step, UINT32_MAX, &step_number);
    *origin_out = "SLURM_JOB_ID and SLURM_STEP_ID";
    return WEFT_PLACEMENT_PORT + (uint32_t)(((uint64_t)job_number * 61 + step_number) % SLURM_PORT_COUNT);
}

/* Where ranks fill one host after the other, which host has which rank can be told; this rank's own is the proof. */
static void slurm_hosts(const struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *per_node = variable(resolver, "SLURM_STEP_TASKS_PER_NODE");
    const char *node = variable(resolver, "SLURM_NODEID");
    uint32_t expected, found;

    if (per_node == NULL) {
        per_node = variable(resolver, "SLURM_TASKS_PER_NODE");
    }
    if (per_node == NULL || !weft_hostlist_block(per_node, out->rank, &expected) ||
        (node != NULL && (!number_of(node, UINT32_MAX, &found) || found != expected))) {
        out->node_list = NULL;
        return;
    }
    out->tasks_per_node = per_node;
    while (out->local_count < out->rank_count) {
        uint32_t first = out->rank - (out->local_rank < out->rank ? out->local_rank : out->rank);

        if (!weft_hostlist_block(per_node, first + out->local_count, &found) || found != expected) {
            break;
        }
        out->local_count++;
    }
}

static bool take_slurm(struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *list_name = "SLURM_STEP_NODELIST";
    const char *count_name = "SLURM_STEP_NUM_TASKS";
    const char *port_origin = NULL;
    char host[WEFT_PLACEMENT_HOST_SIZE];
    uint32_t port;

    if (variable(resolver, "SLURM_PROCID") == NULL) {
        return true;
    }
    if (variable(resolver, "SLURM_STEP_ID") == NULL) {
        const char *tasks = variable(resolver, "SLURM_NTASKS");

        if (tasks != NULL && strcmp(tasks, "1") != 0) {
            out->note = "in a Slurm batch script, but not started by srun: this is one process; srun starts all ranks";
        }
        return true;
    }
    out->launcher = WEFT_LAUNCHER_SLURM;
    if (variable(resolver, count_name) == NULL) {
        count_name = "SLURM_NTASKS";
    }
    if (variable(resolver, list_name) == NULL) {
        list_name = "SLURM_JOB_NODELIST";
    }
    if (!ranks_read(resolver, "SLURM_PROCID", count_name) || !local_read(resolver, "SLURM_LOCALID", NULL)) {
        return false;
    }
    out->node_list = variable(resolver, list_name);
    if (out->node_list == NULL) {
        return refuse(resolver, "SLURM_PROCID is set but %s is not: expected the names of the hosts, or --leader",
                      list_name);
    }
    if (!weft_hostlist_get(out->node_list, 0, host, sizeof(host))) {
        return refuse(resolver, "%s: expected a host list such as node[1-4,7], found \"%s\"", list_name,
                      out->node_list);
    }
    slurm_hosts(resolver);
    port = slurm_port(resolver, &port_origin);
    return leader_set(resolver, host, list_name, port, port_origin);
}

static bool take_lws(struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *leader = variable(resolver, "LWS_LEADER_ADDRESS");
    bool has_some = leader != NULL || variable(resolver, "LWS_GROUP_SIZE") != NULL ||
                    variable(resolver, "LWS_WORKER_INDEX") != NULL;

    if (!has_some) {
        return true;
    }
    out->launcher = WEFT_LAUNCHER_LWS;
    if (!ranks_read(resolver, "LWS_WORKER_INDEX", "LWS_GROUP_SIZE")) {
        return false;
    }
    if (leader == NULL) {
        return refuse(resolver, "LWS_WORKER_INDEX is set but LWS_LEADER_ADDRESS is not: expected both, or --leader");
    }
    out->leader_host = leader;
    /* One process in a pod, unless it starts more itself. */
    out->local_count = 1;
    origin_set(out->local_rank_origin, "LeaderWorkerSet");
    /* The leader's own name is in its /etc/hosts before the group's DNS records exist. */
    if (out->rank == 0) {
        return leader_set(resolver, resolver->request->host_name, "host name", WEFT_PLACEMENT_PORT, NULL);
    }
    return leader_set(resolver, leader, "LWS_LEADER_ADDRESS", WEFT_PLACEMENT_PORT, NULL);
}

static bool take_torchrun(struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *master = variable(resolver, "MASTER_ADDR");
    const char *store = variable(resolver, "TORCHELASTIC_USE_AGENT_STORE");
    const char *origin = NULL;
    uint32_t port = WEFT_PLACEMENT_PORT;

    if (master == NULL && variable(resolver, "RANK") == NULL && variable(resolver, "WORLD_SIZE") == NULL) {
        return true;
    }
    out->launcher = WEFT_LAUNCHER_TORCHRUN;
    if (!ranks_read(resolver, "RANK", "WORLD_SIZE") || !local_read(resolver, "LOCAL_RANK", "LOCAL_WORLD_SIZE")) {
        return false;
    }
    if (master == NULL) {
        return refuse(resolver, "RANK and WORLD_SIZE are set but MASTER_ADDR is not: expected all three, or --leader");
    }
    if (variable(resolver, "MASTER_PORT") != NULL) {
        if (!number_read(resolver, "MASTER_PORT", "MASTER_PORT", 1, PORT_MAX, &port)) {
            return false;
        }
        origin = "MASTER_PORT";
        if (store != NULL && strcmp(store, "True") == 0) { /* torchrun itself listens there */
            port = port < PORT_MAX ? port + 1 : port - 1;
            origin = "MASTER_PORT + 1, the former is torchrun's";
        }
    }
    return leader_set(resolver, master, "MASTER_ADDR", port, origin);
}

static bool take_kserve(struct resolver *resolver)
{
    struct weft_placement *out = resolver->out;
    const char *head = variable(resolver, "HEAD_SVC");

    if (head == NULL && variable(resolver, "RAY_NODE_COUNT") == NULL) {
        return true;
    }
    out->launcher = WEFT_LAUNCHER_KSERVE;
    if (!number_read(resolver, "RAY_NODE_COUNT", "HEAD_SVC", 1, RANK_COUNT_MAX, &out->rank_count)) {
        return false;
    }
    origin_set(out->rank_count_origin, "RAY_NODE_COUNT");
    out->local_count = 1;
    origin_set(out->local_rank_origin, "KServe");
    out->has_rank = head == NULL;
    origin_set(out->rank_origin, head == NULL ? "HEAD_SVC is not set" : "the leader, by arrival");
    if (head == NULL) {
        return leader_set(resolver, resolver->request->host_name, "host name", WEFT_PLACEMENT_PORT, NULL);
    }
    return leader_set(resolver, head, "HEAD_SVC", WEFT_PLACEMENT_PORT, NULL);
}

/* ---- options ---- */

static bool take_options(struct resolver *resolver)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;

    out->launcher = WEFT_LAUNCHER_OPTIONS;
    out->has_rank = true;
    out->rank = request->rank;
    out->rank_count = request->rank_count;
    origin_set(out->rank_origin, request->rank_origin);
    if (request->rank_count_origin == NULL) {
        return refuse(resolver, "%s and %s need --ranks N: how many ranks there are", request->leader_origin,
                      request->rank_origin);
    }
    origin_set(out->rank_count_origin, request->rank_count_origin);
    if (out->rank >= out->rank_count) {
        return refuse(resolver, "%s: expected a rank below %s, which is %u, found %u", request->rank_origin,
                      request->rank_count_origin, out->rank_count, out->rank);
    }
    return true;
}

static bool take_none(struct resolver *resolver)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;

    if (request->rank_origin != NULL && request->rank != 0) {
        return refuse(resolver, "%s needs --leader HOST:PORT", request->rank_origin);
    }
    if (request->leader != NULL) {
        return refuse(resolver, "%s needs --rank R and --ranks N, or a launcher that gives them",
                      request->leader_origin);
    }
    if (request->local_count > 0) {
        return refuse(resolver, "--local-ranks needs --leader or a launcher; --ranks N starts N ranks on this host");
    }
    out->has_rank = true;
    out->rank_count = request->rank_count_origin != NULL ? request->rank_count : 1;
    out->local_count = out->rank_count;
    origin_set(out->rank_origin, "default");
    origin_set(out->rank_count_origin, request->rank_count_origin != NULL ? request->rank_count_origin : "default");
    origin_set(out->leader_origin, "default");
    return true;
}

/* Each process of the launcher starts local_count ranks, next to each other. */
static bool spread(struct resolver *resolver)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;
    uint32_t local = request->local_count;

    if (local == 0) {
        return true;
    }
    out->fork_count = local;
    if (out->launcher == WEFT_LAUNCHER_MPI) {
        return refuse(resolver, "--local-ranks: mpirun starts every rank itself (slots of the hostfile, -n)");
    }
    if (out->launcher == WEFT_LAUNCHER_OPTIONS) {
        origin_set(out->local_rank_origin, "--local-ranks");
        out->local_count = local;
        return out->rank + local <= out->rank_count ||
               refuse(resolver, "--local-ranks %u from rank %u on: expected at most the %u ranks of %s", local,
                      out->rank, out->rank_count, request->rank_count_origin);
    }
    if ((uint64_t)out->rank_count * local > RANK_COUNT_MAX) {
        return refuse(resolver, "--local-ranks %u times %s %u: expected at most %d ranks", local,
                      out->rank_count_origin, out->rank_count, RANK_COUNT_MAX);
    }
    out->rank *= local;
    out->rank_count *= local;
    out->local_rank *= local;
    out->local_count *= local;
    (void)strncat(out->rank_count_origin, " x --local-ranks",
                  sizeof(out->rank_count_origin) - strlen(out->rank_count_origin) - 1);
    return true;
}

/* What is asked for besides must be what the launcher says. mpirun's count is the engine's to compare, in one voice. */
static bool agree(struct resolver *resolver)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;

    if (out->launcher == WEFT_LAUNCHER_OPTIONS || out->launcher == WEFT_LAUNCHER_NONE) {
        return true;
    }
    if (request->rank_origin != NULL && (!out->has_rank || request->rank != out->rank)) {
        return refuse(resolver, "%s is %u, but %s gives this process rank %u by %s: leave the one or unset the other",
                      request->rank_origin, request->rank, weft_launcher_name(out->launcher), out->rank,
                      out->rank_origin);
    }
    if (request->rank_count_origin != NULL && out->launcher != WEFT_LAUNCHER_MPI &&
        request->rank_count != out->rank_count) {
        return refuse(resolver, "%s is %u, but %s has %u ranks by %s: leave the one or unset the other",
                      request->rank_count_origin, request->rank_count, weft_launcher_name(out->launcher),
                      out->rank_count, out->rank_count_origin);
    }
    return true;
}

static bool take_leader(struct resolver *resolver)
{
    const struct weft_placement_request *request = resolver->request;
    struct weft_placement *out = resolver->out;

    if (request->leader != NULL) {
        if (request->leader_port > 0) {
            return refuse(resolver, "--leader-port: %s already names a port, found %s", request->leader_origin,
                          request->leader);
        }
        if (out->rank_count == 0) {
            return refuse(resolver, "%s: the number of ranks is known to MPI only; expected --rank R and --ranks N too",
                          request->leader_origin);
        }
        if (strlen(request->leader) >= sizeof(out->leader)) {
            return refuse(resolver, "%s: expected at most %zu bytes", request->leader_origin, sizeof(out->leader) - 1);
        }
        (void)snprintf(out->leader, sizeof(out->leader), "%s", request->leader);
        origin_set(out->leader_origin, request->leader_origin);
    }
    out->is_tcp = out->leader[0] != 0;
    if (out->launcher == WEFT_LAUNCHER_MPI && !out->is_tcp) {
        origin_set(out->leader_origin, "MPI");
        return resolver->request->has_mpi ||
               refuse(resolver,
                      "started by mpirun (%s), but this build has no MPI: expected a build with it, or "
                      "--hosts, or --leader HOST:PORT",
                      out->rank_origin);
    }
    return true;
}

bool weft_placement_resolve(const struct weft_placement_request *request, struct weft_placement *out, char *error)
{
    static bool (*const launchers[])(struct resolver *) = {take_mpi, take_slurm, take_lws, take_torchrun, take_kserve};
    struct resolver resolver = {request, out, error};
    bool is_well = true;

    memset(out, 0, sizeof(*out));
    error[0] = 0;
    out->fork_count = 1;
    if (request->leader != NULL && request->rank_origin != NULL) {
        is_well = take_options(&resolver);
    } else {
        for (size_t i = 0;
             is_well && out->launcher == WEFT_LAUNCHER_NONE && i < sizeof(launchers) / sizeof(launchers[0]); i++) {
            is_well = launchers[i](&resolver);
        }
        if (is_well && out->launcher == WEFT_LAUNCHER_NONE) {
            is_well = take_none(&resolver);
        }
    }
    return is_well && spread(&resolver) && agree(&resolver) && take_leader(&resolver);
}

bool weft_placement_host(const struct weft_placement *placement, uint32_t rank, char *out, size_t size)
{
    uint32_t process = rank / (placement->launcher == WEFT_LAUNCHER_OPTIONS ? 1 : placement->fork_count);
    uint32_t host;
    int used;

    if (placement->launcher == WEFT_LAUNCHER_SLURM) {
        return placement->node_list != NULL && placement->tasks_per_node != NULL &&
               weft_hostlist_block(placement->tasks_per_node, process, &host) &&
               weft_hostlist_get(placement->node_list, host, out, size);
    }
    if (placement->launcher == WEFT_LAUNCHER_LWS) { /* the leader is pod NAME, the others NAME-1, NAME-2 ... */
        int name = (int)strcspn(placement->leader_host, ".");

        used = process == 0 ? snprintf(out, size, "%.*s", name, placement->leader_host)
                            : snprintf(out, size, "%.*s-%u", name, placement->leader_host, process);
        return used > 0 && (size_t)used < size;
    }
    return false;
}
