/*
 * Forming a group: hello, decide, load, ready. The order of messages is the same on every rank whatever goes wrong, so
 * that nobody waits for a rank that has already given up.
 *
 * Until the group stands, workers keep their error lines to themselves: their reason travels to the leader, who logs it
 * once with the rank's name. Otherwise a damaged file would be reported by every rank.
 */
#include "engine/group.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/group_load.h"
#include "engine/handshake.h"
#include "engine/options.h"
#include "engine/rendezvous.h"
#include "engine/scheduler.h"
#include "engine/speed.h"
#include "model/quantise.h"
#include "weft/log.h"

/* Of wire.proto; raised whenever the meaning of a message changes. */
enum { PROTOCOL = 3 };

/* State of one open, on the caller's stack. */
struct opening {
    const struct weft_group_args *args;
    struct weft_group *group;
    enum weft_status status; /* OK, or why this rank cannot take part */
    enum weft_wait_policy wait;
    int32_t gpu;                                      /* WEFT_NO_GPU: CPUs */
    uint32_t timeout_ms;                              /* for other ranks to start or to show a sign of life */
    bool lacks_model[WEFT_RANK_COUNT_MAX];            /* leader: who has no model folder */
    struct weft_rank_seat seats[WEFT_RANK_COUNT_MAX]; /* leader: what every rank computes on */
};

static void fill_hello(struct opening *opening, struct weft_hello *hello)
{
    const struct weft_group_args *args = opening->args;

    *hello = (struct weft_hello){.protocol = PROTOCOL, .lacks_model = args->lacks_model};
    if (opening->status == WEFT_OK) {
        opening->status = weft_member_read_gpus(args->options, &hello->member);
    }
    hello->status = opening->status;
    hello->quantise = weft_options_quantise(args->options);
    snprintf(hello->version, sizeof(hello->version), "%s", weft_version());
    if (hello->status == WEFT_OK) {
        memcpy(hello->model, args->identity->model, sizeof(hello->model));
        memcpy(hello->options, args->identity->options, sizeof(hello->options));
    } else {
        snprintf(hello->reason, sizeof(hello->reason), "%s", weft_log_last_error());
    }
    weft_machine_read(&hello->member.machine);
    hello->member.host_id = weft_bootstrap_host_id(opening->group->bootstrap);
    hello->member.memory_limit = args->options->memory_limit;
    hello->member.thread_count = args->options->thread_count;
}

/* ---- the leader decides ---- */

/* Whether a worker belongs to this group: same program, same model, same options, and no trouble of its own. */
static enum weft_status check_hello(const struct opening *opening, uint32_t rank, const struct weft_hello *hello)
{
    const struct weft_identity *identity = opening->args->identity;
    const char *host = hello->member.machine.host_name;

    if (hello->protocol != PROTOCOL || strcmp(hello->version, weft_version()) != 0) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "rank %u on %s runs Weft %s (protocol %u): the leader is %s (%d)",
                 rank, host, hello->version, hello->protocol, weft_version(), PROTOCOL);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (hello->status != WEFT_OK) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "rank %u on %s cannot take part: %s", rank, host, hello->reason);
        return hello->status;
    }
    if (!hello->lacks_model && memcmp(hello->model, identity->model, sizeof(hello->model)) != 0) {
        weft_log(WEFT_LOG_ERROR, "engine/group",
                 "rank %u on %s has other model files: fingerprint %02x%02x%02x%02x, the leader's is %02x%02x%02x%02x",
                 rank, host, hello->model[0], hello->model[1], hello->model[2], hello->model[3], identity->model[0],
                 identity->model[1], identity->model[2], identity->model[3]);
        return WEFT_ERR_ARGUMENT;
    }
    if (hello->quantise != weft_options_quantise(opening->args->options)) {
        weft_log(WEFT_LOG_ERROR, "engine/group",
                 "rank %u on %s was started with --quantize %s: the leader was with --quantize %s", rank, host,
                 weft_quantise_name(hello->quantise), opening->args->options->quantize);
        return WEFT_ERR_ARGUMENT;
    }
    if (memcmp(hello->options, identity->options, sizeof(hello->options)) != 0) {
        weft_log(WEFT_LOG_ERROR, "engine/group",
                 "rank %u on %s was started with other options than the leader (leaves, shares, weights, KV cache, "
                 "numerics, graphs, comm or limits)",
                 rank, host);
        return WEFT_ERR_ARGUMENT;
    }
    return WEFT_OK;
}

/* Every worker is heard even after one was found wanting: they all wait for an answer. */
static enum weft_status hear_workers(struct opening *opening, struct weft_member *members)
{
    struct weft_group *group = opening->group;
    enum weft_status verdict = opening->status;

    for (uint32_t r = 1; r < group->rank_count; r++) {
        struct weft_hello hello;
        enum weft_status status;
        do { /* who reads or computes is late, not stuck */
            status = weft_hello_recv(group->bootstrap, r, opening->timeout_ms, &hello);
        } while (status == WEFT_ERR_TIMEOUT && weft_bootstrap_quiet_ms(group->bootstrap, r) < opening->timeout_ms);
        if (status == WEFT_ERR_TIMEOUT) {
            weft_bootstrap_abort(group->bootstrap, r, "said nothing in time");
        }
        if (status != WEFT_OK) {
            return status;
        }
        if (verdict == WEFT_OK) {
            verdict = check_hello(opening, r, &hello);
        }
        members[r] = hello.member;
        opening->lacks_model[r] = hello.lacks_model;
    }
    return verdict;
}

static enum weft_status open_device(struct opening *opening)
{
    const struct weft_engine_options *options = opening->args->options;
    const struct weft_device_options device_options = {.kind = opening->gpu == WEFT_NO_GPU ? "cpu" : "cuda",
                                                       .gpu_index = (uint32_t)opening->gpu,
                                                       .thread_count = opening->group->thread_count,
                                                       .cpu_level = options->cpu_level,
                                                       .wait = opening->wait,
                                                       .numerics = options->numerics,
                                                       .module = options->cuda_module,
                                                       .timeout_ms = options->timeout_ms};

    return weft_device_open(&device_options, &opening->group->device);
}

/* Opens this rank's device as the leader dealt it; once. */
static enum weft_status take_seat(struct opening *opening, const struct weft_rank_seat *seat)
{
    if (opening->group->device != NULL) {
        return WEFT_OK;
    }
    opening->group->thread_count = seat->thread_count;
    opening->wait = seat->wait;
    opening->gpu = seat->gpu;
    return open_device(opening);
}

static void fill_slices(struct weft_group *group)
{
    for (uint32_t r = 0; r < group->rank_count; r++) {
        weft_slice_init(group->config, group->leaf_count, group->leaves[r], &group->slices[r]);
    }
}

/* Limits that follow from the options alone; pages and context come from the memory. */
static void fill_limits(const struct weft_engine_options *options, struct weft_group *group)
{
    const struct weft_scheduler_limits limits = weft_scheduler_limits_of(options, group->config->context_length);

    group->limits = (struct weft_plan_limits){.token_count_max = weft_scheduler_token_max(&limits),
                                              .sequence_count_max = options->sequence_count_max,
                                              .row_count_max = options->sequence_count_max,
                                              .candidate_count_max = options->candidate_count,
                                              .vocab_size = group->config->vocab_size};
}

/* Positions as the options have them: memory is planned before it decides on fewer, and taken as it was planned. */
struct weft_model_limits weft_group_model_limits(const struct weft_group *group,
                                                 const struct weft_engine_options *options)
{
    return (struct weft_model_limits){.token_count_max = group->limits.token_count_max,
                                      .logit_row_max = group->limits.row_count_max,
                                      .candidate_max = group->limits.candidate_count_max,
                                      .page_count = group->limits.page_count,
                                      .position_max = options->context_length,
                                      .kv_dtype = weft_kv_dtype(options)};
}

/* GPU, threads and waiting of every rank; opens the leader's own device. */
static enum weft_status deal_seats(struct opening *opening, const struct weft_member *members, int32_t *gpus)
{
    struct weft_group *group = opening->group;
    uint32_t thread_counts[WEFT_RANK_COUNT_MAX];
    enum weft_wait_policy waits[WEFT_RANK_COUNT_MAX];

    WEFT_TRY(weft_deal_devices(members, group->rank_count, gpus));
    weft_deal_threads(members, gpus, group->rank_count, thread_counts, waits);
    for (uint32_t r = 0; r < group->rank_count; r++) {
        opening->seats[r] = (struct weft_rank_seat){.thread_count = thread_counts[r], .gpu = gpus[r], .wait = waits[r]};
    }
    return take_seat(opening, &opening->seats[0]);
}

/* Every rank measures itself. */
static enum weft_status deal_leaves_by_speed(struct opening *opening)
{
    struct weft_group *group = opening->group;
    const struct weft_speed_args args = {
        .bootstrap = group->bootstrap,
        .rank_count = group->rank_count,
        .seats = opening->seats,
        .device = group->device,
        .weights = weft_speed_weights(group->config->quantise, group->config->dtype, group->config->fp8.block_cols),
        .timeout_ms = group->timeout_ms};
    double speeds[WEFT_RANK_COUNT_MAX];
    uint32_t shares[WEFT_RANK_COUNT_MAX];

    WEFT_TRY(weft_speed_ask(&args, speeds));
    weft_speed_shares(speeds, group->rank_count, shares);
    WEFT_TRY(weft_deal_leaves(group->leaf_count, group->rank_count, shares, group->rank_count, group->leaves));
    for (uint32_t r = 0; r < group->rank_count; r++) {
        weft_log(WEFT_LOG_INFO, "engine/group", "rank %u reads weights at %.1f GB/s: %u of %u leaves", r,
                 speeds[r] * 1e-9, weft_range_count(group->leaves[r]), group->leaf_count);
    }
    return WEFT_OK;
}

/* Before the table of memory: as what weights are kept, when that is not how they are stored. */
static void say_weights(const struct opening *opening)
{
    const struct weft_engine_options *options = opening->args->options;
    const struct weft_model_config *config = opening->group->config;
    char text[WEFT_WEIGHTS_TEXT_SIZE];
    char line[WEFT_WEIGHTS_TEXT_SIZE + 16];

    if (options->memory_table != NULL && (config->quantise != WEFT_QUANTISE_NONE || config->fp8.is_there)) {
        snprintf(line, sizeof(line), "weights %s", weft_weights_text(config, text));
        options->memory_table(options->callback_context, line);
    }
}

static enum weft_status decide(struct opening *opening, const struct weft_member *members)
{
    const struct weft_engine_options *options = opening->args->options;
    struct weft_group *group = opening->group;
    struct weft_model_memory fixed[WEFT_RANK_COUNT_MAX];
    int32_t gpus[WEFT_RANK_COUNT_MAX];

    WEFT_TRY(deal_seats(opening, members, gpus));
    if (options->is_share_measured) {
        WEFT_TRY(deal_leaves_by_speed(opening));
    } else {
        WEFT_TRY(weft_deal_leaves(group->leaf_count, group->rank_count, options->shares, options->share_count,
                                  group->leaves));
    }
    fill_slices(group);
    fill_limits(options, group);
    const struct weft_model_limits model_limits = weft_group_model_limits(group, options);
    const struct weft_comm_options comm_options = {.backend = options->comm,
                                                   .leaf_count = group->leaf_count,
                                                   .leaves = group->leaves,
                                                   .sum_count_max =
                                                       weft_model_sum_count_max(group->config, &model_limits)};
    for (uint32_t r = 0; r < group->rank_count; r++) {
        weft_model_memory(group->device, group->config, &group->slices[r], &model_limits, &fixed[r]);
        if (!weft_device_is_host(group->device)) {
            fixed[r].buffers += weft_comm_device_size(&comm_options, r, group->rank_count);
        }
    }
    const struct weft_deal_memory_args memory = {.members = members,
                                                 .gpus = gpus,
                                                 .fixed = fixed,
                                                 .rank_count = group->rank_count,
                                                 .context_length = options->context_length,
                                                 .context_max = group->config->context_length,
                                                 .sequence_count_max = options->sequence_count_max,
                                                 .kv_token_count = options->kv_token_count,
                                                 .line = options->memory_table,
                                                 .context = options->callback_context};
    say_weights(opening);
    return weft_deal_memory(&memory, &group->limits.page_count, &group->limits.context_length);
}

static enum weft_status lead(struct opening *opening)
{
    struct weft_group *group = opening->group;
    struct weft_member members[WEFT_RANK_COUNT_MAX];
    struct weft_hello own;

    fill_hello(opening, &own);
    members[0] = own.member;
    enum weft_status status = hear_workers(opening, members);
    if (status == WEFT_OK) {
        status = decide(opening, members);
    }
    struct weft_setup setup = {.generation = group->generation, .limits = group->limits, .status = status};
    memcpy(setup.leaves, group->leaves, sizeof(setup.leaves));
    if (status != WEFT_OK) {
        snprintf(setup.reason, sizeof(setup.reason), "%s", weft_log_last_error());
    }
    for (uint32_t r = 1; r < group->rank_count && weft_bootstrap_failed_rank(group->bootstrap) < 0; r++) {
        setup.seat = opening->seats[r];
        enum weft_status sent = weft_setup_send(group->bootstrap, r, &setup, group->timeout_ms);
        if (sent == WEFT_OK && status == WEFT_OK && opening->lacks_model[r]) {
            sent =
                weft_model_send(group->bootstrap, r, opening->args->options->model, group->config, group->timeout_ms);
        }
        status = status == WEFT_OK ? sent : status;
    }
    return status;
}

/* ---- workers follow ---- */

/* The leader's decision; before it, when leaves are dealt by speed, this rank's speed. */
static enum weft_status hear_setup(struct opening *opening, struct weft_setup *setup_out)
{
    struct weft_group *group = opening->group;

    /* The leader waits for every other rank first. */
    WEFT_TRY(weft_setup_recv(group->bootstrap, UINT32_MAX, setup_out));
    if (setup_out->status != WEFT_OK || !setup_out->is_probe) {
        return WEFT_OK;
    }
    enum weft_status status = take_seat(opening, &setup_out->seat);
    WEFT_TRY(weft_speed_answer(group->bootstrap, group->device, &setup_out->weights, status, group->timeout_ms));
    return weft_setup_recv(group->bootstrap, UINT32_MAX, setup_out);
}

static enum weft_status join(struct opening *opening)
{
    struct weft_group *group = opening->group;
    struct weft_hello hello;
    struct weft_setup setup;
    uint32_t leaf = 0;

    fill_hello(opening, &hello);
    WEFT_TRY(weft_hello_send(group->bootstrap, &hello, group->timeout_ms));
    WEFT_TRY(hear_setup(opening, &setup));
    if (setup.status != WEFT_OK) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "the leader refused the group: %s", setup.reason);
        return setup.status;
    }
    WEFT_TRY(opening->status);
    if (opening->args->lacks_model) {
        WEFT_TRY(weft_model_recv(group->bootstrap, group->timeout_ms, &opening->args->identity->config));
        opening->args->identity->config.quantise = weft_options_quantise(opening->args->options);
    }
    for (uint32_t r = 0; r < group->rank_count; r++) {
        if (setup.leaves[r].begin != leaf || setup.leaves[r].end <= leaf || setup.leaves[r].end > group->leaf_count) {
            weft_log(WEFT_LOG_ERROR, "engine/group", "the leader gave rank %u leaves [%u, %u) of %u", r,
                     setup.leaves[r].begin, setup.leaves[r].end, group->leaf_count);
            return WEFT_ERR_FORMAT;
        }
        leaf = setup.leaves[r].end;
        group->leaves[r] = setup.leaves[r];
    }
    group->generation = setup.generation;
    group->limits = setup.limits;
    group->limits.vocab_size = group->config->vocab_size;
    fill_slices(group);
    return take_seat(opening, &setup.seat);
}

/* Why the group does not stand is the leader's to say, unless it is the leader that is stopped. Ranks of the tcp
 * rendezvous report their own end anyhow. */
static void speak_for_leader(const struct weft_group *group)
{
    static const char silence[] = "no heartbeat";

    if (group->rank != 0 && weft_bootstrap_failed_rank(group->bootstrap) == 0 &&
        strncmp(weft_bootstrap_failed_reason(group->bootstrap), silence, sizeof(silence) - 1) == 0 &&
        strcmp(weft_bootstrap_kind(group->bootstrap), "tcp") != 0) {
        weft_log(WEFT_LOG_ERROR, "engine/group", "rank 0 on %s failed: %s",
                 weft_bootstrap_failed_host(group->bootstrap), weft_bootstrap_failed_reason(group->bootstrap));
    }
}

enum weft_status weft_group_open(const struct weft_group_args *args, struct weft_bootstrap *bootstrap,
                                 struct weft_group *group_out)
{
    const struct weft_engine_options *options = args->options;
    struct weft_group group = {.generation = args->generation,
                               .rank = weft_bootstrap_rank(bootstrap),
                               .rank_count = weft_bootstrap_rank_count(bootstrap),
                               .timeout_ms = options->timeout_ms,
                               .config = args->status == WEFT_OK ? &args->identity->config : NULL,
                               .leaf_count = options->leaf_count,
                               .bootstrap = bootstrap};
    struct opening opening = {.args = args, .group = &group, .status = args->status};
    enum weft_status status;

    if (group.rank_count > WEFT_RANK_COUNT_MAX) {
        if (group.rank == 0) {
            weft_log(WEFT_LOG_ERROR, "engine/group", "%u ranks: at most %d, one for each leaf of the model",
                     group.rank_count, WEFT_RANK_COUNT_MAX);
        }
        weft_group_close(&group);
        return WEFT_ERR_ARGUMENT;
    }
    opening.timeout_ms = weft_rendezvous_timeout_ms(options);
    if (group.rank == 0) {
        status = lead(&opening);
    } else {
        weft_log_set_quiet(true);
        status = join(&opening);
        if (status != WEFT_OK && group.limits.page_count > 0) {
            (void)weft_group_fail(&group, status); /* the leader expects us to load */
        }
    }
    if (status == WEFT_OK) {
        const struct weft_group_load_args load = {
            .options = options, .group = &group, .wait = opening.wait, .timeout_ms = opening.timeout_ms};
        status = weft_group_load(&load);
    }
    weft_log_set_quiet(false);
    if (status != WEFT_OK) {
        speak_for_leader(&group);
        weft_group_close(&group);
        return status;
    }
    *group_out = group;
    return WEFT_OK;
}

void weft_group_close(struct weft_group *group)
{
    weft_model_close(&group->model);
    weft_comm_close(&group->comm);
    weft_device_close(&group->device);
    weft_bootstrap_close(&group->bootstrap);
}

uint32_t weft_group_fail(struct weft_group *group, enum weft_status status)
{
    char reason[WEFT_REASON_SIZE];
    int rank = group->comm == NULL ? -1 : weft_comm_failed_rank(group->comm);

    snprintf(reason, sizeof(reason), "%s", weft_log_last_error());
    if (rank < 0) {
        rank = weft_bootstrap_failed_rank(group->bootstrap);
    }
    if (rank < 0) {
        rank = (int)group->rank;
    }
    /* Whoever decided on the error has logged it; the others log the news when it reaches them. */
    bool was_quiet = weft_log_set_quiet(true);
    weft_bootstrap_abort(group->bootstrap, (uint32_t)rank, reason[0] != '\0' ? reason : weft_status_name(status));
    weft_log_set_quiet(was_quiet);
    weft_log_keep_error("%s", reason);
    return (uint32_t)rank;
}
