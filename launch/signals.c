/* Signal handlers: everything here is async-signal-safe. See signals.h. */
#include "signals.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

/* Of a worker that still waits for its group; and, of others, after their leader must have left, which ends them. */
enum { WORKER_GRACE_MS = 700, WORKER_LAST_MS = 2000 };
/* Of a leader that loads: a launcher that ends it because a rank has died may be quicker than who says which. */
enum { LOADING_GRACE_MS = 100 };

static struct {
    _Atomic int caught;
    _Atomic bool is_running;
    _Atomic bool is_worker;
    _Atomic bool is_failing;
    _Atomic bool is_leaving; /* was interrupted while loading */
    _Atomic int exit_code;   /* of a leader that did not close in time; -1: 128 + signal */
    pid_t pid;               /* ranks that were forked from here have another */
    uint32_t limit_ms;
    int fd;
} signal_state;

static void say(const char *line)
{
    if (write(STDERR_FILENO, line, strlen(line)) < 0) {
        return; /* nobody left to tell */
    }
}

static void leave_after(uint32_t timeout_ms)
{
    struct itimerval timer = {.it_value = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000}};

    (void)setitimer(ITIMER_REAL, &timer, NULL);
}

static void on_signal(int number)
{
    const uint64_t one = 1;
    int saved = errno;
    int first = atomic_exchange(&signal_state.caught, number);

    if (first != 0) {
        _exit(128 + number);
    }
    if (getpid() != signal_state.pid ||
        (atomic_load(&signal_state.is_worker) && atomic_load(&signal_state.is_running))) {
        leave_after(signal_state.limit_ms + WORKER_LAST_MS);
    } else if (atomic_load(&signal_state.is_worker)) {
        leave_after(WORKER_GRACE_MS);
    } else if (!atomic_load(&signal_state.is_running)) {
        if (atomic_load(&signal_state.is_failing)) {
            _exit(128 + number);
        }
        atomic_store(&signal_state.is_leaving, true);
        leave_after(LOADING_GRACE_MS);
    } else {
        leave_after(signal_state.limit_ms);
        if (write(signal_state.fd, &one, sizeof(one)) < 0) {
            _exit(128 + number);
        }
    }
    errno = saved;
}

/* In the middle of a step, which is not waited for. */
static void leave_a_step(void)
{
    say("weft: stopped in the middle of a step\n");
    if (atomic_load(&signal_state.exit_code) >= 0) {
        _exit(atomic_load(&signal_state.exit_code));
    }
    _exit(128 + atomic_load(&signal_state.caught));
}

static void on_alarm(int number)
{
    (void)number;
    bool has_said = atomic_load(&signal_state.is_leaving) && atomic_load(&signal_state.is_failing);

    if (!atomic_load(&signal_state.is_worker) && getpid() == signal_state.pid && !has_said) {
        if (!atomic_load(&signal_state.is_leaving)) {
            leave_a_step();
        }
        say("weft: interrupted while loading\n");
    }
    _exit(128 + atomic_load(&signal_state.caught));
}

bool weft_signals_open(uint32_t limit_ms, bool is_worker)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;

    signal_state.pid = getpid();
    signal_state.limit_ms = limit_ms;
    atomic_store(&signal_state.exit_code, -1);
    atomic_store(&signal_state.is_worker, is_worker);
    signal_state.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (signal_state.fd < 0) {
        fprintf(stderr, "weft: eventfd: %s\n", strerror(errno));
        return false;
    }
    memset(&action, 0, sizeof(action));
    sigfillset(&action.sa_mask);
    action.sa_handler = on_signal; /* no SA_RESTART: a blocked write to a full pipe must end */
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        (void)sigaction(numbers[i], &action, NULL);
    }
    action.sa_handler = on_alarm;
    (void)sigaction(SIGALRM, &action, NULL);
    action.sa_handler = SIG_IGN; /* a reader that goes away is an error of write(), not a death */
    (void)sigaction(SIGPIPE, &action, NULL);
    return true;
}

void weft_signals_running(bool is_leader)
{
    atomic_store(&signal_state.is_worker, !is_leader);
    atomic_store(&signal_state.is_running, true);
}

void weft_signals_stopping(uint32_t limit_ms, int exit_code)
{
    atomic_store(&signal_state.exit_code, exit_code);
    leave_after(limit_ms);
}

void weft_signals_leave(void)
{
    if (weft_signals_caught() != 0) {
        leave_a_step();
    }
}

void weft_signals_failing(void)
{
    atomic_store(&signal_state.is_failing, true);
}

int weft_signals_fd(void)
{
    return signal_state.fd;
}

int weft_signals_caught(void)
{
    return atomic_load(&signal_state.caught);
}
