/* Ranks that a process starts beside itself on its host (--local-ranks): forked before anything else happens. */
#ifndef WEFT_LAUNCH_LOCAL_RANKS_H
#define WEFT_LAUNCH_LOCAL_RANKS_H

#include <stdbool.h>
#include <sys/types.h>

#include "placement.h"

enum { WEFT_LOCAL_RANKS_MAX = 64 };

/* The children of this process; none in a child. */
struct weft_local_ranks {
    pid_t pids[WEFT_LOCAL_RANKS_MAX];
    unsigned count;
};

/*
 * Forks placement->fork_count - 1 children and returns in every process, with *placement its own: the children are the
 * next ranks. They end when this process ends, have no standard input, and are out of the terminal's reach. False after
 * one line on stderr. Before threads.
 */
bool weft_local_ranks_start(struct weft_placement *placement, struct weft_local_ranks *out);

/* Waits for the children, who end with the group; after 2 s kills what is left. */
void weft_local_ranks_end(struct weft_local_ranks *ranks);

#endif
