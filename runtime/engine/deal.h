/*
 * What the leader decides from what all ranks told it: leaves, threads, waiting, and how much KV cache fits.
 *
 * Pure arithmetic, so that odd machines can be tested without having them.
 */
#ifndef WEFT_ENGINE_DEAL_H
#define WEFT_ENGINE_DEAL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/machine.h"
#include "model/model.h"
#include "weft/device.h"
#include "weft/gpu.h"
#include "weft/status.h"
#include "weft/tree.h"
#include "weft/wait.h"
#include "weft/weft.h"

#define WEFT_RANK_COUNT_MAX WEFT_LEAF_COUNT_MAX

/* GPUs that a rank tells about; hosts with more use those. */
#define WEFT_MEMBER_GPU_MAX 16

struct weft_member_gpu {
    char name[48];
    uint8_t uuid[WEFT_GPU_UUID_SIZE];
    uint64_t memory_total; /* bytes */
    uint64_t memory_free;
};

/* What a rank said about itself. */
struct weft_member {
    enum weft_device_kind device_kind; /* asked for */
    uint32_t gpu_index;                /* with WEFT_DEVICE_CUDA_INDEX */
    uint32_t gpu_count;                /* that it may use; 0 when CPUs were asked for */
    struct weft_member_gpu gpus[WEFT_MEMBER_GPU_MAX];
    char no_gpu_reason[128]; /* "" when none was looked for */
    struct weft_machine machine;
    uint64_t host_id;
    uint64_t memory_limit; /* bytes, 0: none given */
    uint32_t thread_count; /* 0: to be decided */
};

/* Leaves of every rank into leaves_out[rank_count]. ERR_ARGUMENT, logged, with the --leaves that would do. */
WEFT_MUST_CHECK enum weft_status weft_deal_leaves(uint32_t leaf_count, uint32_t rank_count, const uint32_t *shares,
                                                  uint32_t share_count, struct weft_range *leaves_out);

/* devices.c. This rank's device_kind, gpu_index and gpus. A GPU that was asked for and is not there is an error,
 * logged: ERR_UNSUPPORTED without any, ERR_ARGUMENT for one too many. Starts the driver: not before a fork. */
WEFT_MUST_CHECK enum weft_status weft_member_read_gpus(const struct weft_engine_options *options,
                                                       struct weft_member *member_out);

/*
 * devices.c. The GPU of every rank, an index into its gpus, or WEFT_NO_GPU for all. As asked for; else every rank
 * takes the first of its GPUs that no rank before it has, so that ranks of one host get one each whether they see all
 * of them or a launcher shows each its own. ERR_ARGUMENT, logged, naming the ranks: some on CPUs and some on GPUs, or
 * more ranks than GPUs.
 */
#define WEFT_NO_GPU (-1)
WEFT_MUST_CHECK enum weft_status weft_deal_devices(const struct weft_member *members, uint32_t rank_count,
                                                   int32_t *gpus_out);

/*
 * Threads of every rank (gpus as in weft_deal_memory_args): as told, else 1 beside a GPU, else its share of the CPUs
 * that it may use; a CPU that k ranks of one host may use counts 1/k for each. Ranks of a host spin while waiting only
 * if every thread of that host has a CPU.
 */
void weft_deal_threads(const struct weft_member *members, const int32_t *gpus, uint32_t rank_count,
                       uint32_t *thread_counts_out, enum weft_wait_policy *waits_out);

/* Positions that the cache should, and those that it must have room for. */
struct weft_deal_memory_args {
    const struct weft_member *members;     /* [rank_count] */
    const int32_t *gpus;                   /* [rank_count] of weft_deal_devices(); NULL: all on CPUs */
    const struct weft_model_memory *fixed; /* [rank_count] with page_count 0; kv_page filled */
    uint32_t rank_count;
    uint32_t context_length;     /* asked for, at most the model's; 0: whatever fits of the model's */
    uint32_t context_max;        /* the model's */
    uint32_t sequence_count_max; /* for the default size: that many whole contexts */
    uint32_t kv_token_count;     /* asked for, 0: what fits */
    weft_text_callback *line;    /* receives the memory table; may be NULL */
    void *context;
};

/*
 * Pages of KV cache and positions per request. Every rank needs its weights and activations, plus pages; the ranks of
 * one host, or of one GPU, together have 90 % of what is available there, and each at most its memory_limit. ERR_LIMIT,
 * logged, with the rank, the numbers and what would fit, when what is asked for does not. The table goes out in both
 * cases. ERR_ARGUMENT, logged, for a longer context than the model's.
 */
WEFT_MUST_CHECK enum weft_status weft_deal_memory(const struct weft_deal_memory_args *args, uint32_t *page_count_out,
                                                  uint32_t *context_length_out);

#endif
