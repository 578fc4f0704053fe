/* Help texts, laid out from the tables, and the guess at what a mistyped word meant. */
#include <stdlib.h>
#include <string.h>

#include "options.h"

enum { HELP_WIDTH = 100, HELP_COLUMN = 30, WORD_MAX = 63 };

const struct weft_command_text *weft_command_find(const char *name)
{
    for (size_t i = 0; i < weft_command_count; i++) {
        if (strcmp(weft_commands[i].name, name) == 0) {
            return &weft_commands[i];
        }
    }
    return NULL;
}

void weft_help_print(FILE *file)
{
    fputs("Weft runs one language model across many processes and machines as if they were one.\n\n"
          "usage: weft COMMAND [OPTION...]\n\n",
          file);
    for (size_t i = 0; i < weft_command_count; i++) {
        fprintf(file, "  %-8s %s\n", weft_commands[i].name, weft_commands[i].summary);
    }
    fputs("\n"
          "  weft COMMAND --help   every option, with defaults and examples\n"
          "  weft --version        the version\n\n"
          "Try:  weft run --prompt '12+30='\n",
          file);
}

/* Words of `text` from column `column` on, wrapped; ends the line. */
static void wrap(FILE *file, const char *text, int column, int position)
{
    while (*text != 0) {
        size_t size = strcspn(text, " ");

        if (position + 1 + (int)size > HELP_WIDTH && position > column) {
            fprintf(file, "\n%*s", column, "");
            position = column;
        } else if (position > column) {
            fputc(' ', file);
            position++;
        }
        fwrite(text, 1, size, file);
        position += (int)size;
        text += size;
        text += strspn(text, " ");
    }
    fputc('\n', file);
}

static void option_print(const struct weft_option *option, FILE *file)
{
    char left[96];
    char right[512];
    int size;

    if (option->letter != 0) {
        size = snprintf(left, sizeof(left), "  -%c, --%s%s%s", option->letter, option->name,
                        option->values != NULL ? " " : "", option->values != NULL ? option->values : "");
    } else {
        size = snprintf(left, sizeof(left), "      --%s%s%s", option->name, option->values != NULL ? " " : "",
                        option->values != NULL ? option->values : "");
    }
    (void)snprintf(right, sizeof(right), "%s%s%s%s%s%s%s", option->help,
                   option->shown_default != NULL ? " (default: " : "",
                   option->shown_default != NULL ? option->shown_default : "", option->shown_default != NULL ? ")" : "",
                   option->environment != NULL ? " [" : "", option->environment != NULL ? option->environment : "",
                   option->environment != NULL ? "]" : "");
    fputs(left, file);
    if (size >= HELP_COLUMN) {
        fprintf(file, "\n%*s", HELP_COLUMN, "");
    } else {
        fprintf(file, "%*s", HELP_COLUMN - size, "");
    }
    wrap(file, right, HELP_COLUMN, HELP_COLUMN);
}

void weft_help_command_print(const struct weft_command_text *command, FILE *file)
{
    const char *group = NULL;

    fprintf(file, "usage: weft %s %s\n\n", command->name, command->usage);
    wrap(file, command->intro, 0, 0);
    for (size_t i = 0; i < weft_option_count; i++) {
        const struct weft_option *option = &weft_options[i];

        if ((option->commands & command->command) == 0) {
            continue;
        }
        if (option->group != group) {
            group = option->group;
            fprintf(file, "\n%s:\n", group);
        }
        option_print(option, file);
    }
    fprintf(file,
            "\nA name in [BRACKETS] is an environment variable that is used when the option is absent.\n"
            "\nExamples:\n%s",
            command->examples);
}

/* Insertions, deletions, changes and swaps of neighbours that turn a into b. */
static size_t distance(const char *a, const char *b)
{
    size_t rows[3][WORD_MAX + 1];
    size_t *before = rows[0];
    size_t *above = rows[1];
    size_t *row = rows[2];
    size_t a_size = strlen(a);
    size_t b_size = strlen(b);

    for (size_t j = 0; j <= b_size; j++) {
        before[j] = 0;
        above[j] = j;
    }
    for (size_t i = 1; i <= a_size; i++) {
        size_t *oldest = before;

        row[0] = i;
        for (size_t j = 1; j <= b_size; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);

            best = above[j] + 1 < best ? above[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best) {
                best = before[j - 2] + 1;
            }
            row[j] = best;
        }
        before = above;
        above = row;
        row = oldest;
    }
    return above[b_size];
}

const char *weft_suggest(const char *word, const char *const *names, size_t count)
{
    size_t size = strlen(word);
    size_t best = size / 3 + 1; /* more changes than that are another word */
    const char *found = NULL;

    if (size == 0 || size > WORD_MAX) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        size_t far = strlen(names[i]) <= WORD_MAX ? distance(word, names[i]) : best + 1;

        if (far < best || (far == best && found == NULL)) {
            best = far;
            found = names[i];
        }
    }
    for (size_t i = 0; i < count && found == NULL && size >= 3; i++) {
        if (strncmp(word, names[i], size) == 0) {
            found = names[i];
        }
    }
    return found;
}
