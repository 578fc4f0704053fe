/* weft join: the far end of --hosts. Not for people; see hosts.h. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hosts.h"
#include "options.h"
#include "weft/weft.h"

enum { ARGUMENT_MAX = 256, LIFELINE_GRACE_S = 3 };

/* The next text of the invitation, up to its NUL; false at the end of input or when it is too long. */
static bool text_read(char **next, char *end)
{
    for (char *at = *next; at < end; at++) {
        if (read(STDIN_FILENO, at, 1) != 1) {
            return false;
        }
        if (*at == 0) {
            *next = at + 1;
            return true;
        }
    }
    return false;
}

/* Whoever started this rank is gone when standard input ends: asks the rank to leave, then insists. */
static void *hold_lifeline(void *context)
{
    char byte;

    (void)context;
    while (read(STDIN_FILENO, &byte, 1) > 0 || errno == EINTR) {
        errno = 0;
    }
    (void)kill(getpid(), SIGTERM);
    sleep(LIFELINE_GRACE_S);
    _exit(WEFT_EXIT_FAILURE);
}

/* ":5000" becomes "10.0.0.1:5000": the leader is where ssh came from. */
static char *leader_complete(char *leader, char *out, size_t size)
{
    const char *connection = getenv("SSH_CONNECTION");
    int host = connection != NULL ? (int)strcspn(connection, " ") : 0;

    if (leader[0] != ':' || host == 0) {
        return leader;
    }
    (void)snprintf(out, size, memchr(connection, ':', (size_t)host) != NULL ? "[%.*s]%s" : "%.*s%s", host, connection,
                   leader);
    return out;
}

/* Does what each text of the invitation says; false after one line on stderr. */
static bool invitation_read(char *texts, char **arguments, int *argument_count)
{
    char *next = texts;
    char *end = texts + WEFT_JOIN_SIZE;
    char *version;

    if (!text_read(&next, end) || strcmp(texts, "weft-join") != 0) {
        fputs("weft join: started by weft run, serve or doctor --hosts, not by hand\n", stderr);
        return false;
    }
    version = next;
    if (!text_read(&next, end)) {
        fputs("weft join: the invitation ended early\n", stderr);
        return false;
    }
    if (strcmp(version, weft_version()) != 0) {
        fprintf(stderr, "another version: this host has Weft %s, the leader Weft %s\n", weft_version(), version);
        return false;
    }
    for (;;) {
        char *text = next;

        if (!text_read(&next, end) || *argument_count == ARGUMENT_MAX) {
            fputs("weft join: the invitation ended early, or has too many arguments\n", stderr);
            return false;
        }
        switch (text[0]) {
        case 0: return true;
        case 'D': (void)!chdir(text + 1); break; /* paths may be absolute; else the command names what it misses */
        case 'V': (void)putenv(text + 1); break;
        default: arguments[(*argument_count)++] = text + 1; break;
        }
    }
}

int weft_join(int (*run)(const char *command, int argument_count, char **arguments))
{
    char *texts = malloc(WEFT_JOIN_SIZE); /* the environment and the arguments point into it */
    char *arguments[ARGUMENT_MAX];
    char leader[128];
    int argument_count = 0;
    pthread_t thread;
    int code = WEFT_EXIT_FAILURE;

    if (texts == NULL || !invitation_read(texts, arguments, &argument_count)) {
        free(texts);
        return WEFT_EXIT_FAILURE;
    }
    if (argument_count > 2) {
        arguments[2] = leader_complete(arguments[2], leader, sizeof(leader));
    }
    if (argument_count == 0 || pthread_create(&thread, NULL, hold_lifeline, NULL) != 0) {
        fputs("weft join: nothing to do, or no thread\n", stderr);
    } else {
        code = run(arguments[0], argument_count - 1, arguments + 1);
    }
    return code;
}
