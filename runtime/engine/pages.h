/*
 * Which KV pages are free. A page holds WEFT_PAGE_POSITIONS positions of one sequence, all layers, on every rank at
 * once: the leader deals pages, workers only see their numbers.
 *
 * A stack: what was released last is dealt next, while it is still warm.
 */
#ifndef WEFT_ENGINE_PAGES_H
#define WEFT_ENGINE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/device.h"
#include "weft/status.h"

struct weft_pages {
    uint32_t *free; /* [free_count] stack, owned */
    uint32_t free_count;
    uint32_t page_count;
    bool *is_used; /* [page_count] catches a double release, owned */
};

/* Pages for position_count positions. */
static inline uint32_t weft_pages_for(uint32_t position_count)
{
    return position_count / WEFT_PAGE_POSITIONS + (position_count % WEFT_PAGE_POSITIONS != 0);
}

/* All page_count pages free. ERR_MEMORY. */
WEFT_MUST_CHECK enum weft_status weft_pages_init(struct weft_pages *pages, uint32_t page_count);
void weft_pages_fini(struct weft_pages *pages);

/* `count` pages into pages_out[count], or none and false. */
bool weft_pages_acquire(struct weft_pages *pages, uint32_t count, uint32_t *pages_out);

/* Gives back list[count]; each must be in use. */
void weft_pages_release(struct weft_pages *pages, const uint32_t *list, uint32_t count);

#endif
