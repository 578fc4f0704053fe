/* From options to a bootstrap. */
#include "engine/rendezvous.h"

#include <stdio.h>

#include "weft/log.h"

/* Pods and cluster jobs start their processes at different times; a minute is what people forgive. */
enum { RENDEZVOUS_TIMEOUT_MS = 60000 };

uint32_t weft_rendezvous_timeout_ms(const struct weft_engine_options *options)
{
    return options->rendezvous_timeout_ms > 0 ? options->rendezvous_timeout_ms : RENDEZVOUS_TIMEOUT_MS;
}

static enum weft_status meet(const struct weft_engine_options *options, const char *trouble,
                             enum weft_status trouble_status, struct weft_bootstrap **out)
{
    char program[64];
    const struct weft_bootstrap_tcp_options tcp = {.leader = options->leader,
                                                   .rank = options->rank,
                                                   .rank_count = options->rank_count,
                                                   .timeout_ms = weft_rendezvous_timeout_ms(options),
                                                   .secret = options->secret,
                                                   .program = program,
                                                   .hosts = options->rank_hosts,
                                                   .local_rank = options->local_rank,
                                                   .local_count = options->local_rank_count,
                                                   .trouble = trouble,
                                                   .trouble_status = trouble_status,
                                                   .watch_fd = options->launcher_fd};

    (void)snprintf(program, sizeof(program), "weft %s", weft_version());
    switch (options->launch) {
    case WEFT_LAUNCH_TCP: return weft_bootstrap_open_tcp(&tcp, out);
    case WEFT_LAUNCH_MPI: return weft_bootstrap_open_mpi(options->interface, tcp.timeout_ms, out);
    default: break;
    }
    return options->rank_count > 1 ? weft_bootstrap_open_local(options->rank_count, out)
                                   : weft_bootstrap_open_self(out);
}

enum weft_status weft_rendezvous_open(const struct weft_engine_options *options, struct weft_bootstrap **out)
{
    const struct weft_heartbeat_options heartbeat = {
        .silence_ms = options->heartbeat_ms, .exit_ms = options->lost_exit_ms, .interface = options->interface};
    struct weft_bootstrap *bootstrap;
    enum weft_status status;

    WEFT_TRY(meet(options, NULL, WEFT_OK, &bootstrap));
    status = weft_bootstrap_heartbeat(bootstrap, &heartbeat);
    if (status != WEFT_OK) {
        weft_bootstrap_close(&bootstrap);
        return status;
    }
    *out = bootstrap;
    return WEFT_OK;
}

void weft_rendezvous_leave(const struct weft_engine_options *options, struct weft_bootstrap *bootstrap)
{
    if (options->leave != NULL && weft_bootstrap_take_leave(bootstrap)) {
        options->leave(options->callback_context);
    }
}

void weft_rendezvous_excuse(const struct weft_engine_options *options, enum weft_status status, const char *trouble)
{
    struct weft_bootstrap *bootstrap;
    bool was_quiet;

    if (options->launch != WEFT_LAUNCH_TCP || options->leader == NULL) {
        return; /* the others do not wait, or cannot be found */
    }
    was_quiet = weft_log_set_quiet(true); /* should the leader not be found either, one reason is enough */
    if (meet(options, trouble, status, &bootstrap) == WEFT_OK) {
        weft_bootstrap_close(&bootstrap);
    }
    (void)weft_log_set_quiet(was_quiet);
}
