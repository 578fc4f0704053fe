/* What each rank may run on, and what it does: CPUs for all, or a GPU for each. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "engine/deal.h"
#include "weft/log.h"

enum weft_status weft_member_read_gpus(const struct weft_engine_options *options, struct weft_member *member)
{
    struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
    char reason[512] = "";

    WEFT_TRY(weft_device_kind_parse(options->device, &member->device_kind, &member->gpu_index));
    if (member->device_kind == WEFT_DEVICE_CPU) {
        return WEFT_OK;
    }
    uint32_t count = weft_gpu_list(options->cuda_module, gpus, reason, sizeof(reason));
    member->gpu_count = count < WEFT_MEMBER_GPU_MAX ? count : WEFT_MEMBER_GPU_MAX;
    for (uint32_t i = 0; i < member->gpu_count; i++) {
        struct weft_member_gpu *gpu = &member->gpus[i];
        snprintf(gpu->name, sizeof(gpu->name), "%.47s", gpus[i].name);
        memcpy(gpu->uuid, gpus[i].uuid, sizeof(gpu->uuid));
        gpu->memory_total = gpus[i].memory_total;
        gpu->memory_free = gpus[i].memory_free;
    }
    snprintf(member->no_gpu_reason, sizeof(member->no_gpu_reason), "%.127s", reason);
    if (count == 0 && member->device_kind == WEFT_DEVICE_AUTO) {
        weft_log(WEFT_LOG_DEBUG, "engine/devices", "running on CPUs: %s", reason);
        return WEFT_OK;
    }
    if (count == 0) {
        weft_log(WEFT_LOG_ERROR, "engine/devices", "device %s: %s", options->device, reason);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (member->device_kind == WEFT_DEVICE_CUDA_INDEX && member->gpu_index >= member->gpu_count) {
        weft_log(WEFT_LOG_ERROR, "engine/devices", "device %s: no such GPU, this host has %u that this process may use",
                 options->device, count);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

/* ---- the leader's arithmetic ---- */

static bool is_on_gpu(const struct weft_member *member)
{
    return member->device_kind != WEFT_DEVICE_CPU && member->gpu_count > 0;
}

/* "0-2, 5": the ranks that are, or are not, on a GPU. */
static void list_ranks(const struct weft_member *members, uint32_t rank_count, bool wanted, char *text, size_t size)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t r = 0; r < rank_count && used + 16 < size; r++) {
        uint32_t last = r;
        if (is_on_gpu(&members[r]) != wanted) {
            continue;
        }
        while (last + 1 < rank_count && is_on_gpu(&members[last + 1]) == wanted) {
            last++;
        }
        used +=
            (size_t)snprintf(text + used, size - used, last > r ? "%s%u-%u" : "%s%u", used > 0 ? ", " : "", r, last);
        r = last;
    }
}

static enum weft_status check_mixed(const struct weft_member *members, uint32_t rank_count)
{
    char on_gpus[128];
    char on_cpus[128];

    for (uint32_t r = 0; r < rank_count; r++) {
        if (is_on_gpu(&members[r]) == is_on_gpu(&members[0])) {
            continue;
        }
        const struct weft_member *without = is_on_gpu(&members[r]) ? &members[0] : &members[r];
        list_ranks(members, rank_count, true, on_gpus, sizeof(on_gpus));
        list_ranks(members, rank_count, false, on_cpus, sizeof(on_cpus));
        weft_log(WEFT_LOG_ERROR, "engine",
                 "some ranks run on GPUs (%s) and some on CPUs (%s, on %s: %s): a group runs on one of the two, "
                 "--device cpu makes all use CPUs",
                 on_gpus, on_cpus, without->machine.host_name,
                 without->device_kind == WEFT_DEVICE_CPU ? "--device cpu" : without->no_gpu_reason);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

static bool is_taken(const struct weft_member *members, const int32_t *gpus, uint32_t rank_count,
                     const struct weft_member_gpu *gpu)
{
    for (uint32_t r = 0; r < rank_count; r++) {
        if (memcmp(members[r].gpus[gpus[r]].uuid, gpu->uuid, sizeof(gpu->uuid)) == 0) {
            return true;
        }
    }
    return false;
}

/* Ranks that were told which GPU to take count as having it, whatever their place. */
static enum weft_status deal_one(const struct weft_member *members, uint32_t rank, int32_t *gpus)
{
    const struct weft_member *member = &members[rank];

    if (member->device_kind == WEFT_DEVICE_CUDA_INDEX) {
        gpus[rank] = (int32_t)member->gpu_index;
        return WEFT_OK;
    }
    for (uint32_t i = 0; i < member->gpu_count; i++) {
        if (!is_taken(members, gpus, rank, &member->gpus[i])) {
            gpus[rank] = (int32_t)i;
            return WEFT_OK;
        }
    }
    weft_log(WEFT_LOG_ERROR, "engine",
             "rank %u on %s finds no GPU of its own: it may use %u, and ranks before it have taken them; fewer ranks, "
             "--device cpu, or --device cuda:0 to share one",
             rank, member->machine.host_name, member->gpu_count);
    return WEFT_ERR_ARGUMENT;
}

enum weft_status weft_deal_devices(const struct weft_member *members, uint32_t rank_count, int32_t *gpus_out)
{
    WEFT_TRY(check_mixed(members, rank_count));
    for (uint32_t r = 0; r < rank_count; r++) {
        gpus_out[r] = WEFT_NO_GPU;
        if (is_on_gpu(&members[r])) {
            WEFT_TRY(deal_one(members, r, gpus_out));
        }
    }
    return WEFT_OK;
}
