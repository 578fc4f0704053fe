/* weft doctor: what would hurt, before anything is loaded. */
#include "doctor/doctor.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static bool show_report(const struct weft_doctor_report *report, void *context)
{
    const struct weft_settings *settings = context;

    if (strcmp(settings->output, "json") == 0) {
        if (!weft_doctor_report_print_json(report, stdout)) {
            fputs("weft doctor: out of memory, or a name that is not UTF-8\n", stderr);
            return false;
        }
    } else {
        weft_doctor_report_print(report, settings->is_quiet, stdout);
    }
    if (fflush(stdout) != 0) {
        fputs("weft doctor: cannot write the report to standard output\n", stderr);
        return false;
    }
    return true;
}

int weft_command_doctor(struct weft_settings *settings)
{
    struct weft_terminal terminal;
    struct weft_setup setup;
    bool is_trouble;
    pid_t parent = getpid();
    int code;

    if (!weft_setup_group_init(&setup, settings, "doctor", &code)) {
        return code;
    }
    setup.options.model = settings->model;
    const struct weft_doctor_options options = {
        .engine = &setup.options,
        .launcher = weft_launcher_name(setup.placement.launcher),
        .rank_origin = setup.placement.rank_origin,
        .rank_count_origin = setup.placement.rank_count_origin,
        .leader_origin = setup.placement.leader_origin,
        .local_rank_origin = setup.placement.local_rank_origin,
        .local_rank = setup.placement.local_rank,
        .show = show_report,
        .context = settings,
    };
    /* The report says it all; the log is for who asks for it. */
    weft_terminal_init(&terminal, !settings->is_verbose, settings->is_verbose);
    if (!settings->is_verbose && !settings->is_quiet && !weft_setup_is_worker(&setup)) {
        weft_terminal_warn(&terminal); /* who is missing, while it waits */
    }
    (void)fflush(NULL);
    code = weft_doctor_run(&options, &is_trouble) == WEFT_OK && !is_trouble ? WEFT_EXIT_OK : WEFT_EXIT_FAILURE;
    weft_setup_close(&setup);
    if (getpid() != parent) {
        _exit(code); /* a forked rank has no business in its parent's exit handlers */
    }
    return code;
}

void weft_command_doctor_start(const struct weft_setup *setup)
{
    if (setup->placement.local_rank_origin[0] == '\0' || setup->placement.local_rank == 0) {
        weft_doctor_check_start(&setup->options, weft_setup_is_distributed(setup) ? 1 : setup->options.rank_count);
    }
}
