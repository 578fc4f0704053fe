/*
 * Memory of the GPU, and what goes there and back.
 *
 * Every copy passes through pinned memory that is allocated at opening: the driver would otherwise wait for the GPU
 * inside cudaMemcpy, without a deadline, and copy through pinned memory of its own at half the speed.
 */
#include "cuda/graph.h"

#include <stdlib.h>
#include <string.h>

/* Bulk data: two buffers, so that the CPU fills one while the other travels. 8 MiB: some 150 us on PCIe 5, against
 * which the few microseconds around a copy do not count. */
enum { STAGING_COUNT = 2 };
static const size_t STAGING_SIZE = 8 << 20;
/* Below this, asking whether memory is pinned and waiting cost more than a copy. */
static const size_t DIRECT_SIZE = 256 << 10;

/*
 * Uploads: a ring of segments, the same layout in pinned and in device memory. A segment is written again when an event
 * recorded on leaving the *next* one has happened: an operation that uploads twice may be issued only after its first
 * segment has been left.
 */
enum { SEGMENT_COUNT = 4 };
static const size_t SEGMENT_SIZE = 256 << 10;
static const size_t UPLOAD_ALIGNMENT = 256;

/* Every layer of a step sends the same page tables: the last few uploads are remembered, and not sent again. */
static const uint32_t RECENT_COUNT = 8;

enum { DOWNLOAD_COUNT = 16 };
static const size_t DOWNLOAD_SIZE = 256 << 10;

struct staging {
    unsigned char *memory; /* pinned, owned */
    cudaEvent_t event;     /* of the last copy from or to it; owned */
    bool is_busy;
};

struct ring {
    unsigned char *host;   /* [SEGMENT_COUNT][segment_size] pinned, owned */
    unsigned char *device; /* the same in device memory, owned */
    size_t segment_size;
    cudaEvent_t left[SEGMENT_COUNT]; /* recorded when a segment was left; owned */
    bool is_left[SEGMENT_COUNT];
    uint32_t segment;     /* being filled */
    size_t used;          /* of it */
    struct ring *retired; /* a smaller one from before, owned: its memory may still be in use by the step */
};

struct upload {
    size_t offset; /* in the ring */
    size_t size;
};

struct download {
    void *to_host;
    size_t offset;
    size_t size;
};

struct weft_cuda_transfer {
    struct staging staging[STAGING_COUNT];
    uint32_t staging_next;
    cudaEvent_t direct; /* of the last copy from the caller's own pinned memory; owned */
    struct ring *ring;  /* owned */
    struct upload recent[RECENT_COUNT];
    uint32_t recent_count;    /* of the ring's current segment; entry i % RECENT_COUNT */
    unsigned char *downloads; /* pinned, owned */
    struct download pending[DOWNLOAD_COUNT];
    uint32_t pending_count;
    size_t pending_size;
};

/* ---- memory ---- */

void *weft_cuda_alloc(struct weft_device *base, size_t size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, size > 0 ? size : 1);

    if (error != cudaSuccess) {
        size_t free_size = 0;
        size_t total_size = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&free_size, &total_size);
        weft_cuda_log(WEFT_LOG_ERROR, "GPU %d: cannot allocate %zu bytes, %zu of %zu are free: %s", device->index, size,
                      free_size, total_size, cudaGetErrorString(error));
        return NULL;
    }
    if (!weft_cuda_check(device, cudaMemsetAsync(memory, 0, size, device->stream), "clearing memory")) {
        (void)cudaFree(memory);
        return NULL;
    }
    return memory;
}

void weft_cuda_free(struct weft_device *base, void *memory)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    (void)weft_cuda_wait(device, NULL); /* cudaFree() waits too, but for ever */
    if (!device->is_stuck) {
        (void)weft_cuda_check(device, cudaFree(memory), "freeing memory");
    }
}

/* ---- bulk copies ---- */

/* The next buffer, when nothing travels from or to it any more; NULL after an error. */
static struct staging *staging_take(struct weft_cuda_device *device)
{
    struct weft_cuda_transfer *transfer = device->transfer;
    struct staging *staging = &transfer->staging[transfer->staging_next];

    transfer->staging_next = (transfer->staging_next + 1) % STAGING_COUNT;
    if (staging->is_busy && weft_cuda_wait(device, staging->event) != WEFT_OK) {
        return NULL;
    }
    staging->is_busy = false;
    return device->status == WEFT_OK ? staging : NULL;
}

static bool staging_copy(struct weft_cuda_device *device, struct staging *staging, void *to, const void *from,
                         size_t size, cudaMemcpyKind kind, const char *what)
{
    staging->is_busy = weft_cuda_check(device, cudaMemcpyAsync(to, from, size, kind, device->stream), what) &&
                       weft_cuda_check(device, cudaEventRecord(staging->event, device->stream), what);
    return staging->is_busy;
}

/* Pinned by whoever allocated it: weft_device_alloc_host(). */
static bool is_pinned(const void *memory)
{
    void *seen_by_gpu = NULL;

    if (cudaHostGetDevicePointer(&seen_by_gpu, const_cast<void *>(memory), 0) == cudaSuccess) {
        return true;
    }
    (void)cudaGetLastError();
    return false;
}

/* The caller may use its memory again on return, so this waits: for the link, which is faster than the copy into a
 * buffer of ours would be. */
static enum weft_status write_direct(struct weft_cuda_device *device, void *to, const void *from_host, size_t size)
{
    struct weft_cuda_transfer *transfer = device->transfer;

    if (!weft_cuda_check(device, cudaMemcpyAsync(to, from_host, size, cudaMemcpyHostToDevice, device->stream),
                         "copying to the GPU") ||
        !weft_cuda_check(device, cudaEventRecord(transfer->direct, device->stream), "copying to the GPU")) {
        return device->status;
    }
    return weft_cuda_wait(device, transfer->direct);
}

enum weft_status weft_cuda_write(struct weft_device *base, void *to, const void *from_host, size_t size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    unsigned char *target = static_cast<unsigned char *>(to);
    const unsigned char *source = static_cast<const unsigned char *>(from_host);

    if (size >= DIRECT_SIZE && is_pinned(from_host)) {
        return write_direct(device, to, from_host, size);
    }
    for (size_t done = 0; done < size && device->status == WEFT_OK; done += STAGING_SIZE) {
        size_t part = size - done < STAGING_SIZE ? size - done : STAGING_SIZE;
        struct staging *staging = staging_take(device);
        if (staging != NULL) {
            memcpy(staging->memory, source + done, part);
            (void)staging_copy(device, staging, target + done, staging->memory, part, cudaMemcpyHostToDevice,
                               "copying to the GPU");
        }
    }
    return device->status;
}

enum weft_status weft_cuda_read(struct weft_device *base, void *to_host, const void *from, size_t size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    unsigned char *target = static_cast<unsigned char *>(to_host);
    const unsigned char *source = static_cast<const unsigned char *>(from);
    struct staging *before = NULL; /* travelling, its part begins at `before_begin` */
    size_t before_begin = 0;

    /* One turn more than there are parts: each turn sends for a part, then takes in the one sent for before. */
    for (size_t begin = 0; device->status == WEFT_OK && (begin < size || before != NULL); begin += STAGING_SIZE) {
        struct staging *staging = NULL;
        if (begin < size) {
            size_t part = size - begin < STAGING_SIZE ? size - begin : STAGING_SIZE;
            staging = staging_take(device);
            if (staging == NULL || !staging_copy(device, staging, staging->memory, source + begin, part,
                                                 cudaMemcpyDeviceToHost, "copying from the GPU")) {
                break;
            }
        }
        if (before != NULL && weft_cuda_wait(device, before->event) == WEFT_OK) {
            size_t part = size - before_begin < STAGING_SIZE ? size - before_begin : STAGING_SIZE;
            memcpy(target + before_begin, before->memory, part);
            before->is_busy = false;
        }
        before = staging;
        before_begin = begin;
    }
    return device->status;
}

/* ---- uploads ---- */

static void ring_close(struct weft_cuda_device *device, struct ring *ring)
{
    while (ring != NULL) {
        struct ring *next = ring->retired;
        if (!device->is_stuck) {
            (void)cudaFreeHost(ring->host);
            (void)cudaFree(ring->device);
            for (int i = 0; i < SEGMENT_COUNT; i++) {
                if (ring->left[i] != NULL) {
                    (void)cudaEventDestroy(ring->left[i]);
                }
            }
        }
        free(ring);
        ring = next;
    }
}

size_t weft_cuda_transfer_size(const struct weft_device *device)
{
    (void)device;
    return SEGMENT_SIZE * SEGMENT_COUNT;
}

/* A ring whose segments hold `size` bytes takes the place of the present one. */
static bool ring_grow(struct weft_cuda_device *device, size_t size)
{
    struct weft_cuda_transfer *transfer = device->transfer;
    struct ring *ring = static_cast<struct ring *>(calloc(1, sizeof(*ring)));
    const size_t host_size = size * SEGMENT_COUNT;
    void *host = NULL;
    void *memory = NULL;

    if (ring == NULL) {
        return weft_cuda_check(device, cudaErrorMemoryAllocation, "the upload ring");
    }
    bool is_open = weft_cuda_check(device, cudaMallocHost(&host, host_size), "pinned memory for uploads") &&
                   weft_cuda_check(device, cudaMalloc(&memory, host_size), "memory for uploads");
    ring->host = static_cast<unsigned char *>(host);
    ring->device = static_cast<unsigned char *>(memory);
    ring->segment_size = size;
    for (int i = 0; i < SEGMENT_COUNT && is_open; i++) {
        is_open = weft_cuda_check(device, cudaEventCreateWithFlags(&ring->left[i], cudaEventDisableTiming), "an event");
    }
    if (!is_open) {
        ring_close(device, ring);
        return false;
    }
    ring->retired = transfer->ring;
    transfer->ring = ring;
    transfer->recent_count = 0;
    return true;
}

/* Leaves the segment for the next one, which is free when the one after it was left and that event has happened. */
static bool ring_turn(struct weft_cuda_device *device)
{
    struct weft_cuda_transfer *transfer = device->transfer;
    struct ring *ring = transfer->ring;
    const uint32_t next = (ring->segment + 1) % SEGMENT_COUNT;
    const uint32_t witness = (next + 1) % SEGMENT_COUNT;

    if (!weft_cuda_check(device, cudaEventRecord(ring->left[ring->segment], device->stream), "an event")) {
        return false;
    }
    ring->is_left[ring->segment] = true;
    if (ring->is_left[witness] && weft_cuda_wait(device, ring->left[witness]) != WEFT_OK) {
        return false;
    }
    ring->segment = next;
    ring->used = 0;
    transfer->recent_count = 0;
    return true;
}

/* What the same bytes were uploaded as a moment ago; NULL: not yet. */
static const void *find_recent(const struct weft_cuda_transfer *transfer, const void *data, size_t size)
{
    const uint32_t count = transfer->recent_count < RECENT_COUNT ? transfer->recent_count : RECENT_COUNT;

    for (uint32_t i = 0; i < count; i++) {
        const struct upload *upload = &transfer->recent[i];
        if (upload->size == size && memcmp(transfer->ring->host + upload->offset, data, size) == 0) {
            return transfer->ring->device + upload->offset;
        }
    }
    return NULL;
}

/* Puts the bytes into the ring's pinned memory. False after an error. */
static bool ring_put(struct weft_cuda_device *device, const void *data, size_t size, size_t *offset_out)
{
    struct weft_cuda_transfer *transfer = device->transfer;
    size_t segment_size = transfer->ring->segment_size;

    while (segment_size < size) {
        segment_size *= 2;
    }
    if (segment_size > transfer->ring->segment_size && !ring_grow(device, segment_size)) {
        return false;
    }
    if (transfer->ring->segment_size - transfer->ring->used < size && !ring_turn(device)) {
        return false;
    }
    struct ring *ring = transfer->ring;
    *offset_out = ring->segment * ring->segment_size + ring->used;
    memcpy(ring->host + *offset_out, data, size);
    ring->used += weft_cuda_align_up(size, UPLOAD_ALIGNMENT);
    ring->used = ring->used < ring->segment_size ? ring->used : ring->segment_size;
    return true;
}

void weft_cuda_upload_to(struct weft_cuda_device *device, void *to, const void *data, size_t size)
{
    size_t offset;

    if (ring_put(device, data, size, &offset)) {
        (void)weft_cuda_check(
            device,
            cudaMemcpyAsync(to, device->transfer->ring->host + offset, size, cudaMemcpyHostToDevice, device->stream),
            "uploading");
    }
}

const void *weft_cuda_upload(struct weft_cuda_device *device, const void *data, size_t size)
{
    struct weft_cuda_transfer *transfer = device->transfer;
    const void *before;
    size_t offset;

    if (device->status != WEFT_OK) {
        return NULL;
    }
    if (device->graphs != NULL) {
        return weft_cuda_graphs_upload(device->graphs, data, size);
    }
    before = find_recent(transfer, data, size);
    if (before != NULL || size == 0) {
        return before != NULL ? before : transfer->ring->device;
    }
    if (!ring_put(device, data, size, &offset)) {
        return NULL;
    }
    struct ring *ring = transfer->ring;
    if (!weft_cuda_check(
            device,
            cudaMemcpyAsync(ring->device + offset, ring->host + offset, size, cudaMemcpyHostToDevice, device->stream),
            "uploading")) {
        return NULL;
    }
    transfer->recent[transfer->recent_count++ % RECENT_COUNT] = upload{offset, size};
    return ring->device + offset;
}

/* ---- downloads and sync ---- */

enum weft_status weft_cuda_sync(struct weft_device *base)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct weft_cuda_transfer *transfer = device->transfer;
    enum weft_status status = weft_cuda_wait(device, NULL);

    for (uint32_t i = 0; i < transfer->pending_count && status == WEFT_OK; i++) {
        const struct download *download = &transfer->pending[i];
        memcpy(download->to_host, transfer->downloads + download->offset, download->size);
    }
    transfer->pending_count = 0;
    transfer->pending_size = 0;
    return status;
}

void weft_cuda_download(struct weft_cuda_device *device, void *to_host, const void *from, size_t size)
{
    struct weft_cuda_transfer *transfer = device->transfer;

    if (size > DOWNLOAD_SIZE) {
        (void)weft_cuda_read(&device->base, to_host, from, size); /* its error is the device's */
        return;
    }
    if (transfer->pending_count == DOWNLOAD_COUNT || transfer->pending_size + size > DOWNLOAD_SIZE) {
        (void)weft_cuda_sync(&device->base);
    }
    unsigned char *pinned = transfer->downloads + transfer->pending_size;
    if (weft_cuda_check(device, cudaMemcpyAsync(pinned, from, size, cudaMemcpyDeviceToHost, device->stream),
                        "downloading")) {
        transfer->pending[transfer->pending_count++] = download{to_host, transfer->pending_size, size};
        transfer->pending_size += size;
    }
}

/* ---- opening ---- */

enum weft_status weft_cuda_transfer_open(struct weft_cuda_device *device)
{
    struct weft_cuda_transfer *transfer = static_cast<struct weft_cuda_transfer *>(calloc(1, sizeof(*transfer)));
    void *memory = NULL;

    if (transfer == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "transfer buffers");
        return device->status;
    }
    device->transfer = transfer;
    for (int i = 0; i < STAGING_COUNT; i++) {
        if (!weft_cuda_check(device, cudaMallocHost(&memory, STAGING_SIZE), "pinned memory for copies")) {
            return device->status;
        }
        transfer->staging[i].memory = static_cast<unsigned char *>(memory);
        if (!weft_cuda_check(device, cudaEventCreateWithFlags(&transfer->staging[i].event, cudaEventDisableTiming),
                             "an event")) {
            return device->status;
        }
    }
    if (!weft_cuda_check(device, cudaEventCreateWithFlags(&transfer->direct, cudaEventDisableTiming), "an event")) {
        return device->status;
    }
    if (!weft_cuda_check(device, cudaMallocHost(&memory, DOWNLOAD_SIZE), "pinned memory for downloads")) {
        return device->status;
    }
    transfer->downloads = static_cast<unsigned char *>(memory);
    (void)ring_grow(device, SEGMENT_SIZE);
    return device->status;
}

void weft_cuda_transfer_close(struct weft_cuda_device *device)
{
    struct weft_cuda_transfer *transfer = device->transfer;

    if (transfer == NULL) {
        return;
    }
    ring_close(device, transfer->ring);
    for (int i = 0; i < STAGING_COUNT && !device->is_stuck; i++) {
        (void)cudaFreeHost(transfer->staging[i].memory);
        if (transfer->staging[i].event != NULL) {
            (void)cudaEventDestroy(transfer->staging[i].event);
        }
    }
    if (!device->is_stuck) {
        if (transfer->direct != NULL) {
            (void)cudaEventDestroy(transfer->direct);
        }
        (void)cudaFreeHost(transfer->downloads);
    }
    free(transfer);
    device->transfer = NULL;
}
