/* Heartbeats between hosts: who has them, what they show, when it is believed. Contract in heart_mesh.h. */
#include "heart_mesh.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "tcp_connect.h"
#include "weft/log.h"

enum {
    RANK_MAX = 64,     /* of weft_channel_options */
    GATHER_MS = 30000, /* the heartbeats, which run already, notice who is gone */
    MEET_MS = 5000,    /* a connection that came late is worth less than the start of the group */
};

struct heart_mesh {
    struct heart_link links[RANK_MAX]; /* owned sockets */
    uint32_t link_count;
};

/* What every rank tells the others. */
struct card {
    uint64_t host_id;
    uint64_t nonce; /* rank 0's counts */
};

/* ---- opening ---- */

/* The first rank of each host that has an address, ascending. */
static uint32_t choose_members(const struct card *cards, const char *addresses, uint32_t rank_count,
                               uint32_t members[RANK_MAX])
{
    uint32_t count = 0;

    for (uint32_t rank = 0; rank < rank_count; rank++) {
        const struct tcp_address *address = (const void *)(addresses + (size_t)rank * WEFT_ADDRESS_SIZE);
        uint32_t first = 0;

        while (cards[first].host_id != cards[rank].host_id) {
            first++;
        }
        if (first == rank && address->count > 0 && address->count <= TCP_ADDRESS_COUNT) {
            members[count++] = rank;
        }
    }
    return count;
}

static bool is_one_host(const struct card *cards, uint32_t rank_count)
{
    uint32_t same = 1;

    while (same < rank_count && cards[same].host_id == cards[0].host_id) {
        same++;
    }
    return same == rank_count;
}

/* addresses[rank_count][WEFT_ADDRESS_SIZE] <- everybody's; door listens at our own, unless there is none. */
static enum weft_status gather_addresses(struct weft_channel_options *options, struct weft_door *door, char *addresses)
{
    struct tcp_address *own = calloc(1, WEFT_ADDRESS_SIZE);
    char reason[128];
    enum weft_status status;

    if (own == NULL) {
        return WEFT_ERR_MEMORY;
    }
    if (!weft_backend_tcp.is_usable(options, false, reason, sizeof(reason))) {
        options->interface = NULL;
    }
    if (weft_backend_tcp.is_usable(options, false, reason, sizeof(reason)) &&
        weft_tcp_channel_listen(options, door, own) != WEFT_OK) {
        own->count = 0; /* it has been said; the others do not wait for us */
    }
    status = weft_bootstrap_all_gather(options->bootstrap, own, WEFT_ADDRESS_SIZE, addresses, GATHER_MS);
    free(own);
    return status;
}

static void log_missing(uint32_t rank, uint32_t peer)
{
    weft_log(WEFT_LOG_WARN, HEART_LOG,
             "no connection between rank %u and rank %u for heartbeats: a network cut between the two alone will be "
             "noticed late, by --timeout",
             rank, peer);
}

static enum weft_status meet(const struct weft_channel_options *options, struct weft_door *door, const char *addresses,
                             struct heart_mesh *mesh)
{
    struct weft_channel channel;
    int fds[RANK_MAX];
    const void *own = addresses + (size_t)options->rank * WEFT_ADDRESS_SIZE;
    enum weft_status status;

    weft_channel_init(&channel, &weft_backend_tcp, options);
    for (uint32_t m = 0; m < options->member_count; m++) {
        fds[m] = -1;
    }
    status = weft_tcp_channel_connect(&channel, door, own, addresses, fds, true);
    for (uint32_t m = 0; m < options->member_count; m++) {
        if (fds[m] >= 0) {
            mesh->links[mesh->link_count].rank = options->members[m];
            mesh->links[mesh->link_count++].fd = fds[m];
        } else if (status == WEFT_OK && options->members[m] < options->rank) {
            log_missing(options->rank, options->members[m]);
        }
    }
    return status;
}

/* Everything but the first look at who shares a host. */
static enum weft_status open_between(struct weft_channel_options *options, const struct card *cards,
                                     struct heart_mesh **out)
{
    struct weft_door door;
    uint32_t members[RANK_MAX];
    struct heart_mesh *mesh = calloc(1, sizeof(*mesh));
    char *addresses = calloc(options->rank_count, WEFT_ADDRESS_SIZE);
    enum weft_status status = WEFT_ERR_MEMORY;

    weft_door_init(&door, -1);
    if (mesh != NULL && addresses != NULL) {
        status = gather_addresses(options, &door, addresses);
    } else {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "out of memory");
    }
    if (status == WEFT_OK) {
        struct weft_channel whole;

        options->members = members;
        options->member_count = choose_members(cards, addresses, options->rank_count, members);
        weft_channel_init(&whole, &weft_backend_tcp, options);
        if (weft_channel_member_index(&whole, options->rank) >= 0) {
            status = meet(options, &door, addresses, mesh);
        }
    }
    weft_door_fini(&door);
    free(addresses);
    if (status != WEFT_OK || mesh->link_count == 0) {
        weft_heart_mesh_close(&mesh);
    }
    *out = mesh;
    return status;
}

enum weft_status weft_heart_mesh_open(struct weft_bootstrap *bootstrap, const char *interface, struct heart_mesh **out)
{
    struct weft_channel_options options = {.bootstrap = bootstrap,
                                           .rank = weft_bootstrap_rank(bootstrap),
                                           .rank_count = weft_bootstrap_rank_count(bootstrap),
                                           .interface = interface,
                                           .timeout_ms = MEET_MS};
    struct card own = {.host_id = weft_bootstrap_host_id(bootstrap)};
    struct card cards[RANK_MAX];

    *out = NULL;
    if (options.rank_count > RANK_MAX) {
        return WEFT_OK;
    }
    if (getrandom(&own.nonce, sizeof(own.nonce), 0) != (ssize_t)sizeof(own.nonce)) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "getrandom: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    WEFT_TRY(weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), cards, GATHER_MS));
    if (is_one_host(cards, options.rank_count)) {
        return WEFT_OK;
    }
    options.nonce = cards[0].nonce;
    return open_between(&options, cards, out);
}

void weft_heart_mesh_close(struct heart_mesh **mesh_pointer)
{
    struct heart_mesh *mesh = *mesh_pointer;

    for (uint32_t i = 0; mesh != NULL && i < mesh->link_count; i++) {
        if (mesh->links[i].fd >= 0) {
            close(mesh->links[i].fd);
        }
    }
    free(mesh);
    *mesh_pointer = NULL;
}

/* ---- beating ---- */

/* True when something has come. */
static bool listen_to(struct heart_link *link)
{
    enum heart_read result;
    const char *reason;
    bool has_come = false;

    while ((result = weft_heart_link_read(link, &reason)) == HEART_READ_BEAT) {
        has_come = true;
    }
    if (result == HEART_READ_END) {
        close(link->fd);
        link->fd = -1;
    }
    return has_come;
}

void weft_heart_mesh_step(struct heart_mesh *mesh, int64_t elapsed_ns, uint32_t silence_ms, struct heart_beat *own)
{
    own->cut_rank = HEART_NOBODY;
    own->cut_count = 0;
    own->cut_ms = 0;
    for (uint32_t i = 0; i < mesh->link_count; i++) {
        struct heart_link *link = &mesh->links[i];

        if (link->fd < 0) {
            continue;
        }
        link->silence_ns = listen_to(link) ? 0 : link->silence_ns + elapsed_ns;
        if (silence_ms != UINT32_MAX && weft_heart_link_is_cut(link, (int64_t)silence_ms * 1000000)) {
            own->cut_rank = link->rank;
            own->cut_ms = (uint32_t)(link->silence_ns / 1000000);
            own->cut_count++;
        }
    }
    for (uint32_t i = 0; i < mesh->link_count; i++) {
        (void)weft_heart_link_send(&mesh->links[i], own);
    }
}

/* ---- the leader's opinion ---- */

static const struct heart_beat *beat_of(const struct heart_view *view, uint32_t rank)
{
    return rank == 0 ? view->own : &view->links[rank - 1].last;
}

/* Whom `rank` does not reach, as it says. */
static uint32_t cut_of(const struct heart_view *view, uint32_t rank)
{
    return rank == 0 || view->links[rank - 1].has_spoken ? beat_of(view, rank)->cut_rank : HEART_NOBODY;
}

static bool is_heard_since(const struct heart_view *view, uint32_t rank, int64_t since)
{
    return rank == 0 || (view->links[rank - 1].fd >= 0 && view->links[rank - 1].heard_ns > since);
}

/* Whether `reporter` has told for an interval of a cut link, and both ends are there. */
static bool is_believed(const struct heart_view *view, uint32_t reporter, int64_t now)
{
    int64_t *since = reporter == 0 ? view->own_cut_ns : &view->links[reporter - 1].cut_ns;
    uint32_t peer = cut_of(view, reporter);

    if (peer > view->link_count || peer == reporter) { /* nobody */
        *since = 0;
        return false;
    }
    if (*since == 0) {
        *since = now;
    }
    return now - *since >= view->interval_ns && is_heard_since(view, reporter, *since) &&
           is_heard_since(view, peer, *since);
}

/* Links that `rank` has lost: as it says, or as others say of it, where packets vanish one way only. */
static uint32_t lost_count(const struct heart_view *view, uint32_t rank)
{
    uint32_t count = 0;

    for (uint32_t other = 0; other <= view->link_count; other++) {
        count += other != rank && cut_of(view, other) == rank;
    }
    return count > beat_of(view, rank)->cut_count ? count : beat_of(view, rank)->cut_count;
}

static uint32_t choose_victim(const struct heart_view *view, uint32_t a, uint32_t b)
{
    uint32_t lost_a = lost_count(view, a);
    uint32_t lost_b = lost_count(view, b);

    return lost_a > lost_b || (lost_a == lost_b && a > b) ? a : b;
}

bool weft_heart_mesh_is_cut(const struct heart_view *view, int64_t now, uint32_t *rank_out, char *reason_out,
                            size_t reason_size)
{
    for (uint32_t reporter = 0; reporter <= view->link_count; reporter++) {
        const struct heart_beat *beat = beat_of(view, reporter);
        uint32_t victim, other;
        bool is_ours;

        if (!is_believed(view, reporter, now)) {
            continue;
        }
        victim = choose_victim(view, reporter, beat->cut_rank);
        other = victim == reporter ? beat->cut_rank : reporter;
        *rank_out = victim;
        is_ours = victim == 0 || other == 0;
        (void)snprintf(
            reason_out, reason_size,
            "no answer between it and rank %u on %s for %.1f s though %s: the network%s between %s and %s is "
            "cut",
            other, beat_of(view, other)->host, beat->cut_ms / 1e3,
            is_ours ? "heartbeats arrive" : "both answer the leader", is_ours ? " of the data" : "",
            beat_of(view, victim)->host, beat_of(view, other)->host);
        return true;
    }
    return false;
}
