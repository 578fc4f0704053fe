/* Opening and closing the heartbeats of a rank. Contract in heart.h. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "heart_internal.h"
#include "weft/log.h"

static void release(struct weft_heart *heart)
{
    weft_heart_speaker_end(heart);
    for (uint32_t i = 0; i < heart->link_count && heart->links != NULL; i++) {
        if (heart->links[i].fd >= 0) {
            close(heart->links[i].fd);
        }
    }
    if (heart->epoll_fd >= 0) {
        close(heart->epoll_fd);
    }
    if (heart->wake_fd >= 0) {
        close(heart->wake_fd);
    }
    if (heart->verdict_fd >= 0) {
        close(heart->verdict_fd);
    }
    pthread_mutex_destroy(&heart->mutex);
    free(heart->links);
    free(heart);
}

static void take_sockets(struct weft_heart *heart, struct weft_bootstrap *bootstrap)
{
    uint32_t first = bootstrap->rank == 0 ? 1 : 0;

    for (uint32_t i = 0; i < heart->link_count; i++) {
        struct star_peer *peer = &bootstrap->peers[first + i];

        heart->links[i].rank = first + i;
        heart->links[i].fd = peer->beat_fd;
        peer->beat_fd = -1;
    }
}

static enum weft_status watch(int epoll_fd, int fd, uint32_t what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};

    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "epoll: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

static enum weft_status start(struct weft_heart *heart)
{
    enum weft_status status;
    sigset_t all;
    sigset_t before;
    int error;

    WEFT_TRY(watch(heart->epoll_fd, heart->wake_fd, HEART_WAKE));
    for (uint32_t i = 0; i < heart->link_count; i++) {
        WEFT_TRY(watch(heart->epoll_fd, heart->links[i].fd, i));
    }
    WEFT_TRY(watch(heart->bootstrap->epoll_fd, heart->verdict_fd, UINT32_MAX));
    /* Signals are the main thread's: their handlers interrupt what it waits for. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    status = weft_heart_speaker_start(heart);
    error = status == WEFT_OK ? pthread_create(&heart->thread, NULL, weft_heart_run, heart) : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    WEFT_TRY(status);
    if (error != 0) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "cannot start a thread: %s", strerror(error));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

/* The main thread may lose its core while it holds it, for long where many want one: the thread of heartbeats, which
 * waits for it before it passes a verdict on, then lends it its priority. */
static void init_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;

    pthread_mutexattr_init(&attributes);
    (void)pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

enum weft_status weft_heart_open(struct weft_bootstrap *bootstrap, const struct weft_heartbeat_options *options,
                                 struct weft_heart **out)
{
    struct weft_heart *heart = calloc(1, sizeof(*heart));
    uint32_t link_count = bootstrap->rank == 0 ? bootstrap->rank_count - 1 : 1;
    enum weft_status status;

    if (heart == NULL) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "out of memory");
        return WEFT_ERR_MEMORY;
    }
    init_mutex(&heart->mutex);
    heart->knows_ends = bootstrap->hooks != NULL && bootstrap->hooks->describe != NULL;
    heart->bootstrap = bootstrap;
    heart->rank = bootstrap->rank;
    heart->log_rank = weft_log_rank();
    heart->silence_ms = options->silence_ms == 0 ? HEART_SILENCE_MS : options->silence_ms;
    heart->exit_ns = (int64_t)options->exit_ms * 1000000;
    atomic_store(&heart->group_quiet_ms, UINT32_MAX);
    heart->own = (struct heart_beat){.magic = STAR_MAGIC,
                                     .kind = HEART_BEAT,
                                     .rank = bootstrap->rank,
                                     .host_id = weft_bootstrap_host_id(bootstrap),
                                     .cut_rank = HEART_NOBODY,
                                     .pid = (uint32_t)getpid()};
    (void)gethostname(heart->own.host, sizeof(heart->own.host) - 1);
    heart->links = calloc(link_count, sizeof(*heart->links));
    heart->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    heart->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    heart->verdict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (heart->links == NULL || heart->epoll_fd < 0 || heart->wake_fd < 0 || heart->verdict_fd < 0) {
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "out of memory or descriptors");
        release(heart);
        return WEFT_ERR_MEMORY;
    }
    heart->link_count = link_count;
    take_sockets(heart, bootstrap);
    status = start(heart);
    if (status != WEFT_OK) {
        release(heart);
        return status;
    }
    *out = heart;
    return WEFT_OK;
}

void weft_heart_watch(struct weft_heart *heart, struct heart_mesh *mesh)
{
    assert(atomic_load(&heart->mesh) == NULL);
    atomic_store(&heart->mesh, mesh);
}

void weft_heart_close(struct weft_heart **heart_pointer)
{
    struct weft_heart *heart = *heart_pointer;
    const struct timespec moment = {.tv_nsec = 1000000};

    if (heart == NULL) {
        return;
    }
    *heart_pointer = NULL;
    if (heart->exit_ns != 0 && atomic_load(&heart->is_over)) {
        atomic_store(&heart->is_guard, true);
        atomic_store(&heart->is_closing, true);
        weft_heart_signal(heart->wake_fd);
        while (!atomic_load(&heart->has_let_go)) {
            (void)nanosleep(&moment, NULL);
        }
        pthread_detach(heart->thread);
        pthread_detach(heart->speaker);
        return;
    }
    atomic_store(&heart->is_closing, true);
    weft_heart_signal(heart->wake_fd);
    pthread_join(heart->thread, NULL);
    release(heart);
}
