/*
 * Accepting connections of members and nobody else, without ever blocking on a stranger. Used by tcp and shm.
 *
 * Whoever connects says a 24-byte hello: who it is, whom it seeks, and the group's nonce. Anything else is refused and
 * logged; a silent connection is dropped after a while. The nonce keeps scanners, misdirected clients and other groups
 * out; it is not encryption.
 */
#ifndef WEFT_COMM_DOOR_H
#define WEFT_COMM_DOOR_H

#include <stdint.h>

#include "backend.h"

struct weft_hello {
    uint32_t magic;
    uint32_t from; /* rank */
    uint32_t to;   /* rank */
    uint32_t unused;
    uint64_t nonce;
};

/* More strangers than this at once push the oldest out. */
#define WEFT_DOOR_GUESTS 80

struct weft_door {
    int listen_fd; /* owned, nonblocking */
    int fault;     /* errno of this process's own making (no descriptors left): nobody can come in; else 0 */
    uint32_t guest_count;
    struct weft_guest {
        int fd;
        uint32_t got_size;
        uint64_t since_ns;
        struct weft_hello hello;
    } guests[WEFT_DOOR_GUESTS]; /* oldest first */
};

/* Takes over listen_fd, a listening socket. */
void weft_door_init(struct weft_door *door, int listen_fd);

/* Never blocks. A nonblocking socket of a member that has said a correct hello, its rank in *rank_out; or -1. */
int weft_door_accept(struct weft_door *door, const struct weft_channel *channel, uint32_t *rank_out);

/* Says hello on a freshly connected socket. 0, or -1 with errno. */
int weft_door_knock(int fd, const struct weft_channel *channel, uint32_t to);

void weft_door_fini(struct weft_door *door);

#endif
