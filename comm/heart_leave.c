/* The last things of a heart whose group is over: the line that says why, and the end of a process that is stuck. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "heart_internal.h"
#include "weft/log.h"

enum {
    SAY_MS = 50,         /* for the main thread to say it itself */
    DESCRIBE_MS = 300,   /* where it may know more: how a process ended */
    LAST_LINE_MS = 1000, /* for the line of a process that leaves: it may get no core, or standard error hangs */
    TAKE_LEAVE_MS = 100, /* for a rank of a group that was ended to come out of its step by itself */
};

static bool claim_at_once(struct weft_heart *heart)
{
    int unsaid = HEART_UNSAID;

    return atomic_compare_exchange_strong(&heart->saying, &unsaid, HEART_SPEAKING);
}

/* The process may end as soon as this is over: not before the line is out, unless standard error hangs. */
static void wait_until_said(struct weft_heart *heart)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    for (int i = 0; i < LAST_LINE_MS && atomic_load(&heart->saying) == HEART_SPEAKING; i++) {
        (void)nanosleep(&moment, NULL);
    }
}

bool weft_heart_claim(struct weft_heart *heart)
{
    bool is_ours = claim_at_once(heart);

    if (!is_ours) {
        wait_until_said(heart);
    }
    return is_ours;
}

void weft_heart_said(struct weft_heart *heart)
{
    atomic_store(&heart->saying, HEART_SAID);
}

/* ---- leaving ---- */

/* A thread of its own, because standard error may be what hangs. */
static void *speak(void *context)
{
    struct weft_heart *heart = context;
    char text[STAR_HOST_SIZE + STAR_REASON_SIZE + 64];

    weft_log_set_rank(heart->log_rank);
    weft_heart_raise_priority();
    while (sem_wait(&heart->speaker_wake) != 0) {
    }
    if (!atomic_load(&heart->is_speaker_asked)) {
        return NULL;
    }
    weft_star_failure_text(heart->verdict.rank, heart->verdict.host, heart->verdict.reason, text, sizeof(text));
    weft_log(WEFT_LOG_ERROR, HEART_LOG, "%s", text);
    weft_heart_said(heart);
    return NULL;
}

enum weft_status weft_heart_speaker_start(struct weft_heart *heart)
{
    int error;

    if (heart->exit_ns == 0) {
        return WEFT_OK;
    }
    (void)sem_init(&heart->speaker_wake, 0, 0);
    error = pthread_create(&heart->speaker, NULL, speak, heart);
    if (error != 0) {
        (void)sem_destroy(&heart->speaker_wake);
        weft_log(WEFT_LOG_ERROR, HEART_LOG, "cannot start a thread: %s", strerror(error));
        return WEFT_ERR_IO;
    }
    heart->has_speaker = true;
    return WEFT_OK;
}

void weft_heart_speaker_end(struct weft_heart *heart)
{
    if (heart->has_speaker) {
        (void)sem_post(&heart->speaker_wake);
        pthread_join(heart->speaker, NULL);
        (void)sem_destroy(&heart->speaker_wake);
        heart->has_speaker = false;
    }
}

static void say(struct weft_heart *heart)
{
    if (claim_at_once(heart)) {
        atomic_store(&heart->is_speaker_asked, true);
        (void)sem_post(&heart->speaker_wake);
    }
}

/* The main thread is stuck in something that no verdict reaches: MPI, a driver, a disk. */
static void leave(struct weft_heart *heart)
{
    say(heart);
    wait_until_said(heart);
    _exit(weft_star_is_end(heart->verdict.reason) ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* How long the main thread has to say it itself. mpirun knows of a death as soon as we do, and from then on passes
 * nothing on for a second. */
static int64_t say_after_ns(const struct weft_heart *heart)
{
    if (!heart->verdict.is_closed) {
        return SAY_MS * INT64_C(1000000);
    }
    return heart->knows_ends ? DESCRIBE_MS * INT64_C(1000000) : 0;
}

/*
 * The main thread reads from a slow disk, say, and mpirun will end this process before it looks: the leader's log must
 * have it, and of a leader that is stopped somebody else's.
 */
void weft_heart_say_when_late(struct weft_heart *heart, int64_t now)
{
    bool is_ours = heart->rank == 0 || heart->verdict.rank == 0;

    if (is_ours && heart->exit_ns != 0 && now - heart->verdict_ns >= say_after_ns(heart)) {
        say(heart);
    }
}

void weft_heart_leave_when_due(struct weft_heart *heart, int64_t now)
{
    if (heart->exit_ns != 0 && atomic_load(&heart->is_over) && now - heart->verdict_ns >= heart->exit_ns) {
        leave(heart);
    }
}

static void *take_leave(void *context)
{
    struct weft_heart *heart = context;

    heart->bootstrap->hooks->take_leave(heart->bootstrap);
    _exit(EXIT_SUCCESS);
}

/*
 * The leader waits in MPI_Finalize for a rank that is in the middle of a step: a thread calls it there, and the process
 * ends with it. Should the main thread come meanwhile, it waits in weft_heart_close(); should that take too long,
 * exit_ns ends the process as ever. The thread has no real-time priority: what it calls may spin.
 */
void weft_heart_take_leave_when_due(struct weft_heart *heart, int64_t now)
{
    const struct star_hooks *hooks = heart->bootstrap->hooks;
    const struct timespec moment = {.tv_nsec = 1000000};
    pthread_t thread;

    if (heart->rank == 0 || heart->exit_ns == 0 || hooks == NULL || hooks->take_leave == NULL ||
        !weft_star_is_end(heart->verdict.reason) || now - heart->verdict_ns < TAKE_LEAVE_MS * INT64_C(1000000) ||
        pthread_create(&thread, NULL, take_leave, heart) != 0) {
        return;
    }
    for (;;) {
        (void)nanosleep(&moment, NULL);
        weft_heart_leave_when_due(heart, weft_star_now());
    }
}
