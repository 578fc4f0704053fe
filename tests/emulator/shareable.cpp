/*
 * Device memory that other processes can open (cudaIpc*): large blocks lie in one memory file per process, each behind
 * a page that says what it is. A handle is where to find that page. What is given back leaves a hole whose place is
 * never used again, so a handle of old opens nothing else.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "emulator/machine.h"

namespace
{

const size_t PAGE = 4096;
enum { VISITORS_MAX = 64 };

/* The first page of a block. */
struct header {
    uint64_t nonce; /* 0: given back */
    uint64_t size;
    uint64_t map_size; /* of header, data and what follows them */
    uint64_t offset;   /* in the file */
    int device;
    pid_t visitors[VISITORS_MAX]; /* 0: none */
};
static_assert(sizeof(header) <= PAGE - 256, "the block's guard bytes lie on the same page");

struct handle {
    uint64_t nonce;
    uint64_t offset;
    uint64_t map_size;
    pid_t pid;
    int fd;
};
static_assert(sizeof(handle) <= CUDA_IPC_HANDLE_SIZE, "must fit");

struct memory_file {
    std::mutex lock;
    int fd = -1;
    uint64_t end = 0;
};

} // namespace

static memory_file file; /* needs no constructor to run, so that it is there for whoever comes first */

static header *header_of(void *memory)
{
    return reinterpret_cast<header *>(static_cast<unsigned char *>(memory) - PAGE);
}

static void *map(int fd, uint64_t offset, uint64_t size)
{
    void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

    return memory == MAP_FAILED ? nullptr : memory;
}

void *weft_emulated_shareable_open(size_t size, int device)
{
    std::lock_guard<std::mutex> guard(file.lock);
    header entry = {};

    file.fd = file.fd >= 0 ? file.fd : memfd_create("emulated GPU", MFD_CLOEXEC);
    entry.size = size;
    entry.map_size = PAGE + (size + 256 + PAGE - 1) / PAGE * PAGE;
    entry.offset = file.end;
    entry.device = device;
    if (file.fd < 0 || getrandom(&entry.nonce, sizeof(entry.nonce), 0) != (ssize_t)sizeof(entry.nonce) ||
        ftruncate(file.fd, (off_t)(file.end + entry.map_size)) != 0) {
        return nullptr;
    }
    void *memory = map(file.fd, entry.offset, entry.map_size);
    if (memory == nullptr) {
        return nullptr;
    }
    file.end += entry.map_size;
    entry.nonce |= 1;
    memcpy(memory, &entry, sizeof(entry));
    return static_cast<unsigned char *>(memory) + PAGE;
}

/* Neither gone nor waiting for its parent to notice that it is. */
static bool is_alive(pid_t pid)
{
    char path[64];
    char target[2];

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    return readlink(path, target, sizeof(target)) > 0;
}

bool weft_emulated_shareable_end(void *memory)
{
    header *entry = header_of(memory);
    bool is_open = false;

    __atomic_store_n(&entry->nonce, 0, __ATOMIC_SEQ_CST);
    for (pid_t &visitor : entry->visitors) {
        pid_t pid = __atomic_load_n(&visitor, __ATOMIC_SEQ_CST);

        is_open = is_open || (pid != 0 && is_alive(pid));
    }
    return is_open;
}

void weft_emulated_shareable_close(void *memory)
{
    header *entry = header_of(memory);
    const uint64_t offset = entry->offset;
    const uint64_t map_size = entry->map_size;

    (void)fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)map_size);
    (void)munmap(entry, map_size);
}

void weft_emulated_shareable_handle(void *memory, cudaIpcMemHandle_t *handle_out)
{
    const header *entry = header_of(memory);
    const handle own = {entry->nonce, entry->offset, entry->map_size, getpid(), file.fd};

    *handle_out = cudaIpcMemHandle_t();
    memcpy(handle_out->reserved, &own, sizeof(own));
}

/* The visitor's name on the block's page, so that the owner sees whom it would leave without memory. */
static bool sign(header *entry, pid_t from, pid_t to)
{
    for (pid_t &visitor : entry->visitors) {
        pid_t expected = from;

        if (__atomic_compare_exchange_n(&visitor, &expected, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            return true;
        }
    }
    return false;
}

cudaError_t weft_emulated_import(const cudaIpcMemHandle_t *given, void **memory_out, size_t *size_out, int *device_out)
{
    handle theirs;
    char path[64];

    memcpy(&theirs, given->reserved, sizeof(theirs));
    if (theirs.pid == getpid()) {
        return cudaErrorDeviceUninitialized; /* what CUDA says to a handle of the same process */
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)theirs.pid, theirs.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return cudaErrorMapBufferObjectFailed; /* the process has ended */
    }
    void *memory = map(fd, theirs.offset, theirs.map_size);
    (void)close(fd);
    if (memory == nullptr) {
        return cudaErrorMapBufferObjectFailed;
    }
    header *entry = static_cast<header *>(memory);
    if (theirs.nonce == 0 || entry->nonce != theirs.nonce || !sign(entry, 0, getpid())) {
        (void)munmap(memory, theirs.map_size);
        return cudaErrorMapBufferObjectFailed; /* freed since */
    }
    *memory_out = static_cast<unsigned char *>(memory) + PAGE;
    *size_out = entry->size;
    *device_out = entry->device;
    return cudaSuccess;
}

void weft_emulated_import_close(void *memory)
{
    header *entry = header_of(memory);
    const uint64_t map_size = entry->map_size;

    (void)sign(entry, getpid(), 0);
    (void)munmap(entry, map_size);
}
