/* Standard error as people see it: log lines, the progress bar, the memory table. */
#ifndef WEFT_LAUNCH_TERMINAL_H
#define WEFT_LAUNCH_TERMINAL_H

#include <stdbool.h>
#include <stdint.h>

struct weft_terminal {
    bool is_quiet;
    bool is_tty;
    _Atomic bool has_bar; /* the bar is on the line: erase it before writing */
    int64_t begin_ms;     /* of what makes progress; 0: not begun */
    int64_t last_ms;      /* when progress was last shown */
};

/* Also makes the log print through it: errors always, the rest unless quiet. */
void weft_terminal_init(struct weft_terminal *terminal, bool is_quiet, bool is_verbose);
/* Warnings and errors from now on: a report says the rest. */
void weft_terminal_warn(struct weft_terminal *terminal);
/* Only errors from now on: a rank that is not the leader. */
void weft_terminal_mute(struct weft_terminal *terminal);
/* Ends the bar. */
void weft_terminal_clear(struct weft_terminal *terminal);

/* weft_progress_callback and weft_text_callback; context is the terminal. */
void weft_terminal_progress(void *context, const char *what, uint64_t done, uint64_t total);
void weft_terminal_line(void *context, const char *line);

#endif
