/* weft: finds the command, parses, runs it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "hosts.h"

/*
 * UCX, ours or Open MPI's, prints its log to standard output, where answers go, and calls a peer that leaves first at
 * the end an error. What fails a group is named by our own log. Before anything can load UCX, and only where nobody has
 * asked for something else.
 */
static void keep_ucx_off_standard_output(void)
{
    (void)setenv("UCX_LOG_FILE", "stderr", 0);
    (void)setenv("UCX_LOG_LEVEL", "fatal", 0);
}

static int command_unknown(const char *word)
{
    const char *names[8];
    const char *meant;

    for (size_t i = 0; i < weft_command_count; i++) {
        names[i] = weft_commands[i].name;
    }
    meant = weft_suggest(word, names, weft_command_count);
    if (meant != NULL) {
        fprintf(stderr, "weft: unknown command \"%s\"; did you mean %s?\n", word, meant);
    } else {
        fprintf(stderr, "weft: unknown command \"%s\" (weft --help lists all)\n", word);
    }
    return WEFT_EXIT_USAGE;
}

static bool settings_read(const struct weft_command_text *command, int argument_count, char **arguments,
                          struct weft_settings *settings)
{
    weft_settings_init(settings);
    settings->command = command->name;
    settings->arguments = arguments;
    settings->argument_count = argument_count;
    return weft_options_parse(command, argument_count, arguments, settings);
}

static int dispatch(const struct weft_command_text *command, struct weft_settings *settings)
{
    switch (command->command) {
    case WEFT_COMMAND_RUN: return weft_command_run(settings);
    case WEFT_COMMAND_SERVE: return weft_command_serve(settings);
    case WEFT_COMMAND_INFO: return weft_command_info(settings);
    case WEFT_COMMAND_DOCTOR: return weft_command_doctor(settings);
    case WEFT_COMMAND_BENCH: return weft_command_bench(settings);
    case WEFT_COMMAND_ALL: break;
    }
    return WEFT_EXIT_USAGE;
}

/* --hostfile says what --hosts would. `text` [WEFT_HOSTS_TEXT_SIZE] holds it. False after one line on stderr. */
static bool hostfile_read(struct weft_settings *settings, char *text)
{
    char error[WEFT_HOSTS_ERROR_SIZE] = "not together with --hosts";

    if (settings->hostfile == NULL) {
        return true;
    }
    if (settings->hosts != NULL || !weft_hostfile_read(settings->hostfile, text, WEFT_HOSTS_TEXT_SIZE, error)) {
        fprintf(stderr, "weft %s: --hostfile: %s\n", settings->command, error);
        return false;
    }
    settings->hosts = text;
    return true;
}

static int command_run(const struct weft_command_text *command, int argument_count, char **arguments)
{
    struct weft_settings settings;
    char hosts[WEFT_HOSTS_TEXT_SIZE];

    if (!settings_read(command, argument_count, arguments, &settings)) {
        return WEFT_EXIT_USAGE;
    }
    if (settings.is_help) {
        weft_help_command_print(command, stdout);
        return WEFT_EXIT_OK;
    }
    if (!hostfile_read(&settings, hosts)) {
        return WEFT_EXIT_USAGE;
    }
    return dispatch(command, &settings);
}

/* A rank of somebody else's --hosts: the same command and options, without those that are the leader's alone. */
static int joined_run(const char *name, int argument_count, char **arguments)
{
    const struct weft_command_text *command = weft_command_find(name);
    struct weft_settings settings;

    if (command == NULL || !settings_read(command, argument_count, arguments, &settings)) {
        return WEFT_EXIT_USAGE;
    }
    settings.is_joined = true;
    settings.hosts = NULL;
    settings.secret_file = NULL;
    settings.leader_port = 0;
    settings.pid_file = NULL;
    return dispatch(command, &settings);
}

int main(int argument_count, char **arguments)
{
    const struct weft_command_text *command;
    const char *word;

    keep_ucx_off_standard_output();
    if (argument_count < 2) {
        weft_help_print(stderr);
        return WEFT_EXIT_USAGE;
    }
    word = arguments[1];
    if (strcmp(word, "--version") == 0) {
        printf("weft %s\n", weft_version());
        return WEFT_EXIT_OK;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        command = argument_count > 2 ? weft_command_find(arguments[2]) : NULL;
        if (command != NULL) {
            weft_help_command_print(command, stdout);
        } else {
            weft_help_print(stdout);
        }
        return WEFT_EXIT_OK;
    }
    if (strcmp(word, "join") == 0) {
        return weft_join(joined_run);
    }
    command = weft_command_find(word);
    if (command == NULL) {
        return command_unknown(word);
    }
    return command_run(command, argument_count - 2, arguments + 2);
}
