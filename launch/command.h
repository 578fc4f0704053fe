/* The commands, and what they share: from settings to an open engine. */
#ifndef WEFT_LAUNCH_COMMAND_H
#define WEFT_LAUNCH_COMMAND_H

#include <stdbool.h>

#include "options.h"
#include "terminal.h"
#include "weft/weft.h"

/* Each returns the process's exit code. */
int weft_command_run(struct weft_settings *settings);
int weft_command_serve(struct weft_settings *settings);
int weft_command_info(struct weft_settings *settings);
int weft_command_doctor(struct weft_settings *settings);

/* Storage that engine options point into. */
struct weft_setup {
    struct weft_engine_options options;
    char model[4096];
    char secret[256];
};

/*
 * Fills setup->options from `settings`: finds the model folder (the demo model when none is named), reads the secret.
 * `command` is for messages. False after one line on stderr; *exit_code says which kind of mistake.
 */
bool weft_setup_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                     int *exit_code);
/* The same without a model. */
bool weft_setup_group_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                           int *exit_code);

/* Where the value in use of "rank", "ranks" or "leader" came from: "argument", "WEFT_RANK", "mpirun", "default". */
const char *weft_setup_origin(const struct weft_settings *settings, const char *name);

/* True when this process will not be the leader, as far as can be told before the group forms. */
bool weft_setup_is_worker(const struct weft_settings *settings);
/* True when ranks may be on other hosts: mpirun, or --leader. */
bool weft_setup_is_distributed(const struct weft_settings *settings);

#endif
