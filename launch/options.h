/*
 * The command line: one table of options (options_table.c) from which parsing, environment fallbacks, help and
 * suggestions all come.
 */
#ifndef WEFT_LAUNCH_OPTIONS_H
#define WEFT_LAUNCH_OPTIONS_H

#include <stdint.h>
#include <stdio.h>

#include "settings.h"
#include "weft/status.h"

/*
 * Exit codes: 0 done, 1 it failed, 2 the command line could not be understood; 128 + signal when a signal ended it. The
 * other two tell whoever starts processes again that this may be in vain; their numbers are those of sysexits.h, which
 * systemd and others know. exit_code.c decides.
 */
enum {
    WEFT_EXIT_OK = 0,
    WEFT_EXIT_FAILURE = 1,
    WEFT_EXIT_USAGE = 2,
    WEFT_EXIT_BUSY = 75,   /* EX_TEMPFAIL: a port is taken, memory is short: it may pass, or be a mistake */
    WEFT_EXIT_CONFIG = 78, /* EX_CONFIG: what was asked for cannot run here, however often it is tried */
};

/* The exit code of a process that could not start because of `status`. */
int weft_exit_code(enum weft_status status);

enum weft_command {
    WEFT_COMMAND_RUN = 1,
    WEFT_COMMAND_SERVE = 2,
    WEFT_COMMAND_INFO = 4,
    WEFT_COMMAND_DOCTOR = 8,
    WEFT_COMMAND_BENCH = 16,
    WEFT_COMMAND_ALL = 31,
};

enum weft_option_kind {
    WEFT_OPTION_FLAG,        /* bool */
    WEFT_OPTION_TEXT,        /* const char * */
    WEFT_OPTION_CHOICE,      /* const char *, one of `choices` */
    WEFT_OPTION_U32,         /* uint32_t in [min, max] */
    WEFT_OPTION_U64,         /* uint64_t */
    WEFT_OPTION_F32,         /* float in [min, max] */
    WEFT_OPTION_SIZE,        /* uint64_t bytes: 4GiB, 512M, 1000000 */
    WEFT_OPTION_TIME,        /* uint32_t milliseconds: 30, 30s, 500ms, 2m */
    WEFT_OPTION_TEXT_LIST,   /* struct weft_text_list, repeatable */
    WEFT_OPTION_NUMBER_LIST, /* struct weft_number_list, comma-separated */
};

struct weft_option {
    const char *name;
    char letter; /* 0: none */
    enum weft_option_kind kind;
    unsigned commands;  /* enum weft_command, or-ed */
    const char *group;  /* heading in help; NULL: not shown */
    const char *values; /* what stands after the name in help; NULL for flags */
    const char *help;
    const char *shown_default; /* NULL: none worth saying */
    const char *environment;   /* variable used when the option is absent; NULL: none */
    size_t offset;             /* in struct weft_settings */
    double min;
    double max;
    const char *const *choices; /* NULL-terminated */
};

struct weft_command_text {
    enum weft_command command;
    const char *name;
    const char *summary;  /* one line, for weft --help */
    const char *usage;    /* arguments after the name */
    const char *intro;    /* paragraph */
    const char *operand;  /* what one word without an option sets: name of that option; NULL: none allowed */
    const char *examples; /* lines */
};

extern const struct weft_option weft_options[];
extern const size_t weft_option_count;
extern const struct weft_command_text weft_commands[];
extern const size_t weft_command_count;

/* The command named `name`; NULL when there is none. */
const struct weft_command_text *weft_command_find(const char *name);

void weft_settings_init(struct weft_settings *settings);

/*
 * Reads environment and arguments (those after the command's name) into *settings. False after one line on stderr.
 */
bool weft_options_parse(const struct weft_command_text *command, int argument_count, char **arguments,
                        struct weft_settings *settings);

/* What set option `name`: "argument", or the variable, "WEFT_RANK"; NULL when nothing did. */
const char *weft_option_origin(const struct weft_settings *settings, const char *name);

void weft_help_print(FILE *file);
void weft_help_command_print(const struct weft_command_text *command, FILE *file);

/* The entry of names[count] that `word` most likely meant, or NULL. */
const char *weft_suggest(const char *word, const char *const *names, size_t count);

#endif
