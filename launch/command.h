/* The commands, and what they share: from settings to an open engine and its end. */
#ifndef WEFT_LAUNCH_COMMAND_H
#define WEFT_LAUNCH_COMMAND_H

#include <stdbool.h>

#include "hosts.h"
#include "local_ranks.h"
#include "options.h"
#include "placement.h"
#include "terminal.h"
#include "weft/weft.h"

/* Each returns the process's exit code. */
int weft_command_run(struct weft_settings *settings);
int weft_command_serve(struct weft_settings *settings);
int weft_command_info(struct weft_settings *settings);
int weft_command_doctor(struct weft_settings *settings);
int weft_command_bench(struct weft_settings *settings);

struct weft_setup;
/* The cheap part of it, at every start: once per host where that is known. */
void weft_command_doctor_start(const struct weft_setup *setup);

enum { WEFT_SETUP_HOST_COUNT = 64, WEFT_SETUP_HOST_SIZE = 64 };

/* Storage that engine options point into: stays where it is. */
struct weft_setup {
    struct weft_engine_options options;
    struct weft_placement placement;
    struct weft_local_ranks local_ranks;
    struct weft_host_list host_list; /* of --hosts; count 0: none */
    struct weft_hosts ssh;
    uint32_t leader_port; /* with --hosts */
    const char *hosts[WEFT_SETUP_HOST_COUNT];
    char host_names[WEFT_SETUP_HOST_COUNT][WEFT_SETUP_HOST_SIZE];
    char model[4096];
    char secret[256];
};

/*
 * Fills *setup from `settings`: finds the model folder (the demo model when none is named), this process's place in the
 * group, the secret. With --local-ranks it forks: each process returns with a place of its own. `command` is for
 * messages. False after one line on stderr; *exit_code says which kind of mistake. weft_setup_close() after success.
 */
bool weft_setup_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                     int *exit_code);
/* The same without a model. */
bool weft_setup_group_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                           int *exit_code);
/* For a look at a model: no group, so nothing of this process's place in one is asked. False after one line on stderr.
 */
bool weft_setup_inspect_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command);
/* All ranks are there: trouble is now the group's to notice. */
void weft_setup_formed(struct weft_setup *setup);
/* After the engine has closed: ends the ranks that this process started. */
void weft_setup_close(struct weft_setup *setup);

/*
 * --hosts (ssh_setup.c): reads the list and changes *request so that this process is rank 0 of it, listening on
 * `leader` [size]. False after one line on stderr.
 */
bool weft_setup_hosts_read(struct weft_setup *setup, const struct weft_settings *settings,
                           struct weft_placement_request *request, char *leader, size_t size);
/* Starts the ranks on the other hosts, with a secret of its own where none was given. False after one line on stderr.
 */
bool weft_setup_hosts_start(struct weft_setup *setup, const struct weft_settings *settings);

/*
 * Opens the engine of setup->options on every rank, runs `lead` on the leader while the others work, closes engine and
 * setup. stop_limit_ms: from a signal to the end of a process that does not come to it. Returns the exit code: lead's
 * own, on the leader.
 */
typedef int weft_lead_fn(struct weft_engine *engine, void *context);
int weft_command_lead(struct weft_setup *setup, struct weft_terminal *terminal, uint32_t stop_limit_ms,
                      weft_lead_fn *lead, void *context);

/* True when this process will not be the leader. */
bool weft_setup_is_worker(const struct weft_setup *setup);
/* True when ranks may be on other hosts. */
bool weft_setup_is_distributed(const struct weft_setup *setup);

#endif
