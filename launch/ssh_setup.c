/* --hosts, before anything starts: is the list one that can work, where does rank 0 listen, what is the secret. */
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static bool refuse(const struct weft_settings *settings, const char *text)
{
    fprintf(stderr, "weft %s: --hosts: %s\n", settings->command, text);
    return false;
}

/* Without "user@". */
static const char *bare_name(const char *host)
{
    const char *at = strrchr(host, '@');

    return at != NULL ? at + 1 : host;
}

/* Whether a name means this host: by name, or because its address can be bound here. */
static bool is_here(const char *name, const char *host_name)
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    size_t short_size = strcspn(host_name, ".");
    bool is_ours = strcmp(name, "localhost") == 0 || strcmp(name, host_name) == 0 ||
                   (strncmp(name, host_name, short_size) == 0 && name[short_size] == 0);

    if (is_ours || getaddrinfo(name, NULL, &hints, &found) != 0) {
        return is_ours;
    }
    for (const struct addrinfo *a = found; a != NULL && !is_ours; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        is_ours = fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0;
        if (fd >= 0) {
            close(fd);
        }
    }
    freeaddrinfo(found);
    return is_ours;
}

/* A port that is free now; 0: none. */
static uint32_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                    getsockname(fd, (struct sockaddr *)&address, &size) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return is_bound ? ntohs(address.sin_port) : 0;
}

/* Somebody else has started this process as one of several: each of them would start a group of its own. */
static bool is_alone(const struct weft_settings *settings, const struct weft_placement_request *request)
{
    struct weft_placement_request bare = *request;
    struct weft_placement placement;
    char error[WEFT_PLACEMENT_ERROR_SIZE];
    char text[WEFT_HOSTS_ERROR_SIZE];

    bare.leader = bare.rank_origin = bare.rank_count_origin = NULL;
    bare.local_count = bare.leader_port = 0;
    if (!weft_placement_resolve(&bare, &placement, error) || placement.launcher == WEFT_LAUNCHER_NONE) {
        return true;
    }
    (void)snprintf(text, sizeof(text), "starts the ranks itself, but %s has already started this one (%s)",
                   weft_launcher_name(placement.launcher), placement.rank_origin);
    return refuse(settings, text);
}

static bool request_check(const struct weft_setup *setup, const struct weft_settings *settings,
                          const struct weft_placement_request *request)
{
    const char *first = bare_name(setup->host_list.names[0]);
    char text[WEFT_HOSTS_ERROR_SIZE];

    if (request->leader != NULL || request->rank_origin != NULL || request->local_count > 0) {
        (void)snprintf(text, sizeof(text), "ranks are numbered along the list: leave out %s",
                       request->leader != NULL        ? request->leader_origin
                       : request->rank_origin != NULL ? request->rank_origin
                                                      : "--local-ranks (write HOST:2)");
        return refuse(settings, text);
    }
    if (request->rank_count_origin != NULL && request->rank_count != setup->host_list.rank_count) {
        (void)snprintf(text, sizeof(text), "%s is %u, but the list has %u ranks", request->rank_count_origin,
                       request->rank_count, setup->host_list.rank_count);
        return refuse(settings, text);
    }
    if (!is_here(first, request->host_name)) {
        (void)snprintf(text, sizeof(text), "the first host is the leader's: expected this one (%.60s), found %.100s",
                       request->host_name, first);
        return refuse(settings, text);
    }
    return true;
}

bool weft_setup_hosts_read(struct weft_setup *setup, const struct weft_settings *settings,
                           struct weft_placement_request *request, char *leader, size_t size)
{
    char error[WEFT_HOSTS_ERROR_SIZE];
    const char *first;

    if (!weft_host_list_parse(settings->hosts, &setup->host_list, error)) {
        return refuse(settings, error);
    }
    if (!is_alone(settings, request) || !request_check(setup, settings, request)) {
        return false;
    }
    setup->leader_port = settings->leader_port > 0 ? settings->leader_port : free_port();
    if (setup->leader_port == 0) {
        return refuse(settings, "no free port to listen on");
    }
    first = bare_name(setup->host_list.names[0]);
    /* The others cannot find "localhost": they come back to where ssh came from, whatever interface that is. */
    (void)snprintf(leader, size, strchr(first, ':') != NULL ? "[%s]:%u" : "%s:%u",
                   strcmp(first, "localhost") == 0 && setup->host_list.count > 1 ? "0.0.0.0" : first,
                   setup->leader_port);
    request->leader = leader;
    request->leader_origin = request->rank_origin = request->rank_count_origin = "--hosts";
    request->rank = 0;
    request->rank_count = setup->host_list.rank_count;
    request->local_count = setup->host_list.slots[0] > 1 ? setup->host_list.slots[0] : 0;
    request->leader_port = 0;
    return true;
}

bool weft_setup_hosts_start(struct weft_setup *setup, const struct weft_settings *settings)
{
    const char *first = bare_name(setup->host_list.names[0]);
    const struct weft_hosts_args args = {.list = &setup->host_list,
                                         .settings = settings,
                                         .leader_host = strcmp(first, "localhost") == 0 ? "" : first,
                                         .leader_port = setup->leader_port,
                                         .secret = setup->secret};

    if (!weft_hosts_start(&args, &setup->ssh)) {
        return false;
    }
    setup->options.launcher_fd = setup->ssh.trouble_fd;
    return true;
}
