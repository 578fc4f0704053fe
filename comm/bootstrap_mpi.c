/*
 * The mpi bootstrap: MPI starts the processes and passes the leader's addresses and a one-time secret; then the star of
 * the tcp bootstrap takes over. MPI is not used again until close, except by comm_mpi.c: mpirun's idea of who lives
 * comes late (seconds, or never), and an MPI call after a death may hang.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "weft/log.h"

#define MPI_LOG "comm/bootstrap_mpi"

enum { CLOSE_MS = 5000 };

/* What rank 0 tells the others. */
struct invitation {
    uint32_t count; /* 0: rank 0 cannot listen */
    struct tcp_target targets[TCP_TARGET_MAX];
    uint8_t secret[32];
};

bool weft_bootstrap_has_mpi(void)
{
    /* Open MPI's own mpirun; PMIx by itself (srun --mpi=pmix, prterun). */
    return getenv("OMPI_COMM_WORLD_SIZE") != NULL || (getenv("PMIX_RANK") != NULL && getenv("PMIX_NAMESPACE") != NULL);
}

static void set_port(struct tcp_target *target, in_port_t port)
{
    if (target->address.ss_family == AF_INET) {
        ((struct sockaddr_in *)&target->address)->sin_port = port;
    } else {
        ((struct sockaddr_in6 *)&target->address)->sin6_port = port;
    }
}

/* The addresses of every interface that is up, loopback and link-local ones left out. */
static uint32_t list_addresses(struct tcp_target *targets_out, uint32_t capacity)
{
    struct ifaddrs *interfaces;
    uint32_t count = 0;

    if (getifaddrs(&interfaces) != 0) {
        return 0;
    }
    for (struct ifaddrs *i = interfaces; i != NULL && count < capacity; i = i->ifa_next) {
        bool is_v6 = i->ifa_addr != NULL && i->ifa_addr->sa_family == AF_INET6;

        if (i->ifa_addr == NULL || (i->ifa_addr->sa_family != AF_INET && !is_v6) || (i->ifa_flags & IFF_UP) == 0 ||
            (i->ifa_flags & IFF_LOOPBACK) != 0 ||
            (is_v6 && IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr))) {
            continue;
        }
        targets_out[count].size = is_v6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
        memcpy(&targets_out[count].address, i->ifa_addr, targets_out[count].size);
        count++;
    }
    freeifaddrs(interfaces);
    return count;
}

/*
 * Rank 0: a socket and how to reach it; -1 when that fails, and the invitation says so. All ranks on one host meet over
 * loopback, which nobody outside can touch; otherwise every interface is offered and the secret keeps strangers out.
 */
static int invite(bool is_one_host, struct invitation *out)
{
    struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_storage bound;
    socklen_t size = sizeof(bound);
    int fd =
        is_one_host ? weft_tcp_listen((struct sockaddr *)&loopback, sizeof(loopback)) : weft_tcp_listen_everywhere(0);

    memset(out, 0, sizeof(*out));
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&bound, &size) < 0) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "listen: %s", strerror(errno));
    } else if (weft_tcp_random(out->secret, sizeof(out->secret)) == WEFT_OK) {
        if (is_one_host) {
            memcpy(&out->targets[0].address, &loopback, sizeof(loopback));
            out->targets[0].size = sizeof(loopback);
            out->count = 1;
        } else {
            out->count = list_addresses(out->targets, TCP_TARGET_MAX);
        }
        for (uint32_t i = 0; i < out->count; i++) {
            set_port(&out->targets[i], bound.ss_family == AF_INET ? ((struct sockaddr_in *)&bound)->sin_port
                                                                  : ((struct sockaddr_in6 *)&bound)->sin6_port);
        }
        if (out->count == 0) {
            weft_log(WEFT_LOG_ERROR, MPI_LOG, "no network interface is up that other hosts could reach");
        }
    }
    if (out->count == 0 && fd >= 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* 0: on a network of ours; 1: elsewhere, by some route; 2: our own address, so hardly the leader's (docker0 ...). */
static int distance(const struct tcp_target *target, const struct ifaddrs *interfaces)
{
    const struct sockaddr_in *address = (const struct sockaddr_in *)&target->address;
    int result = 1;

    for (const struct ifaddrs *i = interfaces; i != NULL && address->sin_family == AF_INET; i = i->ifa_next) {
        const struct sockaddr_in *own = (const void *)i->ifa_addr;
        const struct sockaddr_in *mask = (const void *)i->ifa_netmask;

        if (own == NULL || own->sin_family != AF_INET || mask == NULL || (i->ifa_flags & IFF_LOOPBACK) != 0) {
            continue;
        }
        if (own->sin_addr.s_addr == address->sin_addr.s_addr) {
            return 2;
        }
        if ((own->sin_addr.s_addr & mask->sin_addr.s_addr) == (address->sin_addr.s_addr & mask->sin_addr.s_addr)) {
            result = 0;
        }
    }
    return result;
}

static size_t resolve(void *context, struct tcp_target *targets_out, char *error_out, size_t error_size)
{
    const struct invitation *invitation = context;
    struct ifaddrs *interfaces = NULL;
    size_t count = 0;

    (void)error_out;
    (void)error_size;
    (void)getifaddrs(&interfaces); /* without them every distance is 1 */
    for (int wanted = 0; wanted <= 2; wanted++) {
        for (uint32_t i = 0; i < invitation->count; i++) {
            if (distance(&invitation->targets[i], interfaces) == wanted) {
                targets_out[count++] = invitation->targets[i];
            }
        }
    }
    if (interfaces != NULL) {
        freeifaddrs(interfaces);
    }
    return count;
}

/* MPI_Finalize waits for every rank: only when all have come here, and none has failed. */
static void close_begin(struct weft_bootstrap *bootstrap)
{
    uint8_t *parts = malloc(bootstrap->rank_count);
    uint8_t here = 1;
    bool is_complete = parts != NULL && weft_bootstrap_all_gather(bootstrap, &here, 1, parts, CLOSE_MS) == WEFT_OK;

    bootstrap->state = is_complete ? bootstrap : NULL;
    free(parts);
}

static void close_end(struct weft_bootstrap *bootstrap)
{
    if (bootstrap->state != NULL) {
        (void)MPI_Finalize();
    } else {
        weft_log(WEFT_LOG_DEBUG, MPI_LOG, "not all ranks are there: MPI_Finalize is left out");
    }
}

static const struct star_hooks hooks = {.close_begin = close_begin, .close_end = close_end};

static enum weft_status start_mpi(int *rank_out, int *rank_count_out)
{
    int is_initialized = 0;
    int provided = 0;

    MPI_Initialized(&is_initialized);
    if (is_initialized != 0) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "MPI has been initialised before in this process");
        return WEFT_ERR_STATE;
    }
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "MPI_Init_thread failed");
        return WEFT_ERR_IO;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, rank_out);
    MPI_Comm_size(MPI_COMM_WORLD, rank_count_out);
    if (provided < MPI_THREAD_SERIALIZED) {
        weft_log(WEFT_LOG_WARN, MPI_LOG, "this MPI offers thread level %d only: the mpi backend needs one thread",
                 provided);
    }
    if ((uint32_t)*rank_count_out > STAR_RANK_MAX) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "%d ranks: at most %u", *rank_count_out, STAR_RANK_MAX);
        return WEFT_ERR_LIMIT;
    }
    return WEFT_OK;
}

static enum weft_status broken(const char *what)
{
    weft_log(WEFT_LOG_ERROR, MPI_LOG, "%s failed", what);
    return WEFT_ERR_IO;
}

/* Whether all ranks share this host: the smallest and the largest host id are one. */
static enum weft_status ask_one_host(const struct weft_bootstrap *bootstrap, bool *is_one_host_out)
{
    uint64_t own[2] = {weft_bootstrap_host_id(bootstrap), ~weft_bootstrap_host_id(bootstrap)};
    uint64_t least[2];

    if (MPI_Allreduce(own, least, 2, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD) != MPI_SUCCESS) {
        return broken("MPI_Allreduce");
    }
    *is_one_host_out = least[0] == ~least[1];
    return WEFT_OK;
}

static enum weft_status meet(struct weft_bootstrap *bootstrap, uint32_t timeout_ms)
{
    struct invitation invitation;
    struct tcp_join join = {.leader = "of MPI_COMM_WORLD", .resolve = resolve, .context = &invitation};
    enum weft_status status = WEFT_OK;
    int listen_fd = -1;
    bool is_one_host = false;

    WEFT_TRY(ask_one_host(bootstrap, &is_one_host));
    if (bootstrap->rank == 0) {
        listen_fd = invite(is_one_host, &invitation);
    }
    if (MPI_Bcast(&invitation, sizeof(invitation), MPI_BYTE, 0, MPI_COMM_WORLD) != MPI_SUCCESS) {
        status = broken("MPI_Bcast");
    } else if (invitation.count == 0 || invitation.count > TCP_TARGET_MAX) {
        status = WEFT_ERR_IO; /* rank 0 has said why */
    }
    join.secret = (struct tcp_secret){invitation.secret, sizeof(invitation.secret)};
    join.timeout_ms = timeout_ms;
    if (status == WEFT_OK && bootstrap->rank != 0) {
        status = weft_tcp_join(bootstrap, &join);
    } else if (status == WEFT_OK) {
        status = weft_tcp_accept_all(bootstrap, listen_fd, &join.secret, timeout_ms);
        if (status == WEFT_OK) {
            status = weft_star_go(bootstrap, weft_star_deadline(timeout_ms));
        }
    }
    if (listen_fd >= 0) {
        close(listen_fd);
    }
    return status;
}

enum weft_status weft_bootstrap_open_mpi(uint32_t timeout_ms, struct weft_bootstrap **out)
{
    struct weft_bootstrap *bootstrap;
    enum weft_status status;
    int rank = 0;
    int rank_count = 1;

    WEFT_TRY(start_mpi(&rank, &rank_count));
    WEFT_TRY(weft_star_open("mpi", (uint32_t)rank, (uint32_t)rank_count, &bootstrap));
    weft_log_set_rank(rank);
    status = rank_count > 1 ? meet(bootstrap, timeout_ms) : WEFT_OK;
    if (status != WEFT_OK) {
        weft_star_free(bootstrap);
        return status;
    }
    bootstrap->hooks = &hooks;
    *out = bootstrap;
    return WEFT_OK;
}
