/*
 * The memory that the ranks of one host share: one memfd, made by the first member and handed to the others over an
 * abstract Unix socket (SCM_RIGHTS). No name anywhere in a file system, so nothing is left after kill -9. Members that
 * are threads of the first member's process use its mapping, so a thread sanitizer sees the real accesses.
 *
 * Layout, each part on its own 128-byte lines (pairs of 64: adjacent-line prefetch), areas on their own pages:
 * head, a flag per member, a mailbox per ordered pair, and per member two buffers for each area.
 */
#ifndef WEFT_COMM_SHM_REGION_H
#define WEFT_COMM_SHM_REGION_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "door.h"

#define SHM_LINE 128
/* Point to point is for set-up: a small ring is enough. */
#define SHM_SLOT_SIZE  16384u
#define SHM_SLOT_COUNT 2u

/* What the members of the first member's process have in common. */
struct shm_head {
    _Alignas(SHM_LINE) _Atomic uint32_t attached_count; /* members that have the region, the first included */
    _Atomic uint32_t local_count;                       /* of these, users of the first member's mapping */
};

/* Written by its member only, except `sleeper_count`. */
struct shm_flag {
    _Alignas(SHM_LINE) _Atomic uint32_t sequence;      /* of the last exchange published; wraps */
    uint64_t sizes[2];                                 /* bytes published, by parity of the sequence */
    _Alignas(SHM_LINE) _Atomic uint32_t sleeper_count; /* peers in futex wait on `sequence` */
    _Alignas(SHM_LINE) _Atomic uint32_t note;          /* weft_backend.note() */
};

/* A ring of slots from one member to another. */
struct shm_mailbox {
    _Alignas(SHM_LINE) _Atomic uint32_t sent_count;     /* slots filled by the sender; wraps */
    _Alignas(SHM_LINE) _Atomic uint32_t received_count; /* slots emptied by the receiver; wraps */
    _Alignas(SHM_LINE) uint64_t message_sizes[SHM_SLOT_COUNT];
    _Alignas(SHM_LINE) unsigned char slots[SHM_SLOT_COUNT][SHM_SLOT_SIZE];
};

struct shm_region {
    unsigned char *base; /* mapped or borrowed from the first member's mapping */
    size_t size;
    struct shm_head *head;
    struct shm_flag *flags;        /* [member_count] */
    struct shm_mailbox *mailboxes; /* [member_count][member_count]: from, to */
    size_t *area_offsets;          /* [member_count][WEFT_AREA_COUNT][2] from base; owned */
    int memfd;                     /* first member, until all are attached; else -1 */
    bool is_local;                 /* counted in head->local_count */
    bool is_left;                  /* give the mapping to the process: see weft_shm_region_fini() */
    struct weft_door door;         /* first member */
};

/* First member: makes the memory. Others: nothing but arithmetic. Fills the address blob. Logs. */
enum weft_status weft_shm_region_init(struct shm_region *region, const struct weft_channel *channel, void *address_out);

/* First member: serves the others. Others: fetch the memory. Ends when this rank is done. Logs. */
enum weft_status weft_shm_region_attach(struct shm_region *region, struct weft_channel *channel, const void *addresses);

void weft_shm_region_fini(struct shm_region *region);

static inline unsigned char *weft_shm_region_area(const struct shm_region *region, uint32_t member, enum weft_area area,
                                                  uint32_t parity)
{
    return region->base + region->area_offsets[(member * WEFT_AREA_COUNT + area) * 2 + parity];
}

#endif
