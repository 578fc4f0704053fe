/* weft doctor: what would hurt, before anything is loaded. */
#include "doctor/doctor.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static int report_show(const struct weft_doctor_report *report, const struct weft_settings *settings)
{
    if (strcmp(settings->output, "json") == 0) {
        if (!weft_doctor_report_print_json(report, stdout)) {
            fputs("weft doctor: out of memory, or a name that is not UTF-8\n", stderr);
            return WEFT_EXIT_FAILURE;
        }
    } else {
        weft_doctor_report_print(report, settings->is_quiet, stdout);
    }
    if (fflush(stdout) != 0) {
        fputs("weft doctor: cannot write the report to standard output\n", stderr);
        return WEFT_EXIT_FAILURE;
    }
    return weft_doctor_is_trouble(&report->findings) ? WEFT_EXIT_FAILURE : WEFT_EXIT_OK;
}

int weft_command_doctor(struct weft_settings *settings)
{
    struct weft_doctor_report *report = NULL;
    struct weft_terminal terminal;
    struct weft_setup setup;
    enum weft_status status;
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
    };
    /* The report says it all; the log is for who asks for it. */
    weft_terminal_init(&terminal, !settings->is_verbose, settings->is_verbose);
    (void)fflush(NULL);
    status = weft_doctor_run(&options, &report);
    if (status != WEFT_OK) {
        code = WEFT_EXIT_FAILURE; /* logged */
    } else {
        code = report != NULL ? report_show(report, settings) : WEFT_EXIT_OK;
    }
    if (report == NULL) {
        weft_setup_close(&setup);
        _exit(code); /* a forked rank has no business in its parent's exit handlers */
    }
    weft_doctor_report_close(&report);
    weft_setup_close(&setup);
    return code;
}
