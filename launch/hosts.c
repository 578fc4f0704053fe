/* The list of hosts, and what each of them is told. */
#include "hosts.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weft/weft.h"

enum { SLOTS_MAX = 64 };

static bool host_parse(const char *text, size_t size, struct weft_host_list *out, char *error)
{
    const char *colon = memrchr(text, ':', size);
    const char *bracket = memrchr(text, ']', size);
    size_t name_size = size;
    unsigned slots = 1;

    if (colon != NULL && (bracket == NULL || bracket < colon)) {
        char number[8] = "";

        name_size = (size_t)(colon - text);
        if (size - name_size - 1 < sizeof(number)) {
            memcpy(number, colon + 1, size - name_size - 1);
        }
        if (sscanf(number, "%u", &slots) != 1 || strspn(number, "0123456789") != strlen(number) || slots < 1 ||
            slots > SLOTS_MAX || (bracket == NULL && memchr(text, ':', name_size) != NULL)) {
            (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE,
                           "expected HOST or HOST:RANKS with 1 to %d ranks, [V6] for IPv6, found \"%.*s\"", SLOTS_MAX,
                           (int)size, text);
            return false;
        }
    }
    if (bracket != NULL && text[0] == '[') { /* ssh wants the address bare */
        text++;
        name_size -= 2;
    }
    if (name_size == 0 || name_size >= WEFT_HOST_NAME_SIZE || text[0] == '-') { /* ssh would take it as an option */
        (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE, "expected host names such as a,b:2, found \"%.*s\"", (int)size,
                       text);
        return false;
    }
    memcpy(out->names[out->count], text, name_size);
    out->names[out->count][name_size] = 0;
    out->slots[out->count++] = slots;
    out->rank_count += slots;
    return true;
}

bool weft_host_list_parse(const char *text, struct weft_host_list *out, char *error)
{
    memset(out, 0, sizeof(*out));
    for (;;) {
        size_t size = strcspn(text, ",");

        if (out->count == WEFT_HOSTS_MAX) {
            (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE, "expected at most %d hosts", WEFT_HOSTS_MAX);
            return false;
        }
        if (!host_parse(text, size, out, error)) {
            return false;
        }
        for (uint32_t i = 0; i + 1 < out->count; i++) {
            if (strcmp(out->names[i], out->names[out->count - 1]) == 0) {
                (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE, "\"%s\" stands there twice: expected %s:2 for two ranks",
                               out->names[i], out->names[i]);
                return false;
            }
        }
        if (text[size] == 0) {
            return true;
        }
        text += size + 1;
    }
}

/* "HOST slots=N" as "HOST:N" behind what is in text; lines without a host add nothing. False when it does not fit. */
static bool add_line(const char *line, char *text, size_t size)
{
    char name[WEFT_HOST_NAME_SIZE] = "", slots[8] = "1";
    const char *more = strstr(line, "slots=");
    size_t used = strlen(text);
    bool is_v6, has_count;

    if (sscanf(line, " %127[^ \t\r\n#]", name) != 1) {
        return true;
    }
    while (more != NULL && (more == line || !isspace((unsigned char)more[-1]))) { /* max_slots= */
        more = strstr(more + 1, "slots=");
    }
    if (more != NULL) {
        (void)snprintf(slots, sizeof(slots), "%.*s", (int)strcspn(more + 6, " \t\r\n#"), more + 6);
    }
    is_v6 = name[0] != '[' && strchr(name, ':') != strrchr(name, ':');
    has_count = !is_v6 && more == NULL && (name[0] == '[' ? strstr(name, "]:") : strchr(name, ':')) != NULL;
    return (size_t)snprintf(text + used, size - used, "%s%s%s%s%s%s", used > 0 ? "," : "", is_v6 ? "[" : "", name,
                            is_v6 ? "]" : "", has_count ? "" : ":", has_count ? "" : slots) < size - used;
}

bool weft_hostfile_read(const char *path, char *text, size_t size, char *error)
{
    FILE *file = fopen(path, "re");
    char line[1024];
    bool is_whole = true;

    text[0] = 0;
    if (file == NULL) {
        (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE, "%s: %s", path, strerror(errno));
        return false;
    }
    while (is_whole && fgets(line, sizeof(line), file) != NULL) {
        is_whole = add_line(line, text, size);
    }
    fclose(file);
    if (!is_whole || text[0] == 0) {
        (void)snprintf(error, WEFT_HOSTS_ERROR_SIZE, "%s: %s", path, is_whole ? "no host in it" : "too many hosts");
        return false;
    }
    return true;
}

const char *weft_host_list_of(const struct weft_host_list *list, uint32_t rank)
{
    uint32_t host = 0;

    while (host + 1 < list->count && rank >= list->slots[host]) {
        rank -= list->slots[host++];
    }
    return list->names[host];
}

/* ---- the invitation ---- */

struct invitation {
    char *out;
    size_t used;
    bool is_full;
};

static void add(struct invitation *invitation, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct invitation *invitation, const char *format, ...)
{
    size_t left = WEFT_JOIN_SIZE - invitation->used;
    va_list arguments;
    int size;

    va_start(arguments, format);
    size = vsnprintf(invitation->out + invitation->used, left, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= left) {
        invitation->is_full = true;
        return;
    }
    invitation->used += (size_t)size + 1;
}

/* Variables that ranks need, as launch/mpirun.sh passes them on; who is who is said by options. */
static bool is_passed_on(const char *variable)
{
    static const char *const prefixes[] = {"WEFT_", "UCX_", "NCCL_", "OMP_", "LD_LIBRARY_PATH="};
    static const char *const own[] = {"WEFT_HOSTS=", "WEFT_SSH=",         "WEFT_REMOTE_PATH=", "WEFT_RANK",
                                      "WEFT_LEADER", "WEFT_LOCAL_RANKS=", "WEFT_SECRET",       "WEFT_PROMPT"};
    bool is_ours = false;

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        is_ours = is_ours || strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0;
    }
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
        is_ours = is_ours && strncmp(variable, own[i], strlen(own[i])) != 0;
    }
    return is_ours;
}

size_t weft_hosts_invitation(const struct weft_hosts_args *args, uint32_t index, char *out)
{
    struct invitation invitation = {.out = out};
    const struct weft_settings *settings = args->settings;
    bool is_v6 = strchr(args->leader_host, ':') != NULL;
    char folder[4096];
    uint32_t first = 0;

    for (uint32_t i = 0; i < index; i++) {
        first += args->list->slots[i];
    }
    add(&invitation, "weft-join");
    add(&invitation, "%s", weft_version());
    if (getcwd(folder, sizeof(folder)) != NULL) {
        add(&invitation, "D%s", folder);
    }
    for (char **variable = environ; *variable != NULL; variable++) {
        if (is_passed_on(*variable)) {
            add(&invitation, "V%s", *variable);
        }
    }
    add(&invitation, "VWEFT_SECRET=%s", args->secret);
    add(&invitation, "A%s", settings->command);
    add(&invitation, "A--leader");
    add(&invitation, is_v6 ? "A[%s]:%u" : "A%s:%u", args->leader_host, args->leader_port);
    add(&invitation, "A--rank=%u", first);
    add(&invitation, "A--ranks=%u", args->list->rank_count);
    if (args->list->slots[index] > 1) {
        add(&invitation, "A--local-ranks=%u", args->list->slots[index]);
    }
    for (int i = 0; i < settings->argument_count; i++) {
        add(&invitation, "A%s", settings->arguments[i]);
    }
    add(&invitation, "%s", "");
    return invitation.is_full ? 0 : invitation.used;
}
