/* The rules. Thresholds are where a person would want to know, not where things stop working. */
#include "doctor/findings.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MIB 1048576.0

enum { FILE_LIMIT_LOW = 1024 };
static const uint64_t LOCK_LIMIT_LOW = 64 << 20;
static const uint64_t SHM_SIZE_LOW = 256 << 20; /* containers have 64 MiB unless told otherwise */

void weft_doctor_findings_add(struct weft_doctor_findings *findings, const struct weft_doctor_finding *finding,
                              const char *format, ...)
{
    struct weft_doctor_finding *item;
    va_list arguments;

    if (findings->count == WEFT_DOCTOR_FINDING_MAX) {
        findings->dropped++;
        return;
    }
    item = &findings->items[findings->count++];
    *item = *finding;
    va_start(arguments, format);
    (void)vsnprintf(item->what, sizeof(item->what), format, arguments);
    va_end(arguments);
}

bool weft_doctor_is_trouble(const struct weft_doctor_findings *findings)
{
    for (uint32_t i = 0; i < findings->count; i++) {
        if (findings->items[i].severity != WEFT_DOCTOR_NOTE) {
            return true;
        }
    }
    return findings->dropped > 0;
}

static bool has_core(const struct weft_machine *machine, uint32_t core)
{
    return (machine->cpu_mask[core / 8] >> core % 8 & 1) != 0;
}

uint32_t weft_doctor_core_count(const struct weft_machine *machine)
{
    uint32_t count = 0;

    for (uint32_t core = 0; core < WEFT_CPU_COUNT_MAX; core++) {
        count += has_core(machine, core);
    }
    return count;
}

const char *weft_doctor_cores_text(const struct weft_machine *machine, char *text, size_t size)
{
    size_t used = 0;

    snprintf(text, size, "-");
    for (uint32_t core = 0; core < WEFT_CPU_COUNT_MAX && used + 1 < size; core++) {
        uint32_t last = core;

        if (!has_core(machine, core)) {
            continue;
        }
        while (last + 1 < WEFT_CPU_COUNT_MAX && has_core(machine, last + 1)) {
            last++;
        }
        used += (size_t)snprintf(text + used, size - used, last > core ? "%s%u-%u" : "%s%u", used > 0 ? "," : "", core,
                                 last);
        core = last;
    }
    return text;
}

uint32_t weft_doctor_host_ranks(const struct weft_doctor_facts *facts, uint32_t rank_count, uint32_t rank)
{
    uint32_t count = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        count += facts[r].host_id == facts[rank].host_id;
    }
    return count;
}

uint32_t weft_doctor_host_cores(const struct weft_doctor_facts *facts, uint32_t rank_count, uint32_t rank)
{
    struct weft_machine all = {.cpu_quota = 0};
    uint32_t quota = 0;
    uint32_t count;

    for (uint32_t r = 0; r < rank_count; r++) {
        if (facts[r].host_id != facts[rank].host_id) {
            continue;
        }
        for (size_t i = 0; i < sizeof(all.cpu_mask); i++) {
            all.cpu_mask[i] |= facts[r].machine.cpu_mask[i];
        }
        quota = facts[r].machine.cpu_quota > quota ? facts[r].machine.cpu_quota : quota;
    }
    count = weft_doctor_core_count(&all);
    return quota > 0 && quota < count ? quota : count;
}

/* Rank r is the first of its host. */
static bool is_first(const struct weft_doctor_group *group, uint32_t rank)
{
    for (uint32_t r = 0; r < rank; r++) {
        if (group->facts[r].host_id == group->facts[rank].host_id) {
            return false;
        }
    }
    return true;
}

static struct weft_doctor_finding at_rank(const struct weft_doctor_group *group, uint32_t rank,
                                          enum weft_doctor_severity severity, const char *why, const char *change)
{
    struct weft_doctor_finding finding = {.severity = severity, .why = why, .change = change};

    snprintf(finding.where, sizeof(finding.where), "rank %u on %s", rank, group->facts[rank].machine.host_name);
    return finding;
}

static struct weft_doctor_finding at_host(const struct weft_doctor_group *group, uint32_t rank,
                                          enum weft_doctor_severity severity, const char *why, const char *change)
{
    struct weft_doctor_finding finding = {.severity = severity, .why = why, .change = change};

    snprintf(finding.where, sizeof(finding.where), "host %s", group->facts[rank].machine.host_name);
    return finding;
}

/* ---- the same everywhere ---- */

static void judge_program(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];
    const struct weft_doctor_facts *leader = &group->facts[0];

    if (strcmp(own->version, leader->version) != 0) {
        struct weft_doctor_finding finding = at_rank(
            group, rank, WEFT_DOCTOR_ERROR, "the ranks would refuse each other", "install the same Weft on every host");
        weft_doctor_findings_add(findings, &finding, "Weft %s, the leader runs %s", own->version, leader->version);
    } else if (own->has_binary && leader->has_binary && memcmp(own->binary, leader->binary, sizeof(own->binary)) != 0) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_WARNING, "two builds of one version may differ in more than you think",
                    "copy one binary to every host");
        weft_doctor_findings_add(findings, &finding,
                                 "another binary (%02x%02x%02x%02x) than the leader's (%02x%02x%02x%02x)",
                                 own->binary[0], own->binary[1], own->binary[2], own->binary[3], leader->binary[0],
                                 leader->binary[1], leader->binary[2], leader->binary[3]);
    }
    if (strcmp(own->cpu_level, leader->cpu_level) != 0) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_WARNING, "same bits, but every step waits for the slowest rank",
                    "use like hosts, or give the slower ones less with --shares");
        weft_doctor_findings_add(findings, &finding, "CPU level %s, the leader has %s", own->cpu_level,
                                 leader->cpu_level);
    }
}

static void judge_model(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];
    const struct weft_doctor_facts *leader = &group->facts[0];

    if (own->has_model && own->model_status != WEFT_OK) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_ERROR, "this rank could not load the model",
                    "put the whole model folder there, under the same path");
        weft_doctor_findings_add(findings, &finding, "%s", own->model_error);
        return;
    }
    if (own->has_model != leader->has_model) {
        struct weft_doctor_finding finding = at_rank(group, rank, WEFT_DOCTOR_WARNING, "its model was not compared",
                                                     "start every rank with the same arguments");
        weft_doctor_findings_add(findings, &finding, "%s --model, unlike the leader",
                                 own->has_model ? "with" : "without");
        return;
    }
    if (own->has_model && leader->model_status == WEFT_OK &&
        memcmp(own->model, leader->model, sizeof(own->model)) != 0) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_ERROR, "the ranks would refuse each other",
                    "copy the leader's model folder to this host");
        weft_doctor_findings_add(findings, &finding,
                                 "other model files: fingerprint %02x%02x%02x%02x, the leader's is %02x%02x%02x%02x",
                                 own->model[0], own->model[1], own->model[2], own->model[3], leader->model[0],
                                 leader->model[1], leader->model[2], leader->model[3]);
    }
}

/* ---- cores ---- */

/* The first earlier rank of the same host that may use exactly the one core this one may use; -1: none. */
static int same_core(const struct weft_doctor_group *group, uint32_t rank)
{
    const struct weft_doctor_facts *own = &group->facts[rank];

    if (own->cpu_count == 1 || weft_doctor_core_count(&own->machine) != 1) {
        return -1;
    }
    for (uint32_t r = 0; r < rank; r++) {
        if (group->facts[r].host_id == own->host_id &&
            memcmp(group->facts[r].machine.cpu_mask, own->machine.cpu_mask, sizeof(own->machine.cpu_mask)) == 0) {
            return (int)r;
        }
    }
    return -1;
}

static void judge_cores(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    uint32_t cores = weft_doctor_host_cores(group->facts, group->rank_count, rank);
    uint32_t ranks = weft_doctor_host_ranks(group->facts, group->rank_count, rank);
    uint32_t threads = 0;
    int other = same_core(group, rank);
    char text[64];

    if (other >= 0) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_WARNING, "they take turns on it: every step takes twice as long or more",
                    "mpirun --bind-to none (launch/mpirun.sh does), or bind every rank to cores of its own");
        weft_doctor_findings_add(findings, &finding, "bound to core %s, as is rank %d",
                                 weft_doctor_cores_text(&group->facts[rank].machine, text, sizeof(text)), other);
    }
    if (!is_first(group, rank)) {
        return;
    }
    for (uint32_t r = 0; r < group->rank_count; r++) {
        if (group->facts[r].host_id == group->facts[rank].host_id) {
            uint32_t share = cores / ranks > 0 ? cores / ranks : 1;
            threads += group->facts[r].thread_count > 0 ? group->facts[r].thread_count : share;
        }
    }
    if (threads > cores) {
        struct weft_doctor_finding finding =
            at_host(group, rank, WEFT_DOCTOR_WARNING, "threads that wait for each other take turns on a core",
                    "fewer --ranks or --threads here, or more cores (affinity, cgroup quota)");
        weft_doctor_findings_add(findings, &finding, "%u thread%s of %u rank%s on %u core%s", threads,
                                 threads == 1 ? "" : "s", ranks, ranks == 1 ? "" : "s", cores, cores == 1 ? "" : "s");
    }
}

/* ---- memory and limits ---- */

static void judge_memory(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];
    uint64_t need = 0;

    if (group->memory_needs == NULL) {
        return;
    }
    if (own->memory_limit > 0 && group->memory_needs[rank] > own->memory_limit) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_ERROR, "loading would be refused", "a larger --memory, or more ranks");
        weft_doctor_findings_add(findings, &finding, "needs %.0f MiB for weights and activations, --memory allows %.0f",
                                 (double)group->memory_needs[rank] / MIB, (double)own->memory_limit / MIB);
    }
    if (group->gpus != NULL && group->gpus[rank] != WEFT_NO_GPU) {
        weft_doctor_judge_gpu_memory(group, rank, findings);
        return;
    }
    for (uint32_t r = 0; r < group->rank_count && is_first(group, rank); r++) {
        need += group->facts[r].host_id == own->host_id ? group->memory_needs[r] : 0;
    }
    /* The engine takes 90 % of what is free. */
    if ((double)need > 0.9 * (double)own->machine.memory_available) {
        struct weft_doctor_finding finding = at_host(group, rank, WEFT_DOCTOR_ERROR, "loading would be refused",
                                                     "free memory, raise the cgroup's limit, or use more hosts");
        weft_doctor_findings_add(findings, &finding,
                                 "needs %.0f MiB for weights and activations, may take 90 %% of %.0f MiB",
                                 (double)need / MIB, (double)own->machine.memory_available / MIB);
    }
}

/* Weft's own shared memory has no name there; what it may load has. */
static void judge_shm(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];

    if (is_first(group, rank) && own->shm_size < SHM_SIZE_LOW) {
        struct weft_doctor_finding finding =
            at_host(group, rank, WEFT_DOCTOR_NOTE, "NCCL and Open MPI keep their buffers there, Weft does not",
                    "with GPUs or --comm mpi: docker --shm-size=1g, or an emptyDir with medium Memory at /dev/shm");
        weft_doctor_findings_add(findings, &finding, "/dev/shm has %.0f MiB", (double)own->shm_size / MIB);
    }
}

static void judge_limits(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];

    if (is_first(group, rank) && strcmp(own->huge_mode, "never") == 0) {
        struct weft_doctor_finding finding =
            at_host(group, rank, WEFT_DOCTOR_WARNING, "reading weights costs a page walk every 4 KiB",
                    "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        weft_doctor_findings_add(findings, &finding, "no huge pages: transparent huge pages are \"never\"");
    }
    if (own->file_limit < FILE_LIMIT_LOW) {
        struct weft_doctor_finding finding =
            at_rank(group, rank, WEFT_DOCTOR_WARNING, "sockets and shards of the model each take one",
                    "ulimit -n 65536, or LimitNOFILE= of the service");
        weft_doctor_findings_add(findings, &finding, "at most %" PRIu64 " open files", own->file_limit);
    }
    if (is_first(group, rank) && own->lock_limit < LOCK_LIMIT_LOW) {
        struct weft_doctor_finding finding = at_rank(group, rank, WEFT_DOCTOR_NOTE, "only RDMA networks need more",
                                                     "ulimit -l unlimited where there is RDMA");
        weft_doctor_findings_add(findings, &finding, "may lock %" PRIu64 " KiB of memory", own->lock_limit / 1024);
    }
}

/* Only where the model fits on one host is there a choice. */
static void judge_prediction(const struct weft_doctor_group *group, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_prediction *prediction = group->prediction;
    double need = 0;

    for (uint32_t r = 0; group->memory_needs != NULL && r < group->rank_count; r++) {
        need += (double)group->memory_needs[r];
    }
    if (prediction == NULL || !prediction->is_known || prediction->tokens_per_s >= prediction->alone_tokens_per_s ||
        need > 0.9 * (double)group->facts[0].machine.memory_available) {
        return;
    }
    struct weft_doctor_finding finding =
        at_host(group, 0, WEFT_DOCTOR_NOTE, "the ranks wait longer for each other than they gain",
                "fewer hosts, or a faster network between them with --interface");
    weft_doctor_findings_add(findings, &finding,
                             "alone it would give %.1f tokens/s for one request, these %u ranks give %.1f (%.1f ms of "
                             "exchanges per token)",
                             prediction->alone_tokens_per_s, group->rank_count, prediction->tokens_per_s,
                             prediction->exchange_ms);
}

void weft_doctor_judge(const struct weft_doctor_group *group, struct weft_doctor_findings *findings)
{
    for (uint32_t r = 0; r < group->rank_count; r++) {
        judge_program(group, r, findings);
        judge_model(group, r, findings);
        judge_cores(group, r, findings);
        judge_memory(group, r, findings);
        judge_limits(group, r, findings);
        judge_shm(group, r, findings);
        if (group->gpus != NULL && group->gpus[r] != WEFT_NO_GPU) {
            weft_doctor_judge_fast(group, r, findings);
        }
    }
    weft_doctor_judge_links(group, findings);
    judge_prediction(group, findings);
}
