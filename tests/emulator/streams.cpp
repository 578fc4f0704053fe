/*
 * Streams, events, launches and graphs. A stream is a queue with a worker thread; the worker leaves a new operation
 * alone for a while, unless someone waits or asks, so that the host runs ahead as it does of a real GPU.
 */
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <thread>

#include "comm/fake_stream.h"
#include "emulator/machine.h"

namespace
{

using operation_run = std::function<cudaError_t(cudaStream_t)>;

struct operation {
    const char *name;
    operation_run run;
    std::vector<const void *> pointers; /* that a kernel is given */
};

/* What a host has issued may change its mind for this long before the GPU looks at it. */
const std::chrono::milliseconds LEISURE(2);

/* How long a question takes that was asked before and whose answer is still no: who asks on and on leaves the core to
 * the GPU. */
const std::chrono::microseconds ANSWER(100);

} // namespace

struct weft_emulated_graph {
    std::vector<operation> operations;
};

struct weft_emulated_stream : fake_stream {
    int device;
    bool is_blocking; /* waits for the default stream and is waited for */
    std::mutex lock;
    std::condition_variable changed;
    std::deque<operation> queue;
    uint64_t issued = 0;
    uint64_t completed = 0;
    uint64_t denied = 0; /* the last number of which somebody was told that it is not complete */
    bool is_urgent = false;
    std::atomic<bool> is_stopped{false};
    cudaError_t error = cudaSuccess; /* of an operation */
    std::atomic<weft_emulated_graph *> capture{nullptr};
    bool is_capture_broken = false;
    std::thread worker;
    weft_emulated_machine *machine = nullptr; /* the worker's */
};

struct weft_emulated_event {
    std::mutex lock;
    cudaStream_t stream = nullptr; /* recorded in */
    uint64_t number = 0;           /* operations of the stream that must be complete */
    weft_emulated_graph *capture = nullptr;
    std::shared_ptr<std::atomic<int64_t>> time_ns;
};

/* Captures that this thread began in the mode that forbids it whatever might wait. */
static thread_local int capture_count = 0;
static thread_local cudaStream_t capture_stream = nullptr;

/* ---- the worker ---- */

/* The hang of weft_emulated_config: until it is let go or the stream is destroyed. */
static void hang(weft_emulated_stream *stream)
{
    weft_emulated_world &world = weft_emulated_the_world();
    uint32_t generation;

    {
        std::lock_guard<std::mutex> guard(world.lock);

        world.run_operations++;
        if (world.config.hang_operation == 0 || world.run_operations != world.config.hang_operation) {
            return;
        }
        generation = world.hang_generation;
    }
    while (!stream->is_stopped) {
        std::this_thread::sleep_for(LEISURE);
        std::lock_guard<std::mutex> guard(world.lock);
        if (world.hang_generation != generation) {
            return;
        }
    }
}

static void run_operation(weft_emulated_stream *stream, const operation &next)
{
    weft_emulated_world &world = weft_emulated_the_world();
    cudaError_t error = weft_emulated_device_error(stream->device);

    hang(stream);
    if (error == cudaSuccess && !stream->is_stopped) {
        error = next.run(stream);
        if (error != cudaSuccess) {
            std::lock_guard<std::mutex> guard(world.lock);
            world.devices[stream->device].error = error;
        }
    }
}

static void work(weft_emulated_stream *stream)
{
    std::unique_lock<std::mutex> guard(stream->lock);

    while (!stream->is_stopped) {
        if (stream->queue.empty()) {
            stream->is_urgent = false;
            stream->changed.wait(guard);
            if (!stream->is_urgent && !stream->is_stopped) {
                stream->changed.wait_for(guard, LEISURE, [=] { return stream->is_urgent || stream->is_stopped; });
            }
            continue;
        }
        operation next = std::move(stream->queue.front());
        stream->queue.pop_front();
        guard.unlock();
        run_operation(stream, next);
        next.run = nullptr; /* frees what it holds before anybody hears that it is done */
        guard.lock();
        stream->completed++;
        stream->changed.notify_all();
    }
}

static void worker_main(weft_emulated_stream *stream)
{
    stream->machine = weft_emulated_machine_open();
    work(stream);
    weft_emulated_machine_close(stream->machine);
}

/* ---- waiting ---- */

static bool is_complete(weft_emulated_stream *stream, uint64_t number)
{
    std::unique_lock<std::mutex> guard(stream->lock);

    if (stream->completed >= number) {
        return true;
    }
    if (stream->denied == number) {
        return stream->changed.wait_for(guard, ANSWER, [=] { return stream->completed >= number; });
    }
    stream->denied = number;
    stream->is_urgent = true;
    stream->changed.notify_all();
    return false;
}

/* False: `waiting` was stopped meanwhile. */
static bool wait_for(weft_emulated_stream *stream, uint64_t number, const weft_emulated_stream *waiting)
{
    std::unique_lock<std::mutex> guard(stream->lock);

    stream->is_urgent = true;
    stream->changed.notify_all();
    while (stream->completed < number && !stream->is_stopped) {
        stream->changed.wait_for(guard, 10 * LEISURE);
        if (waiting != nullptr && waiting->is_stopped) {
            return false;
        }
    }
    return true;
}

static uint64_t issued_count(weft_emulated_stream *stream)
{
    std::lock_guard<std::mutex> guard(stream->lock);

    return stream->issued;
}

static cudaStream_t null_stream(int device);

static cudaStream_t stream_or_null(cudaStream_t stream)
{
    return stream != nullptr ? stream : null_stream(weft_emulated_current_device());
}

cudaError_t weft_emulated_stream_wait(cudaStream_t stream)
{
    stream = stream_or_null(stream);
    wait_for(stream, issued_count(stream), nullptr);
    return weft_emulated_device_error(stream->device);
}

cudaError_t weft_emulated_drain(int device, bool is_all)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::vector<std::shared_ptr<weft_emulated_stream>> streams; /* another thread may destroy its own meanwhile */

    {
        std::lock_guard<std::mutex> guard(world.lock);
        streams = world.streams;
    }
    for (const auto &stream : streams) {
        if (stream->device == device && (is_all || stream->is_blocking)) {
            wait_for(stream.get(), issued_count(stream.get()), nullptr);
        }
    }
    return weft_emulated_device_error(device);
}

bool weft_emulated_is_capturing()
{
    if (capture_count > 0 && capture_stream != nullptr) {
        capture_stream->is_capture_broken = true;
    }
    return capture_count > 0;
}

bool weft_emulated_stream_captures(cudaStream_t stream)
{
    return stream != nullptr && stream->capture != nullptr;
}

int weft_emulated_stream_device(cudaStream_t stream)
{
    return stream != nullptr ? stream->device : weft_emulated_current_device();
}

/* ---- streams ---- */

/* For NCCL's stub, which puts functions into streams instead of kernels. */
static void enqueue_function(struct fake_stream *stream, void (*function)(void *), void (*release)(void *),
                             void *argument)
{
    std::shared_ptr<void> held(argument, release); /* also by copies of the operation, in graphs; no longer by us */

    (void)weft_emulated_enqueue(static_cast<cudaStream_t>(stream), "NCCL", [=, held = std::move(held)](cudaStream_t) {
        function(held.get());
        return cudaSuccess;
    });
}

static void *memory_of(struct fake_stream *, const void *pointer)
{
    return const_cast<void *>(pointer);
}

void *weft_emulated_nccl_stream(cudaStream_t stream)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::lock_guard<std::mutex> guard(world.lock);

    return world.config.has_nccl != 0 ? static_cast<fake_stream *>(stream) : nullptr;
}

static cudaStream_t open_stream(int device, bool is_blocking)
{
    weft_emulated_world &world = weft_emulated_the_world();
    auto stream = std::make_shared<weft_emulated_stream>();

    stream->enqueue = enqueue_function;
    stream->memory = memory_of;
    stream->device = device;
    stream->is_blocking = is_blocking;
    stream->worker = std::thread(worker_main, stream.get());
    std::lock_guard<std::mutex> guard(world.lock);
    world.streams.push_back(stream);
    return stream.get();
}

static cudaStream_t null_stream(int device)
{
    weft_emulated_world &world = weft_emulated_the_world();

    if (world.devices[device].null_stream == nullptr) {
        world.devices[device].null_stream = open_stream(device, true);
    }
    return world.devices[device].null_stream;
}

static void append(cudaStream_t stream, operation next)
{
    std::lock_guard<std::mutex> guard(stream->lock);

    stream->queue.push_back(std::move(next));
    stream->issued++;
    stream->changed.notify_all();
}

cudaError_t weft_emulated_enqueue(cudaStream_t stream, const char *name, operation_run run)
{
    bool is_default = stream == nullptr;
    cudaError_t error;

    if (weft_emulated_stream_captures(stream)) {
        stream->capture.load()->operations.push_back({name, std::move(run), {}});
        return cudaSuccess;
    }
    if (is_default && weft_emulated_is_capturing()) {
        return cudaErrorStreamCaptureUnsupported;
    }
    stream = stream_or_null(stream);
    error = weft_emulated_device_error(stream->device);
    if (error != cudaSuccess) {
        return error;
    }
    if (is_default || stream->is_blocking) { /* the default stream waits for blocking ones, and they for it */
        cudaStream_t first = is_default ? nullptr : weft_emulated_the_world().devices[stream->device].null_stream;

        if (is_default) {
            (void)weft_emulated_drain(stream->device, false);
        } else if (first != nullptr && first != stream) {
            wait_for(first, issued_count(first), nullptr);
        }
    }
    append(stream, {name, std::move(run), {}});
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    ENTER("cudaStreamCreateWithFlags");
    *stream = open_stream(weft_emulated_current_device(), (flags & cudaStreamNonBlocking) == 0);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    ENTER("cudaStreamCreate");
    *stream = open_stream(weft_emulated_current_device(), true);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int)
{
    return cudaStreamCreateWithFlags(stream, flags);
}

/* What was issued still happens, unless it hangs: a real GPU would go on alone, here the worker must end. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::unique_lock<std::mutex> guard;
    uint64_t before;

    ENTER("cudaStreamDestroy");
    if (stream == nullptr) {
        return weft_emulated_leave(cudaErrorInvalidResourceHandle);
    }
    guard = std::unique_lock<std::mutex>(stream->lock);
    stream->is_urgent = true;
    stream->changed.notify_all();
    do {
        before = stream->completed;
        stream->changed.wait_for(guard, std::chrono::seconds(2),
                                 [=] { return stream->completed > before || stream->completed == stream->issued; });
    } while (stream->completed > before && stream->completed < stream->issued);
    stream->is_stopped = true;
    stream->changed.notify_all();
    guard.unlock();
    stream->worker.join();
    {
        std::lock_guard<std::mutex> world_guard(world.lock);

        for (size_t i = 0; i < world.streams.size(); i++) {
            if (world.streams[i].get() == stream) {
                world.streams.erase(world.streams.begin() + (ptrdiff_t)i);
                break;
            }
        }
    }
    return cudaSuccess;
}

static bool refuse_in_capture(cudaStream_t stream)
{
    if (weft_emulated_stream_captures(stream)) {
        stream->is_capture_broken = true;
        return true;
    }
    return weft_emulated_is_capturing();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER("cudaStreamSynchronize");
    if (refuse_in_capture(stream)) {
        return weft_emulated_leave(cudaErrorStreamCaptureUnsupported);
    }
    return weft_emulated_leave(weft_emulated_stream_wait(stream));
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    ENTER("cudaStreamQuery");
    if (refuse_in_capture(stream)) {
        return weft_emulated_leave(cudaErrorStreamCaptureUnsupported);
    }
    stream = stream_or_null(stream);
    /* In this order: what is complete has left its error. */
    const bool is_done = is_complete(stream, issued_count(stream));
    if (weft_emulated_device_error(stream->device) != cudaSuccess) {
        return weft_emulated_leave(weft_emulated_device_error(stream->device));
    }
    return is_done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *context)
{
    ENTER("cudaLaunchHostFunc");
    return weft_emulated_leave(weft_emulated_enqueue(stream, "host function", [=](cudaStream_t) {
        function(context);
        return cudaSuccess;
    }));
}

int weft_emulated_host_function(void *stream, void (*function)(void *context), void *context)
{
    return static_cast<int>(cudaLaunchHostFunc(static_cast<cudaStream_t>(stream), function, context));
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int)
{
    weft_emulated_world &world = weft_emulated_the_world();

    ENTER("cudaEventCreateWithFlags");
    *event = new weft_emulated_event();
    (*event)->time_ns = std::make_shared<std::atomic<int64_t>>(0);
    std::lock_guard<std::mutex> guard(world.lock);
    world.events.insert(*event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    weft_emulated_world &world = weft_emulated_the_world();

    ENTER("cudaEventDestroy");
    if (event == nullptr) {
        return weft_emulated_leave(cudaErrorInvalidResourceHandle);
    }
    std::lock_guard<std::mutex> guard(world.lock);
    world.events.erase(event);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    std::shared_ptr<std::atomic<int64_t>> time_ns = event->time_ns;
    cudaError_t error;

    ENTER("cudaEventRecord");
    event->capture = weft_emulated_stream_captures(stream) ? stream->capture.load() : nullptr;
    error = weft_emulated_enqueue(stream, "event", [=](cudaStream_t) {
        *time_ns =
            std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
                .count();
        return cudaSuccess;
    });
    std::lock_guard<std::mutex> guard(event->lock);
    event->stream = stream_or_null(stream);
    event->number = event->capture != nullptr ? 0 : issued_count(event->stream);
    return weft_emulated_leave(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    ENTER("cudaEventQuery");
    if (event->capture != nullptr) {
        return weft_emulated_leave(cudaErrorCapturedEvent);
    }
    if (event->stream == nullptr) {
        return cudaSuccess;
    }
    const bool is_done = is_complete(event->stream, event->number);
    if (weft_emulated_device_error(event->stream->device) != cudaSuccess) {
        return weft_emulated_leave(weft_emulated_device_error(event->stream->device));
    }
    return is_done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER("cudaEventSynchronize");
    if (event->capture != nullptr) {
        return weft_emulated_leave(cudaErrorCapturedEvent);
    }
    if (event->stream == nullptr) {
        return cudaSuccess;
    }
    wait_for(event->stream, event->number, nullptr);
    return weft_emulated_leave(weft_emulated_device_error(event->stream->device));
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    ENTER("cudaEventElapsedTime");
    if (begin->stream == nullptr || end->stream == nullptr) {
        return weft_emulated_leave(cudaErrorInvalidResourceHandle);
    }
    if (!is_complete(begin->stream, begin->number) || !is_complete(end->stream, end->number)) {
        return cudaErrorNotReady;
    }
    *milliseconds = (float)(*end->time_ns - *begin->time_ns) * 1e-6f;
    return cudaSuccess;
}

/* In a capture the other stream joins the graph: its operations follow in the order of the calls. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int)
{
    cudaStream_t other;
    uint64_t number;

    ENTER("cudaStreamWaitEvent");
    if (event->capture != nullptr) {
        stream->capture = event->capture;
        return cudaSuccess;
    }
    other = event->stream;
    number = event->number;
    if (other == nullptr || other == stream) {
        return cudaSuccess;
    }
    return weft_emulated_leave(weft_emulated_enqueue(stream, "wait", [=](cudaStream_t own) {
        wait_for(other, number, own);
        return cudaSuccess;
    }));
}

/* ---- kernels ---- */

static std::map<const void *, size_t> &shared_limits()
{
    static std::map<const void *, size_t> *limits = new std::map<const void *, size_t>();

    return *limits;
}

cudaError_t weft_emulated_func_set_attribute(const void *function, cudaFuncAttribute attribute, int value)
{
    ENTER("cudaFuncSetAttribute");
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > (int)WEFT_EMULATED_SHARED_MAX) {
        return weft_emulated_leave(cudaErrorInvalidValue);
    }
    std::lock_guard<std::mutex> guard(weft_emulated_the_world().lock);
    shared_limits()[function] = (size_t)value;
    return cudaSuccess;
}

/* "" or why a GPU would refuse the launch. */
static std::string refusal(const weft_emulated_grid &grid, const void *const *pointers, uint32_t pointer_count)
{
    uint64_t threads = (uint64_t)grid.block.x * grid.block.y * grid.block.z;
    std::string name = std::string("launch of ") + grid.kernel + ": ";
    size_t limit = 48 << 10;

    {
        std::lock_guard<std::mutex> guard(weft_emulated_the_world().lock);
        auto found = shared_limits().find(grid.function);

        limit = found != shared_limits().end() && found->second > limit ? found->second : limit;
    }
    if (threads < 1 || threads > 1024 || grid.block.z > 64) {
        return name + std::to_string(threads) + " threads per block";
    }
    if (grid.grid.x < 1 || grid.grid.y < 1 || grid.grid.z < 1 || grid.grid.x > 0x7fffffff || grid.grid.y > 65535 ||
        grid.grid.z > 65535) {
        return name + "grid of " + std::to_string(grid.grid.x) + " x " + std::to_string(grid.grid.y) + " x " +
               std::to_string(grid.grid.z) + " blocks";
    }
    if (grid.shared_size > limit) {
        return name + std::to_string(grid.shared_size) + " bytes of shared memory, allowed " + std::to_string(limit);
    }
    for (uint32_t i = 1; i < pointer_count; i++) {
        weft_emulated_place place = WEFT_EMULATED_DEVICE;
        int device;
        bool is_live = pointers[i] == nullptr || weft_emulated_find(pointers[i], 1, place, device);

        if (!is_live || (pointers[i] != nullptr && place == WEFT_EMULATED_PAGEABLE)) {
            return name + "argument " + std::to_string(i) + " points to " +
                   (is_live ? "memory of the host" : "freed memory");
        }
    }
    return "";
}

static cudaError_t run_grid(const weft_emulated_grid &grid, cudaStream_t stream)
{
    weft_emulated_world &world = weft_emulated_the_world();
    std::string report;
    bool is_injected;
    uint32_t order;
    bool is_good;

    {
        std::lock_guard<std::mutex> guard(world.lock);

        world.run_launches++;
        is_injected = world.run_launches == world.config.fault_launch;
        order = world.config.order;
    }
    if (is_injected) {
        return cudaErrorLaunchFailure;
    }
    is_good = weft_emulated_machine_run(
        stream->machine, grid, order, [=] { return stream->is_stopped.load(); }, report);
    if (is_good) {
        report = weft_emulated_check_memory(stream->device);
        if (report.empty()) {
            return cudaSuccess;
        }
        report = std::string("kernel ") + grid.kernel + " " + report;
    }
    weft_emulated_tell("GPU " + std::to_string(stream->device) + ": " + report);
    return is_good ? cudaErrorIllegalAddress : cudaErrorLaunchFailure;
}

void weft_emulated_launch_grid(const weft_emulated_grid *grid, cudaStream_t stream, const void *const *pointers,
                               uint32_t pointer_count)
{
    weft_emulated_grid copy = *grid;
    cudaError_t error = weft_emulated_enter("launch");
    std::string refused;

    {
        std::lock_guard<std::mutex> guard(weft_emulated_the_world().lock);
        weft_emulated_the_world().launches++;
    }
    if (error == cudaSuccess) {
        refused = refusal(copy, pointers, pointer_count);
        if (!refused.empty()) {
            weft_emulated_tell(refused);
            error = cudaErrorInvalidConfiguration;
        }
    }
    if (error == cudaSuccess) {
        error = weft_emulated_enqueue(stream, copy.kernel, [=](cudaStream_t own) { return run_grid(copy, own); });
    }
    if (error == cudaSuccess && weft_emulated_stream_captures(stream)) {
        stream->capture.load()->operations.back().pointers.assign(pointers + 1, pointers + pointer_count);
    }
    (void)weft_emulated_leave(error);
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    ENTER("cudaStreamBeginCapture");
    if (stream == nullptr || stream->capture != nullptr) {
        return weft_emulated_leave(cudaErrorStreamCaptureUnsupported);
    }
    stream->capture = new weft_emulated_graph();
    stream->is_capture_broken = false;
    if (mode != cudaStreamCaptureModeRelaxed) {
        capture_count++;
        capture_stream = stream;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    weft_emulated_world &world = weft_emulated_the_world();
    weft_emulated_graph *captured;
    cudaError_t error = weft_emulated_enter("cudaStreamEndCapture"); /* ends it in any case */

    if (!weft_emulated_stream_captures(stream)) {
        return weft_emulated_leave(error != cudaSuccess ? error : cudaErrorIllegalState);
    }
    captured = stream->capture;
    if (error == cudaSuccess && stream->is_capture_broken) {
        error = cudaErrorStreamCaptureInvalidated;
    }
    if (capture_stream == stream) {
        capture_count = 0;
        capture_stream = nullptr;
    }
    {
        std::lock_guard<std::mutex> guard(world.lock);

        for (const auto &other : world.streams) { /* those that joined leave too */
            weft_emulated_graph *joined = captured;
            (void)other->capture.compare_exchange_strong(joined, nullptr); /* or its own thread's affair */
        }
        if (error == cudaSuccess) {
            world.graphs.insert(captured);
        }
    }
    if (error != cudaSuccess) {
        delete captured;
        return weft_emulated_leave(error);
    }
    *graph = captured;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    ENTER("cudaStreamIsCapturing");
    *status = !weft_emulated_stream_captures(stream) ? cudaStreamCaptureStatusNone
              : stream->is_capture_broken            ? cudaStreamCaptureStatusInvalidated
                                                     : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    ENTER("cudaGraphGetNodes");
    if (nodes != nullptr) {
        return weft_emulated_leave(cudaErrorNotSupported);
    }
    *count = graph->operations.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    weft_emulated_world &world = weft_emulated_the_world();

    ENTER("cudaGraphInstantiate");
    *exec = new weft_emulated_graph(*graph);
    std::lock_guard<std::mutex> guard(world.lock);
    world.graphs.insert(*exec);
    return cudaSuccess;
}

/* A GPU would read what is there now: a graph keeps addresses, whatever becomes of the memory. */
static cudaError_t check_pointers(const weft_emulated_graph *graph)
{
    for (const operation &node : graph->operations) {
        for (const void *pointer : node.pointers) {
            weft_emulated_place place = WEFT_EMULATED_DEVICE;
            int device;

            if (pointer != nullptr &&
                (!weft_emulated_find(pointer, 1, place, device) || place == WEFT_EMULATED_PAGEABLE)) {
                weft_emulated_tell(std::string("graph with ") + node.name + ": an argument points to freed memory");
                return cudaErrorIllegalAddress;
            }
        }
    }
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t)
{
    ENTER("cudaGraphUpload");
    return weft_emulated_leave(check_pointers(exec));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    cudaError_t error = weft_emulated_enter("cudaGraphLaunch");

    if (error == cudaSuccess) {
        error = check_pointers(exec);
    }
    for (size_t i = 0; i < exec->operations.size() && error == cudaSuccess; i++) {
        error = weft_emulated_enqueue(stream, exec->operations[i].name, exec->operations[i].run);
    }
    return weft_emulated_leave(error);
}

static cudaError_t destroy_graph(weft_emulated_graph *graph)
{
    weft_emulated_world &world = weft_emulated_the_world();

    {
        std::lock_guard<std::mutex> guard(world.lock);
        world.graphs.erase(graph);
    }
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    ENTER("cudaGraphExecDestroy");
    return destroy_graph(exec);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    ENTER("cudaGraphDestroy");
    return destroy_graph(graph);
}
