/*
 * Shared memory inside a host: one-shot exchange in place. A member publishes by storing the number of the exchange in
 * its flag after its bytes; the others wait for the flag and read the bytes where they lie.
 *
 * Why two buffers per area suffice without a second barrier: a member writes a buffer of exchange n again at the
 * earliest for exchange n+2, after it saw every other flag reach n+1, and nobody publishes n+1 before it has finished
 * reading n.
 */
#include "backend.h"

#include <assert.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shm_region.h"
#include "weft/log.h"

struct shm_progress {
    size_t sent_size;
    size_t received_size;
};

struct shm_channel {
    struct weft_channel base;
    struct shm_region region;
    uint32_t own; /* position in members[] */
    uint32_t sequence;
    uint32_t parity[WEFT_AREA_COUNT];
    struct shm_progress *progress; /* [transfer_count_max] of the transfer() under way */
};

static bool shm_is_usable(const struct weft_channel_options *options, bool is_forced, char *reason_out,
                          size_t reason_size)
{
    int fd = memfd_create("weft-probe", MFD_CLOEXEC);

    (void)options;
    (void)is_forced;
    if (fd < 0) {
        snprintf(reason_out, reason_size, "no memfd");
        return false;
    }
    close(fd);
    return true;
}

static void shm_close(struct weft_channel **channel)
{
    struct shm_channel *shm = (struct shm_channel *)*channel;

    if (shm != NULL) {
        weft_shm_region_fini(&shm->region);
        free(shm->progress);
        free(shm);
    }
    *channel = NULL;
}

static enum weft_status shm_prepare(const struct weft_channel_options *options, void *address_out,
                                    struct weft_channel **out)
{
    struct shm_channel *shm = calloc(1, sizeof(*shm));
    struct weft_channel *channel = (struct weft_channel *)shm;
    enum weft_status status;

    if (shm == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    weft_channel_init(channel, &weft_backend_shm, options);
    shm->own = (uint32_t)weft_channel_member_index(channel, options->rank);
    status = weft_shm_region_init(&shm->region, channel, address_out);
    shm->progress = calloc(options->transfer_count_max, sizeof(shm->progress[0]));
    if (status == WEFT_OK && shm->progress == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "out of memory");
        status = WEFT_ERR_MEMORY;
    }
    if (status != WEFT_OK) {
        shm_close(&channel);
        return status;
    }
    *out = channel;
    return WEFT_OK;
}

static enum weft_status shm_connect(struct weft_channel *channel, const void *addresses)
{
    struct shm_channel *shm = (struct shm_channel *)channel;

    return weft_shm_region_attach(&shm->region, channel, addresses);
}

static _Atomic uint32_t *shm_note(struct weft_channel *channel, uint32_t member)
{
    return &((struct shm_channel *)channel)->region.flags[member].note;
}

/* ---- exchange ---- */

static void futex_sleep(_Atomic uint32_t *word, uint32_t seen)
{
    const struct timespec limit = {.tv_nsec = WEFT_WAIT_SLEEP_MS * 1000000};

    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static bool is_reached(const struct shm_flag *flag, uint32_t sequence)
{
    return (int32_t)(atomic_load_explicit(&flag->sequence, memory_order_acquire) - sequence) >= 0;
}

/* Announces the sleep, then looks once more: either the publisher sees the sleeper, or the sleeper the sequence. */
static void sleep_until(struct shm_flag *flag, uint32_t sequence)
{
    uint32_t seen;

    atomic_fetch_add(&flag->sleeper_count, 1);
    seen = atomic_load(&flag->sequence);
    if ((int32_t)(seen - sequence) < 0) {
        futex_sleep(&flag->sequence, seen);
    }
    atomic_fetch_sub(&flag->sleeper_count, 1);
}

static enum weft_status wait_for_member(struct shm_channel *shm, uint32_t member, uint32_t timeout_ms)
{
    struct shm_flag *flag = &shm->region.flags[member];
    struct weft_wait wait;

    if (is_reached(flag, shm->sequence)) {
        return WEFT_OK;
    }
    weft_wait_begin(&wait, &shm->base, timeout_ms);
    while (!is_reached(flag, shm->sequence)) {
        if (!weft_wait_spin(&wait)) {
            WEFT_TRY(weft_wait_check(&wait, shm->base.options.members[member]));
            sleep_until(flag, shm->sequence);
        }
    }
    return WEFT_OK;
}

static void *shm_buffer(struct weft_channel *channel, enum weft_area area)
{
    struct shm_channel *shm = (struct shm_channel *)channel;

    return weft_shm_region_area(&shm->region, shm->own, area, shm->parity[area]);
}

static void publish(struct shm_channel *shm, size_t size)
{
    struct shm_flag *flag = &shm->region.flags[shm->own];

    shm->sequence++;
    flag->sizes[shm->sequence % 2] = size;
    atomic_store(&flag->sequence, shm->sequence);
    if (atomic_load(&flag->sleeper_count) != 0) {
        futex_wake_all(&flag->sequence);
    }
}

static enum weft_status shm_exchange(struct weft_channel *channel, const struct weft_exchange *exchange)
{
    struct shm_channel *shm = (struct shm_channel *)channel;
    enum weft_area area = exchange->area;
    uint32_t parity = shm->parity[area];
    void *own = shm_buffer(channel, area);

    if (exchange->in != own && exchange->sizes[shm->own] > 0) {
        memcpy(own, exchange->in, exchange->sizes[shm->own]);
    }
    publish(shm, exchange->sizes[shm->own]);
    for (uint32_t m = 0; m < channel->options.member_count; m++) {
        size_t found;

        WEFT_TRY(wait_for_member(shm, m, exchange->timeout_ms));
        found = shm->region.flags[m].sizes[shm->sequence % 2];
        if (found != exchange->sizes[m]) {
            return weft_channel_mismatch(channel, channel->options.members[m], exchange->sizes[m], found);
        }
        exchange->views_out[m] = weft_shm_region_area(&shm->region, m, area, parity);
    }
    shm->parity[area] ^= 1;
    return WEFT_OK;
}

/* ---- transfer: mailboxes ---- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Fills free slots. True when something moved. */
static bool push_slots(struct shm_channel *shm, uint32_t member, const struct weft_transfer *transfer,
                       size_t *sent_size)
{
    struct shm_mailbox *box = &shm->region.mailboxes[shm->own * shm->base.options.member_count + member];
    uint32_t sent_count = atomic_load_explicit(&box->sent_count, memory_order_relaxed);
    bool has_moved = false;

    while (*sent_size < transfer->send_size &&
           sent_count - atomic_load_explicit(&box->received_count, memory_order_acquire) < SHM_SLOT_COUNT) {
        size_t part = smaller(transfer->send_size - *sent_size, SHM_SLOT_SIZE);

        memcpy(box->slots[sent_count % SHM_SLOT_COUNT], (const char *)transfer->send + *sent_size, part);
        box->message_sizes[sent_count % SHM_SLOT_COUNT] = transfer->send_size;
        *sent_size += part;
        atomic_store(&box->sent_count, ++sent_count);
        futex_wake_all(&box->sent_count);
        has_moved = true;
    }
    return has_moved;
}

/* Empties filled slots; ERR_PEER when they belong to a message of another size. */
static enum weft_status pull_slots(struct shm_channel *shm, uint32_t member, const struct weft_transfer *transfer,
                                   size_t *received_size, bool *has_moved)
{
    struct shm_mailbox *box = &shm->region.mailboxes[member * shm->base.options.member_count + shm->own];
    uint32_t received_count = atomic_load_explicit(&box->received_count, memory_order_relaxed);

    while (*received_size < transfer->recv_size &&
           atomic_load_explicit(&box->sent_count, memory_order_acquire) != received_count) {
        size_t part = smaller(transfer->recv_size - *received_size, SHM_SLOT_SIZE);
        uint64_t found = box->message_sizes[received_count % SHM_SLOT_COUNT];

        if (found != transfer->recv_size) {
            return weft_channel_mismatch(&shm->base, transfer->peer, transfer->recv_size, found);
        }
        memcpy((char *)transfer->recv + *received_size, box->slots[received_count % SHM_SLOT_COUNT], part);
        *received_size += part;
        atomic_store(&box->received_count, ++received_count);
        futex_wake_all(&box->received_count);
        *has_moved = true;
    }
    return WEFT_OK;
}

/* One look at every entry, each direction of a pair in order. *missing_out: first entry not done, or count. */
static enum weft_status move_entries(struct shm_channel *shm, const struct weft_transfer *transfers, size_t count,
                                     bool *has_moved_out, size_t *missing_out)
{
    uint64_t is_send_blocked = 0, is_recv_blocked = 0; /* bit per member: an earlier entry is not done */

    *has_moved_out = false;
    *missing_out = count;
    for (size_t i = 0; i < count; i++) {
        struct shm_progress *progress = &shm->progress[i];
        uint32_t member = (uint32_t)weft_channel_member_index(&shm->base, transfers[i].peer);
        uint64_t bit = (uint64_t)1 << member;

        if ((is_send_blocked & bit) == 0 && push_slots(shm, member, &transfers[i], &progress->sent_size)) {
            *has_moved_out = true;
        }
        if ((is_recv_blocked & bit) == 0) {
            WEFT_TRY(pull_slots(shm, member, &transfers[i], &progress->received_size, has_moved_out));
        }
        is_send_blocked |= progress->sent_size < transfers[i].send_size ? bit : 0;
        is_recv_blocked |= progress->received_size < transfers[i].recv_size ? bit : 0;
        if (*missing_out == count && ((is_send_blocked | is_recv_blocked) & bit) != 0) {
            *missing_out = i;
        }
    }
    return WEFT_OK;
}

/* Sleeps on the counter that the first unfinished entry needs to move; other entries wait a millisecond at most. */
static void sleep_on_entry(struct shm_channel *shm, const struct weft_transfer *transfer,
                           const struct shm_progress *progress)
{
    uint32_t count = shm->base.options.member_count;
    uint32_t member = (uint32_t)weft_channel_member_index(&shm->base, transfer->peer);
    struct shm_mailbox *in = &shm->region.mailboxes[member * count + shm->own];
    struct shm_mailbox *out = &shm->region.mailboxes[shm->own * count + member];

    if (progress->received_size < transfer->recv_size) {
        futex_sleep(&in->sent_count, atomic_load(&in->received_count));
    } else {
        futex_sleep(&out->received_count, atomic_load(&out->sent_count) - SHM_SLOT_COUNT);
    }
}

static enum weft_status shm_transfer(struct weft_channel *channel, const struct weft_transfer *transfers, size_t count,
                                     uint32_t timeout_ms)
{
    struct shm_channel *shm = (struct shm_channel *)channel;
    struct weft_wait wait;
    size_t missing;
    bool has_moved;

    assert(count <= channel->options.transfer_count_max);
    memset(shm->progress, 0, count * sizeof(shm->progress[0]));
    weft_wait_begin(&wait, channel, timeout_ms);
    for (;;) {
        WEFT_TRY(move_entries(shm, transfers, count, &has_moved, &missing));
        if (missing == count) {
            return WEFT_OK;
        }
        if (has_moved) {
            weft_wait_progress(&wait);
        } else if (!weft_wait_spin(&wait)) {
            WEFT_TRY(weft_wait_check(&wait, transfers[missing].peer));
            sleep_on_entry(shm, &transfers[missing], &shm->progress[missing]);
        }
    }
}

const struct weft_backend weft_backend_shm = {
    .name = "shm",
    .is_usable = shm_is_usable,
    .prepare = shm_prepare,
    .connect = shm_connect,
    .transfer = shm_transfer,
    .buffer = shm_buffer,
    .exchange = shm_exchange,
    .note = shm_note,
    .close = shm_close,
};
