/* Guests of the rendezvous. Contract in bootstrap_guest.h. */
#include "bootstrap_guest.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "weft/log.h"

/* How long a guest may take to say who it is. */
enum { GUEST_MS = 5000 };

void weft_tcp_guest_dismiss(struct tcp_guest *guest, const char *reason)
{
    if (reason != NULL) {
        weft_log(WEFT_LOG_WARN, TCP_LOG, "%s refused: %s", guest->address, reason);
    }
    close(guest->fd);
    guest->fd = -1;
}

static struct tcp_guest *free_place(struct tcp_guest *guests)
{
    struct tcp_guest *oldest = &guests[0];

    for (size_t i = 0; i < TCP_GUEST_MAX; i++) {
        struct tcp_guest *guest = &guests[i];

        if (guest->fd < 0) {
            return guest;
        }
        if (guest->deadline < oldest->deadline) {
            oldest = guest;
        }
    }
    weft_tcp_guest_dismiss(oldest, "too many connections at once, and this one is silent");
    return oldest;
}

bool weft_tcp_guest_admit(struct tcp_guest *guests, const struct tcp_invite *invite, uint32_t rank_count)
{
    struct sockaddr_storage address;
    socklen_t address_size = sizeof(address);
    int fd = accept4(invite->listen_fd, (struct sockaddr *)&address, &address_size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct tcp_guest *guest;

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) {
            weft_log(WEFT_LOG_WARN, TCP_LOG, "accept: %s", strerror(errno));
            (void)poll(NULL, 0, 50); /* the door stays readable: do not spin on it */
        }
        return errno == ECONNABORTED || errno == EINTR;
    }
    guest = free_place(guests);
    guest->fd = fd;
    guest->deadline = weft_star_deadline(GUEST_MS);
    guest->answer_have = 0;
    weft_tcp_address_text((struct sockaddr *)&address, address_size, guest->address, sizeof(guest->address));
    /* A fresh socket takes these few bytes at once, or something is wrong with it. */
    if (weft_tcp_challenge(invite->program, rank_count, &guest->challenge) != WEFT_OK ||
        send(fd, &guest->challenge, sizeof(guest->challenge), MSG_DONTWAIT | MSG_NOSIGNAL) !=
            (ssize_t)sizeof(guest->challenge)) {
        weft_tcp_guest_dismiss(guest, "went away at once");
    }
    return true;
}

/* Who speaks something else, or another version, is told apart by the first bytes, and not waited for. */
static bool is_same_program(struct tcp_guest *guest)
{
    struct tcp_answer *answer = &guest->answer;
    char theirs[TCP_WHY_SIZE];
    char ours[TCP_WHY_SIZE];
    char reason[256];

    if (memcmp(answer->preamble.magic, guest->challenge.preamble.magic,
               guest->answer_have < sizeof(answer->preamble.magic) ? guest->answer_have
                                                                   : sizeof(answer->preamble.magic)) != 0) {
        weft_tcp_guest_dismiss(guest, weft_tcp_code_text(TCP_NOT_WEFT));
        return false;
    }
    if (guest->answer_have < sizeof(answer->preamble) ||
        weft_tcp_compare(&guest->challenge.preamble, &answer->preamble) == TCP_ACCEPTED) {
        return true;
    }
    (void)snprintf(reason, sizeof(reason), "is another version: %s, the leader is %s",
                   weft_tcp_program_text(&answer->preamble, theirs),
                   weft_tcp_program_text(&guest->challenge.preamble, ours));
    weft_tcp_guest_dismiss(guest, reason);
    return false;
}

bool weft_tcp_guest_hear(struct tcp_guest *guest)
{
    struct tcp_answer *answer = &guest->answer;
    ssize_t got =
        recv(guest->fd, (char *)answer + guest->answer_have, sizeof(*answer) - guest->answer_have, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        return false;
    }
    if (got <= 0) {
        weft_tcp_guest_dismiss(guest, got == 0 ? "closed before it said who it is" : strerror(errno));
        return false;
    }
    guest->answer_have += (size_t)got;
    if (!is_same_program(guest) || guest->answer_have < sizeof(*answer)) {
        return false;
    }
    answer->host[sizeof(answer->host) - 1] = '\0'; /* as every version of ours sends it */
    return true;
}
