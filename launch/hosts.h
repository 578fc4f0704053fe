/*
 * --hosts a,b:2,c: starts the ranks over ssh, without MPI. This process is rank 0 on the first host. A process beside
 * it (the starter) runs one ssh per other host, hands over what to do on its standard input, puts the host's name
 * before every line that comes back, and tells the leader at once when a host cannot be reached. On the other side
 * `weft join` (join.c) reads what to do and becomes the ranks of its host.
 *
 * Nothing secret stands on a command line: options, variables and the secret travel through ssh's standard input, which
 * stays open as a lifeline. When it closes, because the leader or its host is gone, the ranks over there end.
 */
#ifndef WEFT_LAUNCH_HOSTS_H
#define WEFT_LAUNCH_HOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "settings.h"

enum {
    WEFT_HOSTS_MAX = 64,
    WEFT_HOST_NAME_SIZE = 128,
    WEFT_HOSTS_ERROR_SIZE = 256,
    WEFT_HOSTS_TEXT_SIZE = 10240,
    WEFT_JOIN_SIZE = 60000, /* of what a host is told: what a pipe takes without a reader */
};

struct weft_host_list {
    uint32_t count;
    uint32_t rank_count;
    char names[WEFT_HOSTS_MAX][WEFT_HOST_NAME_SIZE]; /* as ssh takes them: with user@ */
    uint32_t slots[WEFT_HOSTS_MAX];                  /* ranks on this host */
};

/* "a,user@b:2,[fd00::1]:4". False with one line in error[WEFT_HOSTS_ERROR_SIZE]. */
bool weft_host_list_parse(const char *text, struct weft_host_list *out, char *error);
/* A hostfile of mpirun's ("HOST slots=N" a line, # comments, HOST:N too) as such a text. False likewise. */
bool weft_hostfile_read(const char *path, char *text, size_t size, char *error);
/* The host of `rank`; the list has that many. */
const char *weft_host_list_of(const struct weft_host_list *list, uint32_t rank);

/* What every host is told; borrowed until start returns. */
struct weft_hosts_args {
    const struct weft_host_list *list;
    const struct weft_settings *settings;
    const char *leader_host; /* "": the address from which ssh comes */
    uint32_t leader_port;
    const char *secret;
};

/* The starter, seen from the leader. */
struct weft_hosts {
    pid_t starter;   /* 0: none */
    int lifeline_fd; /* the starter ends when it closes */
    int trouble_fd;  /* for weft_engine_options.launcher_fd */
};

/* Starts the ranks on all hosts but the first. False after one line on stderr. Before threads. */
bool weft_hosts_start(const struct weft_hosts_args *args, struct weft_hosts *out);
/* The group stands: from now on trouble is the group's to notice. */
void weft_hosts_formed(struct weft_hosts *hosts);
/* The group has ended: lets the others say their last lines, a few seconds at most. */
void weft_hosts_end(struct weft_hosts *hosts);

/*
 * What a host is told, into out[WEFT_JOIN_SIZE]; 0: too large. `index` > 0 is its place in the list. Texts, each with
 * its NUL: "weft-join", version, then "D" folder, "V" NAME=VALUE, "A" argument, and an empty one at the end.
 */
size_t weft_hosts_invitation(const struct weft_hosts_args *args, uint32_t index, char *out);

/* The other side: becomes the ranks of this host. Returns the exit code. `run` is main's way to run a command. */
int weft_join(int (*run)(const char *command, int argument_count, char **arguments));

#endif
