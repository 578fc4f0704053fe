/*
 * The functions of NCCL that comm_nccl.c uses, with NVIDIA's own header as their contract, over host memory: a library
 * of its own that the loader finds in place of libnccl.so.2. Streams are those of fake_stream.h.
 *
 * What it takes care to imitate: nothing is done at once (initialisation and groups are "in progress" for a while, and
 * a group enters the stream only then), messages meet in order per pair without any check, a dead peer is silence or a
 * remote error, an abort ends what runs on the stream and may take long, groups can be captured, and a communicator
 * does not end before the graphs that have them. NCCL_STUB_* of nccl_stub.h injects faults.
 */
#include <nccl.h>

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fake_stream.h"
#include "nccl_stub.h"

#define RANK_MAX 16
/* Bytes between two ranks that may be on their way. */
#define PIPE_SIZE 32768u
#define GROUP_MAX 512
/* How many looks a group stays "in progress". */
#define LOOKS 2

struct pipe {
    _Atomic uint64_t sent;
    _Atomic uint64_t received;
    char bytes[PIPE_SIZE];
};

/* Shared by the ranks of a communicator: a file without a name, which the others open through /proc. */
struct shared {
    _Atomic uint32_t joined_count;
    _Atomic uint32_t finalized_count;
    _Atomic int32_t pids[RANK_MAX];
    struct pipe pipes[RANK_MAX][RANK_MAX]; /* [from][to] */
};

struct unique_id {
    int32_t pid;
    int32_t fd;
};
_Static_assert(sizeof(struct unique_id) <= sizeof(ncclUniqueId), "fits");

struct message {
    bool is_send;
    int peer;
    char *bytes;
    size_t size;
    size_t done;
};

/* What one group puts into the stream, or into its graph. */
struct group {
    struct ncclComm *comm;
    struct fake_stream *stream;
    struct message messages[GROUP_MAX];
    size_t count;
};

struct ncclComm {
    struct shared *shared;
    int rank;
    int rank_count;
    int fd; /* of shared, on rank 0 */
    struct nccl_stub_faults faults;
    bool has_joined;
    bool has_finalized;
    int looks_left;        /* until the group enters the stream */
    struct group *waiting; /* that group */
    uint64_t group_count;
    atomic_bool is_aborted;
    atomic_ullong run_count; /* groups that have begun on the stream */
    atomic_int held_count;   /* groups in the stream or in a graph */
    atomic_int remote_error;
};

/* The group that this thread is writing. initial-exec: the loader's own bookkeeping of other TLS is a race to TSan. */
#define THREAD_OWN static _Thread_local __attribute__((tls_model("initial-exec")))
THREAD_OWN struct group *open_group;
THREAD_OWN int group_depth;

/* Set by a test before ranks start; only read afterwards. */
static struct nccl_stub_faults faults;

/* Groups put into streams and graphs by all ranks of this process. */
static atomic_ullong issued_count;

struct nccl_stub_faults *nccl_stub_faults(void);
uint64_t nccl_stub_issued_count(void);

struct nccl_stub_faults *nccl_stub_faults(void)
{
    return &faults;
}

uint64_t nccl_stub_issued_count(void)
{
    return atomic_load(&issued_count);
}

static bool is_victim(const struct ncclComm *comm)
{
    return comm->faults.victim == comm->rank;
}

static void nap(uint64_t microseconds)
{
    const struct timespec time = {(time_t)(microseconds / 1000000), (long)(microseconds % 1000000 * 1000)};

    nanosleep(&time, NULL);
}

/* ---- opening ---- */

ncclResult_t ncclGetVersion(int *version)
{
    *version = faults.version != 0 ? faults.version : NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote process exited or there was a network error" : "an error of the stub";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    struct unique_id own = {getpid(), memfd_create("nccl-stub", MFD_CLOEXEC)};

    if (own.fd < 0 || ftruncate(own.fd, sizeof(struct shared)) != 0) {
        return ncclSystemError;
    }
    memset(id, 0, sizeof(*id));
    memcpy(id, &own, sizeof(own));
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int rank_count, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    struct ncclComm *comm = calloc(1, sizeof(*comm));
    struct unique_id leader;
    char path[64];
    int fd;

    assert(comm != NULL && rank_count <= RANK_MAX && config->blocking == 0);
    memcpy(&leader, &id, sizeof(leader));
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", leader.pid, leader.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        free(comm);
        return ncclSystemError;
    }
    comm->shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (comm->shared == MAP_FAILED) {
        free(comm);
        return ncclSystemError;
    }
    comm->rank = rank;
    comm->rank_count = rank_count;
    comm->faults = faults;
    comm->fd = rank == 0 ? leader.fd : -1;
    *out = comm;
    if (is_victim(comm) && comm->faults.kind == NCCL_STUB_INIT_ERROR) {
        return ncclInternalError;
    }
    atomic_store(&comm->shared->pids[rank], getpid());
    atomic_fetch_add(&comm->shared->joined_count, 1);
    return ncclInProgress;
}

/* ---- a group on the stream ---- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static struct pipe *pipe_of(struct group *group, const struct message *message)
{
    int rank = group->comm->rank;

    return message->is_send ? &group->comm->shared->pipes[rank][message->peer]
                            : &group->comm->shared->pipes[message->peer][rank];
}

/* Moves what can be moved. True when something was. */
static bool move(struct group *group, struct message *message)
{
    struct pipe *pipe = pipe_of(group, message);
    uint64_t sent = atomic_load(&pipe->sent), received = atomic_load(&pipe->received);
    uint64_t at = message->is_send ? sent : received;
    size_t room = message->is_send ? PIPE_SIZE - (sent - received) : sent - received;
    size_t part = smaller(smaller(room, message->size - message->done), PIPE_SIZE - at % PIPE_SIZE);

    if (message->is_send) {
        memcpy(pipe->bytes + at % PIPE_SIZE, message->bytes + message->done, part);
        atomic_store(&pipe->sent, sent + part);
    } else {
        memcpy(message->bytes + message->done, pipe->bytes + at % PIPE_SIZE, part);
        atomic_store(&pipe->received, received + part);
    }
    message->done += part;
    return part > 0;
}

/* Messages of one pair go one after the other. */
static bool is_first(const struct group *group, size_t index)
{
    for (size_t i = 0; i < index; i++) {
        const struct message *earlier = &group->messages[i];

        if (earlier->peer == group->messages[index].peer && earlier->is_send == group->messages[index].is_send &&
            earlier->done < earlier->size) {
            return false;
        }
    }
    return true;
}

static bool has_dead_peer(const struct ncclComm *comm)
{
    for (int r = 0; r < comm->rank_count; r++) {
        int pid = atomic_load(&comm->shared->pids[r]);

        if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) {
            return true;
        }
    }
    return false;
}

static void run_group(void *argument)
{
    struct group *group = argument;
    struct ncclComm *comm = group->comm;
    uint64_t index = atomic_fetch_add(&comm->run_count, 1);
    bool is_stuck = is_victim(comm) && comm->faults.kind == NCCL_STUB_STUCK && index >= comm->faults.group_index;
    bool is_done = false;

    for (size_t i = 0; i < group->count; i++) {
        group->messages[i].done = 0;
    }
    while (!is_done && !atomic_load(&comm->is_aborted)) {
        bool has_moved = false;

        is_done = !is_stuck;
        for (size_t i = 0; i < group->count && !is_stuck; i++) {
            if (group->messages[i].done < group->messages[i].size) {
                is_done = false;
                has_moved = (is_first(group, i) && move(group, &group->messages[i])) || has_moved;
            }
        }
        if (!has_moved && !is_done) {
            if (comm->faults.kind == NCCL_STUB_REMOTE_ERRORS && has_dead_peer(comm)) {
                atomic_store(&comm->remote_error, 1);
            }
            nap(20);
        }
    }
}

static void release_group(void *argument)
{
    struct group *group = argument;
    struct ncclComm *comm = group->comm;

    free(group);
    atomic_fetch_sub(&comm->held_count, 1);
}

ncclResult_t ncclGroupStart(void)
{
    if (group_depth++ == 0) {
        open_group = calloc(1, sizeof(*open_group));
        assert(open_group != NULL);
    }
    return ncclSuccess;
}

static ncclResult_t add_message(bool is_send, const void *bytes, size_t size, int peer, ncclComm_t comm,
                                cudaStream_t stream)
{
    struct fake_stream *fake = (struct fake_stream *)stream;

    assert(group_depth > 0 && open_group->count < GROUP_MAX && peer != comm->rank && peer < comm->rank_count);
    open_group->comm = comm;
    open_group->stream = fake;
    open_group->messages[open_group->count++] =
        (struct message){.is_send = is_send, .peer = peer, .bytes = fake->memory(fake, bytes), .size = size};
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *bytes, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    assert(type == ncclInt8);
    return add_message(true, bytes, count, peer, comm, stream);
}

ncclResult_t ncclRecv(void *bytes, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    assert(type == ncclInt8);
    return add_message(false, bytes, count, peer, comm, stream);
}

ncclResult_t ncclGroupEnd(void)
{
    struct group *group = open_group;

    assert(group_depth > 0);
    if (--group_depth > 0) {
        return ncclSuccess;
    }
    open_group = NULL;
    if (group->count == 0) {
        free(group);
        return ncclSuccess;
    }
    assert(group->comm->waiting == NULL && group->comm->has_joined); /* one thing after the other */
    group->comm->waiting = group;
    group->comm->looks_left = LOOKS;
    return ncclInProgress;
}

/* ---- state ---- */

static ncclResult_t state_of(ncclComm_t comm)
{
    if (atomic_load(&comm->remote_error) != 0) {
        return ncclRemoteError;
    }
    if (is_victim(comm) && comm->faults.kind == NCCL_STUB_ASYNC_ERROR &&
        atomic_load(&comm->run_count) > comm->faults.group_index) {
        return ncclInternalError;
    }
    if (!comm->has_joined) {
        comm->has_joined = atomic_load(&comm->shared->joined_count) >= (uint32_t)comm->rank_count;
        return comm->has_joined ? ncclSuccess : ncclInProgress;
    }
    if (comm->has_finalized) {
        bool is_ended = atomic_load(&comm->shared->finalized_count) >= (uint32_t)comm->rank_count;

        return is_ended && atomic_load(&comm->held_count) == 0 ? ncclSuccess : ncclInProgress;
    }
    if (comm->waiting == NULL) {
        return ncclSuccess;
    }
    if (is_victim(comm) && comm->faults.kind == NCCL_STUB_NEVER_ISSUED &&
        comm->group_count >= comm->faults.group_index) {
        return ncclInProgress;
    }
    if (comm->looks_left-- > 0) {
        return ncclInProgress;
    }
    comm->group_count++;
    atomic_fetch_add(&comm->held_count, 1);
    atomic_fetch_add(&issued_count, 1);
    comm->waiting->stream->enqueue(comm->waiting->stream, run_group, release_group, comm->waiting);
    comm->waiting = NULL;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    *state = state_of(comm);
    return ncclSuccess;
}

/* ---- the end ---- */

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    comm->has_finalized = true;
    atomic_fetch_add(&comm->shared->finalized_count, 1);
    return ncclInProgress;
}

static void release(ncclComm_t comm)
{
    while (atomic_load(&comm->held_count) > 0) {
        nap(20);
    }
    munmap(comm->shared, sizeof(struct shared));
    if (comm->fd >= 0) {
        close(comm->fd);
    }
    free(comm->waiting);
    free(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    release(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (is_victim(comm) && comm->faults.abort_ms > 0) {
        nap((uint64_t)comm->faults.abort_ms * 1000);
    }
    atomic_store(&comm->is_aborted, true);
    release(comm);
    return ncclSuccess;
}
