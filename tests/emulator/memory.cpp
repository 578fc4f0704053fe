/*
 * Device and pinned memory: host memory with a list of what is where. Each block lies between guard bytes and begins as
 * NaN; a freed one is kept a while, to see writes that come too late. Under AddressSanitizer blocks are plain
 * allocations instead, and it watches every access.
 */
#include <map>
#include <stdlib.h>

#include "emulator/machine.h"

#if defined(__SANITIZE_ADDRESS__)
#define IS_WATCHED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define IS_WATCHED 1
#endif
#endif
#ifndef IS_WATCHED
#define IS_WATCHED 0
#endif

namespace
{

const size_t ALIGNMENT = 256; /* cudaMalloc()'s */
const size_t GUARD_SIZE = IS_WATCHED ? 0 : 256;
const size_t KEPT_MAX = 256; /* freed blocks */
const int GUARD_BYTE = 0xa5;
const int FREED_BYTE = 0xdb;

enum block_kind {
    BLOCK_PLAIN,
    BLOCK_REGISTERED, /* the caller's own memory */
    BLOCK_SHAREABLE,  /* in shared.cpp's file, for cudaIpc* */
    BLOCK_IMPORTED    /* another process's */
};

struct block {
    size_t size;
    int device; /* -1: pinned host memory */
    block_kind kind;
};

struct freed {
    unsigned char *memory;
    size_t size;
    int device;
    block_kind kind;
};

struct memory_list {
    std::mutex lock;
    std::map<uintptr_t, block> blocks; /* by address */
    std::vector<freed> kept;
};

} // namespace

static memory_list &the_list()
{
    static memory_list *list = new memory_list();

    return *list;
}

static bool is_filled(const unsigned char *memory, int byte, size_t size)
{
    return size == 0 || (memory[0] == byte && memcmp(memory, memory + 1, size - 1) == 0);
}

static std::string text_of(const char *what, size_t size, int device)
{
    return std::string(what) + " a block of " + std::to_string(size) + " bytes" +
           (device < 0 ? " of pinned memory" : " of GPU " + std::to_string(device));
}

static unsigned char *obtain(size_t size, block_kind kind, int device)
{
    void *memory = nullptr;

    if (kind == BLOCK_SHAREABLE) {
        memory = weft_emulated_shareable_open(size, device);
        if (memory != nullptr) {
            memset(static_cast<unsigned char *>(memory) - GUARD_SIZE, GUARD_BYTE, GUARD_SIZE);
            memset(memory, 0xff, size);
            memset(static_cast<unsigned char *>(memory) + size, GUARD_BYTE, GUARD_SIZE);
        }
        return static_cast<unsigned char *>(memory);
    }
    if (posix_memalign(&memory, ALIGNMENT, GUARD_SIZE + size + GUARD_SIZE) != 0) {
        return nullptr;
    }
    memset(memory, GUARD_BYTE, GUARD_SIZE + size + GUARD_SIZE);
    memset(static_cast<unsigned char *>(memory) + GUARD_SIZE, 0xff, size); /* whatever was there before */
    return static_cast<unsigned char *>(memory) + GUARD_SIZE;
}

static cudaError_t add_block(void **memory, size_t size, int device)
{
    memory_list &list = the_list();
    const block_kind kind = device >= 0 && size >= WEFT_EMULATED_IPC_MIN ? BLOCK_SHAREABLE : BLOCK_PLAIN;
    unsigned char *data;

    *memory = nullptr;
    if (size == 0) {
        return cudaSuccess;
    }
    if (device >= 0) {
        weft_emulated_world &world = weft_emulated_the_world();
        std::lock_guard<std::mutex> guard(world.lock);
        uint64_t &used = world.devices[device].used;

        if (used > world.config.memory_size || size > world.config.memory_size - used) {
            return cudaErrorMemoryAllocation;
        }
        used += size;
    }
    data = obtain(size, kind, device);
    if (data == nullptr) {
        return cudaErrorMemoryAllocation;
    }
    std::lock_guard<std::mutex> guard(list.lock);
    list.blocks[reinterpret_cast<uintptr_t>(data)] = {size, device, kind};
    *memory = data;
    return cudaSuccess;
}

/* "" or what happened to the bytes around a live block. */
static std::string check_guards(uintptr_t address, const block &entry)
{
    const unsigned char *data = reinterpret_cast<const unsigned char *>(address);

    if (entry.kind == BLOCK_REGISTERED || entry.kind == BLOCK_IMPORTED) {
        return "";
    }
    if (!is_filled(data - GUARD_SIZE, GUARD_BYTE, GUARD_SIZE)) {
        return text_of("wrote before the start of", entry.size, entry.device);
    }
    if (!is_filled(data + entry.size, GUARD_BYTE, GUARD_SIZE)) {
        return text_of("wrote past the end of", entry.size, entry.device);
    }
    return "";
}

static void give_back(unsigned char *memory, block_kind kind)
{
    if (kind == BLOCK_SHAREABLE) {
        weft_emulated_shareable_close(memory);
    } else {
        free(memory - GUARD_SIZE);
    }
}

/* Gives the oldest freed block back for good. */
static std::string drop_oldest(memory_list &list)
{
    freed oldest = list.kept.front();
    std::string line;

    list.kept.erase(list.kept.begin());
    if (!is_filled(oldest.memory, FREED_BYTE, oldest.size)) {
        line = text_of("something wrote into", oldest.size, oldest.device) + " after it was freed";
    }
    give_back(oldest.memory, oldest.kind);
    return line;
}

static cudaError_t remove_block(void *memory, bool is_device)
{
    memory_list &list = the_list();
    std::string line;
    block entry;

    {
        std::lock_guard<std::mutex> guard(list.lock);
        auto found = list.blocks.find(reinterpret_cast<uintptr_t>(memory));

        if (found == list.blocks.end() || (found->second.device >= 0) != is_device ||
            found->second.kind == BLOCK_REGISTERED || found->second.kind == BLOCK_IMPORTED) {
            return cudaErrorInvalidValue;
        }
        entry = found->second;
        line = check_guards(found->first, entry);
        if (line.empty() && entry.kind == BLOCK_SHAREABLE && weft_emulated_shareable_end(memory)) {
            line = text_of("cudaFree of", entry.size, entry.device) + " that another process has open";
        }
        list.blocks.erase(found);
        if (IS_WATCHED) {
            give_back(static_cast<unsigned char *>(memory), entry.kind);
        } else {
            memset(memory, FREED_BYTE, entry.size);
            list.kept.push_back({static_cast<unsigned char *>(memory), entry.size, entry.device, entry.kind});
            if (list.kept.size() > KEPT_MAX) {
                std::string late = drop_oldest(list);

                line = line.empty() ? late : line;
            }
        }
    }
    if (entry.device >= 0) {
        weft_emulated_world &world = weft_emulated_the_world();
        std::lock_guard<std::mutex> guard(world.lock);

        world.devices[entry.device].used -= entry.size;
    }
    if (!line.empty()) {
        weft_emulated_tell(line);
    }
    return cudaSuccess;
}

bool weft_emulated_find(const void *memory, size_t size, weft_emulated_place &place_out, int &device_out)
{
    memory_list &list = the_list();
    std::lock_guard<std::mutex> guard(list.lock);
    uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    auto after = list.blocks.upper_bound(address);

    place_out = WEFT_EMULATED_PAGEABLE;
    device_out = -1;
    if (after != list.blocks.begin()) {
        auto found = std::prev(after);

        if (address - found->first < found->second.size) {
            place_out = found->second.device >= 0 ? WEFT_EMULATED_DEVICE : WEFT_EMULATED_PINNED;
            device_out = found->second.device;
            return size <= found->second.size - (address - found->first);
        }
    }
    for (const freed &entry : list.kept) {
        uintptr_t first = reinterpret_cast<uintptr_t>(entry.memory);

        if (address >= first && address - first < entry.size) {
            return false;
        }
    }
    return true;
}

std::string weft_emulated_check_memory(int device)
{
    memory_list &list = the_list();
    std::lock_guard<std::mutex> guard(list.lock);

    for (const auto &entry : list.blocks) {
        if (entry.second.device == device) {
            std::string line = check_guards(entry.first, entry.second);

            if (!line.empty()) {
                return line;
            }
        }
    }
    return "";
}

uint32_t weft_emulated_block_count()
{
    memory_list &list = the_list();
    std::lock_guard<std::mutex> guard(list.lock);

    return (uint32_t)list.blocks.size();
}

/* ---- the runtime's functions ---- */

/* The same for a call that a capture of a graph cannot take. */
#define ENTER_UNCAPTURED(name)                                                                                         \
    do {                                                                                                               \
        ENTER(name);                                                                                                   \
        if (weft_emulated_is_capturing()) {                                                                            \
            return weft_emulated_leave(cudaErrorStreamCaptureUnsupported);                                             \
        }                                                                                                              \
    } while (0)

cudaError_t cudaMalloc(void **memory, size_t size)
{
    cudaError_t error;

    ENTER_UNCAPTURED("cudaMalloc");
    error = weft_emulated_device_error(weft_emulated_current_device());
    return weft_emulated_leave(error != cudaSuccess ? error : add_block(memory, size, weft_emulated_current_device()));
}

cudaError_t cudaFree(void *memory)
{
    weft_emulated_place place;
    int device;

    ENTER_UNCAPTURED("cudaFree");
    if (memory == nullptr) {
        return cudaSuccess;
    }
    (void)weft_emulated_find(memory, 1, place, device);
    if (place != WEFT_EMULATED_DEVICE) {
        weft_emulated_tell("cudaFree of memory that is not a live block of a GPU");
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    (void)weft_emulated_drain(device, true); /* cudaFree() waits for the GPU */
    return weft_emulated_leave(remove_block(memory, true));
}

cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned int)
{
    ENTER_UNCAPTURED("cudaHostAlloc");
    return weft_emulated_leave(add_block(memory, size, -1));
}

cudaError_t cudaMallocHost(void **memory, size_t size)
{
    ENTER_UNCAPTURED("cudaMallocHost");
    return weft_emulated_leave(add_block(memory, size, -1));
}

cudaError_t cudaFreeHost(void *memory)
{
    ENTER_UNCAPTURED("cudaFreeHost");
    return weft_emulated_leave(memory == nullptr ? cudaSuccess : remove_block(memory, false));
}

cudaError_t cudaHostRegister(void *memory, size_t size, unsigned int)
{
    weft_emulated_place place;
    int device;

    ENTER_UNCAPTURED("cudaHostRegister");
    if (!weft_emulated_find(memory, size, place, device) || place != WEFT_EMULATED_PAGEABLE || size == 0) {
        return weft_emulated_leave(cudaErrorHostMemoryAlreadyRegistered);
    }
    std::lock_guard<std::mutex> guard(the_list().lock);
    the_list().blocks[reinterpret_cast<uintptr_t>(memory)] = {size, -1, BLOCK_REGISTERED};
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    ENTER_UNCAPTURED("cudaHostUnregister");
    std::lock_guard<std::mutex> guard(the_list().lock);
    auto found = the_list().blocks.find(reinterpret_cast<uintptr_t>(memory));

    if (found == the_list().blocks.end() || found->second.kind != BLOCK_REGISTERED) {
        return weft_emulated_leave(cudaErrorHostMemoryNotRegistered);
    }
    the_list().blocks.erase(found);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **device_memory, void *memory, unsigned int)
{
    weft_emulated_place place;
    int device;

    ENTER_UNCAPTURED("cudaHostGetDevicePointer");
    if (!weft_emulated_find(memory, 1, place, device) || place != WEFT_EMULATED_PINNED) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    *device_memory = memory;
    return cudaSuccess;
}

/* ---- memory of other processes ---- */

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory)
{
    ENTER_UNCAPTURED("cudaIpcGetMemHandle");
    std::lock_guard<std::mutex> guard(the_list().lock);
    auto found = the_list().blocks.find(reinterpret_cast<uintptr_t>(memory));

    if (found == the_list().blocks.end() || found->second.kind != BLOCK_SHAREABLE) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    weft_emulated_shareable_handle(memory, handle);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned int flags)
{
    cudaError_t error;
    size_t size;
    int device;

    ENTER_UNCAPTURED("cudaIpcOpenMemHandle");
    if (flags != cudaIpcMemLazyEnablePeerAccess) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    error = weft_emulated_import(&handle, memory, &size, &device);
    if (error == cudaSuccess) {
        std::lock_guard<std::mutex> guard(the_list().lock);
        the_list().blocks[reinterpret_cast<uintptr_t>(*memory)] = {size, device, BLOCK_IMPORTED};
    }
    return weft_emulated_leave(error);
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    ENTER_UNCAPTURED("cudaIpcCloseMemHandle");
    std::lock_guard<std::mutex> guard(the_list().lock);
    auto found = the_list().blocks.find(reinterpret_cast<uintptr_t>(memory));

    if (found == the_list().blocks.end() || found->second.kind != BLOCK_IMPORTED) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    the_list().blocks.erase(found);
    weft_emulated_import_close(memory);
    return cudaSuccess;
}

/* ---- copies ---- */

/* Both ends are where `kind` says, and inside their blocks. */
static bool is_copy_valid(const void *to, const void *from, size_t size, cudaMemcpyKind kind, const char *name)
{
    weft_emulated_place to_place;
    weft_emulated_place from_place;
    int device;
    bool is_inside =
        weft_emulated_find(to, size, to_place, device) && weft_emulated_find(from, size, from_place, device);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;

    if (!is_inside) {
        weft_emulated_tell(std::string(name) + " of " + std::to_string(size) +
                           " bytes leaves its block, or the block was freed");
        return false;
    }
    if (kind != cudaMemcpyDefault &&
        ((to_place == WEFT_EMULATED_DEVICE) != to_device || (from_place == WEFT_EMULATED_DEVICE) != from_device)) {
        weft_emulated_tell(std::string(name) + ": memory is not where the kind of copy says");
        return false;
    }
    return true;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind)
{
    cudaError_t error;

    ENTER_UNCAPTURED("cudaMemcpy");
    if (size > 0 && !is_copy_valid(to, from, size, kind, "cudaMemcpy")) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    error = weft_emulated_drain(weft_emulated_current_device(), false);
    if (error == cudaSuccess && size > 0) {
        memmove(to, from, size);
    }
    return weft_emulated_leave(error);
}

cudaError_t cudaMemset(void *memory, int value, size_t size)
{
    cudaError_t error;

    ENTER_UNCAPTURED("cudaMemset");
    if (size > 0 && !is_copy_valid(memory, memory, size, cudaMemcpyDeviceToDevice, "cudaMemset")) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    error = weft_emulated_drain(weft_emulated_current_device(), false);
    if (error == cudaSuccess && size > 0) {
        memset(memory, value, size);
    }
    return weft_emulated_leave(error);
}

/* Pageable memory is copied before the call returns, as CUDA does; pinned memory when its turn comes. */
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    weft_emulated_place to_place;
    weft_emulated_place from_place;
    int device;
    cudaError_t error = weft_emulated_enter(height == 1 ? "cudaMemcpyAsync" : "cudaMemcpy2DAsync");
    std::shared_ptr<std::vector<unsigned char>> staged;

    if (error != cudaSuccess || width == 0 || height == 0) {
        return weft_emulated_leave(error);
    }
    if (!is_copy_valid(to, from, width, kind, "cudaMemcpyAsync") ||
        !is_copy_valid(static_cast<char *>(to) + (height - 1) * to_pitch,
                       static_cast<const char *>(from) + (height - 1) * from_pitch, width, kind, "cudaMemcpy2DAsync")) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    (void)weft_emulated_find(to, 1, to_place, device);
    (void)weft_emulated_find(from, 1, from_place, device);
    if (from_place == WEFT_EMULATED_PAGEABLE && !weft_emulated_stream_captures(stream)) {
        staged = std::make_shared<std::vector<unsigned char>>(width * height);
        for (size_t i = 0; i < height; i++) {
            memcpy(staged->data() + i * width, static_cast<const char *>(from) + i * from_pitch, width);
        }
    }
    error = weft_emulated_enqueue(stream, "copy", [=](cudaStream_t) {
        for (size_t i = 0; i < height; i++) {
            memmove(static_cast<char *>(to) + i * to_pitch,
                    staged ? staged->data() + i * width : static_cast<const unsigned char *>(from) + i * from_pitch,
                    width);
        }
        return cudaSuccess;
    });
    if (error == cudaSuccess && to_place == WEFT_EMULATED_PAGEABLE && !weft_emulated_stream_captures(stream)) {
        error = weft_emulated_stream_wait(stream);
    }
    return weft_emulated_leave(error);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind, cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream)
{
    cudaError_t error = weft_emulated_enter("cudaMemsetAsync");

    if (error != cudaSuccess || size == 0) {
        return weft_emulated_leave(error);
    }
    if (!is_copy_valid(memory, memory, size, cudaMemcpyDeviceToDevice, "cudaMemsetAsync")) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    return weft_emulated_leave(weft_emulated_enqueue(stream, "set", [=](cudaStream_t) {
        memset(memory, value, size);
        return cudaSuccess;
    }));
}
