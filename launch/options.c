/* Parsing of the table in options_table.c: arguments first, then the environment for what they left open. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Where a value came from, for error messages: "--ranks" or "WEFT_RANKS". */
struct source {
    const struct weft_command_text *command;
    const char *label;
};

static bool complain(const struct weft_command_text *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool complain(const struct weft_command_text *command, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "weft %s: ", command->name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return false;
}

static bool number_in(const char *text, char **end, double *out)
{
    if (text[0] == 0 || isspace((unsigned char)text[0])) {
        return false;
    }
    errno = 0;
    *out = strtod(text, end);
    return *end != text && errno == 0 && isfinite(*out);
}

static bool integer_in(const char *text, char **end, uint64_t *out)
{
    if (!isdigit((unsigned char)text[0])) {
        return false; /* strtoull would take a sign */
    }
    errno = 0;
    *out = strtoull(text, end, 10);
    return errno == 0;
}

static bool u32_parse(struct source source, const struct weft_option *option, const char *text, uint32_t *out)
{
    uint64_t value;
    char *end;

    if (!integer_in(text, &end, &value) || *end != 0 || (double)value < option->min || (double)value > option->max) {
        return complain(source.command, "%s: expected an integer from %.0f to %.0f, found \"%s\"", source.label,
                        option->min, option->max, text);
    }
    *out = (uint32_t)value;
    return true;
}

static bool u64_parse(struct source source, const char *text, uint64_t *out)
{
    char *end;

    if (!integer_in(text, &end, out) || *end != 0) {
        return complain(source.command, "%s: expected an integer from 0 to 18446744073709551615, found \"%s\"",
                        source.label, text);
    }
    return true;
}

static bool f32_parse(struct source source, const struct weft_option *option, const char *text, float *out)
{
    double value;
    char *end;

    if (!number_in(text, &end, &value) || *end != 0 || value < option->min || value > option->max) {
        return complain(source.command, "%s: expected a number from %g to %g, found \"%s\"", source.label, option->min,
                        option->max, text);
    }
    *out = (float)value;
    return true;
}

static bool size_parse(struct source source, const char *text, uint64_t *out)
{
    static const struct {
        const char *suffix;
        double factor;
    } units[] = {
        {"", 1},          {"B", 1},          {"K", 1024.0},       {"KiB", 1024.0},        {"M", 1048576.0},
        {"MiB", 1048576}, {"G", 1073741824}, {"GiB", 1073741824}, {"T", 1099511627776.0}, {"TiB", 1099511627776.0},
        {"kB", 1e3},      {"MB", 1e6},       {"GB", 1e9},         {"TB", 1e12},
    };
    double value;
    char *end;

    if (number_in(text, &end, &value) && value > 0) {
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            if (strcmp(end, units[i].suffix) == 0 && value * units[i].factor < 9e18) {
                *out = (uint64_t)(value * units[i].factor);
                return true;
            }
        }
    }
    return complain(source.command, "%s: expected a size such as 4GiB or 512MiB, found \"%s\"", source.label, text);
}

static bool time_parse(struct source source, const struct weft_option *option, const char *text, uint32_t *out_ms)
{
    static const struct {
        const char *suffix;
        double seconds;
    } units[] = {{"", 1}, {"s", 1}, {"ms", 0.001}, {"m", 60}, {"h", 3600}};
    double value;
    char *end;

    if (number_in(text, &end, &value)) {
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            double seconds = value * units[i].seconds;

            if (strcmp(end, units[i].suffix) == 0 && seconds >= option->min && seconds <= option->max) {
                *out_ms = (uint32_t)(seconds * 1000);
                return true;
            }
        }
    }
    return complain(source.command, "%s: expected a time such as 30s, 500ms or 2m, found \"%s\"", source.label, text);
}

static bool choice_parse(struct source source, const struct weft_option *option, const char *text, const char **out)
{
    for (size_t i = 0; option->choices[i] != NULL; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *out = option->choices[i];
            return true;
        }
    }
    return complain(source.command, "%s: expected %s, found \"%s\"", source.label, option->values, text);
}

static bool numbers_parse(struct source source, const struct weft_option *option, const char *text,
                          struct weft_number_list *out)
{
    const char *next = text;

    *out = (struct weft_number_list){.is_auto = strcmp(text, "auto") == 0};
    while (!out->is_auto) {
        uint64_t value;
        char *end;

        if (!integer_in(next, &end, &value) || (*end != 0 && *end != ',') || value < (uint64_t)option->min ||
            value > (uint64_t)option->max || out->count == WEFT_SETTINGS_SHARE_MAX) {
            return complain(source.command, "%s: expected auto, or whole numbers from 1 such as 3,1, found \"%s\"",
                            source.label, text);
        }
        out->items[out->count++] = (uint32_t)value;
        if (*end == 0) {
            return true;
        }
        next = end + 1;
    }
    return true;
}

static bool value_set(struct source source, const struct weft_option *option, const char *text,
                      struct weft_settings *settings)
{
    void *target = (char *)settings + option->offset;

    switch (option->kind) {
    case WEFT_OPTION_FLAG: *(bool *)target = true; return true;
    case WEFT_OPTION_TEXT: *(const char **)target = text; return true;
    case WEFT_OPTION_CHOICE: return choice_parse(source, option, text, target);
    case WEFT_OPTION_U32: return u32_parse(source, option, text, target);
    case WEFT_OPTION_U64: return u64_parse(source, text, target);
    case WEFT_OPTION_F32: return f32_parse(source, option, text, target);
    case WEFT_OPTION_SIZE: return size_parse(source, text, target);
    case WEFT_OPTION_TIME: return time_parse(source, option, text, target);
    case WEFT_OPTION_NUMBER_LIST: return numbers_parse(source, option, text, target);
    case WEFT_OPTION_TEXT_LIST: {
        struct weft_text_list *list = target;

        if (list->count == WEFT_SETTINGS_STOP_MAX || text[0] == 0) {
            return complain(source.command, text[0] == 0 ? "%s: empty" : "%s: at most 16 times", source.label);
        }
        list->items[list->count++] = text;
        return true;
    }
    }
    return false;
}

/* A name that is none: says which option was meant, or which command has it. */
static bool unknown_option(const struct weft_command_text *command, const char *word, size_t name_size)
{
    const char *names[WEFT_OPTION_MAX];
    char name[64];
    size_t count = 0;
    const char *meant;

    if (name_size >= sizeof(name)) {
        return complain(command, "unknown option %s (weft %s --help lists all)", word, command->name);
    }
    memcpy(name, word + 2, name_size - 2);
    name[name_size - 2] = 0;
    for (size_t i = 0; i < weft_option_count; i++) {
        const struct weft_option *option = &weft_options[i];

        if ((option->commands & command->command) != 0) {
            names[count++] = option->name;
        } else if (strcmp(option->name, name) == 0) {
            return complain(command, "--%s is not an option of weft %s (weft %s --help lists all)", name, command->name,
                            command->name);
        }
    }
    meant = weft_suggest(name, names, count);
    if (meant != NULL) {
        return complain(command, "unknown option --%s; did you mean --%s?", name, meant);
    }
    return complain(command, "unknown option --%s (weft %s --help lists all)", name, command->name);
}

static const struct weft_option *option_find(const struct weft_command_text *command, const char *name, size_t size)
{
    for (size_t i = 0; i < weft_option_count; i++) {
        if ((weft_options[i].commands & command->command) != 0 && strlen(weft_options[i].name) == size &&
            memcmp(weft_options[i].name, name, size) == 0) {
            return &weft_options[i];
        }
    }
    return NULL;
}

static const struct weft_option *letter_find(const struct weft_command_text *command, char letter)
{
    for (size_t i = 0; i < weft_option_count; i++) {
        if ((weft_options[i].commands & command->command) != 0 && weft_options[i].letter == letter) {
            return &weft_options[i];
        }
    }
    return NULL;
}

/* The option and its value, wherever it stands: "--a=b", "--a b", "-a b". *used_out: words taken. */
static bool word_parse(const struct weft_command_text *command, char **words, int left, struct weft_settings *settings,
                       const struct weft_option **option_out, int *used_out)
{
    const char *word = words[0];
    const char *equals = word[1] == '-' ? strchr(word, '=') : NULL;
    size_t size = equals != NULL ? (size_t)(equals - word) : strlen(word);
    const char *value = equals != NULL ? equals + 1 : NULL;
    const struct weft_option *option;
    char label[64];

    if (word[1] == '-') {
        option = option_find(command, word + 2, size - 2);
        if (option == NULL) {
            return unknown_option(command, word, size);
        }
    } else {
        option = word[2] == 0 ? letter_find(command, word[1]) : NULL;
        if (option == NULL) {
            return complain(command, "unknown option %s (weft %s --help lists all)", word, command->name);
        }
    }
    (void)snprintf(label, sizeof(label), "--%s", option->name);
    *option_out = option;
    *used_out = 1;
    if (option->kind == WEFT_OPTION_FLAG) {
        if (value != NULL) {
            return complain(command, "%s takes no value", label);
        }
    } else if (value == NULL) {
        if (left < 2) {
            return complain(command, "%s needs a value: %s %s", label, label, option->values);
        }
        value = words[1];
        *used_out = 2;
    }
    return value_set((struct source){command, label}, option, value, settings);
}

static bool environment_read(const struct weft_command_text *command, const bool *is_given,
                             struct weft_settings *settings)
{
    for (size_t i = 0; i < weft_option_count; i++) {
        const struct weft_option *option = &weft_options[i];
        const char *text = option->environment != NULL ? getenv(option->environment) : NULL;
        bool is_set = is_given[i];

        for (size_t k = 0; k < weft_option_count; k++) {
            is_set = is_set || (is_given[k] && weft_options[k].offset == option->offset);
        }
        if (text == NULL || text[0] == 0 || is_set || (option->commands & command->command) == 0) {
            continue;
        }
        if (!value_set((struct source){command, option->environment}, option, text, settings)) {
            return false;
        }
        settings->origins[i] = option->environment;
    }
    return true;
}

const char *weft_option_origin(const struct weft_settings *settings, const char *name)
{
    for (size_t i = 0; i < weft_option_count; i++) {
        if (strcmp(weft_options[i].name, name) == 0) {
            return settings->origins[i];
        }
    }
    return NULL;
}

bool weft_options_parse(const struct weft_command_text *command, int argument_count, char **arguments,
                        struct weft_settings *settings)
{
    bool is_given[WEFT_OPTION_MAX] = {false};
    bool is_operands_only = false;
    int index = 0;

    while (index < argument_count) {
        const char *word = arguments[index];
        const struct weft_option *option = NULL;
        int used = 1;

        if (!is_operands_only && strcmp(word, "--") == 0) {
            is_operands_only = true;
        } else if (!is_operands_only && word[0] == '-' && word[1] != 0) {
            if (!word_parse(command, arguments + index, argument_count - index, settings, &option, &used)) {
                return false;
            }
        } else {
            option = command->operand != NULL ? option_find(command, command->operand, strlen(command->operand)) : NULL;
            if (option == NULL || is_given[option - weft_options]) {
                return complain(command, "unexpected argument \"%s\" (weft %s --help)", word, command->name);
            }
            if (!value_set((struct source){command, option->name}, option, word, settings)) {
                return false;
            }
        }
        if (option != NULL) {
            is_given[option - weft_options] = true;
            settings->origins[option - weft_options] = "argument";
        }
        index += used;
    }
    return settings->is_help || environment_read(command, is_given, settings);
}

void weft_settings_init(struct weft_settings *settings)
{
    memset(settings, 0, sizeof(*settings));
    settings->max_tokens = 256;
    settings->batch = (struct weft_number_list){.items = {1}, .count = 1};
    settings->prompt_tokens = 128;
    settings->bench_tokens = 64;
    settings->rounds = 5;
    settings->top_p = 1;
    settings->repetition_penalty = 1;
    settings->heartbeat_ms = UINT32_MAX;
    settings->grpc = "127.0.0.1:50051";
    settings->output = "text";
    settings->ssh = "ssh";
}
