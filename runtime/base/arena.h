/*
 * Arena: many allocations, one lifetime (model, session or step), one release.
 *
 * Blocks are zeroed and 64-byte aligned. Not thread safe. A step allocates nothing: arenas are filled while opening.
 */
#ifndef WEFT_BASE_ARENA_H
#define WEFT_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "weft/status.h"

struct weft_arena_block;

/* Zero-initialise ({0}) before first use; weft_arena_fini() returns it to that state. */
struct weft_arena {
    struct weft_arena_block *blocks;
    size_t size; /* bytes handed out */
};

/* count * item_size zeroed bytes, 64-byte aligned, or NULL when out of memory or on overflow (logged). count 0 gives a
 * valid pointer. */
void *weft_arena_alloc(struct weft_arena *arena, size_t count, size_t item_size);

/* Copy of text[size] plus a terminating NUL. */
char *weft_arena_text(struct weft_arena *arena, const char *text, size_t size);

void weft_arena_fini(struct weft_arena *arena);

/* *out <- a * b; false on overflow. For sizes that come from files. */
static inline bool weft_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* *out <- a + b; false on overflow. */
static inline bool weft_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

#endif
