/*
 * The leader's side of the TCP rendezvous: who is let in as which rank, who is missing. One thread, nothing blocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bootstrap_guest.h"
#include "weft/log.h"

/* MISSING_MS: between two lines about who is missing; MISSING_TEXT: of the ranks in such a line. LAST_CALL_MS:
 * after a rank has said that it cannot take part, for those that are still looking for the leader. */
enum { MISSING_MS = 5000, MISSING_TEXT = 160, LAST_CALL_MS = 2000, STRANGER_TEXT = 96, STRANGER_LINE = 160 };

/* A rank on its way in: some channels are there, others not yet. */
struct half {
    int fds[STAR_CHANNEL_COUNT]; /* owned until attached; -1 */
    uint8_t session[16];
    bool is_in;   /* all channels attached to the star */
    bool is_told; /* why the group ends */
    char host[TCP_TEXT_SIZE];
    char address[TCP_ADDRESS_TEXT];
};

struct reception {
    struct weft_bootstrap *bootstrap;
    const struct tcp_invite *invite;
    struct tcp_guest guests[TCP_GUEST_MAX];
    struct half *halves;           /* [rank_count] */
    char (*places)[TCP_TEXT_SIZE]; /* [rank_count / local_count] host names of those without a number, by arrival */
    uint32_t local_count;
    enum weft_status end_status;            /* of the rank that cannot take part */
    uint32_t stranger_count;                /* refused for another secret */
    char stranger[STRANGER_TEXT];           /* the last of them */
    int watch_fd;                           /* -1: none, or at its end */
    struct pollfd polls[TCP_GUEST_MAX + 3]; /* and the door, the star, the watch */
};

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
            if (reception->bootstrap->failed_rank >= 0) {
                half->is_told = half->is_told || half->is_in;
            } else {
                weft_log(WEFT_LOG_WARN, TCP_LOG, "rank %u left before all had come; waiting for it again", rank);
            }
            weft_star_detach(reception->bootstrap, rank);
            drop_half(half);
            half->is_in = false;
        }
    }
}

static enum weft_status take_in(struct reception *reception, struct tcp_guest *guest, uint32_t rank)
{
    struct half *half = &reception->halves[rank];
    int fds[STAR_CHANNEL_COUNT];

    weft_tcp_tune(guest->fd, guest->answer.channel);
    memcpy(half->session, guest->answer.session, sizeof(half->session));
    memcpy(half->host, guest->answer.host, sizeof(half->host));
    memcpy(half->address, guest->address, sizeof(half->address));
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
    weft_log(WEFT_LOG_DEBUG, TCP_LOG, "rank %u came from %s (%s)", rank, half->host, guest->address);
    WEFT_TRY(weft_star_attach(reception->bootstrap, rank, fds));
    if (reception->bootstrap->failed_rank >= 0) {
        weft_star_notify(reception->bootstrap, rank, STAR_NOTICE_DEAD, (uint32_t)reception->bootstrap->failed_rank,
                         reception->bootstrap->failed_reason);
        half->is_told = true;
    }
    return WEFT_OK;
}

/* It comes only to say that it cannot take part, on one connection, which ends when all have been told. */
static enum weft_status take_excuse(struct reception *reception, struct tcp_guest *guest, uint32_t rank)
{
    char reason[STAR_REASON_SIZE];

    if (reception->bootstrap->failed_rank < 0 && guest->answer.trouble_status < 0 &&
        guest->answer.trouble_status >= WEFT_ERR_LAST) {
        reception->end_status = (enum weft_status)guest->answer.trouble_status;
    }
    weft_tcp_trouble_text(guest->answer.trouble, reason);
    weft_star_fail(reception->bootstrap, rank, guest->answer.host, reason, -1);
    reception->halves[rank].is_told = true;
    return take_in(reception, guest, rank);
}

static bool is_duplicate(struct reception *reception, const struct tcp_answer *answer, uint32_t rank)
{
    struct half *half = &reception->halves[rank];

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

static bool is_absent(const struct reception *reception, uint32_t rank)
{
    return !reception->halves[rank].is_in && reception->halves[rank].fds[STAR_DATA] < 0;
}

/* Of a host that came and went altogether. */
static bool is_abandoned(const struct reception *reception, uint32_t place)
{
    for (uint32_t i = 0; i < reception->local_count; i++) {
        if (!is_absent(reception, place * reception->local_count + i)) {
            return false;
        }
    }
    return place > 0;
}

/*
 * A number for a rank that has none: hosts take places in the order in which they come, and a host that comes again has
 * its old place. A place whose host has gone is free when all others are taken. 0: none is left.
 */
static uint32_t find_place(struct reception *reception, const struct tcp_answer *answer)
{
    uint32_t each = reception->local_count;
    uint32_t count = reception->bootstrap->rank_count / each;
    uint32_t fresh = count;
    uint32_t abandoned = count;
    uint32_t own = count;

    notice_departures(reception);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t rank = i * each + answer->local_rank;

        if (rank == 0 || !is_absent(reception, rank)) {
            continue;
        }
        if (reception->places[i][0] == '\0') {
            fresh = fresh == count ? i : fresh;
        } else if (strcmp(reception->places[i], answer->host) == 0) {
            own = own == count ? i : own;
        } else if (is_abandoned(reception, i)) {
            abandoned = abandoned == count ? i : abandoned;
        }
    }
    own = own < count ? own : fresh < count ? fresh : abandoned;
    if (own == count) {
        return 0;
    }
    memcpy(reception->places[own], answer->host, sizeof(reception->places[own]));
    return own * each + answer->local_rank;
}

/* All that is to be said about a complete answer: its verdict, filled but not yet signed. */
static void judge(struct reception *reception, const struct tcp_guest *guest, struct tcp_verdict *verdict)
{
    const struct tcp_answer *answer = &guest->answer;

    memset(verdict, 0, sizeof(*verdict));
    verdict->rank = answer->rank;
    verdict->code = weft_tcp_judge(&reception->invite->secret, &guest->challenge, answer, verdict->why);
    if (verdict->code == TCP_ACCEPTED && answer->rank == WEFT_BOOTSTRAP_RANK_ANY) {
        verdict->rank = answer->local_count == reception->local_count ? find_place(reception, answer) : 0;
        if (verdict->rank == 0) {
            verdict->code = TCP_WRONG_RANK;
            (void)snprintf(verdict->why, sizeof(verdict->why),
                           "no place left among %u ranks, %u on each host; this host starts %u",
                           reception->bootstrap->rank_count, reception->local_count, answer->local_count);
        }
    }
    if (verdict->code == TCP_ACCEPTED && is_duplicate(reception, answer, verdict->rank)) {
        const struct half *half = &reception->halves[verdict->rank];

        verdict->code = TCP_DUPLICATE_RANK;
        (void)snprintf(verdict->why, sizeof(verdict->why), "rank %u is there already, from %.30s (%.40s)",
                       verdict->rank, half->host, half->address);
    }
}

/* A complete answer of our own version. */
static enum weft_status decide(struct reception *reception, struct tcp_guest *guest)
{
    struct tcp_answer *answer = &guest->answer;
    struct tcp_verdict verdict;
    char reason[256];
    char rank[16] = "a rank";
    char host[TCP_TEXT_SIZE];

    judge(reception, guest, &verdict);
    memcpy(host, answer->host, sizeof(host));
    weft_tcp_text_clean(host, sizeof(host));
    weft_tcp_text_clean(answer->trouble, sizeof(answer->trouble));
    weft_tcp_verdict(&reception->invite->secret, &guest->challenge, answer, &verdict);
    if (send(guest->fd, &verdict, sizeof(verdict), MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(verdict)) {
        weft_tcp_guest_dismiss(guest, "went away");
        return WEFT_OK;
    }
    if (verdict.code == TCP_ACCEPTED) {
        return answer->trouble[0] != '\0' ? take_excuse(reception, guest, verdict.rank)
                                          : take_in(reception, guest, verdict.rank);
    }
    if (answer->rank != WEFT_BOOTSTRAP_RANK_ANY) {
        (void)snprintf(rank, sizeof(rank), "rank %u", answer->rank);
    }
    if (verdict.code == TCP_WRONG_SECRET) {
        reception->stranger_count++;
        (void)snprintf(reception->stranger, sizeof(reception->stranger), "%.46s as %s on %.24s", guest->address, rank,
                       host);
    }
    (void)snprintf(reason, sizeof(reason), "%s on %s: %s", rank, host, verdict.why);
    weft_tcp_guest_dismiss(guest, reason);
    return WEFT_OK;
}

/* As the launcher named it; NULL: not known. */
static const char *host_of(const struct reception *reception, uint32_t rank)
{
    return reception->invite->hosts != NULL ? reception->invite->hosts[rank] : NULL;
}

/*
 * Whoever starts the ranks (launch/) could not: "RANK REASON". That rank has failed, and nobody waits any longer. An
 * end of file only means that it has nothing more to say.
 */
static enum weft_status hear_watch(struct reception *reception)
{
    char line[STAR_REASON_SIZE + 16];
    ssize_t got = read(reception->invite->watch_fd, line, sizeof(line) - 1);
    unsigned rank;
    int used = 0;

    if (got <= 0) {
        return WEFT_ERR_STATE; /* not logged: the caller stops listening */
    }
    line[got] = '\0';
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "%u %n", &rank, &used) != 1 || rank == 0 || rank >= reception->bootstrap->rank_count) {
        return WEFT_OK;
    }
    weft_star_fail(reception->bootstrap, rank, host_of(reception, rank), line + used, -1);
    return WEFT_ERR_PEER;
}

/* One round: sleeps until something happens or some deadline passes. */
static enum weft_status attend(struct reception *reception, int64_t deadline)
{
    int64_t nearest = deadline;
    nfds_t count = 2;
    nfds_t watch;

    reception->polls[0] = (struct pollfd){.fd = reception->invite->listen_fd, .events = POLLIN};
    reception->polls[1] = (struct pollfd){.fd = reception->bootstrap->epoll_fd, .events = POLLIN};
    for (size_t i = 0; i < TCP_GUEST_MAX; i++) {
        const struct tcp_guest *guest = &reception->guests[i];

        reception->polls[count++] = (struct pollfd){.fd = guest->fd, .events = POLLIN};
        if (guest->fd >= 0 && guest->deadline < nearest) {
            nearest = guest->deadline;
        }
    }
    watch = count++;
    reception->polls[watch] = (struct pollfd){.fd = reception->watch_fd, .events = POLLIN};
    if (poll(reception->polls, count, weft_star_left_ms(nearest)) < 0 && errno != EINTR) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "poll: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    if (reception->polls[watch].revents != 0) {
        enum weft_status status = hear_watch(reception);

        if (status == WEFT_ERR_STATE) {
            reception->watch_fd = -1;
        } else {
            WEFT_TRY(status);
        }
    }
    if (reception->polls[1].revents != 0) {
        notice_departures(reception);
    }
    for (size_t i = 0; i < TCP_GUEST_MAX; i++) {
        struct tcp_guest *guest = &reception->guests[i];

        if (guest->fd >= 0 && reception->polls[i + 2].revents != 0) {
            if (weft_tcp_guest_hear(guest)) {
                WEFT_TRY(decide(reception, guest));
            }
        }
        if (guest->fd >= 0 && weft_star_left_ms(guest->deadline) == 0) {
            weft_tcp_guest_dismiss(guest, "did not say who it is");
        }
    }
    if (reception->polls[0].revents != 0) {
        while (weft_tcp_guest_admit(reception->guests, reception->invite, reception->bootstrap->rank_count)) {
        }
    }
    return WEFT_OK;
}

/* Writes "2 on node2, 5 on node5" into text; returns the first missing rank, 0 when all are in. */
static uint32_t missing_ranks(const struct reception *reception, char *text, size_t size, uint32_t *count_out)
{
    uint32_t first = 0;
    uint32_t count = 0;
    uint32_t shown = 0;
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t rank = 1; rank < reception->bootstrap->rank_count; rank++) {
        const char *host = host_of(reception, rank);
        char one[TCP_TEXT_SIZE + 24];

        if (reception->halves[rank].is_in || reception->halves[rank].is_told) {
            continue;
        }
        first = first == 0 ? rank : first;
        count++;
        (void)snprintf(one, sizeof(one), host != NULL ? "%s%u on %.60s" : "%s%u", shown == 0 ? "" : ", ", rank, host);
        if (shown + 1 == count && used + strlen(one) + 20 < size) { /* room for "and 1023 more" */
            memcpy(text + used, one, strlen(one) + 1);
            used += strlen(one);
            shown++;
        }
    }
    if (shown < count) {
        (void)snprintf(text + used, size - used, "%sand %u more", shown == 0 ? "" : " ", count - shown);
    }
    *count_out = count;
    return first;
}

/* A rank, perhaps this one, cannot take part. Who has come knows; who is on its way learns it, too. */
static void call_last(struct reception *reception)
{
    uint32_t timeout_ms = reception->invite->timeout_ms;
    int64_t deadline = weft_star_deadline(timeout_ms < LAST_CALL_MS ? timeout_ms : LAST_CALL_MS);
    char missing[MISSING_TEXT];
    uint32_t count;

    while (weft_star_left_ms(deadline) > 0 && missing_ranks(reception, missing, sizeof(missing), &count) != 0 &&
           attend(reception, deadline) == WEFT_OK) {
    }
}

/* "; 3 refused for another secret, the last from 10.0.0.7:4711 as rank 2 on node2": that may be who is missing. */
static const char *strangers_text(const struct reception *reception, char text[STRANGER_LINE])
{
    text[0] = '\0';
    if (reception->stranger_count > 0) {
        (void)snprintf(text, STRANGER_LINE, "; %u refused for another secret, the last from %s",
                       reception->stranger_count, reception->stranger);
    }
    return text;
}

static enum weft_status receive_all(struct reception *reception)
{
    uint32_t timeout_ms = reception->invite->timeout_ms;
    uint32_t rank_count = reception->bootstrap->rank_count;
    int64_t deadline = weft_star_deadline(timeout_ms);
    int64_t begin = weft_star_now();
    int64_t tell = weft_star_deadline(MISSING_MS);
    char missing[MISSING_TEXT];
    char strangers[STRANGER_LINE];
    char reason[STAR_REASON_SIZE];
    size_t room = sizeof(missing);
    uint32_t first;
    uint32_t count;

    while ((first = missing_ranks(reception, missing, room, &count)) != 0) {
        if (weft_star_left_ms(deadline) == 0) {
            (void)snprintf(reason, sizeof(reason), "did not come within %u ms (missing: %s%s)", timeout_ms, missing,
                           strangers_text(reception, strangers));
            weft_star_fail(reception->bootstrap, first, host_of(reception, first), reason, -1);
            return WEFT_ERR_TIMEOUT;
        }
        if (weft_star_left_ms(tell) == 0) {
            weft_log(WEFT_LOG_WARN, TCP_LOG, "%u of %u ranks are here after %d s, waiting for rank %s%s",
                     rank_count - count, rank_count, (int)((weft_star_now() - begin + 500000000) / 1000000000), missing,
                     strangers_text(reception, strangers));
            tell = weft_star_deadline(MISSING_MS);
        }
        room = reception->stranger_count > 0 ? sizeof(missing) / 2 : sizeof(missing); /* both fit the reason */
        WEFT_TRY(attend(reception, tell < deadline ? tell : deadline));
        if (reception->bootstrap->failed_rank >= 0) {
            call_last(reception);
            return reception->end_status;
        }
    }
    return WEFT_OK;
}

/* A failure is told to those, too, who have not made all of their connections yet: on the first, before it closes. */
static void tell_halves(struct reception *reception)
{
    struct weft_bootstrap *bootstrap = reception->bootstrap;
    struct star_notice notice;

    if (bootstrap->failed_rank < 0) {
        return;
    }
    weft_star_notice(bootstrap, STAR_NOTICE_DEAD, (uint32_t)bootstrap->failed_rank, bootstrap->failed_reason, &notice);
    for (uint32_t rank = 0; rank < bootstrap->rank_count; rank++) {
        if (reception->halves[rank].fds[STAR_DATA] >= 0) {
            (void)!send(reception->halves[rank].fds[STAR_DATA], &notice, sizeof(notice), MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
}

/* This rank, the leader, cannot take part. */
static enum weft_status excuse(struct reception *reception)
{
    char reason[STAR_REASON_SIZE];
    bool was_quiet = weft_log_set_quiet(true);

    weft_tcp_trouble_text(reception->invite->trouble, reason);
    weft_star_fail(reception->bootstrap, 0, reception->places[0], reason, -1);
    (void)weft_log_set_quiet(was_quiet);
    call_last(reception);
    return WEFT_ERR_STATE;
}

static void close_reception(struct reception *reception)
{
    for (size_t i = 0; i < TCP_GUEST_MAX; i++) {
        if (reception->guests[i].fd >= 0) {
            weft_tcp_guest_dismiss(&reception->guests[i], NULL);
        }
    }
    for (uint32_t rank = 0; reception->halves != NULL && rank < reception->bootstrap->rank_count; rank++) {
        drop_half(&reception->halves[rank]);
    }
    free(reception->halves);
    free(reception->places);
    free(reception);
}

static struct reception *open_reception(struct weft_bootstrap *bootstrap, const struct tcp_invite *invite)
{
    struct reception *reception = calloc(1, sizeof(*reception));

    if (reception == NULL) {
        return NULL;
    }
    reception->bootstrap = bootstrap;
    reception->invite = invite;
    reception->end_status = WEFT_ERR_PEER;
    reception->watch_fd = invite->watch_fd > 0 ? invite->watch_fd : -1;
    reception->local_count =
        invite->local_count > 0 && bootstrap->rank_count % invite->local_count == 0 ? invite->local_count : 1;
    for (size_t i = 0; i < TCP_GUEST_MAX; i++) {
        reception->guests[i].fd = -1;
    }
    reception->halves = calloc(bootstrap->rank_count, sizeof(reception->halves[0]));
    reception->places = calloc(bootstrap->rank_count, sizeof(reception->places[0]));
    for (uint32_t rank = 0; reception->halves != NULL && rank < bootstrap->rank_count; rank++) {
        memset(reception->halves[rank].fds, -1, sizeof(reception->halves[rank].fds));
    }
    if (reception->halves == NULL || reception->places == NULL) {
        close_reception(reception);
        return NULL;
    }
    (void)gethostname(reception->places[0], sizeof(reception->places[0]) - 1);
    return reception;
}

enum weft_status weft_tcp_accept_all(struct weft_bootstrap *bootstrap, const struct tcp_invite *invite)
{
    struct reception *reception = open_reception(bootstrap, invite);
    enum weft_status status;

    if (reception == NULL) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "out of memory for %u ranks", bootstrap->rank_count);
        return WEFT_ERR_MEMORY;
    }
    weft_star_make_room(STAR_CHANNEL_COUNT * (rlim_t)bootstrap->rank_count + 256);
    (void)fcntl(invite->listen_fd, F_SETFL, fcntl(invite->listen_fd, F_GETFL) | O_NONBLOCK);
    status = invite->trouble != NULL ? excuse(reception) : receive_all(reception);
    tell_halves(reception);
    close_reception(reception);
    return status;
}
