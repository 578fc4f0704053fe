/* Probes between hosts: who has the connections, which are probed, what is unacknowledged. Contract in heart_mesh.h. */
#include "heart_mesh.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp_connect.h"
#include "weft/log.h"

/* Half as much again as for a process: until the leader has made sure, the same time has passed. */
#define CUT_FACTOR_UP 3
#define CUT_FACTOR_BY 2

enum {
    GATHER_MS = 30000, /* the heartbeats, which run already, notice who is gone */
    MEET_MS = 5000,    /* a connection that came late is worth less than the start of the group */
    EVENT_MAX = 64,
    FD_SPARE = 1024, /* what a process opens besides */
};

#define NO_LINK UINT32_MAX

struct mesh_link {
    uint32_t rank;
    int fd; /* owned; -1 once it has ended */
    bool is_probed;
    int64_t silence_ns; /* since the probe, in our own running time */
};

struct heart_mesh {
    int epoll_fd;            /* owned: all links */
    struct mesh_link *links; /* owned [link_count] */
    uint32_t link_count;
    uint32_t *link_of; /* owned [rank_count] to the host of a rank; NO_LINK */
    uint32_t rank_count;
    uint32_t next; /* link whose turn it is */
    uint32_t probes[HEART_PROBES + 1];
    uint32_t probe_count;
};

/* What every rank tells the others. */
struct card {
    uint64_t host_id;
    uint64_t nonce; /* rank 0's counts */
};

/* Everything that opening needs. */
struct opening {
    struct weft_channel_options options;
    struct weft_door door;
    struct card *cards;     /* owned [rank_count] */
    char *addresses;        /* owned [rank_count][WEFT_ADDRESS_SIZE] */
    uint32_t *members;      /* owned [rank_count]: the first rank of each host that has an address, ascending */
    int *fds;               /* owned [rank_count], by member */
    struct heart_mesh *out; /* owned until opening is done */
};

/* ---- opening ---- */

static uint32_t first_of_host(const struct card *cards, uint32_t rank)
{
    uint32_t first = 0;

    while (cards[first].host_id != cards[rank].host_id) {
        first++;
    }
    return first;
}

static bool is_one_host(const struct card *cards, uint32_t rank_count)
{
    uint32_t same = 1;

    while (same < rank_count && cards[same].host_id == cards[0].host_id) {
        same++;
    }
    return same == rank_count;
}

static void choose_members(struct opening *opening)
{
    struct weft_channel_options *options = &opening->options;

    for (uint32_t rank = 0; rank < options->rank_count; rank++) {
        const struct tcp_address *address = (const void *)(opening->addresses + (size_t)rank * WEFT_ADDRESS_SIZE);

        if (first_of_host(opening->cards, rank) == rank && address->count > 0 && address->count <= TCP_ADDRESS_COUNT) {
            opening->members[options->member_count++] = rank;
        }
    }
    options->members = opening->members;
}

/* The door of the first rank of a host; *own stays empty elsewhere, and where it cannot be opened. */
static void open_door(struct opening *opening, struct tcp_address *own)
{
    struct weft_channel_options *options = &opening->options;
    char reason[128];

    if (!weft_backend_tcp.is_usable(options, false, reason, sizeof(reason))) {
        options->interface = NULL;
    }
    if (first_of_host(opening->cards, options->rank) == options->rank &&
        weft_backend_tcp.is_usable(options, false, reason, sizeof(reason)) &&
        weft_tcp_channel_listen(options, &opening->door, own) != WEFT_OK) {
        own->count = 0; /* it has been said; the others do not wait for us */
    }
}

/* Everybody's address, as much of it as is used: with many ranks the leader sends it many times. */
static enum weft_status gather_addresses(struct opening *opening)
{
    struct weft_bootstrap *bootstrap = opening->options.bootstrap;
    uint32_t rank_count = opening->options.rank_count;
    struct tcp_address own = {0};
    uint32_t *counts = (uint32_t *)opening->fds; /* not needed before */
    uint32_t count;
    size_t size;

    open_door(opening, &own);
    count = own.count;
    WEFT_TRY(weft_bootstrap_all_gather(bootstrap, &count, sizeof(count), counts, GATHER_MS));
    count = 0;
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        count = counts[rank] > count ? counts[rank] : count;
    }
    count = count > TCP_ADDRESS_COUNT ? TCP_ADDRESS_COUNT : count;
    size = offsetof(struct tcp_address, addresses) + count * sizeof(own.addresses[0]);
    WEFT_TRY(weft_bootstrap_all_gather(bootstrap, &own, size, opening->addresses, GATHER_MS));
    for (uint32_t rank = rank_count; rank-- > 0;) {
        memmove(opening->addresses + (size_t)rank * WEFT_ADDRESS_SIZE, opening->addresses + rank * size, size);
    }
    return WEFT_OK;
}

static void log_missing(uint32_t rank, uint32_t peer, uint32_t count)
{
    if (count > 0) {
        weft_log(WEFT_LOG_WARN, HEART_LOG,
                 "no connection between rank %u and %u of the first ranks of other hosts (rank %u ...) for heartbeats: "
                 "a network cut between the two alone will be noticed late, by --timeout",
                 rank, count, peer);
    }
}

/* The connection of member m becomes a link. */
static enum weft_status keep_link(struct heart_mesh *mesh, uint32_t rank, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = mesh->link_count};
    int on = 1;

    /* A lost probe is sent again every 200 ms, not after 200, 400, 800: tries enough before a cut is reported. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &on, sizeof(on));
    mesh->link_of[rank] = mesh->link_count;
    mesh->links[mesh->link_count++] = (struct mesh_link){.rank = rank, .fd = fd};
    if (epoll_ctl(mesh->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "epoll: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

static enum weft_status meet(struct opening *opening)
{
    const struct weft_channel_options *options = &opening->options;
    struct heart_mesh *mesh = opening->out;
    struct weft_channel channel;
    const void *own = opening->addresses + (size_t)options->rank * WEFT_ADDRESS_SIZE;
    uint32_t missing = 0;
    uint32_t missing_count = 0;
    enum weft_status status;

    weft_channel_init(&channel, &weft_backend_tcp, options);
    if (weft_channel_member_index(&channel, options->rank) < 0) {
        return WEFT_OK;
    }
    for (uint32_t m = 0; m < options->member_count; m++) {
        opening->fds[m] = -1;
    }
    weft_star_make_room(FD_SPARE + 2 * (rlim_t)options->member_count);
    status = weft_tcp_channel_connect(&channel, &opening->door, own, opening->addresses, opening->fds, true);
    for (uint32_t m = 0; m < options->member_count; m++) {
        if (opening->fds[m] >= 0) {
            enum weft_status kept = keep_link(mesh, options->members[m], opening->fds[m]);

            status = status == WEFT_OK ? kept : status;
        } else if (options->members[m] < options->rank) {
            missing = missing_count++ == 0 ? options->members[m] : missing;
        }
    }
    log_missing(options->rank, missing, status == WEFT_OK ? missing_count : 0);
    return status;
}

/* Ranks that are not the first of their host are reached through that one. */
static void map_hosts(struct opening *opening)
{
    for (uint32_t rank = 0; rank < opening->options.rank_count; rank++) {
        opening->out->link_of[rank] = opening->out->link_of[first_of_host(opening->cards, rank)];
    }
}

static bool mesh_new(struct opening *opening)
{
    uint32_t rank_count = opening->options.rank_count;
    struct heart_mesh *mesh = calloc(1, sizeof(*mesh));

    opening->out = mesh;
    if (mesh == NULL) {
        return false;
    }
    mesh->rank_count = rank_count;
    mesh->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    mesh->links = calloc(rank_count, sizeof(*mesh->links));
    mesh->link_of = malloc(rank_count * sizeof(*mesh->link_of));
    for (uint32_t rank = 0; rank < rank_count && mesh->link_of != NULL; rank++) {
        mesh->link_of[rank] = NO_LINK;
    }
    opening->addresses = calloc(rank_count, WEFT_ADDRESS_SIZE);
    opening->members = calloc(rank_count, sizeof(*opening->members));
    opening->fds = calloc(rank_count, sizeof(*opening->fds));
    return mesh->epoll_fd >= 0 && mesh->links != NULL && mesh->link_of != NULL && opening->addresses != NULL &&
           opening->members != NULL && opening->fds != NULL;
}

static enum weft_status open_between(struct opening *opening)
{
    if (!mesh_new(opening)) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "out of memory or descriptors");
        return WEFT_ERR_MEMORY;
    }
    WEFT_TRY(gather_addresses(opening));
    choose_members(opening);
    WEFT_TRY(meet(opening));
    map_hosts(opening);
    return WEFT_OK;
}

enum weft_status weft_heart_mesh_open(struct weft_bootstrap *bootstrap, const char *interface, struct heart_mesh **out)
{
    struct opening opening = {.options = {.bootstrap = bootstrap,
                                          .rank = weft_bootstrap_rank(bootstrap),
                                          .rank_count = weft_bootstrap_rank_count(bootstrap),
                                          .interface = interface,
                                          .timeout_ms = MEET_MS}};
    struct card own = {.host_id = weft_bootstrap_host_id(bootstrap)};
    enum weft_status status = WEFT_ERR_MEMORY;

    *out = NULL;
    if (getrandom(&own.nonce, sizeof(own.nonce), 0) != (ssize_t)sizeof(own.nonce)) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "getrandom: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    weft_door_init(&opening.door, -1);
    opening.cards = calloc(opening.options.rank_count, sizeof(*opening.cards));
    if (opening.cards != NULL) {
        status = weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), opening.cards, GATHER_MS);
    } else {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "out of memory");
    }
    if (status == WEFT_OK && !is_one_host(opening.cards, opening.options.rank_count)) {
        opening.options.nonce = opening.cards[0].nonce;
        status = open_between(&opening);
    }
    if (status != WEFT_OK || (opening.out != NULL && opening.out->link_count == 0)) {
        weft_heart_mesh_close(&opening.out);
    }
    weft_door_fini(&opening.door);
    free(opening.cards);
    free(opening.addresses);
    free(opening.members);
    free(opening.fds);
    *out = opening.out;
    return status;
}

void weft_heart_mesh_close(struct heart_mesh **mesh_pointer)
{
    struct heart_mesh *mesh = *mesh_pointer;

    if (mesh == NULL) {
        return;
    }
    for (uint32_t i = 0; i < mesh->link_count; i++) {
        if (mesh->links[i].fd >= 0) {
            close(mesh->links[i].fd);
        }
    }
    if (mesh->epoll_fd >= 0) {
        close(mesh->epoll_fd);
    }
    free(mesh->links);
    free(mesh->link_of);
    free(mesh);
    *mesh_pointer = NULL;
}

/* ---- probing ---- */

/* Takes what the others' probes left, so that their kernels need never wait for room in ours. */
static void drain(struct heart_mesh *mesh)
{
    struct epoll_event events[EVENT_MAX];
    int count;

    do {
        count = epoll_wait(mesh->epoll_fd, events, EVENT_MAX, 0);
        for (int i = 0; i < count; i++) {
            struct mesh_link *link = &mesh->links[events[i].data.u32];
            char bytes[64];
            ssize_t got = recv(link->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

            if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
                close(link->fd);
                link->fd = -1;
            }
        }
    } while (count == EVENT_MAX);
}

static void probe(struct heart_mesh *mesh, uint32_t index)
{
    struct mesh_link *link = &mesh->links[index];

    if (link->fd < 0 || link->is_probed || mesh->probe_count == HEART_PROBES + 1) {
        return;
    }
    if (send(link->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) { /* else it is full, or reading finds its end */
        link->is_probed = true;
        link->silence_ns = 0;
        mesh->probes[mesh->probe_count++] = index;
    }
}

/* Probes that were acknowledged give their places back; the others say how long they have waited. */
static void look_at_probes(struct heart_mesh *mesh, int64_t elapsed_ns, int64_t limit_ns, struct heart_beat *own)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < mesh->probe_count; i++) {
        struct mesh_link *link = &mesh->links[mesh->probes[i]];

        link->silence_ns += elapsed_ns;
        link->is_probed = link->fd >= 0 && !weft_heart_is_acknowledged(link->fd, link->silence_ns);
        if (!link->is_probed) {
            continue;
        }
        mesh->probes[kept++] = mesh->probes[i];
        if (link->silence_ns >= limit_ns) {
            own->cut_rank = link->rank;
            own->cut_ms = (uint32_t)(link->silence_ns / 1000000);
            own->cut_count++;
        }
    }
    mesh->probe_count = kept;
}

void weft_heart_mesh_step(struct heart_mesh *mesh, int64_t elapsed_ns, uint32_t silence_ms, struct heart_beat *own)
{
    int64_t limit_ns =
        silence_ms == UINT32_MAX ? INT64_MAX : (int64_t)silence_ms * 1000000 / CUT_FACTOR_BY * CUT_FACTOR_UP;

    own->cut_rank = HEART_NOBODY;
    own->cut_count = 0;
    own->cut_ms = 0;
    drain(mesh);
    look_at_probes(mesh, elapsed_ns, limit_ns, own);
    if (own->waiting_for >= 0 && (uint32_t)own->waiting_for < mesh->rank_count &&
        mesh->link_of[own->waiting_for] != NO_LINK) {
        probe(mesh, mesh->link_of[own->waiting_for]);
    }
    for (uint32_t i = 0; i < mesh->link_count && mesh->probe_count < HEART_PROBES; i++) {
        probe(mesh, mesh->next);
        mesh->next = (mesh->next + 1) % mesh->link_count;
    }
}
