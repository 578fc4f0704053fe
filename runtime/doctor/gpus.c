/* What ranks would run on, and whether the model fits there. */
#include <stdio.h>
#include <string.h>

#include "doctor/findings.h"
#include "weft/log.h"

#define MIB 1048576.0

static void where_rank(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_finding *finding)
{
    snprintf(finding->where, sizeof(finding->where), "rank %u on %s", rank, group->facts[rank].machine.host_name);
}

void weft_doctor_gpus_deal(const struct weft_doctor_group *group, int32_t *gpus_out,
                           struct weft_doctor_findings *findings)
{
    struct weft_member members[WEFT_RANK_COUNT_MAX];
    bool is_whole = true;

    for (uint32_t r = 0; r < group->rank_count; r++) {
        const struct weft_doctor_facts *facts = &group->facts[r];
        struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_ERROR,
                                              .why = "a run would be refused",
                                              .change = "the driver or the container's GPUs, or --device cpu"};
        gpus_out[r] = WEFT_NO_GPU;
        members[r] = facts->member;
        members[r].machine = facts->machine;
        if (facts->gpu_status != WEFT_OK) {
            where_rank(group, r, &finding);
            weft_doctor_findings_add(findings, &finding, "%s", facts->gpu_error);
            is_whole = false;
        }
    }
    bool was_quiet = weft_log_set_quiet(true);
    if (is_whole && weft_deal_devices(members, group->rank_count, gpus_out) != WEFT_OK) {
        struct weft_doctor_finding finding = {
            .severity = WEFT_DOCTOR_ERROR, .where = "GPUs", .why = "a run would be refused", .change = "as it says"};
        weft_doctor_findings_add(findings, &finding, "%s", weft_log_last_error());
        is_whole = false;
    }
    (void)weft_log_set_quiet(was_quiet);
    for (uint32_t r = 0; r < group->rank_count && !is_whole; r++) {
        gpus_out[r] = WEFT_NO_GPU;
    }
}

static const struct weft_member_gpu *gpu_of(const struct weft_doctor_group *group, uint32_t rank)
{
    return &group->facts[rank].member.gpus[group->gpus[rank]];
}

void weft_doctor_judge_gpu_memory(const struct weft_doctor_group *group, uint32_t rank,
                                  struct weft_doctor_findings *findings)
{
    const struct weft_member_gpu *own = gpu_of(group, rank);
    struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_ERROR,
                                          .why = "loading would be refused",
                                          .change = "end what else uses the GPU, or use more GPUs"};
    uint64_t needs = 0;

    for (uint32_t r = 0; r < group->rank_count; r++) {
        if (memcmp(gpu_of(group, r)->uuid, own->uuid, sizeof(own->uuid)) == 0) {
            needs += group->memory_needs[r];
        }
    }
    if ((double)needs > 0.9 * (double)own->memory_free) {
        where_rank(group, rank, &finding);
        weft_doctor_findings_add(findings, &finding,
                                 "the ranks on its GPU (%s) need %.0f MiB for weights and activations, 90 %% of the "
                                 "%.0f MiB free may be used",
                                 own->name, (double)needs / MIB, (double)own->memory_free / MIB);
    }
}

/* "cuBLASLt 13.1.0" of "cuBLASLt 13.1.0, /usr/lib/...": ranks may have it in different places. */
static size_t name_length(const char *library)
{
    return strcspn(library, ",");
}

void weft_doctor_judge_fast(const struct weft_doctor_group *group, uint32_t rank, struct weft_doctor_findings *findings)
{
    const struct weft_doctor_facts *own = &group->facts[rank];
    const struct weft_doctor_facts *first = &group->facts[0];
    struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_WARNING,
                                          .why = "--numerics fast is as exact there: long prompts take longer",
                                          .change = "CUDA's library cublasLt where the loader finds it "
                                                    "(LD_LIBRARY_PATH, ldconfig), on every host"};

    if (!own->is_fast) {
        return;
    }
    where_rank(group, rank, &finding);
    if (own->fast_library[0] == '\0') {
        weft_doctor_findings_add(findings, &finding, "no cuBLASLt: %s", own->fast_reason);
    } else if (first->fast_library[0] != '\0' &&
               (name_length(own->fast_library) != name_length(first->fast_library) ||
                memcmp(own->fast_library, first->fast_library, name_length(own->fast_library)) != 0)) {
        finding.why = "the answer may change with the ranks that share a model";
        finding.change = "the same version of CUDA on every host";
        weft_doctor_findings_add(findings, &finding, "%.*s for --numerics fast, the leader has %.*s",
                                 (int)name_length(own->fast_library), own->fast_library,
                                 (int)name_length(first->fast_library), first->fast_library);
    }
}
