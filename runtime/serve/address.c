/* Listening sockets. */
#include "address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve.h"
#include "weft/log.h"

/* Splits "host:port" or "[v6]:port"; true when it has that form. */
static bool address_split(const char *address, char *host, size_t host_size, const char **port_out)
{
    const char *colon = strrchr(address, ':');
    size_t size;

    if (colon == NULL || colon == address || colon[1] == 0 || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
        strlen(colon + 1) > 5 || atoi(colon + 1) > 65535) {
        return false;
    }
    size = (size_t)(colon - address);
    if (address[0] == '[' && address[size - 1] == ']') {
        address++;
        size -= 2;
    } else if (memchr(address, ':', size) != NULL) {
        return false;
    }
    if (size == 0 || size >= host_size) {
        return false;
    }
    memcpy(host, address, size);
    host[size] = 0;
    *port_out = colon + 1;
    return true;
}

static enum weft_status split(const char *address, char *host, size_t host_size, const char **port_out)
{
    if (!address_split(address, host, host_size, port_out)) {
        weft_log(WEFT_LOG_ERROR, "serve", "address \"%s\": expected HOST:PORT, for example 127.0.0.1:50051", address);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

/* -1 with errno. */
static int socket_listen(const struct addrinfo *where)
{
    const int one = 1;
    int fd = socket(where->ai_family, where->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, where->ai_protocol);

    if (fd < 0) {
        return -1;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, where->ai_addr, where->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static uint32_t port_of(int fd)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof(bound);

    if (getsockname(fd, (struct sockaddr *)&bound, &size) != 0) {
        return 0;
    }
    return ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                             : ((struct sockaddr_in *)&bound)->sin_port);
}

enum weft_status weft_address_listen(const char *address, int *fd_out, uint32_t *port_out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const char *port;
    char host[256];
    int error;
    int fd;

    WEFT_TRY(split(address, host, sizeof(host), &port));
    error = getaddrinfo(host, port, &hints, &found);
    if (error != 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "address \"%s\": %s", address, gai_strerror(error));
        return WEFT_ERR_IO;
    }
    fd = socket_listen(found);
    error = errno;
    freeaddrinfo(found);
    if (fd < 0) {
        weft_log(WEFT_LOG_ERROR, "serve", "cannot listen on %s: %s", address, strerror(error));
        return weft_status_of_errno(error);
    }
    *fd_out = fd;
    *port_out = port_of(fd);
    return WEFT_OK;
}

enum weft_status weft_server_address_check(const char *address)
{
    const char *port;
    char host[256];

    return split(address, host, sizeof(host), &port);
}
