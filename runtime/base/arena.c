/* Arena over aligned_alloc: a list of chunks, bump allocation inside the newest. */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "weft/log.h"

enum { ALIGNMENT = 64, CHUNK_SIZE = 64 * 1024 };

struct weft_arena_block {
    struct weft_arena_block *next;
    size_t used; /* bytes from the start of the block, header included */
    size_t capacity;
};

/* The header takes one alignment unit so that payloads stay aligned. */
static struct weft_arena_block *block_open(size_t payload_size)
{
    size_t capacity;

    if (!weft_size_add(payload_size, 2 * ALIGNMENT, &capacity)) {
        return NULL;
    }
    if (capacity < CHUNK_SIZE) {
        capacity = CHUNK_SIZE;
    }
    capacity = capacity / ALIGNMENT * ALIGNMENT;
    struct weft_arena_block *block = aligned_alloc(ALIGNMENT, capacity);
    if (block == NULL) {
        return NULL;
    }
    block->next = NULL;
    block->used = ALIGNMENT;
    block->capacity = capacity;
    return block;
}

void *weft_arena_alloc(struct weft_arena *arena, size_t count, size_t item_size)
{
    size_t size;

    if (!weft_size_mul(count, item_size, &size) || size > SIZE_MAX - 4 * ALIGNMENT) {
        weft_log(WEFT_LOG_ERROR, "base/arena", "allocation of %zu x %zu bytes overflows", count, item_size);
        return NULL;
    }
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct weft_arena_block *block = arena->blocks;
    if (block == NULL || block->capacity - block->used < size) {
        block = block_open(size);
        if (block == NULL) {
            weft_log(WEFT_LOG_ERROR, "base/arena", "out of memory: %zu bytes asked, %zu in use by this arena", size,
                     arena->size);
            return NULL;
        }
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *result = (char *)block + block->used;
    block->used += size;
    arena->size += size;
    return memset(result, 0, size);
}

char *weft_arena_text(struct weft_arena *arena, const char *text, size_t size)
{
    char *copy = weft_arena_alloc(arena, size + 1, 1);

    if (copy != NULL && size > 0) {
        memcpy(copy, text, size);
    }
    return copy;
}

void weft_arena_fini(struct weft_arena *arena)
{
    struct weft_arena_block *block = arena->blocks;

    while (block != NULL) {
        struct weft_arena_block *next = block->next;
        free(block);
        block = next;
    }
    *arena = (struct weft_arena){0};
}
