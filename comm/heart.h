/*
 * Heartbeats: who is stopped, cut off or gone, found out by a thread that does nothing else, over the beat channel of
 * the star. Neither a long step, nor a slow disk, nor a main thread stuck inside MPI can delay it. Private to comm/.
 *
 * Every interval the leader and each worker send each other a beat. A neighbour that was silent for too long is looked
 * at more closely before it is accused:
 *
 *   same host, its process is stopped (/proc)             given up after silence_ms
 *   same host, it only does not get to run                given up after 5 times as long: a loaded machine is no death
 *   other host, whose kernel still acknowledges           given up after silence_ms: stopped
 *   other host, which acknowledges nothing either         given up after 5/3 times as long: host or network is gone
 *   the connection has ended without a farewell           at once
 *   two hosts that answer the leader, but not each other  see heart_mesh.h
 *
 * Silence is counted in our own running time: of a gap between two looks at the clock at most two intervals count, so a
 * rank that was itself stopped or descheduled accuses nobody before it has listened again. Only beats are signs of
 * life: what the main thread reads on other connections may have lain there for long (behind a slow read from a disk),
 * and came from a process that has been stopped since.
 *
 * The first verdict stands, whether found here, told by a neighbour, or by our own main thread. The leader passes it on
 * to all. The main thread learns of it by verdict_fd (in the star's epoll) and logs it; this thread never logs while it
 * has something to do, because standard error may be what hangs. Rejected: UDP (a second address to pass through every
 * firewall and rendezvous), beats on the control channel (only the thread that owns the bootstrap may read it, and that
 * one computes).
 */
#ifndef WEFT_COMM_HEART_H
#define WEFT_COMM_HEART_H

#include <stdbool.h>
#include <stdint.h>

#include "bootstrap_star.h"

#define HEART_LOG "comm/heart"

struct weft_heart;

struct heart_verdict {
    uint32_t rank;
    int source;     /* the rank that told us, -1: found out here */
    bool is_closed; /* only that its connection ended: whoever started the process may know more */
    char host[STAR_HOST_SIZE];
    char reason[STAR_REASON_SIZE];
};

/* Takes the beat sockets of all peers over, puts verdict_fd into the epoll instance and starts the thread. */
WEFT_MUST_CHECK enum weft_status weft_heart_open(struct weft_bootstrap *bootstrap,
                                                 const struct weft_heartbeat_options *options, struct weft_heart **out);

struct heart_mesh;

/* Beats between hosts from now on, too. Takes *mesh over. Once. */
void weft_heart_watch(struct weft_heart *heart, struct heart_mesh *mesh);

/*
 * Says farewell and ends the thread; NULL inside is fine. After a verdict, with exit_ms set, the thread stays behind to
 * end the process should it still be there when the time has come.
 */
void weft_heart_close(struct weft_heart **heart);

/* A verdict of the main thread's: passed on at once. Nothing happens when there is one already. */
void weft_heart_tell(struct weft_heart *heart, uint32_t rank, const char *host, const char *reason);

/* Any thread. False while there is none. */
bool weft_heart_verdict(struct weft_heart *heart, struct heart_verdict *out);

/* True once: who asks first logs the verdict and then calls said(). Who asks later waits for that, 1 s at most. */
bool weft_heart_claim(struct weft_heart *heart);
void weft_heart_said(struct weft_heart *heart);

/* Name of the host of `rank` into out[STAR_HOST_SIZE], "" while unknown. */
void weft_heart_host(struct weft_heart *heart, uint32_t rank, char *out);

/* Milliseconds since `rank` last showed that it works; 0 when unknown. See weft_bootstrap_quiet_ms(). */
uint32_t weft_heart_quiet_ms(struct weft_heart *heart, uint32_t rank);

#endif
