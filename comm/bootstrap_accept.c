/*
 * The leader's side of the TCP rendezvous. One thread, nothing blocks: each connection has its own deadline and a fixed
 * small buffer, and when more knock than there are places the one that has been silent longest goes.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "weft/log.h"

enum { GUEST_MAX = 64, GUEST_MS = 5000, ADDRESS_TEXT = 80 };

/* A connection that has not proved anything yet. */
struct guest {
    int fd; /* owned; -1: free place */
    int64_t deadline;
    struct tcp_challenge challenge;
    struct tcp_answer answer;
    size_t answer_have;
    char address[ADDRESS_TEXT];
};

/* A rank on its way in: some channels are there, others not yet. */
struct half {
    int fds[STAR_CHANNEL_COUNT]; /* owned until attached; -1 */
    uint8_t session[16];
    bool is_in; /* all channels attached to the star */
};

struct reception {
    struct weft_bootstrap *bootstrap;
    const struct tcp_secret *secret;
    int listen_fd;
    struct guest guests[GUEST_MAX];
    struct half *halves; /* [rank_count] */
    struct pollfd polls[GUEST_MAX + 2];
};

static void dismiss(struct guest *guest, const char *reason)
{
    if (reason != NULL) {
        weft_log(WEFT_LOG_WARN, TCP_LOG, "%s refused: %s", guest->address, reason);
    }
    close(guest->fd);
    guest->fd = -1;
}

static struct guest *free_place(struct reception *reception)
{
    struct guest *oldest = &reception->guests[0];

    for (size_t i = 0; i < GUEST_MAX; i++) {
        struct guest *guest = &reception->guests[i];

        if (guest->fd < 0) {
            return guest;
        }
        if (guest->deadline < oldest->deadline) {
            oldest = guest;
        }
    }
    dismiss(oldest, "too many connections at once, and this one is silent");
    return oldest;
}

/* Returns false when nobody else is at the door. */
static bool admit(struct reception *reception)
{
    struct sockaddr_storage address;
    socklen_t address_size = sizeof(address);
    int fd = accept4(reception->listen_fd, (struct sockaddr *)&address, &address_size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct guest *guest;

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) {
            weft_log(WEFT_LOG_WARN, TCP_LOG, "accept: %s", strerror(errno));
            (void)poll(NULL, 0, 50); /* the door stays readable: do not spin on it */
        }
        return errno == ECONNABORTED || errno == EINTR;
    }
    guest = free_place(reception);
    guest->fd = fd;
    guest->deadline = weft_star_deadline(GUEST_MS);
    guest->answer_have = 0;
    weft_tcp_address_text((struct sockaddr *)&address, address_size, guest->address, sizeof(guest->address));
    /* A fresh socket takes these few bytes at once, or something is wrong with it. */
    if (weft_tcp_challenge(reception->bootstrap->rank_count, &guest->challenge) != WEFT_OK ||
        send(fd, &guest->challenge, sizeof(guest->challenge), MSG_DONTWAIT | MSG_NOSIGNAL) !=
            (ssize_t)sizeof(guest->challenge)) {
        dismiss(guest, "went away at once");
    }
    return true;
}

/* The other side has closed (nothing is sent on these sockets before everybody has come). */
static bool is_hung_up(int fd)
{
    char byte;
    ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static void drop_half(struct half *half)
{
    for (int i = 0; i < STAR_CHANNEL_COUNT; i++) {
        if (half->fds[i] >= 0) {
            close(half->fds[i]);
        }
        half->fds[i] = -1;
    }
}

/* A rank that came and went before everybody was there may come again: its container was restarted, say. */
static void notice_departures(struct reception *reception)
{
    for (uint32_t rank = 1; rank < reception->bootstrap->rank_count; rank++) {
        struct half *half = &reception->halves[rank];
        struct star_peer *peer = &reception->bootstrap->peers[rank];
        bool is_gone = half->is_in && is_hung_up(peer->control_fd);

        for (int i = 0; i < STAR_CHANNEL_COUNT && !half->is_in; i++) {
            is_gone = is_gone || (half->fds[i] >= 0 && is_hung_up(half->fds[i]));
        }
        if (is_gone) {
            weft_log(WEFT_LOG_WARN, TCP_LOG, "rank %u left before all had come; waiting for it again", rank);
            weft_star_detach(reception->bootstrap, rank);
            drop_half(half);
            half->is_in = false;
        }
    }
}

static enum weft_status take_in(struct reception *reception, struct guest *guest)
{
    uint32_t rank = guest->answer.rank;
    struct half *half = &reception->halves[rank];
    int fds[STAR_CHANNEL_COUNT];

    weft_tcp_tune(guest->fd, guest->answer.channel);
    memcpy(half->session, guest->answer.session, sizeof(half->session));
    half->fds[guest->answer.channel] = guest->fd;
    guest->fd = -1;
    for (int i = 0; i < STAR_CHANNEL_COUNT; i++) {
        if (half->fds[i] < 0) {
            return WEFT_OK;
        }
    }
    memcpy(fds, half->fds, sizeof(fds));
    memset(half->fds, -1, sizeof(half->fds));
    half->is_in = true;
    weft_log(WEFT_LOG_DEBUG, TCP_LOG, "rank %u came from %s", rank, guest->address);
    return weft_star_attach(reception->bootstrap, rank, fds);
}

static bool is_duplicate(struct reception *reception, const struct tcp_answer *answer)
{
    struct half *half = &reception->halves[answer->rank];

    notice_departures(reception);
    if (half->is_in || half->fds[answer->channel] >= 0) {
        return true;
    }
    for (int i = 0; i < STAR_CHANNEL_COUNT; i++) {
        if (half->fds[i] >= 0 && memcmp(half->session, answer->session, sizeof(half->session)) != 0) {
            return true;
        }
    }
    return false;
}

/* Reads on; a complete answer is judged at once. */
static enum weft_status hear(struct reception *reception, struct guest *guest)
{
    struct tcp_answer *answer = &guest->answer;
    enum tcp_verdict_code code;
    struct tcp_verdict verdict;
    char reason[128];
    ssize_t got =
        recv(guest->fd, (char *)answer + guest->answer_have, sizeof(*answer) - guest->answer_have, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        return WEFT_OK;
    }
    if (got <= 0) {
        dismiss(guest, got == 0 ? "closed before it said who it is" : strerror(errno));
        return WEFT_OK;
    }
    guest->answer_have += (size_t)got;
    /* Who speaks something else is told apart by the first bytes, and not waited for. */
    if (memcmp(answer->magic, guest->challenge.magic,
               guest->answer_have < sizeof(answer->magic) ? guest->answer_have : sizeof(answer->magic)) != 0) {
        dismiss(guest, weft_tcp_code_text(TCP_NOT_WEFT));
        return WEFT_OK;
    }
    if (guest->answer_have < sizeof(*answer)) {
        return WEFT_OK;
    }
    code = weft_tcp_judge(reception->secret, &guest->challenge, answer);
    if (code == TCP_ACCEPTED && is_duplicate(reception, answer)) {
        code = TCP_DUPLICATE_RANK;
    }
    weft_tcp_verdict(reception->secret, &guest->challenge, answer, code, &verdict);
    if (send(guest->fd, &verdict, sizeof(verdict), MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(verdict)) {
        dismiss(guest, "went away");
        return WEFT_OK;
    }
    if (code == TCP_ACCEPTED) {
        return take_in(reception, guest);
    }
    (void)snprintf(reason, sizeof(reason), "rank %u of %u, version %u: %s", answer->rank, answer->rank_count,
                   answer->version, weft_tcp_code_text(code));
    dismiss(guest, reason);
    return WEFT_OK;
}

/* One round: sleeps until something happens or some deadline passes. */
static enum weft_status attend(struct reception *reception, int64_t deadline)
{
    int64_t nearest = deadline;
    nfds_t count = 2;

    reception->polls[0] = (struct pollfd){.fd = reception->listen_fd, .events = POLLIN};
    reception->polls[1] = (struct pollfd){.fd = reception->bootstrap->epoll_fd, .events = POLLIN};
    for (size_t i = 0; i < GUEST_MAX; i++) {
        const struct guest *guest = &reception->guests[i];

        reception->polls[count++] = (struct pollfd){.fd = guest->fd, .events = POLLIN};
        if (guest->fd >= 0 && guest->deadline < nearest) {
            nearest = guest->deadline;
        }
    }
    if (poll(reception->polls, count, weft_star_left_ms(nearest)) < 0 && errno != EINTR) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "poll: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    if (reception->polls[1].revents != 0) {
        notice_departures(reception);
    }
    for (size_t i = 0; i < GUEST_MAX; i++) {
        struct guest *guest = &reception->guests[i];

        if (guest->fd >= 0 && reception->polls[i + 2].revents != 0) {
            WEFT_TRY(hear(reception, guest));
        }
        if (guest->fd >= 0 && weft_star_left_ms(guest->deadline) == 0) {
            dismiss(guest, "did not say who it is");
        }
    }
    if (reception->polls[0].revents != 0) {
        while (admit(reception)) {
        }
    }
    return WEFT_OK;
}

/* Writes "2, 5" into text; returns the first missing rank, 0 when all are in. */
static uint32_t missing_ranks(const struct reception *reception, char *text, size_t size)
{
    uint32_t first = 0;
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t rank = 1; rank < reception->bootstrap->rank_count; rank++) {
        if (reception->halves[rank].is_in) {
            continue;
        }
        first = first == 0 ? rank : first;
        if (used + 16 < size) {
            used += (size_t)snprintf(text + used, size - used, used == 0 ? "%u" : ", %u", rank);
        } else if (used + 4 < size) {
            used += (size_t)snprintf(text + used, size - used, "...");
        }
    }
    return first;
}

static enum weft_status receive_all(struct reception *reception, uint32_t timeout_ms)
{
    int64_t deadline = weft_star_deadline(timeout_ms);
    char missing[64];
    char reason[STAR_REASON_SIZE];
    uint32_t first;

    while ((first = missing_ranks(reception, missing, sizeof(missing))) != 0) {
        if (weft_star_left_ms(deadline) == 0) {
            (void)snprintf(reason, sizeof(reason), "did not come within %u ms (missing: %s)", timeout_ms, missing);
            weft_star_fail(reception->bootstrap, first, NULL, reason, -1);
            return WEFT_ERR_TIMEOUT;
        }
        WEFT_TRY(attend(reception, deadline));
    }
    return WEFT_OK;
}

/* A descriptor per channel and some to spare; the usual soft limit of 1024 ends at about 300 ranks. */
static void raise_fd_limit(uint32_t rank_count)
{
    struct rlimit limit;
    rlim_t want = STAR_CHANNEL_COUNT * (rlim_t)rank_count + 256;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < want) {
        limit.rlim_cur = limit.rlim_max < want ? limit.rlim_max : want;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

enum weft_status weft_tcp_accept_all(struct weft_bootstrap *bootstrap, int listen_fd, const struct tcp_secret *secret,
                                     uint32_t timeout_ms)
{
    struct reception *reception = calloc(1, sizeof(*reception));
    enum weft_status status;

    if (reception == NULL ||
        (reception->halves = calloc(bootstrap->rank_count, sizeof(reception->halves[0]))) == NULL) {
        free(reception);
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "out of memory for %u ranks", bootstrap->rank_count);
        return WEFT_ERR_MEMORY;
    }
    raise_fd_limit(bootstrap->rank_count);
    reception->bootstrap = bootstrap;
    reception->secret = secret;
    reception->listen_fd = listen_fd;
    (void)fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    for (size_t i = 0; i < GUEST_MAX; i++) {
        reception->guests[i].fd = -1;
    }
    for (uint32_t rank = 0; rank < bootstrap->rank_count; rank++) {
        memset(reception->halves[rank].fds, -1, sizeof(reception->halves[rank].fds));
    }
    status = receive_all(reception, timeout_ms);
    for (size_t i = 0; i < GUEST_MAX; i++) {
        if (reception->guests[i].fd >= 0) {
            dismiss(&reception->guests[i], NULL);
        }
    }
    for (uint32_t rank = 0; rank < bootstrap->rank_count; rank++) {
        drop_half(&reception->halves[rank]);
    }
    free(reception->halves);
    free(reception);
    return status;
}
