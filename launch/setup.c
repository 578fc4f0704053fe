/* From settings to engine options. With options.c the only reader of the environment. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"

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

/* What mpirun (Open MPI 4 and 5) or another PMIx launcher tells its processes; NULL outside of one. */
static const char *launcher_rank(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");

    return rank != NULL ? rank : getenv("PMIX_RANK");
}

bool weft_setup_is_worker(const struct weft_settings *settings)
{
    const char *rank = launcher_rank();

    if (settings->leader != NULL) {
        return settings->rank != 0;
    }
    return rank != NULL && strcmp(rank, "0") != 0;
}

bool weft_setup_is_distributed(const struct weft_settings *settings)
{
    return settings->leader != NULL || launcher_rank() != NULL;
}

static bool rendezvous_check(const struct weft_settings *settings, const char *command)
{
    if (settings->leader == NULL) {
        if (settings->rank != 0) {
            fprintf(stderr, "weft %s: --rank needs --leader HOST:PORT\n", command);
            return false;
        }
        return true;
    }
    if (settings->ranks == 0 || settings->rank >= settings->ranks) {
        fprintf(stderr, "weft %s: --leader needs --ranks N and --rank R with R < N, found --ranks %u --rank %u\n",
                command, settings->ranks, settings->rank);
        return false;
    }
    return true;
}

const char *weft_setup_origin(const struct weft_settings *settings, const char *name)
{
    const char *origin = weft_option_origin(settings, name);

    if (origin == NULL && strcmp(name, "ranks") == 0) {
        origin = weft_option_origin(settings, "rank-count");
    }
    if (settings->leader == NULL && launcher_rank() != NULL) {
        return "mpirun";
    }
    return origin != NULL ? origin : "default";
}

bool weft_setup_group_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                           int *exit_code)
{
    struct weft_engine_options *options = &setup->options;

    memset(setup, 0, sizeof(*setup));
    weft_engine_options_init(options);
    *exit_code = WEFT_EXIT_USAGE;
    if (!rendezvous_check(settings, command)) {
        return false;
    }
    *exit_code = WEFT_EXIT_FAILURE;
    if (settings->secret_file != NULL) {
        if (!secret_read(settings->secret_file, setup->secret, sizeof(setup->secret), command)) {
            return false;
        }
        options->secret = setup->secret;
    }
    options->launch = settings->leader != NULL ? WEFT_LAUNCH_TCP : WEFT_LAUNCH_AUTO;
    options->leader = settings->leader;
    options->rendezvous_timeout_ms = settings->rendezvous_timeout_ms;
    options->rank = settings->rank;
    options->rank_count = settings->ranks;
    options->thread_count = settings->threads;
    options->shares = settings->shares.count > 0 ? settings->shares.items : NULL;
    options->share_count = settings->shares.count;
    options->is_share_measured = settings->shares.is_auto;
    options->weights = settings->weights;
    options->leaf_count = settings->leaves;
    options->cpu_level = settings->cpu_level;
    options->device = settings->device;
    options->numerics = settings->numerics;
    options->cuda_module = settings->cuda_module;
    options->comm = settings->comm;
    options->interface = settings->interface;
    options->kv_dtype = settings->kv_dtype;
    options->memory_limit = settings->memory;
    options->context_length = settings->context;
    options->sequence_count_max = settings->sequences;
    options->queue_count_max = settings->queue;
    options->kv_token_count = settings->kv_tokens;
    options->prefill_chunk = settings->prefill_chunk;
    options->timeout_ms = settings->timeout_ms;
    return true;
}

bool weft_setup_init(struct weft_setup *setup, const struct weft_settings *settings, const char *command,
                     int *exit_code)
{
    if (!weft_setup_group_init(setup, settings, command, exit_code)) {
        return false;
    }
    if (settings->model != NULL) {
        setup->options.model = settings->model;
    } else if (demo_model_find(setup->model, sizeof(setup->model), command)) {
        setup->options.model = setup->model;
    } else {
        return false;
    }
    return true;
}
