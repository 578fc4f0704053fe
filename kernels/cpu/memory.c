/*
 * Device memory of the CPU backend: mapped pages with transparent huge pages when large, the heap when small. Every
 * block has a 64-byte header that says how to give it back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/device_cpu.h"
#include "weft/log.h"

enum {
    ALIGNMENT = 64,
    HUGE_PAGE_SIZE = 2 * 1024 * 1024,  /* x86-64 */
    MAP_SIZE_MIN = 4 * HUGE_PAGE_SIZE, /* below, rounding up to huge pages wastes too much */
};

struct header {
    void *mapping; /* start of the mapping, NULL for a heap block */
    size_t mapping_size;
};

_Static_assert(sizeof(struct header) <= ALIGNMENT, "the header fits into the space before an aligned block");

/* The mapping is one huge page longer than needed, so that a block of whole huge pages lies inside. */
static void *map_block(size_t size)
{
    size_t mapping_size = size + 2 * (size_t)HUGE_PAGE_SIZE;
    void *mapping = mmap(NULL, mapping_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct header *header;
    uintptr_t start;

    if (mapping == MAP_FAILED) {
        return NULL;
    }
    /* Only advice: without huge pages everything works, a little slower. */
    (void)madvise(mapping, mapping_size, MADV_HUGEPAGE);
    start = ((uintptr_t)mapping + HUGE_PAGE_SIZE - 1) & ~((uintptr_t)HUGE_PAGE_SIZE - 1);
    header = (struct header *)start;
    *header = (struct header){.mapping = mapping, .mapping_size = mapping_size};
    return (char *)start + ALIGNMENT;
}

static void *heap_block(size_t size)
{
    void *memory = NULL;

    if (posix_memalign(&memory, ALIGNMENT, size + ALIGNMENT) != 0) {
        return NULL;
    }
    memset(memory, 0, size + ALIGNMENT);
    return (char *)memory + ALIGNMENT;
}

void *weft_cpu_alloc(struct weft_device *device, size_t size)
{
    void *memory = NULL;

    (void)device;
    if (size < SIZE_MAX - 4 * (size_t)HUGE_PAGE_SIZE) {
        memory = size >= MAP_SIZE_MIN ? map_block(size) : heap_block(size);
    }
    if (memory == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory: a block of %zu bytes", size);
    }
    return memory;
}

void weft_cpu_free(struct weft_device *device, void *memory)
{
    struct header *header = (struct header *)((char *)memory - ALIGNMENT);

    (void)device;
    if (header->mapping != NULL) {
        (void)munmap(header->mapping, header->mapping_size);
    } else {
        free(header);
    }
}
