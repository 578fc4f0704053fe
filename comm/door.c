/* Accepting members only. Contract in door.h. */
#include "door.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "weft/log.h"

#define HELLO_MAGIC 0x57454654u /* "WEFT" */
/* A member says hello in the same breath as it connects; a network may delay it by retransmissions. */
#define SILENCE_NS 3000000000u

static_assert(sizeof(struct weft_hello) == 24, "the hello is a wire format");

void weft_door_init(struct weft_door *door, int listen_fd)
{
    door->listen_fd = listen_fd;
    door->fault = 0;
    door->guest_count = 0;
}

static void remove_guest(struct weft_door *door, uint32_t index)
{
    door->guest_count--;
    memmove(&door->guests[index], &door->guests[index + 1], (door->guest_count - index) * sizeof(door->guests[0]));
}

static void refuse_guest(struct weft_door *door, uint32_t index, const struct weft_channel *channel, const char *why)
{
    weft_log(WEFT_LOG_WARN, "comm", "%s: refused a connection that is not of this group: %s", channel->backend->name,
             why);
    close(door->guests[index].fd);
    remove_guest(door, index);
}

/* As far as there is room; false when somebody may still be waiting outside. */
static bool let_in(struct weft_door *door)
{
    int fd;

    while (door->guest_count < WEFT_DOOR_GUESTS) {
        fd = accept4(door->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                door->fault = errno;
            }
            return true;
        }
        door->guests[door->guest_count++] = (struct weft_guest){.fd = fd, .since_ns = weft_comm_clock_ns()};
    }
    return false;
}

static bool is_somebody_outside(const struct weft_door *door)
{
    struct pollfd poll_fd = {.fd = door->listen_fd, .events = POLLIN};

    return poll(&poll_fd, 1, 0) > 0;
}

/* NULL while the hello is fine or not yet complete. */
static const char *listen_to(struct weft_guest *guest, const struct weft_channel *channel)
{
    const struct weft_hello *hello = &guest->hello;
    ssize_t got =
        recv(guest->fd, (char *)&guest->hello + guest->got_size, sizeof(*hello) - guest->got_size, MSG_DONTWAIT);

    if (got == 0) {
        return "closed before saying hello";
    }
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            return strerror(errno);
        }
        return weft_comm_clock_ns() - guest->since_ns > SILENCE_NS ? "said nothing" : NULL;
    }
    guest->got_size += (uint32_t)got;
    if (guest->got_size < sizeof(*hello)) {
        return NULL;
    }
    if (hello->magic != HELLO_MAGIC) {
        return "does not speak Weft";
    }
    if (hello->nonce != channel->options.nonce || hello->to != channel->options.rank) {
        return "seeks another group or rank";
    }
    if (hello->from == channel->options.rank || weft_channel_member_index(channel, hello->from) < 0) {
        return "is not a member";
    }
    return NULL;
}

/* The first guest who has said a correct hello; -1. Whoever says something else goes. */
static int hear_guests(struct weft_door *door, const struct weft_channel *channel, uint32_t *rank_out)
{
    for (uint32_t i = 0; i < door->guest_count;) {
        struct weft_guest *guest = &door->guests[i];
        const char *complaint = listen_to(guest, channel);

        if (complaint != NULL) {
            refuse_guest(door, i, channel, complaint);
        } else if (guest->got_size == sizeof(guest->hello)) {
            int fd = guest->fd;

            *rank_out = guest->hello.from;
            remove_guest(door, i);
            return fd;
        } else {
            i++;
        }
    }
    return -1;
}

int weft_door_accept(struct weft_door *door, const struct weft_channel *channel, uint32_t *rank_out)
{
    for (;;) {
        bool is_nobody_left = let_in(door);
        int fd = hear_guests(door, channel, rank_out);

        if (fd >= 0 || is_nobody_left) {
            return fd;
        }
        if (door->guest_count == WEFT_DOOR_GUESTS) {
            if (!is_somebody_outside(door)) {
                return -1;
            }
            refuse_guest(door, 0, channel, "too many silent connections");
        }
    }
}

int weft_door_knock(int fd, const struct weft_channel *channel, uint32_t to)
{
    const struct weft_hello hello = {
        .magic = HELLO_MAGIC, .from = channel->options.rank, .to = to, .nonce = channel->options.nonce};
    ssize_t sent = send(fd, &hello, sizeof(hello), MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent == (ssize_t)sizeof(hello)) {
        return 0;
    }
    if (sent >= 0) {
        errno = EPROTO; /* 24 bytes always fit an empty send buffer */
    }
    return -1;
}

void weft_door_fini(struct weft_door *door)
{
    while (door->guest_count > 0) {
        close(door->guests[0].fd);
        remove_guest(door, 0);
    }
    if (door->listen_fd >= 0) {
        close(door->listen_fd);
        door->listen_fd = -1;
    }
}
