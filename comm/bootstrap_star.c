/*
 * The star of sockets: frames, notices, and who is dead. Not how the sockets come about (bootstrap_local.c, _tcp.c).
 *
 * Invariant: a frame half read stays in its star_peer, whatever else happens in between; a frame half written that
 * cannot be finished makes the receiver's rank failed, because nothing sensible can follow on that socket.
 */
#include "bootstrap_star.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "heart.h"
#include "weft/log.h"

/* How long a broken data socket waits for its control socket to say why: the kernel closes a dead process's sockets one
 * after the other, and a leader that gives up sends the reason first. */
enum { EXPLAIN_MS = 200, NOTIFY_MS = 100 };

int64_t weft_star_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t weft_star_deadline(uint32_t timeout_ms)
{
    return timeout_ms == UINT32_MAX ? STAR_FOREVER : weft_star_now() + (int64_t)timeout_ms * 1000000;
}

int weft_star_left_ms(int64_t deadline)
{
    int64_t left;

    if (deadline == STAR_FOREVER) {
        return -1;
    }
    left = (deadline - weft_star_now() + 999999) / 1000000;
    if (left < 0) {
        return 0;
    }
    return left > INT32_MAX ? INT32_MAX : (int)left;
}

static bool is_again(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* ---- notices ---- */

void weft_star_notice(const struct weft_bootstrap *bootstrap, enum star_notice_kind kind, uint32_t rank,
                      const char *reason, struct star_notice *out)
{
    *out = (struct star_notice){.magic = STAR_MAGIC, .kind = kind, .rank = rank};
    if (kind == STAR_NOTICE_DEAD) {
        memcpy(out->host, bootstrap->failed_host, sizeof(out->host));
    }
    (void)snprintf(out->reason, sizeof(out->reason), "%s", reason);
}

bool weft_star_notice_clean(struct star_notice *notice)
{
    notice->reason[sizeof(notice->reason) - 1] = '\0';
    notice->host[sizeof(notice->host) - 1] = '\0';
    return notice->magic == STAR_MAGIC;
}

void weft_star_notify(struct weft_bootstrap *bootstrap, uint32_t peer, enum star_notice_kind kind, uint32_t rank,
                      const char *reason)
{
    struct star_notice notice;
    int64_t deadline = weft_star_deadline(NOTIFY_MS);
    int fd = bootstrap->peers[peer].control_fd;
    size_t done = 0;

    if (fd < 0) {
        return;
    }
    weft_star_notice(bootstrap, kind, rank, reason, &notice);
    while (done < sizeof(notice)) {
        ssize_t sent = send(fd, (const char *)&notice + done, sizeof(notice) - done, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent >= 0) {
            done += (size_t)sent;
        } else if (is_again(errno) && weft_star_left_ms(deadline) > 0) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};

            (void)poll(&wait, 1, weft_star_left_ms(deadline));
        } else {
            return; /* dead, or stuck: its own deadline ends it */
        }
    }
}

bool weft_star_is_end(const char *reason)
{
    return strcmp(reason, STAR_REASON_END) == 0;
}

void weft_star_failure_text(uint32_t rank, const char *host, const char *reason, char *out, size_t size)
{
    (void)snprintf(out, size, "rank %u%s%s failed: %s", rank, host[0] != '\0' ? " on " : "", host, reason);
}

static void record(struct weft_bootstrap *bootstrap, uint32_t rank, const char *host, const char *reason, int source)
{
    char text[STAR_HOST_SIZE + STAR_REASON_SIZE + 64];

    bootstrap->failed_rank = (int)rank;
    (void)snprintf(bootstrap->failed_reason, sizeof(bootstrap->failed_reason), "%s", reason);
    if (host != NULL) {
        (void)snprintf(bootstrap->failed_host, sizeof(bootstrap->failed_host), "%s", host);
    } else if (bootstrap->heart != NULL) {
        weft_heart_host(bootstrap->heart, rank, bootstrap->failed_host);
    }
    if (bootstrap->heart != NULL) {
        weft_heart_tell(bootstrap->heart, rank, bootstrap->failed_host, bootstrap->failed_reason);
    }
    weft_star_failure_text(rank, bootstrap->failed_host, bootstrap->failed_reason, text, sizeof(text));
    if ((bootstrap->heart != NULL && !weft_heart_claim(bootstrap->heart)) || weft_star_is_end(reason)) {
        weft_log_keep_error("%s: %s", STAR_LOG, text); /* the heartbeats have said it, or nobody is to hear of it */
    } else if (source >= 0 && source != (int)rank) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "%s (reported by rank %d)", text, source);
    } else {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "%s", text);
    }
    if (bootstrap->heart != NULL) {
        weft_heart_said(bootstrap->heart);
    }
    for (uint32_t peer = 1; peer < bootstrap->peer_count && bootstrap->rank == 0; peer++) {
        weft_star_notify(bootstrap, peer, STAR_NOTICE_DEAD, rank, bootstrap->failed_reason);
    }
}

/* Whoever started the process may know more than that its connection ended. */
static void describe(struct weft_bootstrap *bootstrap, uint32_t rank, char *reason)
{
    if (bootstrap->failed_rank < 0 && bootstrap->hooks != NULL && bootstrap->hooks->describe != NULL) {
        bootstrap->hooks->describe(bootstrap, rank, reason, STAR_REASON_SIZE);
    }
}

void weft_star_fail(struct weft_bootstrap *bootstrap, uint32_t rank, const char *host, const char *reason, int source)
{
    struct heart_verdict verdict;
    bool was_quiet;

    if (bootstrap->failed_rank >= 0) {
        return;
    }
    /* What the heartbeats know came first: this failure may only be somebody's answer to it. */
    if (bootstrap->heart != NULL && weft_heart_verdict(bootstrap->heart, &verdict) && verdict.rank != rank &&
        verdict.rank < bootstrap->rank_count) {
        if (verdict.is_closed) {
            describe(bootstrap, verdict.rank, verdict.reason);
        }
        /* The leader's log is to have it, also where the caller has said its own failure already and is quiet. */
        was_quiet = weft_log_set_quiet(true);
        (void)weft_log_set_quiet(was_quiet && bootstrap->rank != 0);
        record(bootstrap, verdict.rank, verdict.host, verdict.reason, verdict.source);
        (void)weft_log_set_quiet(was_quiet);
    } else {
        record(bootstrap, rank, host, reason, source);
    }
}

/* The connection ended without a farewell. */
static void fail_closed(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason)
{
    char text[STAR_REASON_SIZE];

    (void)snprintf(text, sizeof(text), "%s", reason);
    describe(bootstrap, rank, text);
    weft_star_fail(bootstrap, rank, NULL, text, -1);
}

static void take_notice(struct weft_bootstrap *bootstrap, uint32_t peer)
{
    struct star_notice *notice = &bootstrap->peers[peer].notice;
    bool is_notice = weft_star_notice_clean(notice);

    if (is_notice && notice->kind == STAR_NOTICE_LEAVE) {
        bootstrap->peers[peer].has_left = true;
    } else if (is_notice && notice->kind == STAR_NOTICE_DEAD && notice->rank < bootstrap->rank_count) {
        weft_star_fail(bootstrap, notice->rank, notice->host[0] != '\0' ? notice->host : NULL, notice->reason,
                       (int)peer);
    } else {
        weft_star_fail(bootstrap, peer, NULL, "sent a damaged notice", -1);
    }
}

static void drop_control(struct weft_bootstrap *bootstrap, uint32_t rank)
{
    struct star_peer *peer = &bootstrap->peers[rank];

    if (peer->control_fd >= 0) {
        (void)epoll_ctl(bootstrap->epoll_fd, EPOLL_CTL_DEL, peer->control_fd, NULL);
        close(peer->control_fd);
        peer->control_fd = -1;
    }
}

/* Reads every notice that is there; the end of the stream without a farewell is a death. */
static void read_notices(struct weft_bootstrap *bootstrap, uint32_t rank)
{
    struct star_peer *peer = &bootstrap->peers[rank];

    while (peer->control_fd >= 0) {
        ssize_t got = recv(peer->control_fd, (char *)&peer->notice + peer->notice_have,
                           sizeof(peer->notice) - peer->notice_have, MSG_DONTWAIT);

        if (got > 0) {
            peer->notice_have += (size_t)got;
            if (peer->notice_have == sizeof(peer->notice)) {
                peer->notice_have = 0;
                take_notice(bootstrap, rank);
            }
        } else if (got < 0 && is_again(errno)) {
            return;
        } else {
            const char *reason = got == 0 ? "connection closed" : strerror(errno);

            drop_control(bootstrap, rank);
            if (!peer->has_left) {
                fail_closed(bootstrap, rank, reason);
            }
        }
    }
}

/* What the heartbeats have found out or been told. */
static void take_verdict(struct weft_bootstrap *bootstrap)
{
    struct heart_verdict verdict;

    if (bootstrap->failed_rank >= 0 || !weft_heart_verdict(bootstrap->heart, &verdict) ||
        verdict.rank >= bootstrap->rank_count) {
        return;
    }
    if (verdict.is_closed) {
        fail_closed(bootstrap, verdict.rank, verdict.reason);
    } else {
        weft_star_fail(bootstrap, verdict.rank, verdict.host, verdict.reason, verdict.source);
    }
}

enum weft_status weft_star_check(struct weft_bootstrap *bootstrap)
{
    struct epoll_event events[32];
    int count;

    if (bootstrap->failed_rank >= 0) {
        return WEFT_ERR_PEER;
    }
    if (bootstrap->epoll_fd < 0) {
        return WEFT_OK;
    }
    count = epoll_wait(bootstrap->epoll_fd, events, (int)(sizeof(events) / sizeof(events[0])), 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.u32 == UINT32_MAX) {
            take_verdict(bootstrap);
        } else {
            read_notices(bootstrap, events[i].data.u32);
        }
    }
    return bootstrap->failed_rank >= 0 ? WEFT_ERR_PEER : WEFT_OK;
}

/* The data socket of `rank` is broken: let its control socket explain, then fail it. */
static enum weft_status fail_data(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason)
{
    struct star_peer *peer = &bootstrap->peers[rank];
    int64_t deadline = weft_star_deadline(EXPLAIN_MS);

    while (bootstrap->failed_rank < 0 && peer->control_fd >= 0 && weft_star_left_ms(deadline) > 0) {
        struct pollfd wait = {.fd = peer->control_fd, .events = POLLIN};

        (void)poll(&wait, 1, weft_star_left_ms(deadline));
        read_notices(bootstrap, rank);
    }
    if (peer->has_left) {
        weft_star_fail(bootstrap, rank, NULL, "left the group", -1);
    } else {
        fail_closed(bootstrap, rank, reason);
    }
    return WEFT_ERR_PEER;
}

/* ---- frames ---- */

enum read_result { READ_AGAIN, READ_COMPLETE, READ_CLOSED, READ_DAMAGED, READ_MEMORY };

/* Room for size bytes; contents need not survive. Grows by half so that slowly growing frames settle. */
static bool reserve(uint8_t **data, size_t *capacity, size_t size)
{
    uint8_t *bigger;

    if (size <= *capacity && *data != NULL) { /* never NULL, also for an empty frame */
        return true;
    }
    size = size < 4096 ? 4096 : size + size / 2;
    bigger = malloc(size);
    if (bigger == NULL) {
        return false;
    }
    free(*data);
    *data = bigger;
    *capacity = size;
    return true;
}

/* As much of the next frame as has arrived. errno tells why for READ_CLOSED; 0 is end of stream. */
static enum read_result read_frame(struct star_peer *peer)
{
    while (!peer->is_complete) {
        bool is_header = peer->header_have < sizeof(peer->header);
        void *to = is_header ? (void *)((uint8_t *)&peer->header + peer->header_have)
                             : (void *)(peer->incoming + peer->incoming_have);
        size_t want =
            is_header ? sizeof(peer->header) - peer->header_have : (size_t)peer->header.size - peer->incoming_have;
        ssize_t got = want == 0 ? 0 : recv(peer->data_fd, to, want, MSG_DONTWAIT);

        if (got < 0 && is_again(errno)) {
            return READ_AGAIN;
        }
        if (got < 0 || (got == 0 && want > 0)) {
            errno = got < 0 ? errno : 0;
            return READ_CLOSED;
        }
        if (!is_header) {
            peer->incoming_have += (size_t)got;
            peer->is_complete = peer->incoming_have == peer->header.size;
            continue;
        }
        peer->header_have += (size_t)got;
        if (peer->header_have == sizeof(peer->header)) {
            if (peer->header.magic != STAR_MAGIC || peer->header.size > STAR_FRAME_MAX) {
                return READ_DAMAGED;
            }
            if (!reserve(&peer->incoming, &peer->incoming_capacity, (size_t)peer->header.size)) {
                return READ_MEMORY;
            }
            peer->incoming_have = 0;
            peer->is_complete = peer->header.size == 0;
        }
    }
    return READ_COMPLETE;
}

/* Hands the complete frame out; `incoming` becomes free for the next one while the caller still reads this one. */
static void take_frame(struct star_peer *peer, const void **data_out, size_t *size_out)
{
    uint8_t *data = peer->incoming;
    size_t capacity = peer->incoming_capacity;

    peer->incoming = peer->current;
    peer->incoming_capacity = peer->current_capacity;
    peer->current = data;
    peer->current_capacity = capacity;
    peer->is_complete = false;
    peer->header_have = 0;
    *data_out = data;
    *size_out = (size_t)peer->header.size;
}

/* Sleeps until the data socket of `rank` is ready for `events`, a notice is there, or the deadline. */
static enum weft_status wait_data(struct weft_bootstrap *bootstrap, uint32_t rank, short events, int64_t deadline)
{
    struct pollfd waits[2] = {{.fd = bootstrap->peers[rank].data_fd, .events = events},
                              {.fd = bootstrap->epoll_fd, .events = POLLIN}};
    int left = weft_star_left_ms(deadline);

    if (left == 0) {
        return WEFT_ERR_TIMEOUT;
    }
    if (poll(waits, 2, left) < 0 && errno != EINTR) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "poll: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

/* What a frame of `rank` means that cannot be read on: its rank fails, unless it is our memory that ended. */
/* What this rank alone has seen the others must hear, or they wait for it. */
static enum weft_status fail_read(struct weft_bootstrap *bootstrap, uint32_t rank, enum read_result result)
{
    struct star_peer *peer = &bootstrap->peers[rank];

    if (result == READ_CLOSED) {
        return fail_data(bootstrap, rank, errno == 0 ? "connection closed" : strerror(errno));
    }
    if (result == READ_MEMORY) {
        peer->header_have = 0;
        weft_bootstrap_abort(bootstrap, bootstrap->rank, "out of memory for a frame");
        return WEFT_ERR_MEMORY;
    }
    weft_bootstrap_abort(bootstrap, rank, "sent a damaged frame");
    return WEFT_ERR_PEER;
}

enum weft_status weft_star_recv(struct weft_bootstrap *bootstrap, uint32_t rank, enum star_frame_kind kind,
                                const void **data_out, size_t *size_out, int64_t deadline)
{
    struct star_peer *peer = &bootstrap->peers[rank];

    if (bootstrap->failed_rank >= 0) {
        return WEFT_ERR_PEER;
    }
    for (;;) {
        enum read_result result = read_frame(peer);

        if (result == READ_COMPLETE) {
            break;
        }
        if (result != READ_AGAIN) {
            return fail_read(bootstrap, rank, result);
        }
        WEFT_TRY(weft_star_check(bootstrap));
        WEFT_TRY(wait_data(bootstrap, rank, POLLIN, deadline));
    }
    if (peer->header.kind != kind) {
        char reason[STAR_REASON_SIZE];

        (void)snprintf(reason, sizeof(reason), "out of step: sent frame kind %u where %u was due", peer->header.kind,
                       kind);
        weft_bootstrap_abort(bootstrap, rank, reason);
        return WEFT_ERR_PEER;
    }
    take_frame(peer, data_out, size_out);
    return WEFT_OK;
}

/* sendmsg() of what is left of header and data after `done` bytes. */
static ssize_t send_some(int fd, const struct star_header *header, const void *data, size_t done)
{
    struct iovec parts[2];
    struct msghdr message = {.msg_iov = parts};

    if (done < sizeof(*header)) {
        parts[message.msg_iovlen++] = (struct iovec){(uint8_t *)header + done, sizeof(*header) - done};
        done = sizeof(*header);
    }
    if (done - sizeof(*header) < header->size) {
        size_t offset = done - sizeof(*header);

        parts[message.msg_iovlen++] = (struct iovec){(uint8_t *)data + offset, (size_t)header->size - offset};
    }
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

enum weft_status weft_star_send(struct weft_bootstrap *bootstrap, uint32_t rank, enum star_frame_kind kind,
                                const void *data, size_t size, int64_t deadline)
{
    struct star_peer *peer = &bootstrap->peers[rank];
    struct star_header header = {.magic = STAR_MAGIC, .kind = kind, .size = size};
    size_t done = 0;

    WEFT_TRY(weft_star_check(bootstrap));
    while (done < sizeof(header) + size) {
        ssize_t sent = send_some(peer->data_fd, &header, data, done);
        enum weft_status status;

        if (sent >= 0) {
            done += (size_t)sent;
            continue;
        }
        if (!is_again(errno)) {
            return fail_data(bootstrap, rank, strerror(errno));
        }
        WEFT_TRY(weft_star_check(bootstrap));
        /* Both sides may be sending: take what the other has sent, up to one frame, so that neither waits for ever. */
        status = wait_data(bootstrap, rank, peer->is_complete ? POLLOUT : POLLOUT | POLLIN, deadline);
        if (status == WEFT_OK && !peer->is_complete) {
            enum read_result result = read_frame(peer);

            if (result != READ_AGAIN && result != READ_COMPLETE) {
                return fail_read(bootstrap, rank, result);
            }
        }
        if (status != WEFT_OK) {
            weft_log(WEFT_LOG_ERROR, STAR_LOG, "send of %zu bytes to rank %u: %s, %zu bytes went out", size, rank,
                     weft_status_name(status), done);
            if (done > 0) {
                weft_star_fail(bootstrap, rank, NULL, "does not read", -1);
            }
            return status;
        }
    }
    return WEFT_OK;
}

/* ---- opening and closing ---- */

enum weft_status weft_star_open(const char *kind, uint32_t rank, uint32_t rank_count, struct weft_bootstrap **out)
{
    struct weft_bootstrap *bootstrap = calloc(1, sizeof(*bootstrap));
    uint32_t peer_count = rank == 0 ? rank_count : 1;
    int error;

    if (bootstrap == NULL || (bootstrap->peers = calloc(peer_count, sizeof(bootstrap->peers[0]))) == NULL) {
        free(bootstrap);
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "out of memory for %u ranks", rank_count);
        return WEFT_ERR_MEMORY;
    }
    bootstrap->kind = kind;
    bootstrap->rank = rank;
    bootstrap->rank_count = rank_count;
    bootstrap->peer_count = peer_count;
    bootstrap->failed_rank = -1;
    atomic_store(&bootstrap->pulse.waiting_for, -1);
    for (uint32_t i = 0; i < peer_count; i++) {
        bootstrap->peers[i] = (struct star_peer){.data_fd = -1, .control_fd = -1, .beat_fd = -1};
    }
    bootstrap->epoll_fd = rank_count > 1 ? epoll_create1(EPOLL_CLOEXEC) : -1;
    if (rank_count > 1 && bootstrap->epoll_fd < 0) {
        error = errno;
        weft_star_free(bootstrap);
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "epoll: %s", strerror(error));
        return WEFT_ERR_IO;
    }
    *out = bootstrap;
    return WEFT_OK;
}

enum weft_status weft_star_attach(struct weft_bootstrap *bootstrap, uint32_t rank, const int fds[STAR_CHANNEL_COUNT])
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = rank};
    struct star_peer *peer = &bootstrap->peers[rank];

    peer->data_fd = fds[STAR_DATA];
    peer->control_fd = fds[STAR_CONTROL];
    peer->beat_fd = fds[STAR_BEAT];
    if (epoll_ctl(bootstrap->epoll_fd, EPOLL_CTL_ADD, peer->control_fd, &event) < 0) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "epoll: rank %u: %s", rank, strerror(errno));
        weft_star_detach(bootstrap, rank);
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

void weft_star_detach(struct weft_bootstrap *bootstrap, uint32_t rank)
{
    struct star_peer *peer = &bootstrap->peers[rank];

    drop_control(bootstrap, rank);
    if (peer->data_fd >= 0) {
        close(peer->data_fd);
    }
    if (peer->beat_fd >= 0) {
        close(peer->beat_fd);
    }
    free(peer->incoming);
    free(peer->current);
    *peer = (struct star_peer){.data_fd = -1, .control_fd = -1, .beat_fd = -1};
}

enum weft_status weft_star_go(struct weft_bootstrap *bootstrap, int64_t deadline)
{
    const void *data;
    size_t size;

    if (bootstrap->rank != 0) {
        return weft_star_recv(bootstrap, 0, STAR_FRAME_GO, &data, &size, deadline);
    }
    for (uint32_t rank = 1; rank < bootstrap->rank_count; rank++) {
        WEFT_TRY(weft_star_send(bootstrap, rank, STAR_FRAME_GO, NULL, 0, deadline));
    }
    return WEFT_OK;
}

void weft_star_free(struct weft_bootstrap *bootstrap)
{
    for (uint32_t rank = 0; rank < bootstrap->peer_count; rank++) {
        weft_star_detach(bootstrap, rank);
    }
    if (bootstrap->epoll_fd >= 0) {
        close(bootstrap->epoll_fd);
    }
    free(bootstrap->peers);
    free(bootstrap);
}
