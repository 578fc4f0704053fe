/*
 * SIGINT, SIGTERM and SIGHUP: the one place of weft with process-wide state. What a signal does depends on who gets it:
 *
 *   leader while loading    leaves 100 ms later, the other ranks notice and follow; second: leaves at once
 *   leader while running    first: weft_signals_fd() becomes readable and the command stops cleanly, or is made to
 *                           leave after limit_ms; second: leaves at once
 *   any other rank          the leader decides: leaves when the group ends (the leader got the same signal, and may be
 *                           draining), or 2 s after the leader would have had to; started alone and still loading:
 *                           700 ms
 */
#ifndef WEFT_LAUNCH_SIGNALS_H
#define WEFT_LAUNCH_SIGNALS_H

#include <stdbool.h>
#include <stdint.h>

/* Before the engine opens (ranks forked by it inherit the handlers). is_worker: will not lead, as far as is known.
 * False when the system refuses (said). */
bool weft_signals_open(uint32_t limit_ms, bool is_worker);
/* Loading is over: this process is the leader, or it works. */
void weft_signals_running(bool is_leader);

/*
 * A signal has come and this process (the leader) has begun to stop: it leaves by itself after limit_ms with exit_code,
 * should closing take longer. A step in the middle of a long prompt cannot be cut short, and nothing is lost with it.
 */
void weft_signals_stopping(uint32_t limit_ms, int exit_code);

/* All has been told and a step that takes long is all that is left: leaves now, if a signal has come. */
void weft_signals_leave(void);

/* An error has been reported: mpirun's SIGTERM, which follows, needs no line of its own. */
void weft_signals_failing(void);

/* Readable once a signal has come. */
int weft_signals_fd(void);
/* The first signal that came, 0 while none has. */
int weft_signals_caught(void);

#endif
