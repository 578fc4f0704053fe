/* Beats over one socket, and why a neighbour is silent. Contract in heart_link.h. */
#include "heart_link.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* A process that only waits for a core, and a network, are given this much longer than a stopped process. */
#define STARVED_FACTOR    5
#define NETWORK_FACTOR_UP 5 /* five thirds: 1.5 s by default, and 2 s are promised */
#define NETWORK_FACTOR_BY 3

enum heart_read weft_heart_link_read(struct heart_link *link, const char **reason_out)
{
    while (link->in_have < sizeof(link->in)) {
        ssize_t got = recv(link->fd, (char *)&link->in + link->in_have, sizeof(link->in) - link->in_have, MSG_DONTWAIT);

        if (got > 0) {
            link->in_have += (size_t)got;
        } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return HEART_READ_NOTHING;
        } else if (got == 0 || errno != EINTR) {
            *reason_out = got == 0 ? "connection closed" : strerror(errno);
            return HEART_READ_END;
        }
    }
    link->in_have = 0;
    if (link->in.magic != STAR_MAGIC) {
        *reason_out = "sent a damaged heartbeat";
        return HEART_READ_END;
    }
    link->in.host[STAR_HOST_SIZE - 1] = '\0';
    link->in.reason[STAR_REASON_SIZE - 1] = '\0';
    return HEART_READ_BEAT;
}

/* False while something of an earlier beat is left. A broken socket takes everything: reading finds its end. */
static bool flush(struct heart_link *link)
{
    while (link->out_left > 0) {
        ssize_t sent = send(link->fd, (const char *)&link->out + sizeof(link->out) - link->out_left, link->out_left,
                            MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent > 0) {
            link->out_left -= (size_t)sent;
        } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return false;
        } else if (sent < 0 && errno != EINTR) {
            link->out_left = 0;
        }
    }
    return true;
}

bool weft_heart_link_send(struct heart_link *link, const struct heart_beat *beat)
{
    if (link->fd < 0) {
        return true;
    }
    if (!flush(link)) {
        return false;
    }
    if (beat != NULL) {
        link->out = *beat;
        link->out_left = sizeof(link->out);
        (void)flush(link);
    }
    return true;
}

char weft_heart_thread_state(uint32_t pid, uint32_t tid)
{
    char path[64];
    char text[512];
    size_t got;
    const char *end;
    FILE *file;

    (void)snprintf(path, sizeof(path), "/proc/%u/task/%u/stat", pid, tid);
    file = fopen(path, "re");
    if (file == NULL) {
        return 0;
    }
    got = fread(text, 1, sizeof(text) - 1, file);
    (void)fclose(file);
    text[got] = '\0';
    end = strrchr(text, ')'); /* the name before it may hold anything */
    return end != NULL && end[1] == ' ' ? end[2] : 0;
}

bool weft_heart_is_acknowledged(int fd, int64_t silence_ns)
{
    struct tcp_info info;
    socklen_t size = sizeof(info);

    memset(&info, 0, sizeof(info));
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) {
        return true;
    }
    return info.tcpi_unacked == 0 || info.tcpi_last_ack_recv < silence_ns / 2000000;
}

static bool is_lost_here(const struct heart_link *link, int64_t limit_ns, char *reason_out, size_t reason_size)
{
    char state = weft_heart_thread_state(link->last.pid, link->last.tid);
    double seconds = (double)link->silence_ns / 1e9;

    if (state == 'T' || state == 't') {
        (void)snprintf(reason_out, reason_size,
                       "no heartbeat for %.1f s: process %u is stopped (by a signal or a debugger)", seconds,
                       link->last.pid);
        return true;
    }
    if (link->silence_ns < STARVED_FACTOR * limit_ns) {
        return false;
    }
    (void)snprintf(reason_out, reason_size, "no heartbeat for %.1f s: process %u does not get to run (state %c)",
                   seconds, link->last.pid, state != 0 ? state : '?');
    return true;
}

bool weft_heart_link_is_lost(const struct heart_link *link, int64_t limit_ns, const struct heart_beat *own,
                             char *reason_out, size_t reason_size)
{
    const char *host = link->has_spoken ? link->last.host : "its host";
    double seconds = (double)link->silence_ns / 1e9;

    if (link->silence_ns < limit_ns) {
        return false;
    }
    if (link->has_spoken && link->last.host_id == own->host_id) {
        return is_lost_here(link, limit_ns, reason_out, reason_size);
    }
    if (weft_heart_is_acknowledged(link->fd, link->silence_ns)) {
        (void)snprintf(reason_out, reason_size,
                       "no heartbeat for %.1f s though %s answers: the process is stopped or does not get to run",
                       seconds, host);
        return true;
    }
    if (link->silence_ns < limit_ns / NETWORK_FACTOR_BY * NETWORK_FACTOR_UP) {
        return false;
    }
    (void)snprintf(reason_out, reason_size,
                   "no heartbeat for %.1f s and no answer: %s is down, or the network between %s and %s is cut",
                   seconds, host, own->host, host);
    return true;
}
