/* The public face of every bootstrap: argument checks, all_gather over the star, waiting, closing. */
#include "weft/bootstrap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heart.h"
#include "heart_mesh.h"
#include "weft/log.h"

uint32_t weft_bootstrap_rank(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->rank;
}

uint32_t weft_bootstrap_rank_count(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->rank_count;
}

const char *weft_bootstrap_kind(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->kind;
}

static uint64_t fnv1a(uint64_t hash, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    }
    return hash;
}

uint64_t weft_bootstrap_host_id(const struct weft_bootstrap *bootstrap)
{
    static const char *const namespaces[] = {"/proc/self/ns/pid", "/proc/self/ns/uts", "/proc/self/ns/net"};
    uint64_t hash = 0xcbf29ce484222325u;
    char boot_id[64];
    ssize_t got = -1;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

    (void)bootstrap; /* every rank of one process has the same answer */
    if (fd >= 0) {
        got = read(fd, boot_id, sizeof(boot_id));
        close(fd);
    }
    hash = fnv1a(hash, boot_id, got > 0 ? (size_t)got : 0);
    for (size_t i = 0; i < sizeof(namespaces) / sizeof(namespaces[0]); i++) {
        struct stat info;

        if (stat(namespaces[i], &info) == 0) {
            hash = fnv1a(hash, &info.st_ino, sizeof(info.st_ino));
        }
    }
    return hash;
}

void weft_star_make_room(rlim_t count)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < count) {
        limit.rlim_cur = limit.rlim_max < count ? limit.rlim_max : count;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Only leader <-> worker. A wrong rank is the caller's mistake. */
static void assert_neighbour(const struct weft_bootstrap *bootstrap, uint32_t rank)
{
    assert(rank < bootstrap->rank_count && rank != bootstrap->rank && (rank == 0 || bootstrap->rank == 0));
}

enum weft_status weft_bootstrap_send(struct weft_bootstrap *bootstrap, uint32_t rank, const void *data, size_t size,
                                     uint32_t timeout_ms)
{
    if (bootstrap->rank_count == 1) {
        return WEFT_OK;
    }
    assert_neighbour(bootstrap, rank);
    if (size > STAR_FRAME_MAX) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "send to rank %u: %zu bytes, at most %zu", rank, size, STAR_FRAME_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    return weft_star_send(bootstrap, rank, STAR_FRAME_DATA, data, size, weft_star_deadline(timeout_ms));
}

enum weft_status weft_bootstrap_recv(struct weft_bootstrap *bootstrap, uint32_t rank, const void **data_out,
                                     size_t *size_out, uint32_t timeout_ms)
{
    if (bootstrap->rank_count == 1) {
        *data_out = NULL;
        *size_out = 0;
        return WEFT_OK;
    }
    assert_neighbour(bootstrap, rank);
    return weft_star_recv(bootstrap, rank, STAR_FRAME_DATA, data_out, size_out, weft_star_deadline(timeout_ms));
}

/* One part or the whole result, of exactly `size` bytes, into out. */
static enum weft_status gather_recv(struct weft_bootstrap *bootstrap, uint32_t rank, void *out, size_t size,
                                    int64_t deadline)
{
    const void *data;
    size_t got;
    enum weft_status status = weft_star_recv(bootstrap, rank, STAR_FRAME_GATHER, &data, &got, deadline);

    if (status == WEFT_ERR_TIMEOUT) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "all_gather: nothing came from rank %u in time", rank);
    }
    WEFT_TRY(status);
    if (got != size) {
        char reason[STAR_REASON_SIZE];

        (void)snprintf(reason, sizeof(reason), "out of step: all_gather of %zu bytes where %zu were due", got, size);
        weft_star_fail(bootstrap, rank, NULL, reason, -1);
        return WEFT_ERR_PEER;
    }
    if (size > 0) {
        memcpy(out, data, size);
    }
    return WEFT_OK;
}

enum weft_status weft_bootstrap_all_gather(struct weft_bootstrap *bootstrap, const void *in, size_t size, void *out,
                                           uint32_t timeout_ms)
{
    int64_t deadline = weft_star_deadline(timeout_ms);
    size_t total;

    if (__builtin_mul_overflow(size, (size_t)bootstrap->rank_count, &total) || total > STAR_FRAME_MAX) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "all_gather: %u times %zu bytes, at most %zu", bootstrap->rank_count, size,
                 STAR_FRAME_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    if (bootstrap->rank != 0) {
        WEFT_TRY(weft_star_send(bootstrap, 0, STAR_FRAME_GATHER, in, size, deadline));
        return gather_recv(bootstrap, 0, out, total, deadline);
    }
    if (size > 0) {
        memmove(out, in, size);
    }
    for (uint32_t rank = 1; rank < bootstrap->rank_count; rank++) {
        WEFT_TRY(gather_recv(bootstrap, rank, (uint8_t *)out + rank * size, size, deadline));
    }
    for (uint32_t rank = 1; rank < bootstrap->rank_count; rank++) {
        WEFT_TRY(weft_star_send(bootstrap, rank, STAR_FRAME_GATHER, out, total, deadline));
    }
    return WEFT_OK;
}

enum weft_status weft_bootstrap_wait(struct weft_bootstrap *bootstrap, int wake_fd, uint32_t timeout_ms)
{
    int64_t deadline = weft_star_deadline(timeout_ms);
    struct pollfd waits[2] = {{.fd = wake_fd, .events = POLLIN}, {.fd = bootstrap->epoll_fd, .events = POLLIN}};

    for (;;) {
        int left = weft_star_left_ms(deadline);

        WEFT_TRY(weft_star_check(bootstrap));
        waits[0].revents = 0;
        if (poll(waits, 2, left) < 0 && errno != EINTR) {
            weft_log(WEFT_LOG_ERROR, STAR_LOG, "poll: %s", strerror(errno));
            return WEFT_ERR_IO;
        }
        WEFT_TRY(weft_star_check(bootstrap));
        if (waits[0].revents != 0) {
            return WEFT_OK;
        }
        if (left == 0) {
            return WEFT_ERR_TIMEOUT;
        }
    }
}

enum weft_status weft_bootstrap_check(struct weft_bootstrap *bootstrap)
{
    return weft_star_check(bootstrap);
}

int weft_bootstrap_failed_rank(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->failed_rank;
}

const char *weft_bootstrap_failed_reason(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->failed_reason;
}

const char *weft_bootstrap_failed_host(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->failed_host;
}

void weft_bootstrap_abort(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason)
{
    if (bootstrap->failed_rank >= 0) {
        return; /* the first failure stands, and everybody has been told of it */
    }
    assert(rank < bootstrap->rank_count);
    weft_star_fail(bootstrap, rank, NULL, reason, -1);
    if (bootstrap->rank != 0) {
        weft_star_notify(bootstrap, 0, STAR_NOTICE_DEAD, rank, bootstrap->failed_reason);
    }
}

void weft_bootstrap_suspect(struct weft_bootstrap *bootstrap, uint32_t rank, const char *reason, uint32_t timeout_ms)
{
    int64_t deadline = weft_star_deadline(timeout_ms);

    assert(rank < bootstrap->rank_count);
    if (bootstrap->rank != 0 && bootstrap->failed_rank < 0) {
        weft_star_notify(bootstrap, 0, STAR_NOTICE_DEAD, rank, reason);
    }
    while (bootstrap->rank != 0 && weft_star_check(bootstrap) == WEFT_OK && weft_star_left_ms(deadline) > 0) {
        struct pollfd wait = {.fd = bootstrap->epoll_fd, .events = POLLIN};

        (void)poll(&wait, 1, weft_star_left_ms(deadline));
    }
    weft_star_fail(bootstrap, rank, NULL, reason, -1);
}

void weft_bootstrap_end(struct weft_bootstrap *bootstrap)
{
    assert(bootstrap->rank == 0);
    if (bootstrap->heart != NULL) {
        weft_heart_tell(bootstrap->heart, 0, "", STAR_REASON_END);
    }
}

bool weft_bootstrap_take_leave(struct weft_bootstrap *bootstrap)
{
    struct heart_verdict verdict;
    bool is_due = bootstrap->hooks != NULL && bootstrap->hooks->take_leave != NULL;

    assert(bootstrap->rank == 0);
    if (bootstrap->rank_count > 1) { /* after a death, and without heartbeats, the others do not come */
        is_due = is_due && bootstrap->heart != NULL && weft_heart_verdict(bootstrap->heart, &verdict) &&
                 weft_star_is_end(verdict.reason);
    }
    if (is_due) {
        bootstrap->hooks->take_leave(bootstrap);
    }
    return is_due;
}

bool weft_bootstrap_is_ended(const struct weft_bootstrap *bootstrap)
{
    return bootstrap->failed_rank == 0 && weft_star_is_end(bootstrap->failed_reason);
}

enum weft_status weft_bootstrap_heartbeat(struct weft_bootstrap *bootstrap,
                                          const struct weft_heartbeat_options *options)
{
    struct heart_mesh *mesh;

    assert(bootstrap->heart == NULL);
    if (bootstrap->rank_count == 1) {
        return WEFT_OK;
    }
    WEFT_TRY(weft_heart_open(bootstrap, options, &bootstrap->heart));
    WEFT_TRY(weft_heart_mesh_open(bootstrap, options->interface, &mesh));
    if (mesh != NULL) {
        weft_heart_watch(bootstrap->heart, mesh);
    }
    return WEFT_OK;
}

void weft_bootstrap_phase(struct weft_bootstrap *bootstrap, enum weft_phase phase, uint64_t number)
{
    atomic_store_explicit(&bootstrap->pulse.number, number, memory_order_relaxed);
    atomic_store_explicit(&bootstrap->pulse.phase, (uint32_t)phase, memory_order_relaxed);
}

void weft_bootstrap_progress(struct weft_bootstrap *bootstrap)
{
    atomic_fetch_add_explicit(&bootstrap->pulse.progress, 1, memory_order_relaxed);
    atomic_store_explicit(&bootstrap->pulse.waiting_for, -1, memory_order_relaxed);
}

void weft_bootstrap_waiting(struct weft_bootstrap *bootstrap, uint32_t rank)
{
    atomic_store_explicit(&bootstrap->pulse.waiting_for, (int32_t)rank, memory_order_relaxed);
}

uint32_t weft_bootstrap_quiet_ms(struct weft_bootstrap *bootstrap, uint32_t rank)
{
    return bootstrap->heart == NULL ? UINT32_MAX : weft_heart_quiet_ms(bootstrap->heart, rank);
}

bool weft_bootstrap_lost(struct weft_bootstrap *bootstrap, uint32_t *rank_out, char *text_out, size_t size)
{
    struct heart_verdict verdict;

    if (bootstrap->heart == NULL || !weft_heart_verdict(bootstrap->heart, &verdict)) {
        return false;
    }
    *rank_out = verdict.rank;
    weft_star_failure_text(verdict.rank, verdict.host, verdict.reason, text_out, size);
    return true;
}

void weft_bootstrap_close(struct weft_bootstrap **bootstrap_pointer)
{
    struct weft_bootstrap *bootstrap = *bootstrap_pointer;
    const struct star_hooks *hooks;

    if (bootstrap == NULL) {
        return;
    }
    hooks = bootstrap->hooks;
    if (hooks != NULL && hooks->close_begin != NULL) {
        hooks->close_begin(bootstrap);
    }
    weft_heart_close(&bootstrap->heart); /* its farewell first: nobody is accused who leaves in order */
    for (uint32_t rank = 0; rank < bootstrap->peer_count; rank++) {
        weft_star_notify(bootstrap, rank, STAR_NOTICE_LEAVE, bootstrap->rank, "");
    }
    for (uint32_t rank = 0; rank < bootstrap->peer_count; rank++) {
        weft_star_detach(bootstrap, rank);
    }
    if (hooks != NULL && hooks->close_end != NULL) {
        hooks->close_end(bootstrap);
    }
    weft_star_free(bootstrap);
    *bootstrap_pointer = NULL;
}
