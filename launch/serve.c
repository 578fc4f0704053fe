/* weft serve: a model behind gRPC, and HTTP if asked, until a signal or the loss of a rank. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "command.h"
#include "serve/serve.h"
#include "signals.h"
#include "weft/log.h"

/*
 * One second is promised from signal to end, with a step that cannot be cut short in it: the clients are told within
 * some 400 ms, the other ranks 100 ms later, and then this process is given ENGINE_LIMIT_MS in all. Each limit begins
 * where its stage does, so that a leader that got no core for a while does not leave before the others know. Under MPI
 * it leaves as soon as all ranks have come to MPI_Finalize, 0.3 s after the clients; only should they not come by
 * MPI_LIMIT_MS (a machine far too busy) it goes without, and mpirun complains.
 */
enum { STOP_LIMIT_MS = 1500, ENGINE_LIMIT_MS = 500, MPI_LIMIT_MS = 2000, DRAIN_LOOK_MS = 20 };

struct serving {
    const struct weft_settings *settings;
    uint32_t engine_limit_ms;
    struct weft_server *server; /* owned; on the leader, from when it knows that it leads */
};

/* Sleeps until a signal or a failure; true for a signal. */
static bool stop_wait(struct weft_server *server)
{
    struct pollfd fds[] = {
        {.fd = weft_signals_fd(), .events = POLLIN},
        {.fd = weft_server_failure_fd(server), .events = POLLIN},
    };

    while (poll(fds, 2, -1) < 0 && errno == EINTR) {
    }
    return fds[1].revents == 0;
}

/* Lets what runs go on until it has ended, time is up or a rank has failed; a second signal does not come back here.
 * By the clock: naps get long on a busy machine, and the ranks count on the limit. */
static void drain(struct weft_server *server, uint32_t drain_ms)
{
    struct pollfd failure = {.fd = weft_server_failure_fd(server), .events = POLLIN};
    int64_t deadline = weft_clock_ns() + (int64_t)drain_ms * 1000000;

    weft_server_drain(server);
    while (weft_clock_ns() < deadline && weft_server_active_count(server) > 0) {
        if (poll(&failure, 1, DRAIN_LOOK_MS) > 0) {
            return;
        }
    }
}

static bool pid_file_write(const char *path)
{
    FILE *file = fopen(path, "we");
    bool is_written = file != NULL && fprintf(file, "%ld\n", (long)getpid()) > 0;

    if (file == NULL || fclose(file) != 0 || !is_written) {
        weft_log(WEFT_LOG_ERROR, "serve", "--pid-file: %s: %s", path, strerror(errno));
        return false;
    }
    return true;
}

/* `address` with the port that was bound. */
static void log_address(const char *what, const char *address, uint32_t port)
{
    weft_log(WEFT_LOG_INFO, "serve", "%s on %.*s:%u", what, (int)(strrchr(address, ':') - address), address, port);
}

/* A taken port is found before anything is loaded, and probes are answered meanwhile. */
static enum weft_status listen_early(void *context)
{
    struct serving *serving = context;
    const struct weft_server_options options = {.address = serving->settings->grpc,
                                                .http_address = serving->settings->http};

    return weft_server_open(&options, &serving->server);
}

static int serve(struct weft_engine *engine, void *context)
{
    struct serving *serving = context;
    const struct weft_settings *settings = serving->settings;
    struct weft_server *server = serving->server;
    struct weft_engine_info info;
    int code = WEFT_EXIT_OK;

    if (settings->pid_file != NULL && !pid_file_write(settings->pid_file)) {
        code = WEFT_EXIT_CONFIG;
    } else if (weft_server_start(server, engine) != WEFT_OK) {
        code = WEFT_EXIT_FAILURE;
    }
    if (code != WEFT_EXIT_OK) {
        weft_server_close(&serving->server);
        return code;
    }
    weft_engine_info(engine, &info);
    weft_log(WEFT_LOG_INFO, "serve", "%s ready after %.1f s on %u ranks x %u threads (%s, %s)", info.model,
             info.load_ms / 1000, info.rank_count, info.thread_count, info.device, info.comm);
    if (settings->http != NULL) {
        log_address("HTTP", settings->http, weft_server_http_port(server));
    }
    log_address("gRPC", settings->grpc, weft_server_port(server));
    if (stop_wait(server)) {
        weft_log(WEFT_LOG_INFO, "serve", "%s: stopping, %u requests open", strsignal(weft_signals_caught()),
                 weft_server_active_count(server));
        drain(server, settings->drain_ms);
        weft_signals_stopping(STOP_LIMIT_MS, code);
    } else {
        char failure[384];

        weft_engine_failure(engine, failure, sizeof(failure));
        weft_log(WEFT_LOG_ERROR, "serve", "stopping: %s", failure[0] != '\0' ? failure : "the group has failed");
        code = WEFT_EXIT_FAILURE;
    }
    weft_server_close(&serving->server);
    if (weft_signals_caught() != 0) {
        weft_signals_stopping(serving->engine_limit_ms, code);
    }
    if (settings->pid_file != NULL) {
        unlink(settings->pid_file);
    }
    return code;
}

static bool are_addresses(const struct weft_settings *settings)
{
    return weft_server_address_check(settings->grpc) == WEFT_OK &&
           (settings->http == NULL || weft_server_address_check(settings->http) == WEFT_OK);
}

int weft_command_serve(struct weft_settings *settings)
{
    struct serving serving = {.settings = settings, .engine_limit_ms = ENGINE_LIMIT_MS};
    struct weft_terminal terminal;
    struct weft_setup setup;
    int code;

    if (!weft_setup_init(&setup, settings, "serve", &code)) {
        return code;
    }
    weft_terminal_init(&terminal, settings->is_quiet || weft_setup_is_worker(&setup), settings->is_verbose);
    if (!weft_setup_is_distributed(&setup) && !are_addresses(settings)) { /* elsewhere the leader alone says it */
        return WEFT_EXIT_USAGE;
    }
    if (setup.options.launch == WEFT_LAUNCH_MPI) {
        serving.engine_limit_ms = MPI_LIMIT_MS;
    }
    weft_command_doctor_start(&setup);
    setup.options.leading = listen_early;
    setup.options.leading_context = &serving;
    code = weft_command_lead(&setup, &terminal, STOP_LIMIT_MS + settings->drain_ms, serve, &serving);
    weft_server_close(&serving.server); /* of a group that did not come about */
    return code;
}
