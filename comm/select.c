/* Choosing backends. Contract in select.h. */
#include "select.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "weft/log.h"

/* Order of preference between hosts: ucx comes before tcp because it only offers itself where there is RDMA. */
static const struct weft_backend *const BACKENDS[] = {
    &weft_backend_self, &weft_backend_shm,
#ifdef WEFT_HAVE_UCX
    &weft_backend_ucx,
#endif
    &weft_backend_tcp,
#ifdef WEFT_HAVE_MPI
    &weft_backend_mpi,
#endif
#ifdef WEFT_HAVE_NCCL
    &weft_backend_nccl,
#endif
};
/* The one for device memory: a name, because builds may lack it. */
#define DEVICE_BACKEND "nccl"
/* No backend, but asked for as if it were one: the choice of "auto", with small sums through the peers' memory. */
#define PEER_NAME "peer"

#define BACKEND_COUNT (sizeof(BACKENDS) / sizeof(BACKENDS[0]))
#define REASON_SIZE   64

/* What a rank tells the others; no pointers. Names, not indices: builds may differ in what they have. */
struct card {
    uint64_t host_id;
    uint64_t nonce;   /* rank 0's counts */
    uint64_t options; /* digest: all ranks must open alike */
    uint32_t has_device;
    unsigned char device_id[16];
    char forced[16];
    struct {
        char name[8];
        uint32_t is_usable;
        char reason[REASON_SIZE]; /* when not */
    } backends[8];
};

static uint64_t digest(uint64_t hash, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    }
    return hash;
}

static uint64_t digest_options(const struct weft_comm_options *options, uint32_t rank_count)
{
    const uint64_t sizes[] = {options->leaf_count, options->sum_count_max, options->gather_size_max};

    return digest(digest(0xcbf29ce484222325u, sizes, sizeof(sizes)), options->leaves,
                  rank_count * sizeof(options->leaves[0]));
}

static enum weft_status fill_card(struct weft_bootstrap *bootstrap, const struct weft_comm_options *options,
                                  struct card *card)
{
    const struct weft_channel_options probe = {
        .bootstrap = bootstrap,
        .rank = weft_bootstrap_rank(bootstrap),
        .rank_count = weft_bootstrap_rank_count(bootstrap),
        .interface = options->interface,
        .device = options->device,
    };
    const char *wanted = options->backend == NULL ? "auto" : options->backend;
    bool is_auto = strcmp(wanted, "auto") == 0 || strcmp(wanted, PEER_NAME) == 0;

    *card = (struct card){.host_id = weft_bootstrap_host_id(bootstrap),
                          .options = digest_options(options, probe.rank_count),
                          .has_device = options->device != NULL};
    if (getrandom(&card->nonce, sizeof(card->nonce), 0) != (ssize_t)sizeof(card->nonce)) {
        weft_log(WEFT_LOG_ERROR, "comm", "getrandom: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    if (options->device != NULL) {
        memcpy(card->device_id, options->device->id, sizeof(card->device_id));
    }
    snprintf(card->forced, sizeof(card->forced), "%s", strcmp(wanted, "auto") == 0 ? "" : wanted);
    for (size_t b = 0; b < BACKEND_COUNT; b++) {
        bool is_forced = strcmp(card->forced, BACKENDS[b]->name) == 0;

        snprintf(card->backends[b].name, sizeof(card->backends[b].name), "%s", BACKENDS[b]->name);
        if (BACKENDS[b]->finish != NULL && !is_auto && !is_forced) { /* its library is not loaded for nothing */
            snprintf(card->backends[b].reason, sizeof(card->backends[b].reason), "%s was asked for", card->forced);
            continue;
        }
        card->backends[b].is_usable =
            BACKENDS[b]->is_usable(&probe, is_forced, card->backends[b].reason, sizeof(card->backends[b].reason));
    }
    return WEFT_OK;
}

/* NULL when every rank can use it; else why not, naming the first that cannot. */
static const char *refusal(const struct card *cards, uint32_t rank_count, const char *name, char *text, size_t size)
{
    for (uint32_t r = 0; r < rank_count; r++) {
        const char *why = "not in this build";
        bool is_usable = false;

        for (size_t b = 0; b < sizeof(cards[r].backends) / sizeof(cards[r].backends[0]); b++) {
            if (strcmp(cards[r].backends[b].name, name) == 0) {
                is_usable = cards[r].backends[b].is_usable != 0;
                why = cards[r].backends[b].reason;
            }
        }
        if (!is_usable) {
            snprintf(text, size, "%s on rank %u", why, r);
            return text;
        }
    }
    return NULL;
}

static const struct weft_backend *find_backend(const char *name)
{
    for (size_t b = 0; b < BACKEND_COUNT; b++) {
        if (strcmp(BACKENDS[b]->name, name) == 0) {
            return BACKENDS[b];
        }
    }
    return NULL;
}

static uint32_t count_machines(const struct card *cards, uint32_t rank_count)
{
    uint32_t count = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        uint32_t earlier = 0;

        while (earlier < r && cards[earlier].host_id != cards[r].host_id) {
            earlier++;
        }
        count += earlier == r;
    }
    return count;
}

/* Ranks are hosts of their own when the inner channel may not be used. */
static void set_host_ids(struct comm_choice *choice, const struct card *cards, uint32_t rank_count, bool is_by_machine)
{
    for (uint32_t r = 0; r < rank_count; r++) {
        choice->host_ids[r] = is_by_machine ? cards[r].host_id : r;
    }
}

static enum weft_status choose_forced(const struct card *cards, uint32_t rank_count, const char *name,
                                      struct comm_choice *choice)
{
    const struct weft_backend *backend = find_backend(name);
    char text[128];
    bool is_memory;

    if (backend == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm", "no backend \"%s\" in this build", name);
        return WEFT_ERR_ARGUMENT;
    }
    if (refusal(cards, rank_count, name, text, sizeof(text)) != NULL) {
        weft_log(WEFT_LOG_ERROR, "comm", "%s was asked for, but %s", name, text);
        return WEFT_ERR_UNSUPPORTED;
    }
    is_memory = backend->exchange != NULL;
    if (is_memory && choice->machine_count > 1) {
        weft_log(WEFT_LOG_ERROR, "comm", "%s was asked for, but the ranks are on %u hosts", name,
                 choice->machine_count);
        return WEFT_ERR_UNSUPPORTED;
    }
    choice->inner = is_memory ? backend : &weft_backend_self;
    choice->outer = is_memory || rank_count == 1 ? NULL : backend;
    set_host_ids(choice, cards, rank_count, is_memory);
    snprintf(choice->name, sizeof(choice->name), "%s", name);
    snprintf(choice->reason, sizeof(choice->reason), "asked for");
    return WEFT_OK;
}

/* The first message backend, in order of preference, that all ranks offer; why each earlier one is not in reason. */
static const struct weft_backend *choose_outer(const struct card *cards, uint32_t rank_count, char *reason, size_t size)
{
    char text[128];
    size_t used = 0;

    reason[0] = '\0';
    for (size_t b = 0; b < BACKEND_COUNT; b++) {
        if (BACKENDS[b]->exchange != NULL || BACKENDS[b]->finish != NULL) {
            continue;
        }
        if (refusal(cards, rank_count, BACKENDS[b]->name, text, sizeof(text)) == NULL) {
            return BACKENDS[b];
        }
        used +=
            (size_t)snprintf(reason + used, size - used, "%s%s: %s", used == 0 ? "" : "; ", BACKENDS[b]->name, text);
        used = used < size ? used : size - 1;
    }
    return NULL;
}

static enum weft_status choose_auto(const struct card *cards, uint32_t rank_count, struct comm_choice *choice)
{
    char shm_text[128], outer_text[128];
    bool has_shm = refusal(cards, rank_count, "shm", shm_text, sizeof(shm_text)) == NULL;

    choice->inner = rank_count == 1 ? &weft_backend_self : &weft_backend_shm;
    if (rank_count == 1 || (has_shm && choice->machine_count == 1)) {
        set_host_ids(choice, cards, rank_count, true);
        snprintf(choice->name, sizeof(choice->name), "%s", choice->inner->name);
        snprintf(choice->reason, sizeof(choice->reason), rank_count == 1 ? "alone" : "one host");
        return WEFT_OK;
    }
    choice->outer = choose_outer(cards, rank_count, outer_text, sizeof(outer_text));
    if (choice->outer == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm", "no backend that all ranks can use: %s", outer_text);
        return WEFT_ERR_UNSUPPORTED;
    }
    has_shm = has_shm && choice->machine_count < rank_count;
    set_host_ids(choice, cards, rank_count, has_shm);
    snprintf(choice->name, sizeof(choice->name), "%s%s", has_shm ? "shm+" : "", choice->outer->name);
    snprintf(choice->reason, sizeof(choice->reason), "%s%s%s%s", has_shm ? "shm inside hosts, " : "",
             choice->outer->name, " between them; ", outer_text[0] != '\0' ? outer_text : "first choice");
    return WEFT_OK;
}

/* NULL when every rank has a GPU of its own; else who shares one. */
static const char *find_shared_device(const struct card *cards, uint32_t rank_count, char *text, size_t size)
{
    for (uint32_t r = 1; r < rank_count; r++) {
        for (uint32_t earlier = 0; earlier < r; earlier++) {
            if (memcmp(cards[r].device_id, cards[earlier].device_id, sizeof(cards[r].device_id)) == 0) {
                snprintf(text, size, "ranks %u and %u share a GPU", earlier, r);
                return text;
            }
        }
    }
    return NULL;
}

/*
 * How activations in device memory travel, after the host channels were chosen. Asked for by name, ranks may share a
 * GPU: NCCL refuses that unless NCCL_HOSTID tells it otherwise.
 */
static enum weft_status choose_device(const struct card *cards, uint32_t rank_count, bool is_forced,
                                      struct comm_choice *choice)
{
    char text[128], host_name[sizeof(choice->name)], host_reason[sizeof(choice->reason)];
    const char *why = refusal(cards, rank_count, DEVICE_BACKEND, text, sizeof(text));

    if (why == NULL && !is_forced) {
        why = find_shared_device(cards, rank_count, text, sizeof(text));
    }
    if (why != NULL && is_forced) {
        weft_log(WEFT_LOG_ERROR, "comm", "%s was asked for, but %s", DEVICE_BACKEND, why);
        return WEFT_ERR_UNSUPPORTED;
    }
    snprintf(host_name, sizeof(host_name), "%s", choice->name);
    snprintf(host_reason, sizeof(host_reason), "%s", choice->reason);
    if (why != NULL) {
        snprintf(choice->reason, sizeof(choice->reason), "%.60s; activations through host memory, no nccl: %.80s",
                 host_reason, why);
        return WEFT_OK;
    }
    choice->device = find_backend(DEVICE_BACKEND);
    snprintf(choice->name, sizeof(choice->name), "%s", DEVICE_BACKEND);
    snprintf(choice->reason, sizeof(choice->reason), "%s; %s for host memory", is_forced ? "asked for" : "a GPU each",
             host_name);
    return WEFT_OK;
}

/* Small sums through the peers' memory: GPUs of one host, one for each rank unless it was asked for; by itself only
 * where nothing else was. Whether their memory can be reached shows when it is opened. */
static enum weft_status choose_peer(const struct card *cards, uint32_t rank_count, struct comm_choice *choice)
{
    bool is_forced = strcmp(cards[0].forced, PEER_NAME) == 0;
    bool is_possible = cards[0].has_device && choice->machine_count == 1;
    char text[128];

    if (is_forced && !is_possible) {
        weft_log(WEFT_LOG_ERROR, "comm", "%s was asked for, but the ranks %s", PEER_NAME,
                 cards[0].has_device ? "are on several hosts" : "compute on CPUs");
        return WEFT_ERR_UNSUPPORTED;
    }
    if (rank_count == 1) {
        return WEFT_OK; /* nothing to send */
    }
    if (is_forced) {
        choice->peer = COMM_PEER_MUST;
    } else if (is_possible && cards[0].forced[0] == '\0' &&
               find_shared_device(cards, rank_count, text, sizeof(text)) == NULL) {
        choice->peer = COMM_PEER_TRY;
    }
    return WEFT_OK;
}

/* All ranks see the same cards, so all find the same fault. */
static enum weft_status compare_cards(const struct card *cards, uint32_t rank_count)
{
    for (uint32_t r = 1; r < rank_count; r++) {
        if (cards[r].has_device != cards[0].has_device) {
            weft_log(WEFT_LOG_ERROR, "comm", "rank %u computes on a %s, rank 0 on a %s: all must be of one kind", r,
                     cards[r].has_device ? "GPU" : "CPU", cards[0].has_device ? "GPU" : "CPU");
            return WEFT_ERR_UNSUPPORTED;
        }
        if (cards[r].options != cards[0].options || strcmp(cards[r].forced, cards[0].forced) != 0) {
            weft_log(WEFT_LOG_ERROR, "comm", "rank %u opens with other leaves, sizes or backend than rank 0", r);
            return WEFT_ERR_ARGUMENT;
        }
    }
    return WEFT_OK;
}

enum weft_status weft_comm_choose(struct weft_bootstrap *bootstrap, const struct weft_comm_options *options,
                                  struct comm_choice *choice_out)
{
    uint32_t rank_count = weft_bootstrap_rank_count(bootstrap);
    struct card cards[COMM_RANK_MAX];
    struct card own;
    struct comm_choice choice = {0};
    bool is_device_forced;

    WEFT_TRY(fill_card(bootstrap, options, &own));
    WEFT_TRY(weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), cards, options->timeout_ms + 1000));
    WEFT_TRY(compare_cards(cards, rank_count));
    choice.nonce = cards[0].nonce;
    choice.machine_count = count_machines(cards, rank_count);
    is_device_forced = strcmp(own.forced, DEVICE_BACKEND) == 0;
    WEFT_TRY(choose_peer(cards, rank_count, &choice));
    if (own.forced[0] != '\0' && !is_device_forced && strcmp(own.forced, PEER_NAME) != 0) {
        WEFT_TRY(choose_forced(cards, rank_count, own.forced, &choice));
    } else {
        WEFT_TRY(choose_auto(cards, rank_count, &choice));
    }
    if (is_device_forced || (own.has_device && rank_count > 1)) {
        WEFT_TRY(choose_device(cards, rank_count, is_device_forced, &choice));
    }
    *choice_out = choice;
    return WEFT_OK;
}
