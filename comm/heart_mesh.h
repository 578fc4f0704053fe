/*
 * Heartbeats between the hosts themselves. Those of heart.h run between the leader and everybody: they see nothing of a
 * cut between two workers that both reach the leader, or of the network that only the data takes. Private to comm/.
 *
 * The first rank of every host has a TCP connection to the first rank of every other one, over the addresses that
 * `interface` allows, as the tcp backend would; whatever transport carries the data. Once per interval a beat goes out
 * on each, and what has come is read: the thread wakes no more often however many hosts there are (64 hosts: 126 system
 * calls per interval). A link is cut when nothing has come for 3/2 of silence_ms and the other kernel acknowledges
 * nothing either: a process that is busy, stopped or starved is the leader's to judge. Then this rank says so in its
 * beats to the leader, and takes it back should the link speak again.
 *
 * The leader believes it when it has heard, since, from both ends on their own beat connections, and one interval has
 * passed: both hosts are there, so the network between them is not. It names the end that has lost more links, of
 * equals the higher rank, and both hosts.
 *
 * No accusation ever: a link that ended (whoever died is told from by the leader's own connection), or that could not
 * be made (one warning at start). Rejected: TCP_INFO of the transport's sockets (ucx and mpi show none), a mesh between
 * all ranks (a cut is between hosts), UDP (no acknowledgement tells a stopped process from a cut).
 */
#ifndef WEFT_COMM_HEART_MESH_H
#define WEFT_COMM_HEART_MESH_H

#include "heart_link.h"

struct heart_mesh;

/*
 * Collective, from the thread that owns the bootstrap. Sets *out to NULL where this rank has nothing to watch: one
 * host, not the first rank of its host, no connection. interface: as in comm.h, NULL for all; where nothing matches (a
 * name that only a transport knows) all. Takes a few round trips; where a connection cannot be made, some seconds and a
 * line. ERR_PEER when a rank failed meanwhile.
 */
WEFT_MUST_CHECK enum weft_status weft_heart_mesh_open(struct weft_bootstrap *bootstrap, const char *interface,
                                                      struct heart_mesh **out);

/* NULL inside is fine. */
void weft_heart_mesh_close(struct heart_mesh **mesh);

/*
 * The thread of heartbeats, once per interval: reads, sends *own, and sets own->cut_*. elapsed_ns: since the last step,
 * in our own running time; silence_ms: the group's.
 */
void weft_heart_mesh_step(struct heart_mesh *mesh, int64_t elapsed_ns, uint32_t silence_ms, struct heart_beat *own);

/* Leader, what it knows of everybody. */
struct heart_view {
    const struct heart_beat *own;
    int64_t *own_cut_ns;      /* kept from call to call, zeroed before the first */
    struct heart_link *links; /* [link_count] of ranks 1, 2 ...: last, heard_ns; cut_ns as own_cut_ns */
    uint32_t link_count;
    int64_t interval_ns;
};

/* True when a cut is certain: rank, and reason with both hosts. */
bool weft_heart_mesh_is_cut(const struct heart_view *view, int64_t now, uint32_t *rank_out, char *reason_out,
                            size_t reason_size);

#endif
