/* From settings to engine options. With options.c the only reader of the environment. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"

/* From the loss of the group to the end of a process that is stuck: streams have been told by then. */
enum { LOST_EXIT_MS = 1200 };

static bool is_model(const char *folder)
{
    char path[PATH_MAX];
    int size = snprintf(path, sizeof(path), "%s/config.json", folder);

    return size > 0 && (size_t)size < sizeof(path) && access(path, F_OK) == 0;
}

/* The demo model: in the source tree that this binary was built from, else where `cmake --install` puts it. */
static bool demo_model_find(char *out, size_t size, const char *command)
{
    char self[PATH_MAX];
    char installed[PATH_MAX + 64] = "";
    ssize_t used = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (is_model(WEFT_DEMO_MODEL_SOURCE)) {
        (void)snprintf(out, size, "%s", WEFT_DEMO_MODEL_SOURCE);
        return true;
    }
    if (used > 0) {
        char *slash;

        self[used] = 0;
        slash = strrchr(self, '/');
        if (slash != NULL) {
            *slash = 0;
            (void)snprintf(installed, sizeof(installed), "%s/../%s", self, WEFT_DEMO_MODEL_INSTALLED);
        }
    }
    if (installed[0] != 0 && strlen(installed) < size && is_model(installed)) {
        memcpy(out, installed, strlen(installed) + 1);
        return true;
    }
    fprintf(stderr, "weft %s: no model named and no demo model in %s or %s: use --model DIR\n", command,
            WEFT_DEMO_MODEL_SOURCE, installed);
    return false;
}

static bool secret_read(const char *path, char *out, size_t size, const char *command)
{
    FILE *file = fopen(path, "re");
    size_t used;

    if (file == NULL) {
        fprintf(stderr, "weft %s: --secret-file: %s: %s\n", command, path, strerror(errno));
        return false;
    }
    used = fread(out, 1, size, file);
    fclose(file);
    if (used == size) {
        fprintf(stderr, "weft %s: --secret-file: %s: longer than %zu bytes\n", command, path, size - 1);
        return false;
    }
    out[used] = 0;
    out[strcspn(out, "\r\n")] = 0;
    if (out[0] == 0) {
        fprintf(stderr, "weft %s: --secret-file: %s: its first line is empty\n", command, path);
        return false;
    }
    return true;
}

static const char *environment_variable(void *context, const char *name)
{
    (void)context;
    return getenv(name);
}

/* "--rank" or "WEFT_RANK"; NULL when nothing set it. */
static const char *origin_of(const struct weft_settings *settings, const char *name, const char *flag)
{
    const char *origin = weft_option_origin(settings, name);

    return origin != NULL && strcmp(origin, "argument") == 0 ? flag : origin;
}

static bool placement_find(struct weft_setup *setup, const struct weft_settings *settings, const char *command)
{
    char host_name[WEFT_PLACEMENT_HOST_SIZE] = "localhost";
    char error[WEFT_PLACEMENT_ERROR_SIZE];
    const char *ranks = origin_of(settings, "ranks", "--ranks");
    char leader[WEFT_PLACEMENT_HOST_SIZE + 16];
    struct weft_placement_request request = {
        .variable = environment_variable,
        .host_name = host_name,
        .leader = settings->leader,
        .leader_origin = origin_of(settings, "leader", "--leader"),
        .rank = settings->rank,
        .rank_origin = origin_of(settings, "rank", "--rank"),
        .rank_count = settings->ranks,
        .rank_count_origin = ranks != NULL ? ranks : origin_of(settings, "rank-count", "--rank-count"),
        .local_count = settings->local_ranks,
        .leader_port = settings->leader_port,
#ifdef WEFT_HAVE_MPI
        .has_mpi = true,
#endif
    };

    (void)gethostname(host_name, sizeof(host_name) - 1);
    if (settings->is_joined) {
        request.leader_origin = request.rank_origin = request.rank_count_origin = "--hosts";
    }
    if (settings->hosts != NULL && !weft_setup_hosts_read(setup, settings, &request, leader, sizeof(leader))) {
        return false;
    }
    if (!weft_placement_resolve(&request, &setup->placement, error)) {
        fprintf(stderr, "weft %s: %s\n", command, error);
        return false;
    }
    if (settings->hosts != NULL || settings->is_joined) {
        setup->placement.launcher = WEFT_LAUNCHER_SSH;
    }
    if (setup->placement.note != NULL && !settings->is_quiet) {
        fprintf(stderr, "weft %s: %s\n", command, setup->placement.note);
    }
    return true;
}

/* The host of each rank, where the launcher tells; for messages about who is missing. */
static void hosts_find(struct weft_setup *setup)
{
    const struct weft_placement *placement = &setup->placement;

    for (uint32_t r = 0; r < placement->rank_count && r < WEFT_SETUP_HOST_COUNT; r++) {
        if (setup->host_list.count > 0) {
            (void)snprintf(setup->host_names[r], sizeof(setup->host_names[r]), "%.*s", WEFT_SETUP_HOST_SIZE - 1,
                           weft_host_list_of(&setup->host_list, r));
        } else if (!weft_placement_host(placement, r, setup->host_names[r], sizeof(setup->host_names[r]))) {
            return;
        }
        setup->hosts[r] = setup->host_names[r];
    }
    if (placement->rank_count <= WEFT_SETUP_HOST_COUNT) {
        setup->options.rank_hosts = setup->hosts;
    }
}

/* NULL: none. */
static const char *secret_variable(void)
{
    const char *text = getenv("WEFT_SECRET");

    return text != NULL && text[0] != 0 ? text : NULL;
}

static bool secret_is_one(const struct weft_settings *settings, const char *command)
{
    if (secret_variable() != NULL && settings->secret_file != NULL) {
        fprintf(stderr, "weft %s: %s and WEFT_SECRET are both set: expected only one of them\n", command,
                origin_of(settings, "secret-file", "--secret-file"));
        return false;
    }
    return true;
}

/* A one-time secret, for ranks that this process starts itself. */
static bool secret_make(struct weft_setup *setup, const char *command)
{
    uint8_t bytes[32];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        fprintf(stderr, "weft %s: getrandom: %s\n", command, strerror(errno));
        return false;
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        (void)snprintf(setup->secret + 2 * i, 3, "%02x", bytes[i]);
    }
    setup->options.secret = setup->secret;
    return true;
}

/* A secret in a file or in the variable; never on the command line, where everybody on the host can read it. */
static bool secret_find(struct weft_setup *setup, const struct weft_settings *settings, const char *command)
{
    const char *text = secret_variable();

    if (settings->secret_file != NULL) {
        if (!secret_read(settings->secret_file, setup->secret, sizeof(setup->secret), command)) {
            return false;
        }
    } else if (text != NULL) {
        if (strlen(text) >= sizeof(setup->secret)) {
            fprintf(stderr, "weft %s: WEFT_SECRET: longer than %zu bytes\n", command, sizeof(setup->secret) - 1);
            return false;
        }
        (void)snprintf(setup->secret, sizeof(setup->secret), "%s", text);
    }
    if (setup->secret[0] == 0 && settings->hosts != NULL) {
        return secret_make(setup, command);
    }
    setup->options.secret = setup->secret[0] != 0 ? setup->secret : NULL;
    return true;
}

bool weft_setup_is_worker(const struct weft_setup *setup)
{
    return !setup->placement.has_rank || setup->placement.rank != 0;
}

bool weft_setup_is_distributed(const struct weft_setup *setup)
{
    return setup->placement.launcher != WEFT_LAUNCHER_NONE;
}

static void launch_fill(struct weft_setup *setup, const struct weft_settings *settings)
{
    const struct weft_placement *placement = &setup->placement;
    struct weft_engine_options *options = &setup->options;

    options->launch = placement->is_tcp                          ? WEFT_LAUNCH_TCP
                      : placement->launcher == WEFT_LAUNCHER_MPI ? WEFT_LAUNCH_MPI
                                                                 : WEFT_LAUNCH_LOCAL;
    options->leader = placement->is_tcp ? placement->leader : NULL;
    options->rank = placement->has_rank ? placement->rank : WEFT_RANK_ANY;
    options->local_rank = placement->local_rank;
    options->local_rank_count = placement->local_count;
    /* Under MPI what was asked for: the engine compares it with what MPI says. */
    options->rank_count = options->launch == WEFT_LAUNCH_MPI ? settings->ranks : placement->rank_count;
    hosts_find(setup);
}

/* In settings 0 is off and UINT32_MAX not given; in the engine's options it is the other way round. */
static uint32_t heartbeat(uint32_t setting_ms)
{
    return setting_ms == UINT32_MAX ? 0 : setting_ms == 0 ? UINT32_MAX : setting_ms;
}

static void options_fill(struct weft_engine_options *options, const struct weft_settings *settings)
{
    options->rendezvous_timeout_ms = settings->rendezvous_timeout_ms;
    options->heartbeat_ms = heartbeat(settings->heartbeat_ms);
    options->lost_exit_ms = LOST_EXIT_MS;
    options->thread_count = settings->threads;
    options->shares = settings->shares.count > 0 ? settings->shares.items : NULL;
    options->share_count = settings->shares.count;
    options->is_share_measured = settings->shares.is_auto;
    options->weights = settings->weights;
    options->leaf_count = settings->leaves;
    options->cpu_level = settings->cpu_level;
    options->device = settings->device;
    options->numerics = settings->numerics;
    options->is_eager = settings->is_eager;
    options->cuda_module = settings->cuda_module;
    options->comm = settings->comm;
    options->interface = settings->interface;
    options->kv_dtype = settings->kv_dtype;
    options->quantize = settings->quantize;
    options->memory_limit = settings->memory;
    options->context_length = settings->context;
    options->sequence_count_max = settings->sequences;
    options->queue_count_max = settings->queue;
    options->kv_token_count = settings->kv_tokens;
    options->prefill_chunk = settings->prefill_chunk;
    options->timeout_ms = settings->timeout_ms;
}

/* The leader's port without a secret; on loopback only this host can reach it. */
static void secret_warn(const struct weft_setup *setup, const struct weft_settings *settings, const char *command)
{
    const struct weft_placement *placement = &setup->placement;
    bool is_loopback = strncmp(placement->leader, "127.", 4) == 0 ||
                       strncmp(placement->leader, "localhost:", 10) == 0 ||
                       strncmp(placement->leader, "[::1]:", 6) == 0;

    if (placement->is_tcp && !weft_setup_is_worker(setup) && placement->rank_count > 1 && setup->secret[0] == 0 &&
        !is_loopback && !settings->is_quiet) {
        fprintf(stderr, "weft %s: no secret: whoever reaches %s can join as a rank; --secret-file or WEFT_SECRET\n",
                command, placement->leader);
    }
}

bool weft_setup_group_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                           int *exit_code)
{
    memset(setup, 0, sizeof(*setup));
    weft_engine_options_init(&setup->options);
    *exit_code = WEFT_EXIT_USAGE;
    if (!placement_find(setup, settings, command) || !secret_is_one(settings, command)) {
        return false;
    }
    *exit_code = WEFT_EXIT_CONFIG;
    if (!secret_find(setup, settings, command)) {
        return false;
    }
    *exit_code = WEFT_EXIT_FAILURE;
    if (!weft_local_ranks_start(&setup->placement, &setup->local_ranks)) {
        return false;
    }
    launch_fill(setup, settings);
    if (setup->host_list.count > 0 && setup->placement.rank == 0 && !weft_setup_hosts_start(setup, settings)) {
        return false;
    }
    secret_warn(setup, settings, command);
    options_fill(&setup->options, settings);
    return true;
}

bool weft_setup_inspect_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command)
{
    memset(setup, 0, sizeof(*setup));
    weft_engine_options_init(&setup->options);
    setup->options.rank_count = settings->ranks;
    options_fill(&setup->options, settings);
    if (settings->model == NULL && !demo_model_find(setup->model, sizeof(setup->model), command)) {
        return false;
    }
    setup->options.model = settings->model != NULL ? settings->model : setup->model;
    return true;
}

bool weft_setup_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                     int *exit_code)
{
    char model[sizeof(setup->model)] = "";

    *exit_code = WEFT_EXIT_CONFIG;
    if (settings->model == NULL && !demo_model_find(model, sizeof(model), command)) {
        return false;
    }
    if (!weft_setup_group_init(setup, settings, command, exit_code)) {
        return false;
    }
    memcpy(setup->model, model, sizeof(model));
    setup->options.model = settings->model != NULL ? settings->model : setup->model;
    return true;
}

void weft_setup_formed(struct weft_setup *setup)
{
    weft_hosts_formed(&setup->ssh);
}

void weft_setup_close(struct weft_setup *setup)
{
    weft_hosts_end(&setup->ssh);
    weft_local_ranks_end(&setup->local_ranks);
}
