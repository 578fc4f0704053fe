/* The lower rank of a pair asks and measures, the higher answers; rank 0 says which pair is next and hears the result.
 */
#include "doctor/probe.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "weft/log.h"

enum {
    PING_COUNT = 33,
    BULK_FIRST = 256 * 1024,
    BULK_SIZE = 4 * 1024 * 1024,
    BULK_WORTH_US = 20000, /* a link that takes longer for the first is known well enough */
};

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uint32_t weft_doctor_links_list(const struct weft_doctor_facts *facts, uint32_t rank_count,
                                struct weft_doctor_link *links_out)
{
    bool is_first[WEFT_LEAF_COUNT_MAX];
    uint32_t count = 0;

    for (uint32_t r = 0; r < rank_count; r++) {
        is_first[r] = true;
        for (uint32_t e = 0; e < r; e++) {
            is_first[r] = is_first[r] && facts[e].host_id != facts[r].host_id;
        }
    }
    for (uint32_t a = 0; a < rank_count; a++) {
        for (uint32_t b = a + 1; b < rank_count; b++) {
            bool is_same = facts[a].host_id == facts[b].host_id;

            if (is_same || (is_first[a] && is_first[b])) {
                links_out[count++] = (struct weft_doctor_link){.a = a, .b = b, .is_same_host = is_same};
            }
        }
    }
    return count;
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static enum weft_status ask_pings(struct weft_comm *comm, struct weft_doctor_link *link)
{
    int64_t times[PING_COUNT];
    int64_t best = INT64_MAX;

    for (int i = 0; i < PING_COUNT; i++) {
        int64_t wall = clock_ns(CLOCK_REALTIME);
        int64_t begin = clock_ns(CLOCK_MONOTONIC);
        int64_t theirs = 0;

        WEFT_TRY(weft_comm_send(comm, link->b, &wall, sizeof(wall)));
        WEFT_TRY(weft_comm_recv(comm, link->b, &theirs, sizeof(theirs)));
        times[i] = clock_ns(CLOCK_MONOTONIC) - begin;
        if (times[i] < best) {
            best = times[i];
            link->clock_offset_us = (double)(theirs - (wall + best / 2)) / 1e3;
            link->clock_error_us = (double)best / 2e3;
        }
    }
    qsort(times, PING_COUNT, sizeof(times[0]), compare_times);
    link->latency_us = (double)times[PING_COUNT / 2] / 2e3;
    return WEFT_OK;
}

/* Sends `size` bytes after their number; the time until the answer. */
static enum weft_status ask_bulk(struct weft_comm *comm, uint32_t peer, const char *buffer, uint64_t size,
                                 int64_t *time_ns_out)
{
    int64_t begin = clock_ns(CLOCK_MONOTONIC);
    uint64_t answer = 0;

    WEFT_TRY(weft_comm_send(comm, peer, &size, sizeof(size)));
    if (size > 0) {
        WEFT_TRY(weft_comm_send(comm, peer, buffer, size));
        WEFT_TRY(weft_comm_recv(comm, peer, &answer, sizeof(answer)));
    }
    *time_ns_out = clock_ns(CLOCK_MONOTONIC) - begin;
    return WEFT_OK;
}

static enum weft_status ask_bandwidth(struct weft_comm *comm, const char *buffer, struct weft_doctor_link *link)
{
    uint64_t size = BULK_FIRST;
    int64_t time_ns = 0;

    WEFT_TRY(ask_bulk(comm, link->b, buffer, size, &time_ns));
    if (time_ns / 1000 < BULK_WORTH_US) {
        int64_t first_ns = 0;

        /* Twice: the first touches the transport's pages. */
        size = BULK_SIZE;
        WEFT_TRY(ask_bulk(comm, link->b, buffer, size, &first_ns));
        WEFT_TRY(ask_bulk(comm, link->b, buffer, size, &time_ns));
        time_ns = first_ns < time_ns ? first_ns : time_ns;
    }
    link->bandwidth = time_ns > 0 ? (double)size * 1e9 / (double)time_ns : 0;
    return WEFT_OK;
}

/* Of the own direction. */
static uint32_t resent_count(const struct weft_comm *comm, uint32_t peer)
{
    struct weft_comm_path path = {.resent_count = 0};

    return weft_comm_path(comm, peer, &path) ? path.resent_count : 0;
}

static enum weft_status ask(struct weft_comm *comm, const char *buffer, struct weft_doctor_link *link)
{
    uint32_t theirs = 0;
    int64_t time_ns = 0;

    WEFT_TRY(ask_pings(comm, link));
    WEFT_TRY(weft_doctor_mtu_measure(comm, link->b, true, &link->mtu_ab));
    WEFT_TRY(weft_comm_recv(comm, link->b, &link->mtu_ba, sizeof(link->mtu_ba)));
    /* Megabytes would never arrive. */
    if (!weft_doctor_link_has_black_hole(link)) {
        WEFT_TRY(ask_bandwidth(comm, buffer, link));
    }
    WEFT_TRY(ask_bulk(comm, link->b, buffer, 0, &time_ns));
    WEFT_TRY(weft_comm_recv(comm, link->b, &theirs, sizeof(theirs)));
    link->resent_count = resent_count(comm, link->b) + theirs;
    link->is_measured = 1;
    return WEFT_OK;
}

static enum weft_status reply_bulk(struct weft_comm *comm, uint32_t peer, char *buffer)
{
    for (;;) {
        uint64_t size = 0;

        WEFT_TRY(weft_comm_recv(comm, peer, &size, sizeof(size)));
        if (size == 0) {
            return WEFT_OK;
        }
        if (size > BULK_SIZE) {
            weft_log(WEFT_LOG_ERROR, "doctor", "rank %u wants to send more than agreed", peer);
            return WEFT_ERR_FORMAT;
        }
        WEFT_TRY(weft_comm_recv(comm, peer, buffer, size));
        WEFT_TRY(weft_comm_send(comm, peer, &size, sizeof(size)));
    }
}

static enum weft_status reply(struct weft_comm *comm, uint32_t peer, char *buffer)
{
    struct weft_doctor_mtu mtu;
    uint32_t resent;

    for (int i = 0; i < PING_COUNT; i++) {
        int64_t wall;

        WEFT_TRY(weft_comm_recv(comm, peer, &wall, sizeof(wall)));
        wall = clock_ns(CLOCK_REALTIME);
        WEFT_TRY(weft_comm_send(comm, peer, &wall, sizeof(wall)));
    }
    WEFT_TRY(weft_doctor_mtu_measure(comm, peer, false, &mtu));
    WEFT_TRY(weft_comm_send(comm, peer, &mtu, sizeof(mtu)));
    WEFT_TRY(reply_bulk(comm, peer, buffer));
    resent = resent_count(comm, peer);
    return weft_comm_send(comm, peer, &resent, sizeof(resent));
}

static enum weft_status measure(struct weft_comm *comm, uint32_t rank, char *buffer, struct weft_doctor_link *link)
{
    if (rank == link->a) {
        WEFT_TRY(ask(comm, buffer, link));
    } else if (rank == link->b) {
        WEFT_TRY(reply(comm, link->a, buffer));
    }
    if (rank == link->a && rank != 0) {
        return weft_comm_send(comm, 0, link, sizeof(*link));
    }
    if (rank == 0 && rank != link->a) {
        return weft_comm_recv(comm, link->a, link, sizeof(*link));
    }
    return WEFT_OK;
}

bool weft_doctor_link_has_black_hole(const struct weft_doctor_link *link)
{
    return weft_doctor_mtu_is_black_hole(&link->mtu_ab) || weft_doctor_mtu_is_black_hole(&link->mtu_ba);
}

enum weft_status weft_doctor_links_measure(struct weft_comm *comm, uint32_t rank, uint32_t budget_ms,
                                           struct weft_doctor_link *links, uint32_t link_count)
{
    int64_t end_ns = clock_ns(CLOCK_MONOTONIC) + (int64_t)budget_ms * 1000000;
    enum weft_status status = WEFT_OK;
    uint32_t is_wanted = 1;
    char *buffer = malloc(BULK_SIZE);

    if (buffer == NULL) {
        weft_log(WEFT_LOG_ERROR, "doctor", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    memset(buffer, 0x5a, BULK_SIZE); /* pages are there before the clock runs */
    for (uint32_t i = 0; status == WEFT_OK && is_wanted != 0 && i < link_count; i++) {
        is_wanted = clock_ns(CLOCK_MONOTONIC) < end_ns;
        status = weft_comm_broadcast(comm, 0, &is_wanted, sizeof(is_wanted));
        if (status == WEFT_OK && is_wanted != 0) {
            status = measure(comm, rank, buffer, &links[i]);
        }
    }
    free(buffer);
    return status;
}
