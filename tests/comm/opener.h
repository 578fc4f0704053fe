/* A rank that looks for the others, in a thread of its own: what came of it, and what the log says meanwhile. */
#ifndef WEFT_TESTS_COMM_OPENER_H
#define WEFT_TESTS_COMM_OPENER_H

#include "bodies.h"
#include "place.h"

struct opener {
    struct weft_bootstrap_tcp_options options;
    struct weft_bootstrap *bootstrap;
    enum weft_status status;
    char error[1024];
    pthread_t thread;
};

static inline void *open_one(void *argument)
{
    struct opener *opener = argument;

    opener->status = weft_bootstrap_open_tcp(&opener->options, &opener->bootstrap);
    (void)snprintf(opener->error, sizeof(opener->error), "%s", weft_log_last_error());
    return NULL;
}

static inline void start(struct opener *opener, const struct place *place, uint32_t rank, uint32_t rank_count)
{
    struct weft_bootstrap_tcp_options options = opener->options;

    memset(opener, 0, sizeof(*opener));
    options.leader = place->text;
    options.rank = rank;
    options.rank_count = rank_count;
    options.timeout_ms = options.timeout_ms == 0 ? LONG_MS : options.timeout_ms;
    opener->options = options;
    assert_int_equal(pthread_create(&opener->thread, NULL, open_one, opener), 0);
}

static inline void finish(struct opener *openers, size_t count, enum weft_status expected)
{
    for (size_t i = 0; i < count; i++) {
        pthread_join(openers[i].thread, NULL);
        assert_int_equal(openers[i].status, expected);
    }
    for (size_t i = count; i-- > 0;) {
        weft_bootstrap_close(&openers[i].bootstrap);
    }
}

/* What the log says, all of it. */
struct listener {
    pthread_mutex_t mutex;
    size_t used;
    char text[16384];
};

static inline void on_log(void *context, enum weft_log_level level, const char *line)
{
    struct listener *listener = context;

    (void)level;
    pthread_mutex_lock(&listener->mutex);
    if (listener->used + strlen(line) + 2 < sizeof(listener->text)) {
        listener->used += (size_t)sprintf(listener->text + listener->used, "%s\n", line);
    }
    pthread_mutex_unlock(&listener->mutex);
}

static inline void listen_to_the_log(struct listener *listener)
{
    pthread_mutex_init(&listener->mutex, NULL);
    weft_log_configure(WEFT_LOG_INFO, on_log, listener);
}

#endif
