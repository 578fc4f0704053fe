/* The page allocator: a stack of free page numbers. */
#include "engine/pages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "weft/log.h"

enum weft_status weft_pages_init(struct weft_pages *pages, uint32_t page_count)
{
    *pages = (struct weft_pages){.page_count = page_count, .free_count = page_count};
    pages->free = malloc(((size_t)page_count + 1) * sizeof(*pages->free));
    pages->is_used = calloc((size_t)page_count + 1, sizeof(*pages->is_used));
    if (pages->free == NULL || pages->is_used == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/pages", "out of memory for a list of %u pages", page_count);
        weft_pages_fini(pages);
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t i = 0; i < page_count; i++) {
        pages->free[i] = page_count - 1 - i;
    }
    return WEFT_OK;
}

void weft_pages_fini(struct weft_pages *pages)
{
    free(pages->free);
    free(pages->is_used);
    *pages = (struct weft_pages){0};
}

bool weft_pages_acquire(struct weft_pages *pages, uint32_t count, uint32_t *pages_out)
{
    if (count > pages->free_count) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = pages->free[--pages->free_count];
        assert(!pages->is_used[page]);
        pages->is_used[page] = true;
        pages_out[i] = page;
    }
    return true;
}

void weft_pages_release(struct weft_pages *pages, const uint32_t *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = list[i];
        assert(page < pages->page_count && pages->is_used[page]);
        pages->is_used[page] = false;
        pages->free[pages->free_count++] = page;
    }
}
