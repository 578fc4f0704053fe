/* Opening the sockets of the tcp backend. Contract in tcp_connect.h. */
#include "tcp_connect.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weft/log.h"

/* An address that does not answer is given up after this, and tried again after the others. */
#define ATTEMPT_NS 1000000000u
/* One that took the connection gets longer: the peer may be busy, and a second connection would race the first. */
#define WELCOME_NS 5000000000u
/* What the accepting side says when it is the one sought: its rank and this. */
#define WELCOME 0x57454c43u /* "WELC" */

static_assert(sizeof(struct tcp_address) <= WEFT_ADDRESS_SIZE, "address blob");

/* Listens on a free port of `name`. -1 with errno. */
static int open_listener(struct sockaddr_storage *name, socklen_t size, uint16_t *port_out)
{
    int fd = socket(name->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int off = 0;

    if (fd < 0) {
        return -1;
    }
    if (name->ss_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    if (bind(fd, (struct sockaddr *)name, size) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)name, &size) != 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    *port_out = ntohs(name->ss_family == AF_INET6 ? ((struct sockaddr_in6 *)name)->sin6_port
                                                  : ((struct sockaddr_in *)name)->sin_port);
    return fd;
}

/* One wildcard socket serves all addresses; with IPv6 off in the kernel an IPv4 one. */
static int open_wildcard(uint16_t *port_out)
{
    struct sockaddr_storage name = {.ss_family = AF_INET6};
    int fd = open_listener(&name, sizeof(struct sockaddr_in6), port_out);

    if (fd < 0) {
        name = (struct sockaddr_storage){.ss_family = AF_INET};
        fd = open_listener(&name, sizeof(struct sockaddr_in), port_out);
    }
    return fd;
}

/* There is but one: listen there and nowhere else. */
static int open_on(const struct weft_netif_address *address, uint16_t *port_out)
{
    struct sockaddr_storage name;
    socklen_t size = weft_netif_sockaddr(address, 0, &name);

    return open_listener(&name, size, port_out);
}

enum weft_status weft_tcp_channel_listen(const struct weft_channel_options *options, struct weft_door *door,
                                         struct tcp_address *address_out)
{
    struct tcp_address address = {.host_id = weft_bootstrap_host_id(options->bootstrap)};
    int fd;

    address.count = (uint16_t)weft_netif_list(options->interface, address.addresses, TCP_ADDRESS_COUNT);
    if (address.count == 0) {
        weft_log(WEFT_LOG_ERROR, "comm/tcp", "no usable address%s%s", options->interface == NULL ? "" : " matches ",
                 options->interface == NULL ? "" : options->interface);
        return WEFT_ERR_ARGUMENT;
    }
    if (address.count == 1) {
        fd = open_on(&address.addresses[0], &address.port);
    } else {
        fd = open_wildcard(&address.port);
    }
    if (fd < 0) {
        weft_log(WEFT_LOG_ERROR, "comm/tcp", "listen: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    weft_door_init(door, fd);
    *address_out = address;
    return WEFT_OK;
}

/* Connecting to one lower rank. */
struct attempt {
    const struct tcp_address *peer;
    uint32_t rank;
    uint32_t member;
    uint32_t order[TCP_ADDRESS_COUNT]; /* of peer->addresses, best first */
    uint32_t order_count;
    uint32_t tries; /* addresses tried so far, counting repeats */
    int fd;         /* under way, or -1 */
    bool is_greeted;
    uint64_t since_ns;
    int error;       /* of the last try */
    bool is_starved; /* this process has no descriptor or memory left: no use in trying on */
};

static const struct tcp_address *address_of(const void *addresses, uint32_t rank)
{
    return (const struct tcp_address *)((const char *)addresses + (size_t)rank * WEFT_ADDRESS_SIZE);
}

static bool has_subnet_of(const struct tcp_address *own, const struct weft_netif_address *address)
{
    for (uint32_t i = 0; i < own->count; i++) {
        if (weft_netif_is_same_subnet(&own->addresses[i], address)) {
            return true;
        }
    }
    return false;
}

/* 0 best, 3 last resort: containers may share a network namespace, hence loopback, without being one host to us. */
static int distance(const struct tcp_address *own, const struct tcp_address *peer,
                    const struct weft_netif_address *address)
{
    bool is_same_host = own->host_id == peer->host_id;

    if (address->is_loopback) {
        return is_same_host ? 0 : 3;
    }
    return has_subnet_of(own, address) ? 1 : 2;
}

static void attempt_init(struct attempt *attempt, const struct tcp_address *own, const struct tcp_address *peer)
{
    *attempt = (struct attempt){.peer = peer, .fd = -1, .error = EHOSTUNREACH};
    for (int wanted = 0; wanted <= 3; wanted++) {
        for (uint32_t i = 0; i < peer->count && i < TCP_ADDRESS_COUNT; i++) {
            if (distance(own, peer, &peer->addresses[i]) == wanted) {
                attempt->order[attempt->order_count++] = i;
            }
        }
    }
}

static void attempt_fail(struct attempt *attempt, int error)
{
    if (attempt->fd >= 0) {
        close(attempt->fd);
    }
    attempt->fd = -1;
    attempt->error = error;
    attempt->tries++;
    attempt->since_ns = weft_comm_clock_ns();
}

/*
 * Leaves through an allowed address when the user named interfaces: the first in the peer's subnet, else the first of
 * its family.
 */
static int bind_to_interface(int fd, const struct weft_channel *channel, const struct tcp_address *own,
                             const struct weft_netif_address *to)
{
    const struct weft_netif_address *from = NULL;
    struct sockaddr_storage name;

    for (uint32_t i = own->count; channel->options.interface != NULL && i-- > 0;) {
        const struct weft_netif_address *address = &own->addresses[i];
        bool is_better = from == NULL || !weft_netif_is_same_subnet(from, to) || weft_netif_is_same_subnet(address, to);

        if (address->family == to->family && address->is_loopback == to->is_loopback && is_better) {
            from = address;
        }
    }
    return from == NULL ? 0 : bind(fd, (struct sockaddr *)&name, weft_netif_sockaddr(from, 0, &name));
}

static void attempt_start(struct attempt *attempt, const struct weft_channel *channel, const struct tcp_address *own)
{
    const struct weft_netif_address *address;
    struct sockaddr_storage name;
    socklen_t size;

    if (attempt->order_count == 0) {
        return; /* the deadline will name the peer */
    }
    /* A whole round failed: be gentle. */
    if (attempt->tries > 0 && attempt->tries % attempt->order_count == 0 &&
        weft_comm_clock_ns() - attempt->since_ns < 10000000u) {
        return;
    }
    address = &attempt->peer->addresses[attempt->order[attempt->tries % attempt->order_count]];
    size = weft_netif_sockaddr(address, attempt->peer->port, &name);
    attempt->is_greeted = false;
    attempt->since_ns = weft_comm_clock_ns();
    attempt->fd = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    attempt->is_starved = attempt->fd < 0 && errno != EAFNOSUPPORT;
    if (attempt->fd < 0 || bind_to_interface(attempt->fd, channel, own, address) != 0 ||
        (connect(attempt->fd, (struct sockaddr *)&name, size) != 0 && errno != EINPROGRESS)) {
        attempt_fail(attempt, errno);
    }
}

/* True when the peer has welcomed us on this connection. */
static bool attempt_look(struct attempt *attempt, const struct weft_channel *channel)
{
    struct pollfd poll_fd = {.fd = attempt->fd, .events = attempt->is_greeted ? POLLIN : POLLOUT};
    uint32_t welcome[2];
    ssize_t got;
    int error = 0;
    socklen_t size = sizeof(error);

    if (weft_comm_clock_ns() - attempt->since_ns > (attempt->is_greeted ? WELCOME_NS : ATTEMPT_NS)) {
        attempt_fail(attempt, ETIMEDOUT);
        return false;
    }
    if (poll(&poll_fd, 1, 0) <= 0) {
        return false;
    }
    if (!attempt->is_greeted) {
        if (getsockopt(attempt->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
            attempt_fail(attempt, error);
        } else if (weft_door_knock(attempt->fd, channel, attempt->rank) != 0) {
            attempt_fail(attempt, errno);
        } else {
            attempt->is_greeted = true;
        }
        return false;
    }
    got = recv(attempt->fd, welcome, sizeof(welcome), MSG_DONTWAIT);
    if (got == (ssize_t)sizeof(welcome) && welcome[0] == WELCOME && welcome[1] == attempt->rank) {
        return true;
    }
    attempt_fail(attempt, got == 0 ? ECONNREFUSED : got < 0 ? errno : EPROTO);
    return false;
}

static void set_options(int fd)
{
    int on = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* Came to an address that we offered: the wildcard socket hears all of them. */
static bool is_offered(int fd, const struct tcp_address *own)
{
    struct sockaddr_storage name;
    struct weft_netif_address address;
    socklen_t size = sizeof(name);

    if (getsockname(fd, (struct sockaddr *)&name, &size) != 0 || !weft_netif_from_sockaddr(&name, &address)) {
        return false;
    }
    for (uint32_t i = 0; i < own->count; i++) {
        if (own->addresses[i].family == address.family &&
            memcmp(own->addresses[i].bytes, address.bytes, sizeof(address.bytes)) == 0) {
            return true;
        }
    }
    return false;
}

static void welcome_members(struct weft_channel *channel, struct weft_door *door, const struct tcp_address *own,
                            int *fds)
{
    const uint32_t welcome[2] = {WELCOME, channel->options.rank};
    uint32_t rank;
    int fd;

    while ((fd = weft_door_accept(door, channel, &rank)) >= 0) {
        int *slot = &fds[weft_channel_member_index(channel, rank)];

        if ((channel->options.interface != NULL && !is_offered(fd, own)) ||
            send(fd, welcome, sizeof(welcome), MSG_NOSIGNAL) != (ssize_t)sizeof(welcome)) {
            close(fd);
            continue;
        }
        if (*slot >= 0) {
            close(*slot); /* the peer gave the earlier try up, perhaps before our welcome reached it */
        }
        set_options(fd);
        *slot = fd;
    }
}

/* One look at every attempt; returns the first rank that is still missing, -1 when all are there. */
static int64_t look_at_all(struct weft_channel *channel, const struct tcp_address *own, struct attempt *attempts,
                           uint32_t count, int *fds)
{
    int64_t missing = -1;

    for (uint32_t i = 0; i < count; i++) {
        struct attempt *attempt = &attempts[i];

        if (fds[attempt->member] >= 0) {
            continue;
        }
        if (attempt->fd < 0) {
            attempt_start(attempt, channel, own);
        } else if (attempt_look(attempt, channel)) {
            set_options(attempt->fd);
            fds[attempt->member] = attempt->fd;
            attempt->fd = -1;
        }
    }
    for (uint32_t m = 0; m < channel->options.member_count && missing < 0; m++) {
        if (fds[m] < 0 && channel->options.members[m] != channel->options.rank) {
            missing = channel->options.members[m];
        }
    }
    return missing;
}

/* Not the peers' fault: say so at once instead of waiting for the deadline. */
static enum weft_status check_own_means(const struct weft_door *door, const struct attempt *attempts, uint32_t count,
                                        bool is_optional)
{
    int error = door->fault;

    for (uint32_t i = 0; i < count; i++) {
        error = attempts[i].is_starved ? attempts[i].error : error;
    }
    if (error == 0) {
        return WEFT_OK;
    }
    weft_log(is_optional ? WEFT_LOG_WARN : WEFT_LOG_ERROR, "comm/tcp", "cannot open one more socket: %s",
             strerror(error));
    return WEFT_ERR_IO;
}

static void log_missing(const struct attempt *attempts, uint32_t count, uint32_t rank)
{
    char text[64];

    for (uint32_t i = 0; i < count; i++) {
        if (attempts[i].rank == rank && attempts[i].order_count > 0) {
            const struct attempt *attempt = &attempts[i];
            uint32_t last = attempt->order[(attempt->tries == 0 ? 0 : attempt->tries - 1) % attempt->order_count];

            weft_log(WEFT_LOG_ERROR, "comm/tcp", "connect to rank %u, %u addresses, last %s: %s", rank,
                     attempt->order_count,
                     weft_netif_text(&attempt->peer->addresses[last], attempt->peer->port, text, sizeof(text)),
                     strerror(attempt->error));
        }
    }
}

enum weft_status weft_tcp_channel_connect(struct weft_channel *channel, struct weft_door *door,
                                          const struct tcp_address *own, const void *addresses, int *fds,
                                          bool is_optional)
{
    uint64_t optional_end_ns = weft_comm_clock_ns() + (uint64_t)channel->options.timeout_ms * 1000000u;
    struct attempt *attempts = calloc(channel->options.member_count, sizeof(*attempts));
    uint32_t count = 0;
    enum weft_status status = WEFT_OK;
    struct weft_wait wait;

    if (attempts == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/tcp", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t m = 0; m < channel->options.member_count; m++) {
        uint32_t rank = channel->options.members[m];

        if (rank < channel->options.rank) {
            attempt_init(&attempts[count], own, address_of(addresses, rank));
            attempts[count].rank = rank;
            attempts[count++].member = m;
        }
    }
    weft_wait_begin(&wait, channel, channel->options.timeout_ms);
    while (status == WEFT_OK) {
        struct pollfd poll_fd = {.fd = door->listen_fd, .events = POLLIN};
        int64_t missing;

        welcome_members(channel, door, own, fds);
        missing = look_at_all(channel, own, attempts, count, fds);
        if (missing < 0 || (is_optional && weft_comm_clock_ns() > optional_end_ns)) {
            break;
        }
        status = check_own_means(door, attempts, count, is_optional);
        if (status != WEFT_OK && is_optional) {
            status = WEFT_OK;
            break;
        }
        if (status == WEFT_OK) {
            status = is_optional ? weft_bootstrap_check(channel->options.bootstrap)
                                 : weft_wait_check(&wait, (uint32_t)missing);
        }
        if (status == WEFT_ERR_TIMEOUT) {
            log_missing(attempts, count, (uint32_t)missing);
        }
        (void)poll(&poll_fd, 1, WEFT_WAIT_SLEEP_MS);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (attempts[i].fd >= 0) {
            close(attempts[i].fd);
        }
    }
    free(attempts);
    return status;
}
