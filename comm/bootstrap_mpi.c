/*
 * The mpi bootstrap: MPI starts the processes and passes the leader's addresses and a one-time secret; then the star of
 * the tcp bootstrap takes over. MPI is not used again until close, except by comm_mpi.c: mpirun's idea of who lives
 * comes late (seconds, or never), and an MPI call after a death may hang.
 */
#include <errno.h>
#include <mpi.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "mpi_turn.h"
#include "netif.h"
#include "weft/log.h"

#define MPI_LOG "comm/bootstrap_mpi"

enum {
    CLOSE_MS = 5000,
    LEADER_MS = 600, /* for the leader to say what happened and end; half of what a stuck process is given */
};

/* What rank 0 tells the others. */
struct invitation {
    uint32_t count; /* 0: rank 0 cannot listen */
    uint16_t port;
    struct weft_netif_address addresses[TCP_TARGET_MAX];
    uint8_t secret[32];
};

static uint32_t list_addresses(const char *interface, struct weft_netif_address *addresses_out)
{
    struct weft_netif_address all[TCP_TARGET_MAX];
    size_t all_count = weft_netif_list(interface, all, TCP_TARGET_MAX);
    uint32_t count = 0;

    for (size_t i = 0; i < all_count; i++) {
        if (!all[i].is_loopback) {
            addresses_out[count++] = all[i];
        }
    }
    return count;
}

/*
 * Rank 0: a socket and how to reach it; -1 when that fails, and the invitation says so. All ranks on one host meet over
 * loopback, which nobody outside can touch; otherwise every interface, or those asked for, are offered and the secret
 * keeps strangers out.
 */
static int invite(bool is_one_host, const char *interface, struct invitation *out)
{
    const struct weft_netif_address loopback = {
        .family = 4, .prefix_size = 8, .is_loopback = 1, .bytes = {127, 0, 0, 1}};
    struct sockaddr_storage name;
    socklen_t size = weft_netif_sockaddr(&loopback, 0, &name);
    int fd = is_one_host ? weft_tcp_listen((struct sockaddr *)&name, size) : weft_tcp_listen_everywhere(0);

    memset(out, 0, sizeof(*out));
    size = sizeof(name);
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&name, &size) < 0) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "listen: %s", strerror(errno));
    } else if (weft_tcp_random(out->secret, sizeof(out->secret)) == WEFT_OK) {
        out->port = ntohs(name.ss_family == AF_INET ? ((struct sockaddr_in *)&name)->sin_port
                                                    : ((struct sockaddr_in6 *)&name)->sin6_port);
        out->addresses[0] = loopback;
        out->count = is_one_host ? 1 : list_addresses(interface, out->addresses);
        out->count = out->count == 0 ? list_addresses(NULL, out->addresses) : out->count;
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
static int distance(const struct weft_netif_address *target, const struct weft_netif_address *own, size_t own_count)
{
    int result = 1;

    for (size_t i = 0; i < own_count; i++) {
        if (own[i].is_loopback || own[i].family != target->family) {
            continue;
        }
        if (memcmp(own[i].bytes, target->bytes, sizeof(target->bytes)) == 0) {
            return 2;
        }
        result = weft_netif_is_same_subnet(&own[i], target) ? 0 : result;
    }
    return result;
}

static size_t resolve(void *context, struct tcp_target *targets_out, char *error_out, size_t error_size)
{
    const struct invitation *invitation = context;
    struct weft_netif_address own[64];
    size_t own_count = weft_netif_list(NULL, own, sizeof(own) / sizeof(own[0]));
    size_t count = 0;

    (void)error_out;
    (void)error_size;
    for (int wanted = 0; wanted <= 2; wanted++) {
        for (uint32_t i = 0; i < invitation->count; i++) {
            const struct weft_netif_address *address = &invitation->addresses[i];

            if (distance(address, own, own_count) == wanted) {
                targets_out[count].size = weft_netif_sockaddr(address, invitation->port, &targets_out[count].address);
                count++;
            }
        }
    }
    return count;
}

/*
 * After a failure the leader ends first: when one rank has ended with an error mpirun ends all, and for a second passes
 * nothing on that they say. Nobody waits for a leader that is itself the failed one.
 */
static void let_leader_end(struct weft_bootstrap *bootstrap)
{
    struct pollfd wait = {.fd = bootstrap->peers[0].control_fd, .events = POLLRDHUP};

    if (bootstrap->rank != 0 && bootstrap->failed_rank > 0 && wait.fd >= 0) {
        (void)poll(&wait, 1, LEADER_MS);
    }
}

/* Of the group, in its bootstrap's `state`. */
struct turn {
    pthread_mutex_t mutex;
    bool is_finalized; /* under the mutex: MPI may not be called any more */
    bool is_complete;  /* every rank comes to MPI_Finalize */
};

static void turn_close(struct turn **turn)
{
    pthread_mutex_destroy(&(*turn)->mutex);
    free(*turn);
    *turn = NULL;
}

static enum weft_status turn_open(struct turn **out)
{
    struct turn *turn = calloc(1, sizeof(*turn));

    if (turn == NULL) {
        weft_log(WEFT_LOG_ERROR, MPI_LOG, "out of memory");
        return WEFT_ERR_MEMORY;
    }
    pthread_mutex_init(&turn->mutex, NULL);
    *out = turn;
    return WEFT_OK;
}

bool weft_mpi_turn_begin(struct weft_bootstrap *bootstrap)
{
    struct turn *turn = bootstrap->state;

    pthread_mutex_lock(&turn->mutex);
    if (turn->is_finalized) {
        pthread_mutex_unlock(&turn->mutex);
        return false;
    }
    return true;
}

void weft_mpi_turn_end(struct weft_bootstrap *bootstrap)
{
    struct turn *turn = bootstrap->state;

    pthread_mutex_unlock(&turn->mutex);
}

/* Once. */
static void finalize(struct weft_bootstrap *bootstrap)
{
    if (weft_mpi_turn_begin(bootstrap)) {
        (void)MPI_Finalize();
        ((struct turn *)bootstrap->state)->is_finalized = true;
        weft_mpi_turn_end(bootstrap);
    }
}

/* MPI_Finalize waits for every rank: only when all have come here, and none has failed. */
static void close_begin(struct weft_bootstrap *bootstrap)
{
    struct turn *turn = bootstrap->state;
    uint8_t *parts = malloc(bootstrap->rank_count);
    uint8_t here = 1;
    bool is_complete = parts != NULL && weft_bootstrap_all_gather(bootstrap, &here, 1, parts, CLOSE_MS) == WEFT_OK;

    /* In a group that was ended nobody is missing: whoever is still at work takes leave all the same. */
    turn->is_complete = is_complete || weft_bootstrap_is_ended(bootstrap);
    free(parts);
    let_leader_end(bootstrap);
}

static void close_end(struct weft_bootstrap *bootstrap)
{
    struct turn *turn = bootstrap->state;

    if (turn->is_complete) {
        finalize(bootstrap);
    } else {
        weft_log(WEFT_LOG_DEBUG, MPI_LOG, "not all ranks are there: MPI_Finalize is left out");
    }
    bootstrap->state = NULL;
    turn_close(&turn);
}

static const struct star_hooks hooks = {.close_begin = close_begin, .take_leave = finalize, .close_end = close_end};

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

static enum weft_status meet(struct weft_bootstrap *bootstrap, const char *interface, uint32_t timeout_ms)
{
    struct invitation invitation;
    struct tcp_join join = {.leader = "of MPI_COMM_WORLD", .resolve = resolve, .context = &invitation};
    enum weft_status status = WEFT_OK;
    int listen_fd = -1;
    bool is_one_host = false;

    WEFT_TRY(ask_one_host(bootstrap, &is_one_host));
    if (bootstrap->rank == 0) {
        listen_fd = invite(is_one_host, interface, &invitation);
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
        const struct tcp_invite invite = {.listen_fd = listen_fd, .secret = join.secret, .timeout_ms = timeout_ms};

        status = weft_tcp_accept_all(bootstrap, &invite);
        if (status == WEFT_OK) {
            status = weft_star_go(bootstrap, weft_star_deadline(timeout_ms));
        }
    }
    if (listen_fd >= 0) {
        close(listen_fd);
    }
    return status;
}

enum weft_status weft_bootstrap_open_mpi(const char *interface, uint32_t timeout_ms, struct weft_bootstrap **out)
{
    struct weft_bootstrap *bootstrap;
    struct turn *turn;
    enum weft_status status;
    int rank = 0;
    int rank_count = 1;

    WEFT_TRY(start_mpi(&rank, &rank_count));
    WEFT_TRY(turn_open(&turn));
    status = weft_star_open("mpi", (uint32_t)rank, (uint32_t)rank_count, &bootstrap);
    if (status != WEFT_OK) {
        turn_close(&turn);
        return status;
    }
    weft_log_set_rank(rank);
    status = rank_count > 1 ? meet(bootstrap, interface, timeout_ms) : WEFT_OK;
    if (status != WEFT_OK) {
        turn_close(&turn);
        weft_star_free(bootstrap);
        return status;
    }
    bootstrap->state = turn;
    bootstrap->hooks = &hooks;
    *out = bootstrap;
    return WEFT_OK;
}
