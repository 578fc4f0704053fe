/* The order of things; every step is collective, so a rank that fails leaves and the leader notices. */
#include "doctor/doctor.h"

#include <stdlib.h>
#include <string.h>

#include "engine/rendezvous.h"
#include "weft/log.h"

enum { TIMEOUT_MS = 30000, LINKS_BUDGET_MS = 10000 };

static uint32_t timeout_of(const struct weft_doctor_options *options)
{
    return options->engine->timeout_ms > 0 ? options->engine->timeout_ms : TIMEOUT_MS;
}

static struct weft_doctor_report *open_report(const struct weft_doctor_options *options,
                                              const struct weft_bootstrap *bootstrap)
{
    struct weft_doctor_report *report = calloc(1, sizeof(*report));
    size_t count = weft_bootstrap_rank_count(bootstrap);

    if (report != NULL) {
        report->options = options;
        report->rank_count = (uint32_t)count;
        report->facts = calloc(count, sizeof(*report->facts));
        report->links = calloc(count * count, sizeof(*report->links));
        snprintf(report->kind, sizeof(report->kind), "%s", weft_bootstrap_kind(bootstrap));
    }
    if (report == NULL || report->facts == NULL || report->links == NULL) {
        weft_log(WEFT_LOG_ERROR, "doctor", "out of memory");
        weft_doctor_report_close(&report);
    }
    return report;
}

void weft_doctor_report_close(struct weft_doctor_report **report)
{
    if (*report != NULL) {
        free((*report)->facts);
        free((*report)->links);
        free((*report)->memory_needs);
        free(*report);
        *report = NULL;
    }
}

static enum weft_status gather_facts(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                     struct weft_doctor_report *report)
{
    struct weft_doctor_facts own;

    weft_doctor_facts_read(bootstrap, options->engine->model, &own);
    own.memory_limit = options->engine->memory_limit;
    own.local_rank = options->local_rank;
    snprintf(own.rank_origin, sizeof(own.rank_origin), "%s", options->rank_origin);
    snprintf(own.local_origin, sizeof(own.local_origin), "%s", options->local_rank_origin);
    own.thread_count = options->engine->thread_count;
    bool was_quiet = weft_log_set_quiet(true); /* it becomes a finding */
    own.gpu_status = weft_member_read_gpus(options->engine, &own.member);
    (void)weft_log_set_quiet(was_quiet);
    if (own.gpu_status != WEFT_OK) {
        snprintf(own.gpu_error, sizeof(own.gpu_error), "%s", weft_log_last_error());
    }
    return weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), report->facts,
                                     weft_rendezvous_timeout_ms(options->engine));
}

/* Opens what a run would open, one leaf per rank, and measures. */
static enum weft_status look_at_links(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                      struct weft_doctor_report *report)
{
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    uint32_t count = report->rank_count;
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    const struct weft_comm_options comm_options = {
        .backend = options->engine->comm,
        .interface = options->engine->interface,
        .timeout_ms = timeout_of(options),
        .leaf_count = count,
        .leaves = leaves,
        .sum_count_max = 16,
        .gather_size_max = 64,
        .wait = weft_doctor_host_ranks(report->facts, count, rank) <= weft_doctor_host_cores(report->facts, count, rank)
                    ? WEFT_WAIT_SPIN
                    : WEFT_WAIT_YIELD,
    };
    struct weft_comm *comm = NULL;
    enum weft_status status;

    for (uint32_t r = 0; r < count; r++) {
        leaves[r] = (struct weft_range){r, r + 1};
    }
    WEFT_TRY(weft_comm_open(bootstrap, &comm_options, &comm));
    snprintf(report->transport, sizeof(report->transport), "%s", weft_comm_backend(comm));
    snprintf(report->reason, sizeof(report->reason), "%s", weft_comm_reason(comm));
    report->link_count = weft_doctor_links_list(report->facts, count, report->links);
    status = weft_doctor_links_measure(comm, rank, LINKS_BUDGET_MS, report->links, report->link_count);
    weft_comm_close(&comm);
    return status;
}

static void add_failure(struct weft_doctor_report *report, const char *where, const char *why, const char *change)
{
    struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_ERROR, .why = why, .change = change};

    snprintf(finding.where, sizeof(finding.where), "%s", where);
    weft_doctor_findings_add(&report->findings, &finding, "%s", weft_log_last_error());
}

/* What each rank would need at least; a model that cannot be dealt to these ranks is a finding. */
static void fill_needs(const struct weft_doctor_options *options, struct weft_doctor_report *report)
{
    struct weft_engine_options engine = *options->engine;
    struct weft_rank_summary ranks[WEFT_LEAF_COUNT_MAX];
    struct weft_model_summary summary;
    enum weft_status status;
    bool was_quiet;

    if (engine.model == NULL || report->facts[0].model_status != WEFT_OK) {
        return;
    }
    engine.rank_count = report->rank_count;
    engine.device = report->gpus[0] == WEFT_NO_GPU ? "cpu" : engine.device; /* refused GPUs are a finding already */
    was_quiet = weft_log_set_quiet(true);
    status = weft_engine_inspect(&engine, &summary, ranks, WEFT_LEAF_COUNT_MAX);
    (void)weft_log_set_quiet(was_quiet);
    if (status != WEFT_OK) {
        add_failure(report, "model", "a run would be refused", "see weft info");
        return;
    }
    report->memory_needs = calloc(report->rank_count, sizeof(*report->memory_needs));
    for (uint32_t r = 0; report->memory_needs != NULL && r < report->rank_count; r++) {
        report->memory_needs[r] = ranks[r].weight_size + ranks[r].activation_size;
    }
}

static void judge(struct weft_bootstrap *bootstrap, struct weft_doctor_report *report, enum weft_status links_status)
{
    struct weft_doctor_group group = {.facts = report->facts, .rank_count = report->rank_count, .links = report->links};

    if (links_status != WEFT_OK) {
        int failed = weft_bootstrap_failed_rank(bootstrap);
        char where[96];

        snprintf(where, sizeof(where), "links");
        if (failed >= 0) {
            snprintf(where, sizeof(where), "rank %d on %s", failed, report->facts[failed].machine.host_name);
        }
        add_failure(report, where, "the ranks cannot talk to each other as a run would",
                    "see the ranks' own messages; try another --comm or --interface");
    }
    weft_doctor_gpus_deal(&group, report->gpus, &report->findings);
    group.gpus = report->gpus;
    fill_needs(report->options, report);
    group.link_count = report->link_count;
    group.memory_needs = report->memory_needs;
    weft_doctor_judge(&group, &report->findings);
}

static enum weft_status check_rank_count(const struct weft_doctor_options *options, uint32_t rank_count)
{
    uint32_t wanted = options->engine->rank_count;

    if (rank_count > WEFT_LEAF_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, "doctor", "%u ranks, but a model has at most %d", rank_count, WEFT_LEAF_COUNT_MAX);
        return WEFT_ERR_LIMIT;
    }
    if (wanted > 0 && wanted != rank_count) {
        weft_log(WEFT_LOG_ERROR, "doctor", "%u ranks asked for, but %u were started", wanted, rank_count);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

static enum weft_status examine(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                struct weft_doctor_report **report_out)
{
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    struct weft_doctor_report *report;
    enum weft_status status;

    bool was_quiet = weft_log_set_quiet(rank != 0); /* all ranks see the same fault: one says it */
    status = check_rank_count(options, weft_bootstrap_rank_count(bootstrap));
    (void)weft_log_set_quiet(was_quiet);
    WEFT_TRY(status);
    report = open_report(options, bootstrap);
    if (report == NULL) {
        return WEFT_ERR_MEMORY;
    }
    status = gather_facts(bootstrap, options, report);
    if (status == WEFT_OK) {
        status = look_at_links(bootstrap, options, report);
        if (rank == 0) {
            judge(bootstrap, report, status);
            *report_out = report;
            return WEFT_OK;
        }
    }
    weft_doctor_report_close(&report);
    return status;
}

enum weft_status weft_doctor_run(const struct weft_doctor_options *options, struct weft_doctor_report **report_out)
{
    struct weft_bootstrap *bootstrap = NULL;
    struct weft_doctor_report *report = NULL;
    enum weft_status status;

    WEFT_TRY(check_rank_count(options, options->engine->rank_count));
    WEFT_TRY(weft_rendezvous_open(options->engine, &bootstrap));
    status = examine(bootstrap, options, &report);
    weft_bootstrap_close(&bootstrap);
    if (status == WEFT_OK) {
        *report_out = report;
    }
    return status;
}
