/*
 * Memory that other ranks of the host reach: CUDA's handles between processes, the pointer itself inside one, where
 * CUDA refuses to open its own handles.
 *
 * The list of what this process shares is the one thing here that belongs to the process: a handle may come after its
 * owner, another rank of this process, has gone. Memory lives until owner and visitors of this process are done with
 * it.
 */
#include "cuda/device_cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

namespace
{

/* What the bytes of a handle are. */
struct handle {
    uint64_t serial; /* of the shared memory, in its process */
    uint64_t pid_space;
    int32_t pid;
    uint32_t has_ipc; /* else for this process only */
    unsigned char gpu[WEFT_DEVICE_ID_SIZE];
    cudaIpcMemHandle_t ipc;
};
static_assert(sizeof(handle) <= WEFT_PEER_HANDLE_SIZE, "must fit");

struct shared {
    struct shared *next;
    uint64_t serial;
    void *memory;
    int index;           /* of its GPU */
    uint32_t user_count; /* owner and visitors */
    bool is_lost;        /* a GPU that does not answer may still use it: never freed */
};

} // namespace

/* What device->peers lists: memory of others that this device has open. */
struct weft_cuda_peer {
    struct weft_cuda_peer *next;
    void *memory;
    bool is_foreign;
};

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static struct shared *shared_list;
static uint64_t shared_serial;

/* ---- who is who ---- */

/* Process ids are the same in two containers of one host, the pair is not. */
static uint64_t pid_space(void)
{
    struct stat status;

    return stat("/proc/self/ns/pid", &status) == 0 ? static_cast<uint64_t>(status.st_ino) : 0;
}

static bool is_own_process(const handle *given)
{
    return given->pid == getpid() && given->pid_space == pid_space();
}

/* This process's index of a GPU, -1 where it is none of those that it may use. */
static int find_gpu(const unsigned char id[WEFT_DEVICE_ID_SIZE])
{
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        count = 0;
    }
    for (int i = 0; i < count; i++) {
        cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, i) == cudaSuccess &&
            memcmp(&properties.uuid, id, WEFT_DEVICE_ID_SIZE) == 0) {
            return i;
        }
    }
    (void)cudaGetLastError();
    return -1;
}

/* ---- the owner's side ---- */

/* Whoever is last frees it. */
static void shared_release(struct weft_cuda_device *device, struct shared *shared)
{
    (void)pthread_mutex_lock(&shared_lock);
    shared->is_lost = shared->is_lost || device->is_stuck;
    const bool is_last = --shared->user_count == 0;
    if (is_last) {
        struct shared **link = &shared_list;
        while (*link != shared) {
            link = &(*link)->next;
        }
        *link = shared->next;
    }
    (void)pthread_mutex_unlock(&shared_lock);
    if (is_last) {
        if (!shared->is_lost) {
            (void)weft_cuda_check(device, cudaFree(shared->memory), "freeing shared memory");
        }
        free(shared);
    }
}

/* False where the driver has no handles for it; then it is for this process. */
static void fill_handle(const struct weft_cuda_device *device, const struct shared *shared, handle *out)
{
    memset(out, 0, sizeof(*out));
    out->serial = shared->serial;
    out->pid = getpid();
    out->pid_space = pid_space();
    weft_cuda_id(&device->base, out->gpu);
    out->has_ipc = cudaIpcGetMemHandle(&out->ipc, shared->memory) == cudaSuccess;
    if (!out->has_ipc) {
        (void)cudaGetLastError();
    }
}

void *weft_cuda_alloc_shared(struct weft_device *base, size_t size, struct weft_peer_handle *handle_out,
                             char *reason_out, size_t reason_size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct shared *shared = static_cast<struct shared *>(calloc(1, sizeof(*shared)));
    handle own;

    if (shared != NULL) {
        shared->memory = weft_cuda_alloc(base, size);
    }
    if (shared == NULL || shared->memory == NULL || weft_cuda_wait(device, NULL) != WEFT_OK) {
        snprintf(reason_out, reason_size, "no %zu bytes of shared memory on GPU %d", size, device->index);
        if (shared != NULL && shared->memory != NULL) {
            weft_cuda_free(base, shared->memory);
        }
        free(shared);
        return NULL;
    }
    weft_cuda_peer_norm_init(device);
    shared->index = device->index;
    shared->user_count = 1;
    (void)pthread_mutex_lock(&shared_lock);
    shared->serial = ++shared_serial;
    shared->next = shared_list;
    shared_list = shared;
    (void)pthread_mutex_unlock(&shared_lock);
    fill_handle(device, shared, &own);
    memset(handle_out, 0, sizeof(*handle_out));
    memcpy(handle_out->bytes, &own, sizeof(own));
    return shared->memory;
}

/* By its memory, or else its serial; with one user more when `is_visit`. */
static struct shared *shared_find(const void *memory, uint64_t serial, bool is_visit)
{
    (void)pthread_mutex_lock(&shared_lock);
    struct shared *found = shared_list;
    while (found != NULL && (memory != NULL ? found->memory != memory : found->serial != serial)) {
        found = found->next;
    }
    if (found != NULL && is_visit) {
        found->user_count++;
    }
    (void)pthread_mutex_unlock(&shared_lock);
    return found;
}

void weft_cuda_free_shared(struct weft_device *base, void *memory)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    (void)weft_cuda_wait(device, NULL);
    shared_release(device, shared_find(memory, 0, false));
}

/* ---- the visitors' side ---- */

/* Whether this GPU reaches the memory of that one of this process's; itself it does. */
static bool can_reach(const struct weft_cuda_device *device, int other, char *reason_out, size_t reason_size)
{
    int can = other == device->index ? 1 : 0;

    if (can == 0 && cudaDeviceCanAccessPeer(&can, device->index, other) != cudaSuccess) {
        (void)cudaGetLastError();
        can = 0;
    }
    if (can == 0) {
        snprintf(reason_out, reason_size, "GPU %d does not reach the memory of GPU %d", device->index, other);
    }
    return can != 0;
}

static void *open_own(struct weft_cuda_device *device, const handle *given, char *reason_out, size_t reason_size)
{
    struct shared *shared = shared_find(NULL, given->serial, true);
    cudaError_t error = cudaSuccess;

    if (shared == NULL) {
        snprintf(reason_out, reason_size, "the shared memory has been given back");
        return NULL;
    }
    bool is_reached = can_reach(device, shared->index, reason_out, reason_size);
    if (is_reached && shared->index != device->index) {
        error = cudaDeviceEnablePeerAccess(shared->index, 0);
        (void)cudaGetLastError();
        if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) {
            snprintf(reason_out, reason_size, "GPU %d to GPU %d: %s", device->index, shared->index,
                     cudaGetErrorString(error));
            is_reached = false;
        }
    }
    if (!is_reached) {
        shared_release(device, shared);
        return NULL;
    }
    return shared->memory;
}

static void *open_foreign(struct weft_cuda_device *device, const handle *given, char *reason_out, size_t reason_size)
{
    const int other = find_gpu(given->gpu);
    void *memory = NULL;

    if (given->has_ipc == 0 || other < 0) {
        snprintf(reason_out, reason_size, "%s",
                 given->has_ipc == 0 ? "the driver shares no memory between processes"
                                     : "not every process sees every GPU");
        return NULL;
    }
    if (!can_reach(device, other, reason_out, reason_size)) {
        return NULL;
    }
    const cudaError_t error = cudaIpcOpenMemHandle(&memory, given->ipc, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        snprintf(reason_out, reason_size, "memory of another process: %s", cudaGetErrorString(error));
        return NULL;
    }
    return memory;
}

void *weft_cuda_peer_open(struct weft_device *base, const struct weft_peer_handle *given, char *reason_out,
                          size_t reason_size)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct weft_cuda_peer *peer = static_cast<struct weft_cuda_peer *>(calloc(1, sizeof(*peer)));
    handle decoded;

    memcpy(&decoded, given->bytes, sizeof(decoded));
    if (peer == NULL) {
        snprintf(reason_out, reason_size, "out of memory");
        return NULL;
    }
    peer->is_foreign = !is_own_process(&decoded);
    peer->memory = peer->is_foreign ? open_foreign(device, &decoded, reason_out, reason_size)
                                    : open_own(device, &decoded, reason_out, reason_size);
    if (peer->memory == NULL) {
        free(peer);
        return NULL;
    }
    peer->next = device->peers;
    device->peers = peer;
    return peer->memory;
}

void weft_cuda_peer_close(struct weft_device *base, void *memory)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    struct weft_cuda_peer **link = &device->peers;

    while ((*link)->memory != memory) {
        link = &(*link)->next;
    }
    struct weft_cuda_peer *peer = *link;
    *link = peer->next;
    (void)weft_cuda_wait(device, NULL);
    if (!peer->is_foreign) {
        shared_release(device, shared_find(memory, 0, false));
    } else if (!device->is_stuck) {
        (void)weft_cuda_check(device, cudaIpcCloseMemHandle(memory), "closing a peer's memory");
    }
    free(peer);
}
