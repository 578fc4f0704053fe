/*
 * A persistent pool of threads that share out the items of one operation. The caller is one of the workers. Which
 * worker does which item never shows in a result: items write disjoint outputs.
 */
#ifndef WEFT_CPU_POOL_H
#define WEFT_CPU_POOL_H

#include <stdint.h>

#include "weft/status.h"
#include "weft/wait.h"

struct weft_pool;

/* Does items [begin, end) as worker number `worker` (0 is the caller's thread). */
typedef void weft_pool_task(void *context, uint32_t worker, uint32_t begin, uint32_t end);

enum weft_pool_deal {
    WEFT_POOL_STATIC,  /* one contiguous range per worker: the same memory for the same worker every time */
    WEFT_POOL_DYNAMIC, /* one item at a time to whoever is free: for items of unequal cost */
};

/* thread_count >= 1, the calling thread included; cores [thread_count] or NULL. Logs what fails. */
WEFT_MUST_CHECK enum weft_status weft_pool_open(uint32_t thread_count, const uint32_t *cores,
                                                enum weft_wait_policy wait, struct weft_pool **out);
void weft_pool_close(struct weft_pool **pool);

/* Returns when every item is done. From one thread at a time; a task must not call it. */
void weft_pool_run(struct weft_pool *pool, enum weft_pool_deal deal, uint32_t item_count, weft_pool_task *task,
                   void *context);

#endif
