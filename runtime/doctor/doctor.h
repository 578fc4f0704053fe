/* weft doctor: forms the group as a run would, looks at every rank and link, and says what would hurt. Loads nothing.
 */
#ifndef WEFT_DOCTOR_DOCTOR_H
#define WEFT_DOCTOR_DOCTOR_H

#include <stdbool.h>
#include <stdio.h>

#include "doctor/findings.h"
#include "doctor/predict.h"
#include "weft/weft.h"

struct weft_doctor_report;

struct weft_doctor_options {
    const struct weft_engine_options *engine; /* launch, ranks, comm, limits; model NULL: none is looked at */
    /* For the report only: what started the ranks ("Slurm", "none"), and where this process's values came from:
     * "--rank", "WEFT_RANK", "SLURM_PROCID", "default". local_rank_origin "": not known. */
    const char *launcher;
    const char *rank_origin;
    const char *rank_count_origin;
    const char *leader_origin;
    const char *local_rank_origin;
    uint32_t local_rank; /* among the ranks of this host */
    /* On rank 0, before any rank ends. False when the report could not be shown. */
    bool (*show)(const struct weft_doctor_report *report, void *context);
    void *context;
};

/* Of the leader. */
struct weft_doctor_report {
    const struct weft_doctor_options *options;
    struct weft_doctor_facts *facts;   /* [rank_count] */
    struct weft_doctor_link *links;    /* [link_count] */
    uint64_t *memory_needs;            /* [rank_count]; NULL: not known */
    int32_t gpus[WEFT_RANK_COUNT_MAX]; /* [rank_count] GPU of each rank, WEFT_NO_GPU: CPUs */
    uint32_t rank_count;
    uint32_t link_count;
    char kind[16];      /* how the ranks came about: "local", "mpi", "tcp", "self" */
    char transport[16]; /* "shm+tcp"; "" when none could be opened */
    char reason[128];
    bool has_model_summary; /* the next three */
    struct weft_model_summary model;
    struct weft_rank_summary ranks[WEFT_LEAF_COUNT_MAX];
    struct weft_doctor_rates rates;
    struct weft_doctor_prediction prediction; /* is_known false when there is none */
    struct weft_doctor_findings findings;
};

/*
 * Collective; rank 0 shows the report. *is_trouble_out, the same on every rank: a warning or an error was found, or the
 * report not shown. A failure after the group has formed is a finding; before, it is returned, logged.
 */
WEFT_MUST_CHECK enum weft_status weft_doctor_run(const struct weft_doctor_options *options, bool *is_trouble_out);

/*
 * What `weft serve` looks at whenever it starts: this process's machine and limits alone, under a millisecond. Logs
 * what is a warning or worse.
 *
 * local_count   ranks on this host, as far as this process knows
 */
void weft_doctor_check_start(const struct weft_engine_options *options, uint32_t local_count);

/* Of a pair: "shm", "tcp" ... out of "shm+tcp". */
const char *weft_doctor_link_transport(const struct weft_doctor_report *report, const struct weft_doctor_link *link,
                                       char text[16]);

/* Tables and one line per finding; only findings when is_quiet. */
void weft_doctor_report_print(const struct weft_doctor_report *report, bool is_quiet, FILE *file);
/* One object and a newline. False when out of memory or a host's name is not UTF-8. */
bool weft_doctor_report_print_json(const struct weft_doctor_report *report, FILE *file);
const char *weft_doctor_severity_name(enum weft_doctor_severity severity);

#endif
