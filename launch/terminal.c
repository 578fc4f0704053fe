/* The progress bar on a terminal, plain lines elsewhere, and log lines that do not tear the bar. */
#include "terminal.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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

void weft_terminal_clear(struct weft_terminal *terminal)
{
    if (terminal->has_bar) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        terminal->has_bar = false;
    }
}

const char *weft_terminal_size_text(uint64_t size, char text[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)size;
    size_t unit = 0;

    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(text, 16, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

static void bar_draw(struct weft_terminal *terminal, const char *what, uint64_t total, int percent)
{
    char bar[BAR_WIDTH + 1];
    char size[16];
    int full = percent * BAR_WIDTH / 100;

    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)full);
    bar[BAR_WIDTH] = 0;
    fprintf(stderr, "\r\033[K%s [%s] %3d %% of %s", what, bar, percent, weft_terminal_size_text(total, size));
    fflush(stderr);
    terminal->has_bar = true;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void weft_terminal_progress(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct weft_terminal *terminal = context;
    int percent = total > 0 ? (int)((double)done / (double)total * 100) : 100;
    /* Where lines stay for ever, few are better: one now and then, and one at the end. */
    int64_t interval_ms = terminal->is_tty ? BAR_INTERVAL_MS : PLAIN_INTERVAL_MS;
    int64_t now = now_ms();
    char size[16];

    if (terminal->last_ms == 0) {
        terminal->last_ms = now;
    }
    if (terminal->is_quiet || (done < total && now - terminal->last_ms < interval_ms)) {
        return;
    }
    terminal->last_ms = now;
    if (!terminal->is_tty) {
        fprintf(stderr, "weft: %s: %d %% of %s\n", what, percent, weft_terminal_size_text(total, size));
        return;
    }
    bar_draw(terminal, what, total, percent);
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
