/* The order of things; every step is collective, so a rank that fails leaves and the leader notices. */
#include "doctor/doctor.h"

#include <stdlib.h>
#include <string.h>

#include "engine/rendezvous.h"
#include "weft/log.h"

enum { TIMEOUT_MS = 30000, LINKS_BUDGET_MS = 10000, OTHER_BUDGET_MS = 5000 };

static uint32_t timeout_of(const struct weft_doctor_options *options)
{
    return options->engine->timeout_ms > 0 ? options->engine->timeout_ms : TIMEOUT_MS;
}

static void close_report(struct weft_doctor_report **report)
{
    if (*report != NULL) {
        free((*report)->facts);
        free((*report)->links);
        free((*report)->memory_needs);
        free(*report);
        *report = NULL;
    }
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
        close_report(&report);
    }
    return report;
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
    own.is_fast = options->engine->numerics != NULL && strcmp(options->engine->numerics, "fast") == 0;
    if (own.member.gpu_count > 0) {
        (void)weft_gpu_library(options->engine->cuda_module, own.fast_library, sizeof(own.fast_library),
                               own.fast_reason, sizeof(own.fast_reason));
    }
    return weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), report->facts,
                                     weft_rendezvous_timeout_ms(options->engine));
}

/* Opens what a run would open with this --comm, one leaf per rank. */
static enum weft_status open_comm(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                  const struct weft_doctor_report *report, const char *backend, struct weft_comm **out)
{
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    uint32_t count = report->rank_count;
    uint32_t rank = weft_bootstrap_rank(bootstrap);
    const struct weft_comm_options comm_options = {
        /* What is measured is between hosts; GPUs may keep nccl for their own. */
        .backend = backend != NULL && strcmp(backend, "nccl") == 0 ? "auto" : backend,
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

    for (uint32_t r = 0; r < count; r++) {
        leaves[r] = (struct weft_range){r, r + 1};
    }
    return weft_comm_open(bootstrap, &comm_options, out);
}

static enum weft_status look_at_links(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                      struct weft_doctor_report *report)
{
    struct weft_comm *comm = NULL;
    enum weft_status status;

    WEFT_TRY(open_comm(bootstrap, options, report, options->engine->comm, &comm));
    snprintf(report->transport, sizeof(report->transport), "%s", weft_comm_backend(comm));
    snprintf(report->reason, sizeof(report->reason), "%s", weft_comm_reason(comm));
    report->link_count = weft_doctor_links_list(report->facts, report->rank_count, report->links);
    status = weft_doctor_links_measure(comm, weft_bootstrap_rank(bootstrap), LINKS_BUDGET_MS, report->links,
                                       report->link_count);
    weft_comm_close(&comm);
    return status;
}

/* What to compare the links between hosts with; NULL when there is nothing, or large packets would not arrive. */
static const char *other_transport(const struct weft_doctor_report *report)
{
    const char *other = NULL;

    for (uint32_t i = 0; i < report->link_count; i++) {
        const struct weft_doctor_link *link = &report->links[i];
        char text[16];

        if (weft_doctor_link_has_black_hole(link)) {
            return NULL;
        }
        if (link->is_measured && !link->is_same_host) {
            other = strcmp(weft_doctor_link_transport(report, link, text), "tcp") == 0 ? "ucx" : "tcp";
        }
    }
    return other;
}

/* One phrase when it fails: the report has the links that a run would use. */
static enum weft_status measure_other(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                      struct weft_doctor_report *report, const char *other)
{
    uint32_t count = 0, used = 0;
    struct weft_doctor_link *links = calloc(report->link_count + 1, sizeof(*links));
    struct weft_comm *comm = NULL;
    enum weft_status status = links == NULL ? WEFT_ERR_MEMORY : open_comm(bootstrap, options, report, other, &comm);

    for (uint32_t i = 0; status == WEFT_OK && i < report->link_count; i++) {
        if (!report->links[i].is_same_host) {
            links[count++] = (struct weft_doctor_link){.a = report->links[i].a, .b = report->links[i].b};
        }
    }
    if (status == WEFT_OK) {
        status = weft_doctor_links_measure(comm, weft_bootstrap_rank(bootstrap), OTHER_BUDGET_MS, links, count);
    }
    for (uint32_t i = 0; status == WEFT_OK && i < report->link_count; i++) {
        struct weft_doctor_link *link = &report->links[i];
        const struct weft_doctor_link *measured = &links[used];

        if (!link->is_same_host && links[used++].is_measured) {
            snprintf(link->other, sizeof(link->other), "%s", other);
            link->other_latency_us = measured->latency_us;
            link->other_bandwidth = measured->bandwidth;
        }
    }
    weft_comm_close(&comm);
    free(links);
    return status;
}

/* Collective: what rank 0 knows decides. Nothing is lost when it fails, so it is only told with --verbose. */
static enum weft_status look_at_other_links(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                            struct weft_doctor_report *report)
{
    struct plan {
        char other[8];
    } own = {""}, *all = calloc(report->rank_count, sizeof(*all));
    const char *other = weft_bootstrap_rank(bootstrap) == 0 ? other_transport(report) : NULL;
    enum weft_status status = all == NULL ? WEFT_ERR_MEMORY : WEFT_OK;
    bool was_quiet;

    snprintf(own.other, sizeof(own.other), "%s", other != NULL ? other : "");
    if (status == WEFT_OK) {
        status = weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), all, timeout_of(options));
    }
    was_quiet = weft_log_set_quiet(true);
    if (status == WEFT_OK && all[0].other[0] != '\0') {
        status = measure_other(bootstrap, options, report, all[0].other);
    }
    (void)weft_log_set_quiet(was_quiet);
    free(all);
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
    enum weft_status status;
    bool was_quiet;

    if (engine.model == NULL || report->facts[0].model_status != WEFT_OK) {
        return;
    }
    engine.rank_count = report->rank_count;
    engine.device = report->gpus[0] == WEFT_NO_GPU ? "cpu" : engine.device; /* refused GPUs are a finding already */
    was_quiet = weft_log_set_quiet(true);
    status = weft_engine_inspect(&engine, &report->model, report->ranks, WEFT_LEAF_COUNT_MAX);
    (void)weft_log_set_quiet(was_quiet);
    if (status != WEFT_OK) {
        add_failure(report, "model", "a run would be refused", "see weft info");
        return;
    }
    report->has_model_summary = true;
    report->memory_needs = calloc(report->rank_count, sizeof(*report->memory_needs));
    for (uint32_t r = 0; report->memory_needs != NULL && r < report->rank_count; r++) {
        report->memory_needs[r] = report->ranks[r].weight_size + report->ranks[r].activation_size;
    }
}

/* Rank 0's: what is to be dealt to whom. */
static void deal(struct weft_doctor_report *report)
{
    const struct weft_doctor_group group = {.facts = report->facts, .rank_count = report->rank_count};

    weft_doctor_gpus_deal(&group, report->gpus, &report->findings);
    fill_needs(report->options, report);
}

/* Of a model that rank 0 can read and that would fit where large packets arrive. */
static enum weft_status predict(struct weft_bootstrap *bootstrap, struct weft_doctor_report *report)
{
    bool is_wanted = report->has_model_summary && report->memory_needs != NULL;

    for (uint32_t i = 0; i < report->link_count; i++) {
        is_wanted = is_wanted && !weft_doctor_link_has_black_hole(&report->links[i]);
    }
    const struct weft_doctor_rates_args args = {
        .bootstrap = bootstrap,
        .engine = report->options->engine,
        .facts = report->facts,
        .rank_count = report->rank_count,
        .timeout_ms = timeout_of(report->options),
        .summary = is_wanted ? &report->model : NULL,
        .ranks = report->ranks,
    };
    bool was_quiet = weft_log_set_quiet(true); /* the communicator's choice has been told */
    enum weft_status status = weft_doctor_rates_measure(&args, &report->rates);

    (void)weft_log_set_quiet(was_quiet);
    if (status == WEFT_OK && is_wanted) {
        weft_doctor_predict(&report->model, report->ranks, &report->rates, &report->prediction);
    }
    return status;
}

/* What a run can do without: when it fails, that is a finding and no more. */
static void measure_more(struct weft_bootstrap *bootstrap, struct weft_doctor_report *report)
{
    enum weft_status status = predict(bootstrap, report);

    if (status == WEFT_OK) {
        status = look_at_other_links(bootstrap, report->options, report);
    }
    if (status != WEFT_OK && status != WEFT_ERR_UNSUPPORTED && status != WEFT_ERR_ARGUMENT) { /* no ucx is no news */
        struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_WARNING,
                                              .where = "measuring",
                                              .why = "expected speed or the other transport is not known",
                                              .change = "see the ranks' own messages with --verbose"};

        weft_doctor_findings_add(&report->findings, &finding, "%s", weft_log_last_error());
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
    group.gpus = report->gpus;
    group.link_count = report->link_count;
    group.memory_needs = report->memory_needs;
    group.prediction = &report->prediction;
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

/* Rank 0 shows the report, then all know whether all is well: a rank that ended before could end the others. */
static enum weft_status conclude(struct weft_bootstrap *bootstrap, struct weft_doctor_report *report,
                                 bool *is_trouble_out)
{
    const struct weft_doctor_options *options = report->options;
    uint8_t own = 0, all[WEFT_LEAF_COUNT_MAX];
    enum weft_status status;

    if (weft_bootstrap_rank(bootstrap) == 0) {
        own = !options->show(report, options->context) || weft_doctor_is_trouble(&report->findings);
    }
    status = weft_bootstrap_all_gather(bootstrap, &own, sizeof(own), all, timeout_of(options));
    if (weft_bootstrap_rank(bootstrap) == 0) {
        status = WEFT_OK; /* who did not hear it has failed, which is in the report */
        all[0] = own;
    }
    *is_trouble_out = status != WEFT_OK || all[0] != 0;
    return status;
}

static enum weft_status examine(struct weft_bootstrap *bootstrap, const struct weft_doctor_options *options,
                                bool *is_trouble_out)
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
            deal(report);
        }
        if (status == WEFT_OK) {
            measure_more(bootstrap, report);
        }
        if (rank == 0) {
            judge(bootstrap, report, status);
        }
        status = rank == 0 || status == WEFT_OK ? conclude(bootstrap, report, is_trouble_out) : status;
    }
    close_report(&report);
    return status;
}

enum weft_status weft_doctor_run(const struct weft_doctor_options *options, bool *is_trouble_out)
{
    struct weft_bootstrap *bootstrap = NULL;
    bool is_trouble = true;
    enum weft_status status;

    WEFT_TRY(check_rank_count(options, options->engine->rank_count));
    WEFT_TRY(weft_rendezvous_open(options->engine, &bootstrap));
    status = examine(bootstrap, options, &is_trouble);
    weft_bootstrap_close(&bootstrap);
    if (status == WEFT_OK) {
        *is_trouble_out = is_trouble;
    }
    return status;
}
