/* The thread of heartbeats: beats out, beats in, one verdict. Contract in heart.h. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "heart_internal.h"
#include "weft/log.h"

enum {
    BEATS_PER_SILENCE = 9,
    INTERVAL_MIN_MS = 20,
    INTERVAL_MAX_MS = 1000,
    FIRST_FACTOR = 10, /* the first beat may be this much later: its process may still be starting */
    HURRY_MS = 10,     /* between attempts to pass a verdict on */
    LINKS_PER_MS = 64, /* with more links one look reads what came in as many milliseconds more */
};

void weft_heart_signal(int fd)
{
    const uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) < 0) {
        return; /* full: it is readable */
    }
}

/* ---- verdicts ---- */

/* The first one stands. */
static void decide(struct weft_heart *heart, const struct heart_verdict *verdict)
{
    pthread_mutex_lock(&heart->mutex);
    if (!atomic_load(&heart->is_over)) {
        heart->verdict = *verdict;
        if (weft_star_is_end(verdict->reason)) {
            atomic_store(&heart->saying, HEART_SAID); /* an end in order is no news */
        }
        heart->verdict_ns = weft_star_now();
        atomic_store(&heart->is_over, true);
        for (uint32_t i = 0; i < heart->link_count; i++) {
            heart->links[i].owes_verdict = verdict->source != (int)heart->links[i].rank;
        }
    }
    pthread_mutex_unlock(&heart->mutex);
    weft_heart_signal(heart->verdict_fd);
}

static struct heart_verdict verdict_of(const struct heart_link *link, const char *reason)
{
    struct heart_verdict verdict = {.rank = link->rank, .source = -1};

    (void)snprintf(verdict.host, sizeof(verdict.host), "%s", link->has_spoken ? link->last.host : "");
    (void)snprintf(verdict.reason, sizeof(verdict.reason), "%s", reason);
    return verdict;
}

void weft_heart_tell(struct weft_heart *heart, uint32_t rank, const char *host, const char *reason)
{
    struct heart_verdict verdict = {.rank = rank, .source = -1};

    (void)snprintf(verdict.host, sizeof(verdict.host), "%s", host);
    (void)snprintf(verdict.reason, sizeof(verdict.reason), "%s", reason);
    decide(heart, &verdict);
    weft_heart_signal(heart->wake_fd);
}

bool weft_heart_verdict(struct weft_heart *heart, struct heart_verdict *out)
{
    if (!atomic_load(&heart->is_over)) {
        return false;
    }
    pthread_mutex_lock(&heart->mutex);
    *out = heart->verdict;
    pthread_mutex_unlock(&heart->mutex);
    return true;
}

/* ---- time ---- */

static int64_t interval_ns(const struct weft_heart *heart)
{
    uint32_t ms =
        heart->silence_ms == UINT32_MAX ? HEART_SILENCE_MS / BEATS_PER_SILENCE : heart->silence_ms / BEATS_PER_SILENCE;

    ms = ms < INTERVAL_MIN_MS ? INTERVAL_MIN_MS : ms > INTERVAL_MAX_MS ? INTERVAL_MAX_MS : ms;
    return (int64_t)ms * 1000000;
}

/* Who was away itself has not listened. */
static int64_t counted(const struct weft_heart *heart, int64_t elapsed)
{
    int64_t most = 2 * interval_ns(heart);

    return elapsed < most ? elapsed : most;
}

/* ---- who works ---- */

static void refresh_own(struct weft_heart *heart, int64_t now)
{
    struct star_pulse *pulse = &heart->bootstrap->pulse;
    struct heart_beat *own = &heart->own;
    int64_t youngest;

    own->phase = atomic_load(&pulse->phase);
    own->number = atomic_load(&pulse->number);
    own->progress = atomic_load(&pulse->progress) + (own->phase == WEFT_PHASE_LOAD ? own->number : 0);
    own->waiting_for = atomic_load(&pulse->waiting_for);
    weft_heart_work_look(&heart->work, now, own->tid, own->waiting_for >= 0, own->phase == WEFT_PHASE_IDLE);
    own->done = heart->work.done;
    own->silence_ms = heart->silence_ms;
    if (own->progress != heart->self_progress ||
        weft_heart_did_work(own->done, now, &heart->self_window_ns, &heart->self_window_done)) {
        heart->self_progress = own->progress;
        heart->self_worked_ns = now;
    }
    youngest = heart->self_worked_ns;
    for (uint32_t i = 0; i < heart->link_count && heart->rank == 0; i++) {
        int64_t worked = atomic_load(&heart->links[i].worked_ns);

        youngest = worked > youngest ? worked : youngest;
    }
    own->quiet_ms = (uint32_t)((now - youngest) / 1000000);
    if (heart->rank == 0) {
        atomic_store(&heart->group_quiet_ms, own->quiet_ms);
    }
}

uint32_t weft_heart_quiet_ms(struct weft_heart *heart, uint32_t rank)
{
    if (heart->rank == 0 && rank > 0 && rank <= heart->link_count) {
        int64_t worked = atomic_load(&heart->links[rank - 1].worked_ns);

        return worked == 0 ? UINT32_MAX : (uint32_t)((weft_star_now() - worked) / 1000000);
    }
    return atomic_load(&heart->group_quiet_ms);
}

void weft_heart_host(struct weft_heart *heart, uint32_t rank, char *out)
{
    out[0] = '\0';
    pthread_mutex_lock(&heart->mutex);
    if (rank == heart->rank) {
        memcpy(out, heart->own.host, STAR_HOST_SIZE);
    }
    for (uint32_t i = 0; i < heart->link_count; i++) {
        if (heart->links[i].rank == rank && heart->links[i].has_spoken) {
            memcpy(out, heart->links[i].last.host, STAR_HOST_SIZE);
        }
    }
    pthread_mutex_unlock(&heart->mutex);
}

/* ---- beats in ---- */

static void take_beat(struct weft_heart *heart, struct heart_link *link, int64_t now)
{
    const struct heart_beat *beat = &link->in;
    bool has_progress = !link->has_spoken || beat->progress != link->last.progress;

    if (!link->has_spoken || beat->silence_ms != link->last.silence_ms) {
        heart->judge_ns = 0; /* less silence may be too long from now on */
    }
    heart->has_report = heart->has_report || (heart->rank == 0 && beat->cut_rank != HEART_NOBODY);
    pthread_mutex_lock(&heart->mutex);
    link->last = *beat;
    link->has_spoken = true;
    pthread_mutex_unlock(&heart->mutex);
    if (has_progress || weft_heart_did_work(beat->done, now, &link->window_ns, &link->window_done)) {
        atomic_store(&link->worked_ns, now);
    }
    if (heart->rank != 0) {
        heart->silence_ms = beat->silence_ms;
        atomic_store(&heart->group_quiet_ms, beat->quiet_ms);
    }
}

static void end_link(struct weft_heart *heart, struct heart_link *link, const char *reason)
{
    close(link->fd);
    link->fd = -1;
    if (!link->has_left) {
        struct heart_verdict verdict = verdict_of(link, reason);

        verdict.is_closed = true;
        decide(heart, &verdict);
    }
}

/* Everything that has come. */
static void listen_to(struct weft_heart *heart, struct heart_link *link, int64_t now)
{
    const char *reason = "";
    enum heart_read result;

    while (link->fd >= 0 && (result = weft_heart_link_read(link, &reason)) != HEART_READ_NOTHING) {
        if (result == HEART_READ_END) {
            end_link(heart, link, reason);
            break;
        }
        link->heard_run_ns = heart->run_ns;
        link->heard_ns = now;
        if (link->in.kind == HEART_VERDICT) {
            struct heart_verdict verdict = {.rank = link->in.rank, .source = (int)link->rank};

            memcpy(verdict.host, link->in.host, sizeof(verdict.host));
            memcpy(verdict.reason, link->in.reason, sizeof(verdict.reason));
            decide(heart, &verdict);
        } else if (link->in.kind == HEART_FAREWELL) {
            link->has_left = true;
        } else {
            take_beat(heart, link, now);
        }
    }
}

/* Silence that counts against a process; INT64_MAX: none does. */
static int64_t limit_of(const struct weft_heart *heart, const struct heart_link *link)
{
    if (link->fd < 0 || link->has_left || heart->silence_ms == UINT32_MAX || atomic_load(&heart->is_over)) {
        return INT64_MAX;
    }
    return (int64_t)heart->silence_ms * 1000000 * (link->has_spoken ? 1 : FIRST_FACTOR);
}

/* A look at everybody's silence, and when the next can show something new: signs of life only put it off. */
static void judge_all(struct weft_heart *heart, int64_t now)
{
    heart->judge_ns = INT64_MAX;
    for (uint32_t i = 0; i < heart->link_count; i++) {
        struct heart_link *link = &heart->links[i];
        int64_t limit = limit_of(heart, link);
        int64_t left;
        char reason[STAR_REASON_SIZE];

        link->silence_ns = heart->run_ns - link->heard_run_ns;
        if (limit == INT64_MAX) {
            continue;
        }
        if (weft_heart_link_is_lost(link, limit, &heart->own, reason, sizeof(reason))) {
            struct heart_verdict verdict = verdict_of(link, reason);

            decide(heart, &verdict);
        }
        left = link->silence_ns < limit ? limit - link->silence_ns : interval_ns(heart);
        heart->judge_ns = now + left < heart->judge_ns ? now + left : heart->judge_ns;
    }
}

static void judge_cuts(struct weft_heart *heart, int64_t now)
{
    const struct heart_view view = {.own = &heart->own,
                                    .own_cut_ns = &heart->cut_ns,
                                    .links = heart->links,
                                    .link_count = heart->link_count,
                                    .interval_ns = interval_ns(heart)};
    struct heart_verdict verdict = {.source = -1};

    if (!heart->has_report || atomic_load(&heart->is_over)) {
        return;
    }
    heart->has_report = heart->own.cut_rank != HEART_NOBODY;
    for (uint32_t i = 0; i < heart->link_count; i++) {
        heart->has_report = heart->has_report || heart->links[i].last.cut_rank != HEART_NOBODY;
    }
    if (weft_heart_mesh_is_cut(&view, now, &verdict.rank, verdict.reason, sizeof(verdict.reason))) {
        weft_heart_host(heart, verdict.rank, verdict.host);
        decide(heart, &verdict);
    }
}

/* ---- beats out ---- */

/* Passes the verdict on to whoever has not heard it; true when all have. */
static bool spread(struct weft_heart *heart)
{
    struct heart_beat beat = {.magic = STAR_MAGIC, .kind = HEART_VERDICT};
    bool is_done = true;

    pthread_mutex_lock(&heart->mutex); /* nothing in here blocks */
    beat.rank = heart->verdict.rank;
    memcpy(beat.host, heart->verdict.host, sizeof(beat.host));
    memcpy(beat.reason, heart->verdict.reason, sizeof(beat.reason));
    for (uint32_t i = 0; i < heart->link_count; i++) {
        struct heart_link *link = &heart->links[i];

        if (link->owes_verdict && !link->has_left) {
            link->owes_verdict = !weft_heart_link_send(link, &beat);
            /* Whom the verdict is about, and who does not read, is not waited for. */
            is_done = is_done && (!link->owes_verdict || link->rank == beat.rank);
        }
    }
    pthread_mutex_unlock(&heart->mutex);
    return is_done;
}

static void beat_all(struct weft_heart *heart, int64_t elapsed)
{
    struct heart_mesh *mesh = atomic_load(&heart->mesh);

    if (mesh != NULL) {
        weft_heart_mesh_step(mesh, counted(heart, elapsed), heart->silence_ms, &heart->own);
        heart->has_report = heart->has_report || (heart->rank == 0 && heart->own.cut_rank != HEART_NOBODY);
    }
    for (uint32_t i = 0; i < heart->link_count; i++) {
        if (!heart->links[i].has_left) {
            (void)weft_heart_link_send(&heart->links[i], &heart->own);
        }
    }
}

static void farewell(struct weft_heart *heart)
{
    struct heart_mesh *mesh = atomic_exchange(&heart->mesh, NULL);
    struct heart_beat beat = heart->own;

    beat.kind = HEART_FAREWELL;
    for (uint32_t i = 0; i < heart->link_count; i++) {
        struct heart_link *link = &heart->links[i];

        (void)weft_heart_link_send(link, &beat);
        if (link->fd >= 0) {
            close(link->fd);
            link->fd = -1;
        }
    }
    weft_heart_mesh_close(&mesh);
}

/* ---- the thread ---- */

/* Beats must not wait behind the work of other threads. Neither call needs to succeed. */
void weft_heart_raise_priority(void)
{
    const struct sched_param lowest = {.sched_priority = sched_get_priority_min(SCHED_RR)};

    if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) != 0) {
        (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), -10);
    }
}

/*
 * Sleeps until something comes, at most until deadline, and reads it. With many links a little is gathered first: a
 * look at all that has come costs less than a look at each.
 */
static void listen_until(struct weft_heart *heart, int64_t deadline, int64_t *last)
{
    const struct timespec gathering = {.tv_nsec = (long)(heart->link_count / LINKS_PER_MS) * 1000000};
    int count = epoll_wait(heart->epoll_fd, heart->events, HEART_EVENT_MAX, weft_star_left_ms(deadline));
    int64_t now;
    uint64_t unused;

    if (count > 0 && gathering.tv_nsec > 0) {
        (void)nanosleep(&gathering, NULL);
    }
    now = weft_star_now();
    heart->run_ns += counted(heart, now - *last);
    *last = now;
    do {
        for (int i = 0; i < count; i++) {
            if (heart->events[i].data.u32 != HEART_WAKE) {
                listen_to(heart, &heart->links[heart->events[i].data.u32], now);
            } else if (read(heart->wake_fd, &unused, sizeof(unused)) < 0) {
                continue; /* drained already */
            }
        }
        count = count == HEART_EVENT_MAX ? epoll_wait(heart->epoll_fd, heart->events, HEART_EVENT_MAX, 0) : 0;
    } while (count > 0);
}

void *weft_heart_run(void *context)
{
    struct weft_heart *heart = context;
    int64_t last = weft_star_now();
    int64_t last_beat = last;
    int64_t next_beat = last;

    weft_log_set_rank(heart->log_rank);
    weft_heart_raise_priority();
    heart->own.tid = (uint32_t)syscall(SYS_gettid);
    heart->self_worked_ns = last;
    while (!atomic_load(&heart->is_closing)) {
        int64_t now = weft_star_now();
        int64_t wake;
        bool is_settled = true;

        if (now >= next_beat) {
            refresh_own(heart, now);
            beat_all(heart, now - last_beat);
            last_beat = now;
            next_beat = now + interval_ns(heart);
        }
        if (now >= heart->judge_ns) {
            judge_all(heart, now);
        }
        judge_cuts(heart, now);
        if (atomic_load(&heart->is_over)) {
            is_settled = spread(heart) && atomic_load(&heart->saying) != HEART_UNSAID;
            weft_heart_say_when_late(heart, now);
            weft_heart_take_leave_when_due(heart, now);
            weft_heart_leave_when_due(heart, now);
        }
        wake = next_beat < heart->judge_ns ? next_beat : heart->judge_ns;
        listen_until(heart, is_settled ? wake : now + (int64_t)HURRY_MS * 1000000, &last);
    }
    if (atomic_load(&heart->is_over)) {
        (void)spread(heart);
    }
    farewell(heart);
    atomic_store(&heart->has_let_go, true);
    while (atomic_load(&heart->is_guard)) {
        int64_t now = weft_star_now();
        int64_t left = heart->verdict_ns + heart->exit_ns - now;

        /* The main thread may have closed for a reason of its own, and never have looked. */
        if (atomic_load(&heart->saying) == HEART_UNSAID) {
            weft_heart_say_when_late(heart, now);
            left = (int64_t)HURRY_MS * 1000000;
        }
        if (left > 0) {
            const struct timespec pause = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};

            (void)nanosleep(&pause, NULL);
        }
        weft_heart_leave_when_due(heart, weft_star_now());
    }
    return NULL;
}
