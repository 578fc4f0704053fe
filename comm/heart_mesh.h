/*
 * Whether the hosts reach each other. The beats of heart.h run between the leader and everybody: they see nothing of a
 * cut between two workers that both reach the leader, or of the network that only the data takes. Private to comm/.
 *
 * The first rank of every host has a TCP connection to the first rank of every other one, over the addresses that
 * `interface` allows, as the tcp backend would; whatever transport carries the data. A probe is one byte; what counts
 * is that the other kernel acknowledges it (TCP_INFO), so a process that is busy, stopped or starved is no cut. A link
 * is cut when its probe has not been acknowledged for 3/2 of silence_ms, with a transmission every 200 ms. Then this
 * rank says so in its beats to the leader, and takes it back should the acknowledgement come.
 *
 * The cost does not grow with the number of hosts: per interval HEART_PROBES links are under a probe, by turns; first
 * the one whose host the working thread waits for, if it does. So a cut that makes somebody wait is under a probe after
 * one interval however many hosts there are, and one that nobody minds after (hosts - 1) / HEART_PROBES intervals: at
 * once with 17 hosts, 0.4 s with 64, 6.4 s with 1024. A probe that is not acknowledged keeps its place. Measured in
 * comm/README.md.
 *
 * The leader believes it when it has heard, since, from both ends on their own beat connections, and one interval has
 * passed: both hosts are there, so the network between them is not. It names the end that has lost more links, of
 * equals the higher rank, and both hosts.
 *
 * No accusation ever: a link that ended (whoever died is told from by the leader's own connection), or that could not
 * be made (one warning at start). Rejected: TCP_INFO of the transport's sockets (ucx and mpi show none), a mesh between
 * all ranks (a cut is between hosts), UDP (no acknowledgement tells a stopped process from a cut), beats on every link
 * (5 ms of CPU per second and rank for 64 hosts, growing with their number), links to a few neighbours only (a cut
 * between two others would have no witness), connecting when somebody waits (a firewall would look like a cut).
 */
#ifndef WEFT_COMM_HEART_MESH_H
#define WEFT_COMM_HEART_MESH_H

#include "heart_link.h"

/* 17 hosts are watched at once; at 1024 a round takes 64 intervals. */
enum { HEART_PROBES = 16 };

struct heart_mesh;

/*
 * Collective, from the thread that owns the bootstrap; up to 1024 ranks. Sets *out to NULL where this rank has nothing
 * to watch: one host, not the first rank of its host, no connection. interface: as in comm.h, NULL for all; where
 * nothing matches (a name that only a transport knows) all. Takes a few round trips and a descriptor per host; where a
 * connection cannot be made, some seconds and a line. ERR_PEER when a rank failed meanwhile.
 */
WEFT_MUST_CHECK enum weft_status weft_heart_mesh_open(struct weft_bootstrap *bootstrap, const char *interface,
                                                      struct heart_mesh **out);

/* NULL inside is fine. */
void weft_heart_mesh_close(struct heart_mesh **mesh);

/*
 * The thread of heartbeats, once per interval: looks at the probes under way, sends new ones, and sets own->cut_*, of
 * which cut_count is HEART_PROBES + 1 at most. own->waiting_for is probed first. elapsed_ns: since the last step, in
 * our own running time; silence_ms: the group's.
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
