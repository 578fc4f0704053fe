/* What all backends share: waiting with a deadline, and deciding who failed. Contracts in backend.h. */
#include "backend.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

#include "weft/log.h"

/*
 * Spinning before the slow path. With a core each: longer than a peer's usual lateness in decode (tens of
 * microseconds). With more threads than cores: 200 pauses, then sched_yield(), which measured 9 times faster than
 * sleeping at once with 4 ranks on 2 cores (11.5 against 74 us for 8 KB).
 */
#define SPIN_NS      50000u
#define YIELD_NS     200000u
#define YIELD_PAUSES 200u
#define CLOCK_PAUSES 64u
/* How long the bootstrap may take to name the rank whose death we only saw as an echo. */
#define VERDICT_MS 100

static inline void pause_core(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

uint64_t weft_comm_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void weft_channel_init(struct weft_channel *channel, const struct weft_backend *backend,
                       const struct weft_channel_options *options)
{
    *channel = (struct weft_channel){.backend = backend, .options = *options, .failed_rank = -1};
}

int weft_channel_member_index(const struct weft_channel *channel, uint32_t rank)
{
    for (uint32_t i = 0; i < channel->options.member_count; i++) {
        if (channel->options.members[i] == rank) {
            return (int)i;
        }
    }
    return -1;
}

#define LOG_ERROR(channel, ...)                                                                                        \
    do {                                                                                                               \
        char where[32];                                                                                                \
        snprintf(where, sizeof(where), "comm/%s", (channel)->backend->name);                                           \
        weft_log(WEFT_LOG_ERROR, where, __VA_ARGS__);                                                                  \
    } while (0)

/* ERR_PEER with the name set when the bootstrap knows of a failed rank. */
static enum weft_status ask_bootstrap(struct weft_channel *channel)
{
    enum weft_status status = weft_bootstrap_check(channel->options.bootstrap);

    if (status != WEFT_OK) {
        channel->failed_rank = weft_bootstrap_failed_rank(channel->options.bootstrap);
    }
    return status;
}

enum weft_status weft_channel_lost(struct weft_channel *channel, uint32_t rank, const char *reason)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    for (int i = 0; i < VERDICT_MS; i++) {
        enum weft_status status = ask_bootstrap(channel);

        if (status != WEFT_OK) {
            return status;
        }
        nanosleep(&moment, NULL);
    }
    LOG_ERROR(channel, "lost rank %u: %s", rank, reason);
    channel->failed_rank = (int)rank;
    weft_bootstrap_abort(channel->options.bootstrap, rank, reason);
    return WEFT_ERR_PEER;
}

enum weft_status weft_channel_mismatch(struct weft_channel *channel, uint32_t rank, size_t expected_size,
                                       size_t found_size)
{
    LOG_ERROR(channel, "rank %u is not in the same call: expected %zu bytes from it, found %zu", rank, expected_size,
              found_size);
    channel->failed_rank = (int)rank;
    weft_bootstrap_abort(channel->options.bootstrap, rank, "not in the same collective call as its peers");
    return WEFT_ERR_PEER;
}

bool weft_wait_spin(struct weft_wait *wait)
{
    bool is_yielding = wait->channel->options.wait == WEFT_WAIT_YIELD;

    wait->pause_count++;
    if (is_yielding && wait->pause_count > YIELD_PAUSES) {
        sched_yield();
    } else {
        pause_core();
        if (wait->pause_count % CLOCK_PAUSES != 0) {
            return true;
        }
    }
    if (wait->spin_end_ns == 0) {
        uint64_t now = weft_comm_clock_ns();

        wait->spin_end_ns = now + (is_yielding ? YIELD_NS : SPIN_NS);
        if (wait->start_ns == 0) {
            wait->start_ns = now;
            wait->deadline_ns = now + (uint64_t)wait->timeout_ms * 1000000u;
        }
        return true;
    }
    return weft_comm_clock_ns() < wait->spin_end_ns;
}

enum weft_status weft_wait_check(struct weft_wait *wait, uint32_t missing_rank)
{
    struct weft_channel *channel = wait->channel;
    char reason[64];

    WEFT_TRY(ask_bootstrap(channel));
    if (weft_comm_clock_ns() < wait->deadline_ns) {
        return WEFT_OK;
    }
    snprintf(reason, sizeof(reason), "nothing from it for %u ms", wait->timeout_ms);
    LOG_ERROR(channel, "timeout: waited for rank %u, %s", missing_rank, reason);
    channel->failed_rank = (int)missing_rank;
    weft_bootstrap_abort(channel->options.bootstrap, missing_rank, reason);
    return WEFT_ERR_TIMEOUT;
}
