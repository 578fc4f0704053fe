/* Host lists by index arithmetic: every bracket is a digit, the last one turns fastest. */
#include "hostlist.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HOST_COUNT_MAX = 65536, NUMBER_SIZE_MAX = 9 };

/* A run of digits of at most nine; *width_out: how many. */
static bool number_read(const char **text, uint32_t *out, int *width_out)
{
    uint32_t value = 0;
    int width = 0;

    while (isdigit((unsigned char)**text) && width < NUMBER_SIZE_MAX) {
        value = value * 10 + (uint32_t)(**text - '0');
        width++;
        (*text)++;
    }
    *out = value;
    *width_out = width;
    return width > 0;
}

/* One "7" or "01-04" of a bracket. */
static bool range_read(const char **text, uint32_t *first_out, uint32_t *count_out, int *width_out)
{
    uint32_t last;
    int width;

    if (!number_read(text, first_out, width_out)) {
        return false;
    }
    last = *first_out;
    if (**text == '-') {
        (*text)++;
        if (!number_read(text, &last, &width) || last < *first_out) {
            return false;
        }
    }
    *count_out = last - *first_out + 1;
    return **text == ',' || **text == ']';
}

/*
 * The bracket at text ("[1-2,7]"): how many numbers it holds, and number `index` of them as text. Moves text behind
 * it. 0 when it is not a bracket.
 */
static uint32_t bracket_read(const char **text, uint32_t index, char *out, size_t size)
{
    uint64_t total = 0;

    out[0] = 0;
    do {
        uint32_t first, count;
        int width;

        (*text)++; /* the bracket, or a comma */
        if (!range_read(text, &first, &count, &width)) {
            return 0;
        }
        if (index >= total && index < total + count) {
            (void)snprintf(out, size, "%0*u", width, first + (uint32_t)(index - total));
        }
        total += count;
    } while (**text == ',');
    (*text)++;
    return total <= HOST_COUNT_MAX ? (uint32_t)total : 0;
}

/* How many hosts one term ("rack[1-2]n[01-04]", up to a comma or the end) names; moves text behind it. 0: malformed. */
static uint32_t term_count(const char **text)
{
    uint64_t count = 1;
    const char *begin = *text;
    char number[NUMBER_SIZE_MAX + 3];

    while (**text != 0 && **text != ',') {
        if (**text == '[') {
            count *= bracket_read(text, 0, number, sizeof(number));
            if (count == 0 || count > HOST_COUNT_MAX) {
                return 0;
            }
        } else if (**text == ']' || isspace((unsigned char)**text)) {
            return 0;
        } else {
            (*text)++;
        }
    }
    return *text > begin ? (uint32_t)count : 0;
}

/* Host `index` of the term at text, of which there are `count`. The term is well formed. */
static bool term_get(const char *text, uint32_t index, uint32_t count, char *out, size_t size)
{
    size_t used = 0;
    char piece[NUMBER_SIZE_MAX + 3];

    while (*text != 0 && *text != ',') {
        if (*text == '[') {
            const char *behind = text;
            uint32_t own = bracket_read(&behind, 0, piece, sizeof(piece));

            count /= own;
            (void)bracket_read(&text, index / count, piece, sizeof(piece));
            index %= count;
        } else {
            piece[0] = *text++;
            piece[1] = 0;
        }
        if (used + strlen(piece) >= size) {
            return false;
        }
        memcpy(out + used, piece, strlen(piece) + 1);
        used += strlen(piece);
    }
    return true;
}

/* Walks the terms; the one that holds `index` goes into out. Returns how many hosts there are, 0: malformed. */
static uint32_t walk(const char *list, uint32_t index, char *out, size_t size, bool *is_found_out)
{
    uint64_t total = 0;

    *is_found_out = false;
    for (;;) {
        const char *term = list;
        uint32_t count = term_count(&list);

        if (count == 0 || total + count > HOST_COUNT_MAX) {
            return 0;
        }
        if (out != NULL && index >= total && index < total + count) {
            *is_found_out = term_get(term, (uint32_t)(index - total), count, out, size);
        }
        total += count;
        if (*list == 0) {
            return (uint32_t)total;
        }
        list++;
    }
}

uint32_t weft_hostlist_count(const char *list)
{
    bool is_found;

    return walk(list, 0, NULL, 0, &is_found);
}

bool weft_hostlist_get(const char *list, uint32_t index, char *out, size_t size)
{
    bool is_found;

    return walk(list, index, out, size, &is_found) > 0 && is_found;
}

bool weft_hostlist_block(const char *per_host, uint32_t rank, uint32_t *host_out)
{
    uint64_t ranks = 0;
    uint64_t hosts = 0;

    for (;;) {
        uint32_t each, repeat = 1;
        int width;

        if (!number_read(&per_host, &each, &width)) {
            return false;
        }
        if (strncmp(per_host, "(x", 2) == 0) {
            per_host += 2;
            if (!number_read(&per_host, &repeat, &width) || *per_host++ != ')') {
                return false;
            }
        }
        if (rank < ranks + (uint64_t)each * repeat) {
            *host_out = (uint32_t)(hosts + (rank - ranks) / each);
            return true;
        }
        ranks += (uint64_t)each * repeat;
        hosts += repeat;
        if (*per_host++ != ',') {
            return false;
        }
    }
}
