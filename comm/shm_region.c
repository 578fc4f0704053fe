/* The shared memory of one host: layout, memfd, hand-over. Contract in shm_region.h. */
#include "shm_region.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "weft/log.h"

#define PAGE 4096u

/* What the first member publishes; the others fill pid alone. */
struct shm_address {
    int32_t pid;
    unsigned char socket_name[16]; /* abstract */
    uint64_t size;
    uint64_t base; /* of the mapping, for threads of the same process */
};

static_assert(sizeof(struct shm_address) <= WEFT_ADDRESS_SIZE, "address blob");

static size_t align_up(size_t size, size_t alignment)
{
    return (size + alignment - 1) / alignment * alignment;
}

static bool is_first(const struct weft_channel *channel)
{
    return channel->options.members[0] == channel->options.rank;
}

static size_t flags_offset(void)
{
    return sizeof(struct shm_head);
}

static size_t mailboxes_offset(uint32_t count)
{
    return flags_offset() + count * sizeof(struct shm_flag);
}

/* Every member computes the same. */
static enum weft_status lay_out(struct shm_region *region, const struct weft_channel_options *options)
{
    uint32_t count = options->member_count;
    size_t offset = align_up(mailboxes_offset(count) + (size_t)count * count * sizeof(struct shm_mailbox), PAGE);

    region->area_offsets = calloc((size_t)count * WEFT_AREA_COUNT * 2, sizeof(region->area_offsets[0]));
    if (region->area_offsets == NULL) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "out of memory");
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t m = 0; m < count; m++) {
        const size_t sizes[WEFT_AREA_COUNT] = {options->sum_sizes[m], options->scratch_size};

        for (uint32_t k = 0; k < WEFT_AREA_COUNT * 2; k++) {
            region->area_offsets[m * WEFT_AREA_COUNT * 2 + k] = offset;
            offset += align_up(sizes[k / 2], PAGE);
        }
    }
    region->size = offset;
    return WEFT_OK;
}

static void set_base(struct shm_region *region, void *base, uint32_t member_count)
{
    region->base = base;
    region->head = base;
    region->flags = (struct shm_flag *)(region->base + flags_offset());
    region->mailboxes = (struct shm_mailbox *)(region->base + mailboxes_offset(member_count));
}

static enum weft_status map_memfd(struct shm_region *region, int memfd, uint32_t member_count)
{
    void *base = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);

    if (base == MAP_FAILED) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "map %zu bytes: %s", region->size, strerror(errno));
        return WEFT_ERR_MEMORY;
    }
    set_base(region, base, member_count);
    return WEFT_OK;
}

static socklen_t abstract_name(struct sockaddr_un *name, const unsigned char bytes[16])
{
    memset(name, 0, sizeof(*name));
    name->sun_family = AF_UNIX;
    memcpy(name->sun_path + 1, "weft-", 5); /* a leading NUL: abstract */
    for (int i = 0; i < 16; i++) {
        name->sun_path[6 + i] = (char)('a' + bytes[i] % 26);
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 6 + 16);
}

static enum weft_status open_door(struct shm_region *region, struct shm_address *address)
{
    struct sockaddr_un name;
    socklen_t name_size;
    int fd;

    if (getrandom(address->socket_name, sizeof(address->socket_name), 0) != sizeof(address->socket_name)) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "getrandom: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    name_size = abstract_name(&name, address->socket_name);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, name_size) != 0 || listen(fd, 128) != 0) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "listen on an abstract Unix socket: %s", strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return WEFT_ERR_IO;
    }
    weft_door_init(&region->door, fd);
    return WEFT_OK;
}

static enum weft_status make_memory(struct shm_region *region, const struct weft_channel *channel,
                                    struct shm_address *address)
{
    region->memfd = memfd_create("weft", MFD_CLOEXEC);
    if (region->memfd < 0 || ftruncate(region->memfd, (off_t)region->size) != 0) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "memfd of %zu bytes: %s", region->size, strerror(errno));
        return WEFT_ERR_MEMORY;
    }
    WEFT_TRY(map_memfd(region, region->memfd, channel->options.member_count));
    region->is_local = true;
    atomic_store(&region->head->attached_count, 1);
    atomic_store(&region->head->local_count, 1);
    address->size = region->size;
    address->base = (uint64_t)(uintptr_t)region->base;
    return open_door(region, address);
}

enum weft_status weft_shm_region_init(struct shm_region *region, const struct weft_channel *channel, void *address_out)
{
    struct shm_address address = {.pid = (int32_t)getpid()};

    *region = (struct shm_region){.memfd = -1};
    weft_door_init(&region->door, -1);
    WEFT_TRY(lay_out(region, &channel->options));
    if (is_first(channel)) {
        WEFT_TRY(make_memory(region, channel, &address));
    }
    memcpy(address_out, &address, sizeof(address));
    return WEFT_OK;
}

/* One byte carries the descriptor. */
static int send_descriptor(int socket_fd, int fd)
{
    char byte = 0;
    struct iovec part = {&byte, 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

/* -1 with errno; ECONNRESET when the other side closed, EMFILE when there is no room for one more here. */
static int receive_descriptor(int socket_fd)
{
    char byte;
    struct iovec part = {&byte, 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room)};
    ssize_t got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    struct cmsghdr *header;
    int fd;

    if (got <= 0) {
        errno = got == 0 ? ECONNRESET : errno;
        return -1;
    }
    header = CMSG_FIRSTHDR(&message);
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
        errno = EMFILE;
        return -1;
    }
    if (header == NULL || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof(int))) {
        errno = EPROTO;
        return -1;
    }
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return fd;
}

static void sleep_on(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    (void)poll(&poll_fd, 1, WEFT_WAIT_SLEEP_MS);
}

static const struct shm_address *address_of(const void *addresses, uint32_t rank)
{
    return (const struct shm_address *)((const char *)addresses + (size_t)rank * WEFT_ADDRESS_SIZE);
}

/* Serves processes and counts threads in, until all have the memory. */
static enum weft_status serve_members(struct shm_region *region, struct weft_channel *channel)
{
    const struct weft_channel_options *options = &channel->options;
    bool is_served[64] = {false};
    struct weft_wait wait;

    weft_wait_begin(&wait, channel, options->timeout_ms);
    while (atomic_load(&region->head->attached_count) < options->member_count) {
        uint32_t rank, missing = 1;
        int fd = weft_door_accept(&region->door, channel, &rank);

        if (fd >= 0) {
            if (send_descriptor(fd, region->memfd) != 0) {
                weft_log(WEFT_LOG_WARN, "comm/shm", "hand memory to rank %u: %s", rank, strerror(errno));
            }
            is_served[weft_channel_member_index(channel, rank)] = true;
            close(fd);
            continue;
        }
        if (region->door.fault != 0) {
            weft_log(WEFT_LOG_ERROR, "comm/shm", "accept: %s", strerror(region->door.fault));
            return WEFT_ERR_IO;
        }
        while (missing + 1 < options->member_count && is_served[missing]) {
            missing++;
        }
        WEFT_TRY(weft_wait_check(&wait, options->members[missing]));
        sleep_on(region->door.listen_fd);
    }
    return WEFT_OK;
}

/* A connection on which the first member has been greeted. */
static enum weft_status knock_at_first(struct weft_channel *channel, const struct shm_address *address, int *fd_out)
{
    uint32_t first = channel->options.members[0];
    struct sockaddr_un name;
    socklen_t name_size = abstract_name(&name, address->socket_name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int error;

    if (fd < 0) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "socket: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    if (connect(fd, (struct sockaddr *)&name, name_size) != 0 || weft_door_knock(fd, channel, first) != 0) {
        error = errno;
        close(fd);
        return weft_channel_lost(channel, first, strerror(error));
    }
    *fd_out = fd;
    return WEFT_OK;
}

static enum weft_status wait_for_descriptor(struct weft_channel *channel, int fd, int *memfd_out)
{
    uint32_t first = channel->options.members[0];
    struct weft_wait wait;

    weft_wait_begin(&wait, channel, channel->options.timeout_ms);
    while ((*memfd_out = receive_descriptor(fd)) < 0) {
        if (errno == EMFILE) {
            weft_log(WEFT_LOG_ERROR, "comm/shm", "receive the memory of rank %u: %s", first, strerror(errno));
            return WEFT_ERR_IO;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return weft_channel_lost(channel, first, strerror(errno));
        }
        WEFT_TRY(weft_wait_check(&wait, first));
        sleep_on(fd);
    }
    return WEFT_OK;
}

static enum weft_status fetch_memory(struct shm_region *region, struct weft_channel *channel,
                                     const struct shm_address *address)
{
    enum weft_status status;
    int fd = -1, memfd = -1;

    WEFT_TRY(knock_at_first(channel, address, &fd));
    status = wait_for_descriptor(channel, fd, &memfd);
    if (status == WEFT_OK) {
        status = map_memfd(region, memfd, channel->options.member_count);
        close(memfd);
    }
    close(fd);
    return status;
}

/*
 * Touches this member's own pages: they are placed on its NUMA node, and lack of memory is an error here instead of a
 * SIGBUS in a step.
 */
static enum weft_status populate(struct shm_region *region, const struct weft_channel *channel)
{
    uint32_t own = (uint32_t)weft_channel_member_index(channel, channel->options.rank);
    unsigned char *begin = weft_shm_region_area(region, own, WEFT_AREA_SUM, 0);
    unsigned char *end = own + 1 == channel->options.member_count
                             ? region->base + region->size
                             : weft_shm_region_area(region, own + 1, WEFT_AREA_SUM, 0);

    if (begin == end || madvise(begin, (size_t)(end - begin), MADV_POPULATE_WRITE) == 0) {
        return WEFT_OK;
    }
    if (errno == EINVAL) { /* before Linux 5.14 */
        memset(begin, 0, (size_t)(end - begin));
        return WEFT_OK;
    }
    weft_log(WEFT_LOG_ERROR, "comm/shm", "%zu bytes of shared memory: %s", (size_t)(end - begin), strerror(errno));
    return WEFT_ERR_MEMORY;
}

enum weft_status weft_shm_region_attach(struct shm_region *region, struct weft_channel *channel, const void *addresses)
{
    const struct shm_address *first = address_of(addresses, channel->options.members[0]);

    if (is_first(channel)) {
        enum weft_status status = populate(region, channel);

        if (status == WEFT_OK) {
            status = serve_members(region, channel);
        }
        region->is_left = status != WEFT_OK;
        return status;
    }
    if (first->size != region->size) {
        weft_log(WEFT_LOG_ERROR, "comm/shm", "rank %u shares %llu bytes, expected %zu", channel->options.members[0],
                 (unsigned long long)first->size, region->size);
        return WEFT_ERR_PEER;
    }
    if (first->pid == (int32_t)getpid()) {
        set_base(region, (void *)(uintptr_t)first->base, channel->options.member_count);
        region->is_local = true;
        atomic_fetch_add(&region->head->local_count, 1);
    } else {
        WEFT_TRY(fetch_memory(region, channel, first));
    }
    WEFT_TRY(populate(region, channel));
    atomic_fetch_add(&region->head->attached_count, 1);
    return WEFT_OK;
}

/*
 * Threads of one process share one mapping: the last one unmaps. When attaching failed in the first member, a thread
 * may still be about to use the mapping; then it stays until the process ends, rather than vanish under it.
 */
void weft_shm_region_fini(struct shm_region *region)
{
    if (region->base != NULL && !region->is_left &&
        (!region->is_local || atomic_fetch_sub(&region->head->local_count, 1) == 1)) {
        munmap(region->base, region->size);
    }
    if (region->memfd >= 0) {
        close(region->memfd);
    }
    weft_door_fini(&region->door);
    free(region->area_offsets);
    *region = (struct shm_region){.memfd = -1, .door = {.listen_fd = -1}};
}
