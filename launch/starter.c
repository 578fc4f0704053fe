/*
 * The starter of --hosts: one ssh per host, lines with the host's name before them, the reason when one fails. A
 * process of its own, so that neither the leader's threads nor Ctrl-C on its terminal touch the connections.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "hosts.h"
#include "settings.h"

/* LINE: of what a host says. HOLD: how long a line waits, in case it turns out to be the reason of a failure. FAREWELL:
 * after the leader's end, for last lines; then the lifelines close, and after LEAVE everything is killed. */
enum { LINE_SIZE = 1024, HOLD_MS = 150, FAREWELL_MS = 700, LEAVE_MS = 3500, END_MS = 5000, WORDS_MAX = 32 };

struct connection {
    pid_t pid;     /* of ssh; 0: ended */
    int in_fd;     /* its standard input: the lifeline; -1: closed */
    int out_fd;    /* all that it says; -1: at its end */
    uint32_t rank; /* first one there */
    const char *host;
    char line[LINE_SIZE]; /* being read, or held back */
    size_t used;
    int64_t held_since_ms; /* 0: the line is not complete */
};

struct starter {
    struct connection connections[WEFT_HOSTS_MAX];
    uint32_t count;
    int lifeline_fd; /* the leader's end is its life */
    int trouble_fd;
    const char *path; /* of weft over there */
    int64_t ended_ms; /* when the leader ended; 0: it lives */
};

static int64_t now_ms(void)
{
    return weft_clock_ns() / 1000000;
}

/* 'it'\''s' */
static void quote(const char *text, char *out, size_t size)
{
    size_t used = 0;

    out[used++] = '\'';
    for (; *text != 0 && used + 6 < size; text++) {
        if (*text == '\'') {
            memcpy(out + used, "'\\''", 4);
            used += 4;
        } else {
            out[used++] = *text;
        }
    }
    out[used++] = '\'';
    out[used] = 0;
}

/* In the child: becomes ssh. */
static void exec_ssh(const struct weft_settings *settings, const char *host, const char *path)
{
    char words[1024];
    char quoted[4096];
    char command[4200];
    char *arguments[WORDS_MAX + 12];
    int count = 0;
    char *state;

    (void)snprintf(words, sizeof(words), "%s", settings->ssh);
    for (char *word = strtok_r(words, " ", &state); word != NULL && count < WORDS_MAX;
         word = strtok_r(NULL, " ", &state)) {
        arguments[count++] = word;
    }
    arguments[count++] = "-T";
    arguments[count++] = "-oBatchMode=yes"; /* a question would wait for ever */
    arguments[count++] = "-oConnectTimeout=10";
    arguments[count++] = "-oServerAliveInterval=5";
    arguments[count++] = "-oServerAliveCountMax=3";
    arguments[count++] = (char *)(uintptr_t)host;
    quote(path, quoted, sizeof(quoted));
    (void)snprintf(command, sizeof(command), "exec %s join", quoted);
    arguments[count++] = command;
    arguments[count] = NULL;
    (void)signal(SIGPIPE, SIG_DFL);
    (void)execvp(arguments[0], arguments);
    fprintf(stderr, "%s: %s\n", arguments[0], strerror(errno));
    _exit(255);
}

/* Starts ssh to one host and hands the invitation over. */
static bool connect_host(struct starter *starter, const struct weft_hosts_args *args, uint32_t index)
{
    struct connection *connection = &starter->connections[starter->count];
    static char invitation[WEFT_JOIN_SIZE];
    size_t size = weft_hosts_invitation(args, index, invitation);
    int in[2] = {-1, -1};
    int out[2] = {-1, -1};

    *connection = (struct connection){.in_fd = -1, .out_fd = -1, .host = args->list->names[index]};
    for (uint32_t i = 0; i < index; i++) {
        connection->rank += args->list->slots[i];
    }
    starter->count++;
    if (size == 0 || pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) {
        fprintf(stderr, "weft: --hosts: %s: %s\n", connection->host,
                size == 0 ? "options and variables are too long" : strerror(errno));
        return false;
    }
    connection->pid = fork();
    if (connection->pid == 0) {
        (void)dup2(in[0], STDIN_FILENO);
        (void)dup2(out[1], STDOUT_FILENO);
        (void)dup2(out[1], STDERR_FILENO);
        exec_ssh(args->settings, connection->host, starter->path);
    }
    close(in[0]);
    close(out[1]);
    connection->in_fd = in[1];
    connection->out_fd = out[0];
    (void)fcntl(out[0], F_SETFL, O_NONBLOCK);
    (void)!write(in[1], invitation, size); /* fits into the pipe; who does not read it ends, and is heard of then */
    memset(invitation, 0, sizeof(invitation));
    return connection->pid > 0;
}

static void line_show(struct connection *connection)
{
    if (connection->used > 0) {
        fprintf(stderr, "%s: %.*s\n", connection->host, (int)connection->used, connection->line);
    }
    connection->used = 0;
    connection->held_since_ms = 0;
}

/* Takes what there is. A complete line is held back until the next one, or for a moment. */
static void output_read(struct connection *connection)
{
    char buffer[4096];
    ssize_t got = read(connection->out_fd, buffer, sizeof(buffer));

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (got <= 0) {
        close(connection->out_fd);
        connection->out_fd = -1;
        return;
    }
    for (ssize_t i = 0; i < got; i++) {
        if (connection->held_since_ms != 0) {
            line_show(connection);
        }
        if (buffer[i] == '\n') {
            connection->held_since_ms = now_ms();
        } else if (connection->used < sizeof(connection->line) - 1 && buffer[i] != '\r') {
            connection->line[connection->used++] = buffer[i];
        }
    }
}

/* Why an ssh ended, for the leader's one line. */
static void reason_of(const struct starter *starter, const struct connection *connection, int status, char *out,
                      size_t size)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    const char *colon = connection->used > 0 ? ": " : "";

    switch (code) {
    case 255: (void)snprintf(out, size, "cannot be reached by ssh%s%.160s", colon, connection->line); break;
    case 127: (void)snprintf(out, size, "no weft there: %.120s (--remote-path names another)", starter->path); break;
    case 126:
        (void)snprintf(out, size, "weft cannot run there: %.120s%s%.80s", starter->path, colon, connection->line);
        break;
    default: (void)snprintf(out, size, "ended with exit status %d%s%.160s", code, colon, connection->line); break;
    }
}

/* An ssh is at its end. A failure goes to the leader while it waits for the ranks; later to the terminal. */
static void connection_end(struct starter *starter, struct connection *connection)
{
    char reason[300];
    char message[320];
    int status = 0;

    if (waitpid(connection->pid, &status, 0) != connection->pid) {
        status = 0;
    }
    connection->pid = 0;
    connection->line[connection->used] = 0;
    if (connection->in_fd >= 0) {
        close(connection->in_fd);
        connection->in_fd = -1;
    }
    if (status != 0 && starter->ended_ms == 0) {
        reason_of(starter, connection, status, reason, sizeof(reason));
        (void)snprintf(message, sizeof(message), "%u %s\n", connection->rank, reason);
        if (starter->trouble_fd >= 0 && write(starter->trouble_fd, message, strlen(message)) > 0) {
            connection->used = 0; /* said by the leader */
        }
    }
    line_show(connection);
}

/* What is left to do once the leader has ended. */
static void farewell(struct starter *starter)
{
    int64_t since_ms = starter->ended_ms != 0 ? now_ms() - starter->ended_ms : 0;

    for (uint32_t i = 0; i < starter->count; i++) {
        struct connection *connection = &starter->connections[i];

        if (since_ms > FAREWELL_MS && connection->in_fd >= 0) {
            close(connection->in_fd);
            connection->in_fd = -1;
        }
        if (since_ms > LEAVE_MS && connection->pid > 0) {
            (void)kill(connection->pid, SIGKILL);
        }
    }
}

/* One round; false when all connections have ended. */
static bool attend(struct starter *starter)
{
    struct pollfd polls[WEFT_HOSTS_MAX + 1];
    bool is_busy = false;

    for (uint32_t i = 0; i < starter->count; i++) {
        polls[i] = (struct pollfd){.fd = starter->connections[i].out_fd, .events = POLLIN};
        is_busy = is_busy || starter->connections[i].pid > 0;
    }
    if (!is_busy) {
        return false;
    }
    polls[starter->count] = (struct pollfd){.fd = starter->ended_ms == 0 ? starter->lifeline_fd : -1, .events = POLLIN};
    (void)poll(polls, starter->count + 1, HOLD_MS);
    if (polls[starter->count].revents != 0) {
        starter->ended_ms = now_ms();
    }
    for (uint32_t i = 0; i < starter->count; i++) {
        struct connection *connection = &starter->connections[i];

        if (polls[i].revents != 0) {
            output_read(connection);
        }
        if (connection->pid > 0 && connection->out_fd < 0) {
            connection_end(starter, connection);
        }
        if (connection->held_since_ms != 0 && now_ms() - connection->held_since_ms >= HOLD_MS) {
            line_show(connection);
        }
    }
    farewell(starter);
    return true;
}

static void become_starter(const struct weft_hosts_args *args, int lifeline_fd, int trouble_fd)
{
    static struct starter starter;
    char self[4096] = "weft";
    ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[size > 0 ? size : 4] = 0;
    starter.path = args->settings->remote_path != NULL ? args->settings->remote_path : self;
    starter.lifeline_fd = lifeline_fd;
    starter.trouble_fd = trouble_fd;
    (void)setsid(); /* Ctrl-C is the leader's business */
    (void)signal(SIGPIPE, SIG_IGN);
    setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
    for (uint32_t i = 1; i < args->list->count; i++) {
        if (!connect_host(&starter, args, i)) {
            break; /* said; the leader names the ranks that are missing */
        }
    }
    while (attend(&starter)) {
    }
    _exit(0);
}

bool weft_hosts_start(const struct weft_hosts_args *args, struct weft_hosts *out)
{
    int lifeline[2];
    int trouble[2];
    int null;

    *out = (struct weft_hosts){.lifeline_fd = -1, .trouble_fd = -1};
    if (args->list->count < 2) {
        return true;
    }
    if (pipe2(lifeline, O_CLOEXEC) != 0 || pipe2(trouble, O_CLOEXEC) != 0 || (out->starter = fork()) < 0) {
        fprintf(stderr, "weft: --hosts: %s\n", strerror(errno));
        return false;
    }
    if (out->starter == 0) {
        close(lifeline[1]);
        close(trouble[0]);
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        (void)dup2(null, STDIN_FILENO);
        (void)dup2(STDERR_FILENO, STDOUT_FILENO); /* a reader of answers is not to wait for us */
        become_starter(args, lifeline[0], trouble[1]);
    }
    close(lifeline[0]);
    close(trouble[1]);
    out->lifeline_fd = lifeline[1];
    out->trouble_fd = trouble[0];
    return true;
}

void weft_hosts_formed(struct weft_hosts *hosts)
{
    if (hosts->starter > 0 && hosts->trouble_fd >= 0) {
        close(hosts->trouble_fd);
        hosts->trouble_fd = -1;
    }
}

void weft_hosts_end(struct weft_hosts *hosts)
{
    int64_t begin_ms = now_ms();

    if (hosts->starter <= 0) {
        return;
    }
    weft_hosts_formed(hosts);
    close(hosts->lifeline_fd);
    while (waitpid(hosts->starter, NULL, WNOHANG) == 0 && now_ms() - begin_ms < END_MS) {
        (void)usleep(5000);
    }
    hosts->starter = 0;
}
