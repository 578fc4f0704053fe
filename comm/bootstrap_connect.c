/* A worker's side of the TCP rendezvous: find the leader, prove who we are, wait until everybody has come. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "weft/log.h"

/* Between rounds of attempts; one connect; one hello; how much longer than its own deadline a worker waits for the
 * leader's word, who knows better what is missing; how long a leader that has refused the second connection may take to
 * close the first, or to say there why it gives up; to end once it has been told that this rank cannot take part. */
enum {
    RETRY_MIN_MS = 20,
    RETRY_MAX_MS = 500,
    CONNECT_MS = 2000,
    HELLO_MS = 5000,
    GO_MORE_MS = 2000,
    EXPLAIN_MS = 200,
    LEADER_MS = 3000,
};

/* Why the last attempt failed, in words; and whether another may succeed. */
struct attempt {
    int64_t deadline; /* of all attempts */
    char error[256];
    bool is_final;
    bool is_over;            /* the leader had taken this rank in, and has given up or gone */
    struct star_notice word; /* with is_over: what it said; kind 0: nothing */
};

static int64_t sooner(int64_t deadline, uint32_t timeout_ms)
{
    int64_t other = weft_star_deadline(timeout_ms);

    return other < deadline ? other : deadline;
}

static bool wait_fd(int fd, short events, int64_t deadline)
{
    struct pollfd wait = {.fd = fd, .events = events};
    int left;

    while ((left = weft_star_left_ms(deadline)) > 0) {
        int ready = poll(&wait, 1, left);

        if (ready > 0) {
            return true;
        }
        if (ready < 0 && errno != EINTR) {
            return false;
        }
    }
    errno = ETIMEDOUT;
    return false;
}

/* A connected, non-blocking socket, or -1. */
static int connect_to(const struct tcp_target *to, struct attempt *attempt)
{
    int fd = socket(to->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int error = 0;
    socklen_t size = sizeof(error);

    if (fd >= 0) {
        weft_tcp_limit_segments(fd);
    }
    if (fd < 0) {
        error = errno;
    } else if (connect(fd, (const struct sockaddr *)&to->address, to->size) < 0) {
        error = errno;
        if (error == EINPROGRESS) {
            if (!wait_fd(fd, POLLOUT, sooner(attempt->deadline, CONNECT_MS))) {
                error = errno;
            } else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
                error = errno;
            }
        }
    }
    if (error != 0) {
        char text[80];

        weft_tcp_address_text((const struct sockaddr *)&to->address, to->size, text, sizeof(text));
        (void)snprintf(attempt->error, sizeof(attempt->error), "%s: %s", text, strerror(error));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

static bool read_all(int fd, void *data, size_t size, int64_t deadline)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = recv(fd, (char *)data + done, size - done, MSG_DONTWAIT);

        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            errno = ECONNRESET;
            return false;
        } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            return false;
        } else if (!wait_fd(fd, POLLIN, deadline)) {
            return false;
        }
    }
    return true;
}

/* Reads the leader's challenge and finds out whether both sides are the same program. */
static bool hear_challenge(int fd, const struct tcp_join *join, struct tcp_challenge *challenge,
                           const struct tcp_answer *answer, struct attempt *attempt, int64_t deadline)
{
    struct tcp_preamble own;
    char theirs[TCP_WHY_SIZE];
    char ours[TCP_WHY_SIZE];

    weft_tcp_preamble(join->program, &own);
    if (!read_all(fd, &challenge->preamble, sizeof(challenge->preamble), deadline)) {
        (void)snprintf(attempt->error, sizeof(attempt->error), "hello: %s", strerror(errno));
        return false;
    }
    switch (weft_tcp_compare(&own, &challenge->preamble)) {
    case TCP_ACCEPTED: break;
    case TCP_WRONG_VERSION: {
        struct tcp_answer refusal = *answer;

        /* So that the leader can say who came. What is left of its challenge is not for us. */
        refusal.preamble = own;
        (void)!send(fd, &refusal, sizeof(refusal), MSG_DONTWAIT | MSG_NOSIGNAL);
        attempt->is_final = true;
        (void)snprintf(attempt->error, sizeof(attempt->error), "is another version: %s, this is %s",
                       weft_tcp_program_text(&challenge->preamble, theirs), weft_tcp_program_text(&own, ours));
        return false;
    }
    default:
        (void)snprintf(attempt->error, sizeof(attempt->error), "%s", weft_tcp_code_text(TCP_NOT_WEFT));
        return false;
    }
    if (!read_all(fd, (char *)challenge + sizeof(own), sizeof(*challenge) - sizeof(own), deadline)) {
        (void)snprintf(attempt->error, sizeof(attempt->error), "hello: %s", strerror(errno));
        return false;
    }
    return true;
}

/* True when the leader took this connection in; answer->rank is then the one that counts. */
static bool greet(int fd, const struct tcp_join *join, struct tcp_answer *answer, struct attempt *attempt)
{
    int64_t deadline = sooner(attempt->deadline, HELLO_MS);
    struct tcp_challenge challenge;
    struct tcp_verdict verdict;
    bool is_authentic;
    char rank[16] = "this rank";

    if (!hear_challenge(fd, join, &challenge, answer, attempt, deadline)) {
        return false;
    }
    if (weft_tcp_answer(&join->secret, &challenge, answer) != WEFT_OK) {
        (void)snprintf(attempt->error, sizeof(attempt->error), "%s", weft_log_last_error());
        return false;
    }
    if (send(fd, answer, sizeof(*answer), MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(*answer) ||
        !read_all(fd, &verdict, sizeof(verdict), deadline)) {
        (void)snprintf(attempt->error, sizeof(attempt->error), "hello: %s", strerror(errno));
        return false;
    }
    is_authentic = weft_tcp_is_authentic(&join->secret, &challenge, answer, &verdict);
    if (verdict.code == TCP_ACCEPTED && is_authentic) {
        answer->rank = verdict.rank;
        return true;
    }
    /* A rank that was restarted may meet its own dead connection: that one goes as soon as the leader notices. */
    attempt->is_final = true;
    weft_tcp_text_clean(verdict.why, sizeof(verdict.why));
    if (answer->rank != WEFT_BOOTSTRAP_RANK_ANY) {
        (void)snprintf(rank, sizeof(rank), "rank %u", answer->rank);
    }
    (void)snprintf(attempt->error, sizeof(attempt->error), "refused %s on %s: %s", rank, answer->host,
                   is_authentic && verdict.why[0] != '\0'
                       ? verdict.why
                       : weft_tcp_code_text(verdict.code == TCP_ACCEPTED ? TCP_WRONG_SECRET : verdict.code));
    return false;
}

/*
 * A connection could not be made, but those before it stand, so the leader knows this rank. If it has given up it says
 * so on the first; if it has died that one ends. Otherwise it goes on (it had too many guests, say), and so do we.
 */
static void hear_leader_end(int fd, struct attempt *attempt)
{
    struct star_notice *word = &attempt->word;

    if (!wait_fd(fd, POLLIN, weft_star_deadline(EXPLAIN_MS))) {
        return;
    }
    attempt->is_over = true;
    if (!read_all(fd, word, sizeof(*word), weft_star_deadline(EXPLAIN_MS)) || !weft_star_notice_clean(word)) {
        memset(word, 0, sizeof(*word));
    }
}

/* All channels to one address, or the first to say why not; fds_out set on success only. */
static bool try_address(const struct tcp_target *to, const struct tcp_join *join, struct tcp_answer *answer,
                        struct attempt *attempt, int *fds_out)
{
    int fds[STAR_CHANNEL_COUNT] = {-1, -1, -1};
    uint32_t channel_count = join->trouble != NULL ? 1 : STAR_CHANNEL_COUNT;
    uint32_t asked = answer->rank;

    for (uint32_t channel = 0; channel < channel_count; channel++) {
        answer->channel = channel;
        fds[channel] = connect_to(to, attempt);
        if (fds[channel] < 0 || !greet(fds[channel], join, answer, attempt)) {
            if (channel > 0) {
                hear_leader_end(fds[0], attempt);
            }
            for (uint32_t i = 0; i <= channel; i++) {
                if (fds[i] >= 0) {
                    close(fds[i]);
                }
            }
            answer->rank = asked;
            return false;
        }
        weft_tcp_tune(fds[channel], channel);
    }
    memcpy(fds_out, fds, sizeof(fds));
    return true;
}

/* One round over all addresses. A final refusal counts only when no other address takes us: among several, one may
 * belong to somebody else's leader. */
static bool try_all(const struct tcp_join *join, struct tcp_answer *answer, struct attempt *attempt, int *fds_out)
{
    char resolve_error[sizeof(attempt->error)] = "no address";
    struct tcp_target targets[TCP_TARGET_MAX];
    size_t count = join->resolve(join->context, targets, resolve_error, sizeof(resolve_error));

    if (count == 0) {
        (void)snprintf(attempt->error, sizeof(attempt->error), "%s", resolve_error);
    }
    for (size_t i = 0; i < count && !attempt->is_over; i++) {
        if (try_address(&targets[i], join, answer, attempt, fds_out)) {
            return true;
        }
    }
    return false;
}

/* As if the leader had ended while this rank waited for the others. */
static void fail_with_leader(struct weft_bootstrap *bootstrap, const struct star_notice *word)
{
    if (word->kind == STAR_NOTICE_DEAD && word->rank < bootstrap->rank_count) {
        weft_star_fail(bootstrap, word->rank, word->host, word->reason, 0);
    } else {
        weft_star_fail(bootstrap, 0, NULL, "connection closed", -1);
    }
}

/* The leader is to end first: its log has the reason, and some launchers kill it when this process has ended. */
static enum weft_status wait_for_leader_end(int fd)
{
    struct pollfd leader = {.fd = fd, .events = POLLRDHUP};

    (void)poll(&leader, 1, LEADER_MS);
    close(fd);
    return WEFT_ERR_STATE;
}

enum weft_status weft_tcp_join(struct weft_bootstrap *bootstrap, const struct tcp_join *join)
{
    struct attempt attempt = {.deadline = weft_star_deadline(join->timeout_ms)};
    struct tcp_answer answer = {.rank = bootstrap->rank,
                                .rank_count = bootstrap->rank_count,
                                .local_rank = join->local_rank,
                                .local_count = join->local_count > 0 ? join->local_count : 1};
    int64_t go_deadline;
    int pause_ms = RETRY_MIN_MS;
    int fds[STAR_CHANNEL_COUNT];
    enum weft_status status;

    WEFT_TRY(weft_tcp_random(answer.session, sizeof(answer.session)));
    (void)gethostname(answer.host, sizeof(answer.host) - 1);
    answer.trouble_status = join->trouble_status;
    (void)snprintf(answer.trouble, sizeof(answer.trouble), "%s", join->trouble != NULL ? join->trouble : "");
    while (!try_all(join, &answer, &attempt, fds)) {
        int left = weft_star_left_ms(attempt.deadline);

        if (attempt.is_over) {
            fail_with_leader(bootstrap, &attempt.word);
            return WEFT_ERR_PEER;
        }
        if (attempt.is_final) {
            weft_log(WEFT_LOG_ERROR, TCP_LOG, "leader %s: %s", join->leader, attempt.error);
            return WEFT_ERR_PEER;
        }
        /* No attempt that the deadline would cut short: its error would hide the true one. */
        if (left >= 0 && left <= pause_ms) {
            weft_log(WEFT_LOG_ERROR, TCP_LOG, "leader %s: %s (given up after %u ms)", join->leader, attempt.error,
                     join->timeout_ms);
            return WEFT_ERR_TIMEOUT;
        }
        (void)poll(NULL, 0, pause_ms);
        pause_ms = pause_ms * 2 < RETRY_MAX_MS ? pause_ms * 2 : RETRY_MAX_MS;
    }
    bootstrap->rank = answer.rank;
    weft_log_set_rank((int)answer.rank);
    if (join->trouble != NULL) {
        return wait_for_leader_end(fds[STAR_DATA]);
    }
    WEFT_TRY(weft_star_attach(bootstrap, 0, fds));
    go_deadline = attempt.deadline == STAR_FOREVER ? STAR_FOREVER : attempt.deadline + (int64_t)GO_MORE_MS * 1000000;
    status = weft_star_go(bootstrap, go_deadline);
    if (status == WEFT_ERR_TIMEOUT) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "leader %s took this rank in, but not all ranks came within %u ms",
                 join->leader, join->timeout_ms);
    }
    return status;
}
