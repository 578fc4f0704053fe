/* The leader's arithmetic. */
#include "engine/deal.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/size_text.h"
#include "engine/pages.h"
#include "weft/log.h"

/* Fewer positions than this (or than the whole context) are not worth starting for when nobody asked for so few. */
enum { CONTEXT_WORTHWHILE = 256 };

static uint32_t leaves_that_would_do(uint32_t rank_count)
{
    uint32_t leaves = 1;

    while (leaves < rank_count) {
        leaves *= 2; /* a power of two deals evenly to most rank counts */
    }
    return leaves;
}

enum weft_status weft_deal_leaves(uint32_t leaf_count, uint32_t rank_count, const uint32_t *shares,
                                  uint32_t share_count, struct weft_range *leaves_out)
{
    if (rank_count > WEFT_RANK_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, "engine", "%u ranks: a model can be cut into at most %d leaves, one for each rank",
                 rank_count, WEFT_LEAF_COUNT_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    if (rank_count > leaf_count) {
        weft_log(WEFT_LOG_ERROR, "engine",
                 "%u ranks, but the model is cut into %u leaves and each rank needs one: --leaves %u would do (it "
                 "changes the bits of the answers)",
                 rank_count, leaf_count, leaves_that_would_do(rank_count));
        return WEFT_ERR_ARGUMENT;
    }
    if (share_count != 0 && share_count != rank_count) {
        weft_log(WEFT_LOG_ERROR, "engine", "%u shares for %u ranks: expected one for each", share_count, rank_count);
        return WEFT_ERR_ARGUMENT;
    }
    for (uint32_t i = 0; i < share_count; i++) {
        if (shares[i] == 0) {
            weft_log(WEFT_LOG_ERROR, "engine", "the share of rank %u is 0: expected a positive number", i);
            return WEFT_ERR_ARGUMENT;
        }
    }
    if (weft_tree_deal(leaf_count, rank_count, share_count == 0 ? NULL : shares, leaves_out) != 0) {
        weft_log(WEFT_LOG_ERROR, "engine", "%u leaves cannot be dealt to %u ranks with these shares", leaf_count,
                 rank_count);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

/* ---- threads ---- */

static bool has_cpu(const struct weft_member *member, uint32_t cpu)
{
    return (member->machine.cpu_mask[cpu / 8] >> cpu % 8 & 1U) != 0;
}

/* Ranks of the host of `rank`, and CPUs that any of them may use. */
static void count_host(const struct weft_member *members, uint32_t rank_count, uint32_t rank, uint32_t *ranks_out,
                       uint32_t *cpus_out)
{
    uint8_t mask[WEFT_CPU_COUNT_MAX / 8] = {0};
    uint32_t ranks = 0;
    uint32_t cpus = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        if (members[r].host_id == members[rank].host_id) {
            ranks++;
            for (size_t i = 0; i < sizeof(mask); i++) {
                mask[i] |= members[r].machine.cpu_mask[i];
            }
        }
    }
    for (size_t i = 0; i < sizeof(mask); i++) {
        cpus += (uint32_t)__builtin_popcount(mask[i]);
    }
    *ranks_out = ranks;
    *cpus_out = cpus;
}

static uint32_t fair_threads(const struct weft_member *members, uint32_t rank_count, uint32_t rank)
{
    double share = 0.0;
    uint32_t ranks;
    uint32_t cpus;

    for (uint32_t cpu = 0; cpu < WEFT_CPU_COUNT_MAX; cpu++) {
        uint32_t users = 0;
        for (uint32_t r = 0; r < rank_count && has_cpu(&members[rank], cpu); r++) {
            users += members[r].host_id == members[rank].host_id && has_cpu(&members[r], cpu);
        }
        share += users > 0 ? 1.0 / users : 0.0;
    }
    uint32_t threads = (uint32_t)(share + 1e-6);
    count_host(members, rank_count, rank, &ranks, &cpus);
    if (members[rank].machine.cpu_quota > 0 && threads > members[rank].machine.cpu_quota / ranks) {
        threads = members[rank].machine.cpu_quota / ranks;
    }
    return threads > 0 ? threads : 1;
}

void weft_deal_threads(const struct weft_member *members, const int32_t *gpus, uint32_t rank_count,
                       uint32_t *thread_counts_out, enum weft_wait_policy *waits_out)
{
    for (uint32_t r = 0; r < rank_count; r++) {
        if (members[r].thread_count > 0) {
            thread_counts_out[r] = members[r].thread_count;
        } else {
            thread_counts_out[r] = gpus == NULL || gpus[r] == WEFT_NO_GPU ? fair_threads(members, rank_count, r) : 1;
        }
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        uint64_t threads = 0;
        uint32_t ranks;
        uint32_t cpus;
        for (uint32_t other = 0; other < rank_count; other++) {
            threads += members[other].host_id == members[r].host_id ? thread_counts_out[other] : 0;
        }
        count_host(members, rank_count, r, &ranks, &cpus);
        uint32_t quota = members[r].machine.cpu_quota;
        cpus = quota > 0 && quota < cpus ? quota : cpus;
        waits_out[r] = threads <= cpus ? WEFT_WAIT_SPIN : WEFT_WAIT_YIELD;
    }
}

/* ---- memory ---- */

/* 90 %: the rest is for page tables, sockets, the tokenizer, and whoever else wakes up. */
static uint64_t usable(uint64_t available)
{
    return available / 10 * 9;
}

static uint64_t need(const struct weft_model_memory *memory, uint64_t page_count)
{
    return (uint64_t)memory->weights + memory->activations + memory->buffers + page_count * memory->kv_page;
}

/* How many pages fit, and which rank is the tightest; its shortfall when not even the fixed part fits. */
struct fit {
    uint64_t page_count;
    uint32_t rank;
    bool is_by_limit;   /* its own --memory, not the host's or GPU's */
    uint64_t available; /* to the rank, or to all ranks of its host or GPU */
    uint64_t fixed;     /* needed of that, whatever the cache */
    uint64_t kv_page;
};

static void narrow(struct fit *fit, uint32_t rank, bool is_by_limit, uint64_t available, uint64_t fixed,
                   uint64_t kv_page)
{
    uint64_t pages = fixed > available ? 0 : kv_page == 0 ? UINT32_MAX : (available - fixed) / kv_page;
    bool is_tighter = pages < fit->page_count ||
                      (pages == 0 && fit->page_count == 0 && fixed > available && fit->fixed <= fit->available);

    if (is_tighter) {
        *fit = (struct fit){pages, rank, is_by_limit, available, fixed, kv_page};
    }
}

/* NULL for a rank on CPUs. */
static const struct weft_member_gpu *gpu_of(const struct weft_deal_memory_args *args, uint32_t rank)
{
    return args->gpus == NULL || args->gpus[rank] == WEFT_NO_GPU ? NULL : &args->members[rank].gpus[args->gpus[rank]];
}

static uint64_t memory_of(const struct weft_deal_memory_args *args, uint32_t rank)
{
    const struct weft_member_gpu *gpu = gpu_of(args, rank);

    return gpu != NULL ? gpu->memory_free : args->members[rank].machine.memory_available;
}

/* Whether two ranks live from the same memory. */
static bool is_shared(const struct weft_deal_memory_args *args, uint32_t a, uint32_t b)
{
    const struct weft_member_gpu *gpu_a = gpu_of(args, a);
    const struct weft_member_gpu *gpu_b = gpu_of(args, b);

    if (gpu_a == NULL || gpu_b == NULL) {
        return gpu_a == gpu_b && args->members[a].host_id == args->members[b].host_id;
    }
    return memcmp(gpu_a->uuid, gpu_b->uuid, sizeof(gpu_a->uuid)) == 0;
}

static struct fit find_fit(const struct weft_deal_memory_args *args)
{
    struct fit fit = {.page_count = UINT32_MAX};

    for (uint32_t r = 0; r < args->rank_count; r++) {
        uint64_t available = UINT64_MAX;
        uint64_t fixed = 0;
        uint64_t kv_page = 0;
        for (uint32_t other = 0; other < args->rank_count; other++) {
            if (is_shared(args, r, other)) {
                uint64_t free_here = memory_of(args, other);
                available = free_here < available ? free_here : available;
                fixed += need(&args->fixed[other], 0);
                kv_page += args->fixed[other].kv_page;
            }
        }
        narrow(&fit, r, false, usable(available), fixed, kv_page);
        if (args->members[r].memory_limit > 0) {
            narrow(&fit, r, true, args->members[r].memory_limit, need(&args->fixed[r], 0), args->fixed[r].kv_page);
        }
    }
    return fit;
}

static void table(const struct weft_deal_memory_args *args, uint64_t page_count)
{
    char line[200];
    char texts[6][WEFT_SIZE_TEXT_SIZE];

    if (args->line == NULL) {
        return;
    }
    snprintf(line, sizeof(line), "%4s  %-16s %11s %11s %11s %11s %11s %11s", "rank",
             gpu_of(args, 0) == NULL ? "host" : "host, GPU", "weights", "KV cache", "activations", "buffers",
             "together", "available");
    args->line(args->context, line);
    for (uint32_t r = 0; r < args->rank_count; r++) {
        const struct weft_model_memory *memory = &args->fixed[r];
        uint64_t limit = args->members[r].memory_limit;
        uint64_t available = usable(memory_of(args, r));
        char place[40];
        snprintf(place, sizeof(place), "%.32s", args->members[r].machine.host_name);
        if (gpu_of(args, r) != NULL) {
            snprintf(place, sizeof(place), "%.32s, %d", args->members[r].machine.host_name, args->gpus[r]);
        }
        snprintf(line, sizeof(line), "%4u  %-16s %11s %11s %11s %11s %11s %11s%s", r, place,
                 weft_size_text(memory->weights, texts[0]), weft_size_text(page_count * memory->kv_page, texts[1]),
                 weft_size_text(memory->activations, texts[2]), weft_size_text(memory->buffers, texts[5]),
                 weft_size_text(need(memory, page_count), texts[3]),
                 weft_size_text(limit > 0 && limit < available ? limit : available, texts[4]),
                 limit > 0 && limit < available ? " (--memory)" : "");
        args->line(args->context, line);
    }
    snprintf(line, sizeof(line), "KV cache: %" PRIu64 " positions in %" PRIu64 " pages of %d",
             page_count * WEFT_PAGE_POSITIONS, page_count, WEFT_PAGE_POSITIONS);
    args->line(args->context, line);
}

/* "the GPU of rank 1 (NVIDIA H100 80GB HBM3) on node7". */
static void say_where(const struct weft_deal_memory_args *args, const struct fit *fit, char *text, size_t size)
{
    const struct weft_member_gpu *gpu = gpu_of(args, fit->rank);
    const char *host = args->members[fit->rank].machine.host_name;

    if (fit->is_by_limit) {
        snprintf(text, size, "rank %u on %s", fit->rank, host);
    } else if (gpu != NULL) {
        snprintf(text, size, "the GPU of rank %u (%s) on %s", fit->rank, gpu->name, host);
    } else {
        snprintf(text, size, "the host of rank %u on %s", fit->rank, host);
    }
}

/* What would do instead: ranks with as much memory each, or positions. */
static void say_remedy(const struct weft_deal_memory_args *args, const struct fit *fit, char *text, size_t size)
{
    uint64_t total = 0;

    text[0] = '\0';
    for (uint32_t r = 0; r < args->rank_count; r++) {
        total += need(&args->fixed[r], 0);
    }
    if (fit->page_count > 0) {
        snprintf(text, size, "; %" PRIu64 " positions would fit", fit->page_count * WEFT_PAGE_POSITIONS);
    } else if (gpu_of(args, fit->rank) != NULL && fit->available > 0) {
        snprintf(text, size, "; at least %" PRIu64 " such GPUs would be needed",
                 total / fit->available + (total % fit->available != 0));
    }
}

static enum weft_status refuse(const struct weft_deal_memory_args *args, const struct fit *fit, uint64_t page_count,
                               const char *what)
{
    char needed[WEFT_SIZE_TEXT_SIZE];
    char available[WEFT_SIZE_TEXT_SIZE];
    char place[192];
    char remedy[96];

    say_where(args, fit, place, sizeof(place));
    say_remedy(args, fit, remedy, sizeof(remedy));
    weft_log(WEFT_LOG_ERROR, "engine/memory",
             "%s does not fit: %s needs %s (weights, activations, buffers and %" PRIu64
             " positions of KV cache), %s available%s",
             what, place, weft_size_text(fit->fixed + page_count * fit->kv_page, needed),
             page_count * WEFT_PAGE_POSITIONS, weft_size_text(fit->available, available), remedy);
    return WEFT_ERR_LIMIT;
}

enum weft_status weft_deal_memory(const struct weft_deal_memory_args *args, uint32_t *page_count_out,
                                  uint32_t *context_length_out)
{
    if (args->context_length > args->context_max) {
        weft_log(WEFT_LOG_ERROR, "engine", "a context of %u positions was asked for: the model has %u",
                 args->context_length, args->context_max);
        return WEFT_ERR_ARGUMENT;
    }
    struct fit fit = find_fit(args);
    uint32_t context = args->context_length > 0 ? args->context_length : args->context_max;
    uint64_t wanted = (uint64_t)weft_pages_for(context) * args->sequence_count_max;
    uint64_t least = weft_pages_for(context);

    if (args->kv_token_count > 0) {
        wanted = weft_pages_for(args->kv_token_count);
        least = wanted;
    } else if (args->context_length == 0) {
        least = weft_pages_for(context < CONTEXT_WORTHWHILE ? context : CONTEXT_WORTHWHILE);
    }
    bool is_fitting = least <= fit.page_count && fit.fixed <= fit.available;
    uint64_t page_count = wanted < fit.page_count ? wanted : fit.page_count;
    table(args, is_fitting ? page_count : least);
    if (!is_fitting) {
        return refuse(args, &fit, least, fit.fixed > fit.available ? "the model" : "the KV cache");
    }
    if (page_count * WEFT_PAGE_POSITIONS < context) {
        if (args->context_length > 0) {
            weft_log(WEFT_LOG_ERROR, "engine/memory", "a context of %u positions does not fit into %u of KV cache",
                     context, args->kv_token_count);
            return WEFT_ERR_LIMIT;
        }
        context = (uint32_t)page_count * WEFT_PAGE_POSITIONS;
        weft_log(WEFT_LOG_WARN, "engine/memory",
                 "the KV cache holds %u positions: requests are limited to that, the "
                 "model's context is %u",
                 context, args->context_max);
    }
    *page_count_out = (uint32_t)page_count;
    *context_length_out = context;
    return WEFT_OK;
}
