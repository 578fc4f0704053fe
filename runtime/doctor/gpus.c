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
