/* The tcp bootstrap: every process is told the leader's address, its rank and the rank count (LWS, Slurm, Ray, hand).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "weft/log.h"

enum { HOST_SIZE = 256, PORT_SIZE = 8 };

struct endpoint {
    char host[HOST_SIZE];
    char port[PORT_SIZE];
};

/* "host:port" or "[v6]:port" with a port in 1..65535. */
static enum weft_status parse_endpoint(const char *text, struct endpoint *out)
{
    const char *colon = text != NULL ? strrchr(text, ':') : NULL;
    const char *host = text;
    size_t host_size;
    char *end = NULL;
    long port = colon != NULL ? strtol(colon + 1, &end, 10) : 0;

    if (colon == NULL || end == colon + 1 || *end != '\0' || port < 1 || port > 65535) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "leader address: expected HOST:PORT or [V6]:PORT, found \"%s\"",
                 text != NULL ? text : "");
        return WEFT_ERR_ARGUMENT;
    }
    host_size = (size_t)(colon - host);
    if (host_size >= 2 && host[0] == '[' && host[host_size - 1] == ']') {
        host++;
        host_size -= 2;
    } else if (memchr(host, ':', host_size) != NULL) {
        host_size = 0; /* a bare IPv6 address: where does the port begin? */
    }
    if (host_size == 0 || host_size >= sizeof(out->host)) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "leader address: expected HOST:PORT or [V6]:PORT, found \"%s\"", text);
        return WEFT_ERR_ARGUMENT;
    }
    memcpy(out->host, host, host_size);
    out->host[host_size] = '\0';
    (void)snprintf(out->port, sizeof(out->port), "%ld", port);
    return WEFT_OK;
}

static size_t resolve(void *context, struct tcp_target *targets_out, char *error_out, size_t error_size)
{
    const struct endpoint *endpoint = context;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    size_t count = 0;
    int error = getaddrinfo(endpoint->host, endpoint->port, &hints, &found);

    if (error != 0) {
        (void)snprintf(error_out, error_size, "resolve: %s", gai_strerror(error));
        return 0;
    }
    for (struct addrinfo *a = found; a != NULL && count < TCP_TARGET_MAX; a = a->ai_next) {
        memcpy(&targets_out[count].address, a->ai_addr, a->ai_addrlen);
        targets_out[count++].size = a->ai_addrlen;
    }
    freeaddrinfo(found);
    return count;
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        return (ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24) == 127;
    }
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

/*
 * The leader listens on the address that its name stands for, so that no other interface is exposed. But a host's own
 * name may resolve to loopback there (Debian writes 127.0.1.1 into /etc/hosts) or to a service address in front of it:
 * then on all interfaces, which the secret has to guard.
 */
static enum weft_status listen_at(const struct endpoint *endpoint, int *fd_out)
{
    char error[128];
    struct tcp_target targets[TCP_TARGET_MAX];
    size_t count = resolve((void *)endpoint, targets, error, sizeof(error));
    bool is_literal = strcmp(endpoint->host, "localhost") == 0 || strchr(endpoint->host, ':') != NULL ||
                      inet_addr(endpoint->host) != INADDR_NONE;
    int fd = -1;

    if (count == 0) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "%s:%s: %s", endpoint->host, endpoint->port, error);
        return WEFT_ERR_ARGUMENT;
    }
    errno = EADDRNOTAVAIL;
    for (size_t i = 0; i < count && fd < 0; i++) {
        if (is_literal || !is_loopback((struct sockaddr *)&targets[i].address)) {
            fd = weft_tcp_listen((struct sockaddr *)&targets[i].address, targets[i].size);
        }
    }
    if (fd < 0 && errno == EADDRNOTAVAIL && !is_literal) {
        fd = weft_tcp_listen_everywhere((uint16_t)atoi(endpoint->port));
    }
    if (fd < 0) {
        int cause = errno;
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "listen on %s:%s: %s%s", endpoint->host, endpoint->port, strerror(cause),
                 cause == EADDRINUSE ? " (another rank 0, or another program, has this port)" : "");
        return weft_status_of_errno(cause);
    }
    *fd_out = fd;
    return WEFT_OK;
}

static enum weft_status meet(struct weft_bootstrap *bootstrap, const struct weft_bootstrap_tcp_options *options,
                             struct endpoint *endpoint)
{
    const char *text = options->secret != NULL ? options->secret : "";
    struct tcp_join join = {.leader = options->leader,
                            .resolve = resolve,
                            .context = endpoint,
                            .secret = {text, strlen(text)},
                            .program = options->program,
                            .local_rank = options->local_rank,
                            .local_count = options->local_count,
                            .timeout_ms = options->timeout_ms,
                            .trouble = options->trouble,
                            .trouble_status = options->trouble_status};
    struct tcp_invite invite = {.secret = join.secret,
                                .timeout_ms = options->timeout_ms,
                                .local_count = options->local_count,
                                .program = options->program,
                                .hosts = options->hosts,
                                .trouble = options->trouble,
                                .watch_fd = options->watch_fd};
    enum weft_status status;

    if (options->rank != 0) {
        return weft_tcp_join(bootstrap, &join);
    }
    WEFT_TRY(listen_at(endpoint, &invite.listen_fd));
    status = weft_tcp_accept_all(bootstrap, &invite);
    close(invite.listen_fd);
    return status == WEFT_OK ? weft_star_go(bootstrap, weft_star_deadline(options->timeout_ms)) : status;
}

enum weft_status weft_bootstrap_open_tcp(const struct weft_bootstrap_tcp_options *options, struct weft_bootstrap **out)
{
    struct weft_bootstrap *bootstrap;
    struct endpoint endpoint;
    enum weft_status status;

    if (options->rank_count == 0 || options->rank_count > STAR_RANK_MAX ||
        (options->rank >= options->rank_count && options->rank != WEFT_BOOTSTRAP_RANK_ANY)) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "rank %u of %u ranks: expected a rank below a count of 1 to %u",
                 options->rank, options->rank_count, STAR_RANK_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    WEFT_TRY(parse_endpoint(options->leader, &endpoint));
    WEFT_TRY(weft_star_open("tcp", options->rank, options->rank_count, &bootstrap));
    weft_log_set_rank(options->rank == WEFT_BOOTSTRAP_RANK_ANY ? -1 : (int)options->rank);
    status = options->rank_count > 1    ? meet(bootstrap, options, &endpoint)
             : options->trouble != NULL ? WEFT_ERR_STATE
                                        : WEFT_OK;
    if (status != WEFT_OK) {
        weft_star_free(bootstrap);
        return status;
    }
    *out = bootstrap;
    return WEFT_OK;
}
