/* Ports on loopback for listeners that a test starts later, which nothing else takes meanwhile. */
#ifndef WEFT_TESTS_COMM_PLACE_H
#define WEFT_TESTS_COMM_PLACE_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Below what the kernel gives to sockets without a wish (32768 and more), any of which may be taken a moment later. */
enum { PLACE_PORT_MIN = 10000, PLACE_PORT_MAX = 32000 };

struct place {
    uint16_t port;
    char text[32]; /* 127.0.0.1:PORT */
};

static inline bool place_bind(int fd, uint16_t port)
{
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};

    return fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0;
}

/*
 * A place nobody listens at, until the next call. `*mark` (-1 at first) is a UDP socket on the same number, which keeps
 * other tests off it: they ask the same way (free_port() of tests/e2e too).
 */
static inline struct place place_take(int *mark)
{
    struct place place = {.port = 0};

    if (*mark >= 0) {
        close(*mark);
    }
    for (uint32_t attempt = 0; place.port == 0; attempt++) {
        uint32_t mixed =
            ((uint32_t)getpid() * 2654435761u + (uint32_t)rand() + attempt) % (PLACE_PORT_MAX - PLACE_PORT_MIN);
        uint16_t port = (uint16_t)(PLACE_PORT_MIN + mixed);
        int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        *mark = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (place_bind(*mark, port) && place_bind(probe, port)) {
            place.port = port;
        } else {
            close(*mark);
        }
        close(probe);
    }
    (void)snprintf(place.text, sizeof(place.text), "127.0.0.1:%u", place.port);
    return place;
}

#endif
