/* The progress bar on a terminal, plain lines elsewhere, and log lines that do not tear the bar. */
#include "terminal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size_text.h"
#include "signals.h"
#include "weft/log.h"

enum { BAR_WIDTH = 30, BAR_INTERVAL_MS = 50, PLAIN_INTERVAL_MS = 2000 };

static void on_log(void *context, enum weft_log_level level, const char *line)
{
    struct weft_terminal *terminal = context;
    const char *erase = terminal->has_bar ? "\r\033[K" : "";
    int rank = weft_log_rank();

    terminal->has_bar = false;
    if (level == WEFT_LOG_ERROR) {
        weft_signals_failing();
    }
    if (rank >= 0) {
        fprintf(stderr, "%sweft[%d]: %s\n", erase, rank, line);
    } else {
        fprintf(stderr, "%sweft: %s\n", erase, line);
    }
}

void weft_terminal_init(struct weft_terminal *terminal, bool is_quiet, bool is_verbose)
{
    enum weft_log_level level = is_quiet ? WEFT_LOG_ERROR : is_verbose ? WEFT_LOG_DEBUG : WEFT_LOG_INFO;

    memset(terminal, 0, sizeof(*terminal));
    terminal->is_quiet = is_quiet;
    terminal->is_tty = isatty(STDERR_FILENO) == 1;
    weft_log_configure(level, on_log, terminal);
    /* One write per line: several ranks share the terminal. */
    setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
}

void weft_terminal_mute(struct weft_terminal *terminal)
{
    weft_terminal_clear(terminal);
    terminal->is_quiet = true;
    weft_log_configure(WEFT_LOG_ERROR, on_log, terminal);
}

void weft_terminal_warn(struct weft_terminal *terminal)
{
    weft_log_configure(WEFT_LOG_WARN, on_log, terminal);
}

void weft_terminal_clear(struct weft_terminal *terminal)
{
    if (terminal->has_bar) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        terminal->has_bar = false;
    }
}

static void bar_draw(struct weft_terminal *terminal, const char *what, const char *amount, int percent)
{
    char bar[BAR_WIDTH + 1];
    int full = percent * BAR_WIDTH / 100;

    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)full);
    bar[BAR_WIDTH] = 0;
    fprintf(stderr, "\r\033[K%s [%s] %3d %% of %s", what, bar, percent, amount);
    fflush(stderr);
    terminal->has_bar = true;
}

void weft_terminal_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct weft_terminal *terminal = context;
    int percent = total > 0 ? (int)((double)done / (double)total * 100) : 100;
    /* Where lines stay for ever, few are better: one now and then, and one at the end. */
    int64_t interval_ms = terminal->is_tty ? BAR_INTERVAL_MS : PLAIN_INTERVAL_MS;
    int64_t now = weft_clock_ns() / 1000000;
    char amount[3 * WEFT_SIZE_TEXT_SIZE];
    char size[WEFT_SIZE_TEXT_SIZE];
    char rate[WEFT_SIZE_TEXT_SIZE];

    if (terminal->begin_ms == 0) {
        terminal->begin_ms = now;
        terminal->last_ms = now;
    }
    if (terminal->is_quiet || (done < total && now - terminal->last_ms < interval_ms)) {
        return;
    }
    terminal->last_ms = now;
    int64_t passed_ms = now > terminal->begin_ms ? now - terminal->begin_ms : 1;
    snprintf(amount, sizeof(amount), "%s, %s/s", weft_size_text(total, size),
             weft_size_text(done * 1000 / (uint64_t)passed_ms, rate));
    if (!terminal->is_tty) {
        fprintf(stderr, "weft: %s: %d %% of %s\n", what, percent, amount);
        return;
    }
    bar_draw(terminal, what, amount, percent);
    if (done >= total) {
        weft_terminal_clear(terminal);
    }
}

void weft_terminal_line(void *context, const char *line)
{
    struct weft_terminal *terminal = context;

    if (!terminal->is_quiet) {
        weft_terminal_clear(terminal);
        fprintf(stderr, "%s\n", line);
    }
}
