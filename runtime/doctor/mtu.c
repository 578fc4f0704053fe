/* Contract in mtu.h. Who asks sends a size over comm, then datagrams of that size; who answers says whether one came.
 */
#include "doctor/mtu.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    TRY_COUNT = 3,      /* datagrams per size, for networks that lose some */
    WAIT_MS = 150,      /* for the first of them */
    PACKET_SMALL = 576, /* every host must take these */
    PACKET_MAX = 65535,
    UDP_HEADER = 8,
};

/* One end. */
struct end {
    int fd; /* -1: none */
    uint32_t headers_size;
    bool is_v6;
};

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void set_port(struct sockaddr_storage *name, uint16_t port)
{
    if (name->ss_family == AF_INET) {
        ((struct sockaddr_in *)name)->sin_port = port;
    } else {
        ((struct sockaddr_in6 *)name)->sin6_port = port;
    }
}

static socklen_t size_of(const struct sockaddr_storage *name)
{
    return name->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

/* A socket on the own address of `path`; its port, in network order, 0 when there is none. */
static uint16_t open_end(const struct weft_comm_path *path, struct end *end)
{
    struct sockaddr_storage name = path->own;
    socklen_t size = size_of(&name);
    int probe = IP_PMTUDISC_PROBE, probe_v6 = IPV6_PMTUDISC_PROBE;

    end->is_v6 = name.ss_family == AF_INET6;
    end->headers_size = (end->is_v6 ? 40 : 20) + UDP_HEADER;
    end->fd = socket(name.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (end->fd < 0) {
        return 0;
    }
    (void)setsockopt(end->fd, end->is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, end->is_v6 ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER,
                     end->is_v6 ? &probe_v6 : &probe, sizeof(probe));
    set_port(&name, 0);
    if (bind(end->fd, (struct sockaddr *)&name, size) != 0 ||
        getsockname(end->fd, (struct sockaddr *)&name, &size) != 0) {
        return 0;
    }
    return name.ss_family == AF_INET ? ((struct sockaddr_in *)&name)->sin_port
                                     : ((struct sockaddr_in6 *)&name)->sin6_port;
}

/* Both ends tell their ports and connect; false on both when either has none. */
static enum weft_status meet(struct weft_comm *comm, uint32_t peer, const struct weft_comm_path *path, bool has_path,
                             struct end *end, bool *is_ready_out)
{
    uint16_t own = has_path ? open_end(path, end) : 0, theirs = 0;
    struct sockaddr_storage name = path->peer;
    uint8_t ready[2] = {0, 0};

    WEFT_TRY(weft_comm_send(comm, peer, &own, sizeof(own)));
    WEFT_TRY(weft_comm_recv(comm, peer, &theirs, sizeof(theirs)));
    if (own != 0 && theirs != 0) {
        set_port(&name, theirs);
        ready[0] = connect(end->fd, (struct sockaddr *)&name, size_of(&name)) == 0;
    }
    WEFT_TRY(weft_comm_send(comm, peer, &ready[0], 1));
    WEFT_TRY(weft_comm_recv(comm, peer, &ready[1], 1));
    *is_ready_out = ready[0] != 0 && ready[1] != 0;
    return WEFT_OK;
}

/* Does an IP packet of `size` arrive? */
static enum weft_status ask_size(struct weft_comm *comm, uint32_t peer, const struct end *end, uint32_t size,
                                 bool *has_come_out)
{
    static const char zeros[PACKET_MAX];
    uint8_t has_come = 0;

    WEFT_TRY(weft_comm_send(comm, peer, &size, sizeof(size)));
    for (int i = 0; i < TRY_COUNT; i++) {
        (void)send(end->fd, zeros, size - end->headers_size, 0); /* one that cannot be sent does not arrive */
    }
    WEFT_TRY(weft_comm_recv(comm, peer, &has_come, sizeof(has_come)));
    *has_come_out = has_come != 0;
    return WEFT_OK;
}

static uint32_t announced_mtu(const struct end *end)
{
    int mtu = 0;
    socklen_t size = sizeof(mtu);

    if (getsockopt(end->fd, end->is_v6 ? IPPROTO_IPV6 : IPPROTO_IP, end->is_v6 ? IPV6_MTU : IP_MTU, &mtu, &size) != 0) {
        return 0;
    }
    return mtu > 0 ? (uint32_t)mtu : 0;
}

static enum weft_status ask(struct weft_comm *comm, uint32_t peer, const struct end *end, struct weft_doctor_mtu *mtu)
{
    uint32_t low = PACKET_SMALL, high = mtu->interface_mtu < PACKET_MAX ? mtu->interface_mtu : PACKET_MAX;
    const uint32_t enough = 0;
    bool has_come = false;

    WEFT_TRY(ask_size(comm, peer, end, low, &has_come));
    if (has_come && high > low) {
        mtu->path_mtu = low;
        WEFT_TRY(ask_size(comm, peer, end, high, &has_come));
        mtu->announced = has_come ? 0 : announced_mtu(end);
        low = has_come ? high : low;
        while (high - low > 1) {
            uint32_t middle = low + (high - low) / 2;

            WEFT_TRY(ask_size(comm, peer, end, middle, &has_come));
            low = has_come ? middle : low;
            high = has_come ? high : middle;
        }
        mtu->path_mtu = low;
    }
    return weft_comm_send(comm, peer, &enough, sizeof(enough));
}

/* Whether a datagram of that size comes; older ones of other sizes are passed over. */
static bool wait_for(const struct end *end, uint32_t size)
{
    int64_t until = now_ms() + WAIT_MS;

    for (;;) {
        struct pollfd poll_fd = {.fd = end->fd, .events = POLLIN};
        ssize_t got = recv(end->fd, NULL, 0, MSG_TRUNC); /* its size is all we want */
        int64_t left = until - now_ms();

        if (got >= 0 && (uint32_t)got + end->headers_size == size) {
            return true;
        }
        if (got < 0 && (left <= 0 || poll(&poll_fd, 1, (int)left) <= 0)) {
            return false;
        }
    }
}

static enum weft_status answer(struct weft_comm *comm, uint32_t peer, const struct end *end)
{
    for (;;) {
        uint32_t size = 0;
        uint8_t has_come;

        WEFT_TRY(weft_comm_recv(comm, peer, &size, sizeof(size)));
        if (size == 0) {
            return WEFT_OK;
        }
        has_come = wait_for(end, size);
        WEFT_TRY(weft_comm_send(comm, peer, &has_come, sizeof(has_come)));
    }
}

enum weft_status weft_doctor_mtu_measure(struct weft_comm *comm, uint32_t peer, bool is_first,
                                         struct weft_doctor_mtu *mtu_out)
{
    struct weft_doctor_mtu mtu = {.path_mtu = 0};
    struct weft_comm_path path = {.mtu = 0};
    struct end end = {.fd = -1};
    bool has_path = weft_comm_path(comm, peer, &path);
    bool is_ready = false;
    enum weft_status status = meet(comm, peer, &path, has_path, &end, &is_ready);

    memcpy(mtu.interface, path.interface, sizeof(mtu.interface));
    mtu.interface_mtu = path.mtu;
    for (int turn = 0; status == WEFT_OK && is_ready && turn < 2; turn++) {
        status = (turn == 0) == is_first ? ask(comm, peer, &end, &mtu) : answer(comm, peer, &end);
    }
    if (end.fd >= 0) {
        close(end.fd);
    }
    *mtu_out = mtu;
    return status;
}

bool weft_doctor_mtu_is_black_hole(const struct weft_doctor_mtu *mtu)
{
    bool is_told = mtu->announced > 0 && mtu->announced <= mtu->path_mtu;

    return mtu->path_mtu > 0 && mtu->path_mtu < mtu->interface_mtu && !is_told;
}
