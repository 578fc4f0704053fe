/* What all backends share: waiting with a deadline, and deciding who failed. Contracts in backend.h. */
#include "backend.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

/*
 * Spinning before the slow path, with a pause instruction of 60 ns (Zen 4, virtual). With a core each: longer than a
 * peer's usual lateness in decode (tens of microseconds), after 15 us with a sched_yield() now and then, in case the
 * peer sits on our core after all. With more threads than cores: sched_yield() after 2 us. Measured with comm_bench, 4
 * ranks on 2 busy cores, median for 8 KB: 7 us after 32 pauses, 17 after 64, 31 after 200; 74 when sleeping at once.
 */
#define SPIN_NS      50000u
#define YIELD_NS     200000u
#define YIELD_PAUSES 32u
#define SPIN_PAUSES  256u
#define CLOCK_PAUSES 64u
/* How long the bootstrap may take to name the rank whose death we only saw as an echo; and its leader, once asked: on a
 * busy machine it may not get to run for that long. */
#define VERDICT_MS 100
#define ANSWER_MS  1000u
/* Heartbeats look at a process's work once a second and bring it here within two beats. */
#define BUSY_MS 2500
#define LOOK_MS 100u
/* Times the deadline. Busy or not: a rank that computes for ever ends, too. */
#define EXTENSION_MAX 20u

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

/* Names the rank and tells everybody; the bootstrap logs it. */
static void blame(struct weft_channel *channel, uint32_t rank, const char *reason)
{
    char text[96];

    snprintf(text, sizeof(text), "%s: %s", channel->backend->name, reason);
    channel->failed_rank = (int)rank;
    weft_bootstrap_abort(channel->options.bootstrap, rank, text);
}

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
    char text[96];

    for (int i = 0; i < VERDICT_MS; i++) {
        enum weft_status status = ask_bootstrap(channel);

        if (status != WEFT_OK) {
            return status;
        }
        nanosleep(&moment, NULL);
    }
    snprintf(text, sizeof(text), "%s: %s", channel->backend->name, reason);
    weft_bootstrap_suspect(channel->options.bootstrap, rank, text, ANSWER_MS);
    channel->failed_rank = weft_bootstrap_failed_rank(channel->options.bootstrap);
    return WEFT_ERR_PEER;
}

enum weft_status weft_channel_mismatch(struct weft_channel *channel, uint32_t rank, size_t expected_size,
                                       size_t found_size)
{
    char reason[80];

    snprintf(reason, sizeof(reason), "is not in the same call: expected %zu bytes, found %zu", expected_size,
             found_size);
    blame(channel, rank, reason);
    return WEFT_ERR_PEER;
}

static uint64_t read_clock(struct weft_wait *wait)
{
    uint64_t now = weft_comm_clock_ns();

    if (wait->deadline_ns == 0) {
        wait->deadline_ns = now + (uint64_t)wait->timeout_ms * 1000000u;
    }
    return now;
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
        if (wait->pause_count > SPIN_PAUSES) {
            sched_yield();
        }
    }
    if (wait->spin_end_ns == 0) {
        wait->spin_end_ns = read_clock(wait) + (is_yielding ? YIELD_NS : SPIN_NS);
        return true;
    }
    return read_clock(wait) < wait->spin_end_ns;
}

/*
 * Late, but not stuck: somebody in the group computes, or reads from a disk, and the one we wait for may wait for it.
 * Who is given more time from the beginning, because it waits for somebody in between, is more patient here, too.
 */
static bool is_group_busy(const struct weft_wait *wait, uint32_t missing_rank)
{
    const struct weft_channel_options *options = &wait->channel->options;
    uint32_t more_ms = wait->timeout_ms > options->timeout_ms ? wait->timeout_ms - options->timeout_ms : 0;

    return missing_rank != options->rank && wait->extension_ms / EXTENSION_MAX < wait->timeout_ms &&
           weft_bootstrap_quiet_ms(options->bootstrap, options->rank) < BUSY_MS + 3 * more_ms;
}

enum weft_status weft_wait_check(struct weft_wait *wait, uint32_t missing_rank)
{
    struct weft_channel *channel = wait->channel;
    char reason[80];

    WEFT_TRY(ask_bootstrap(channel));
    if (missing_rank != channel->options.rank) {
        weft_bootstrap_waiting(channel->options.bootstrap, missing_rank == WEFT_WAIT_ANYBODY ? 0 : missing_rank);
    }
    if (read_clock(wait) < wait->deadline_ns) {
        return WEFT_OK;
    }
    if (is_group_busy(wait, missing_rank)) {
        wait->deadline_ns += (uint64_t)LOOK_MS * 1000000u;
        wait->extension_ms += LOOK_MS;
        return WEFT_OK;
    }
    if (missing_rank == WEFT_WAIT_ANYBODY) {
        return WEFT_ERR_TIMEOUT;
    }
    snprintf(reason, sizeof(reason), "nothing from it for %u ms%s", wait->timeout_ms,
             weft_bootstrap_quiet_ms(channel->options.bootstrap, channel->options.rank) != UINT32_MAX
                 ? ": it is there but does no work"
                 : "");
    blame(channel, missing_rank, reason);
    return WEFT_ERR_TIMEOUT;
}
