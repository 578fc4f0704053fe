/*
 * Runs grids: blocks one after another, threads as fibers.
 *
 * A fiber takes threads of the block one after another and runs each to its end; only a thread that must wait (at a
 * barrier, for the lanes of its warp) keeps its fiber, and another fiber goes on. So a kernel without barriers is one
 * loop, and a warp that meets for a shuffle costs 31 switches. A waiting thread hands over directly to the next that
 * can run: of its own warp first, then a thread not begun, then of the other warps.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "emulator/fiber.h"
#include "emulator/machine.h"

namespace
{

enum { THREADS_MAX = 1024, WARPS_MAX = THREADS_MAX / 32, SHARED_MAX = 227 << 10 };

struct async_copy {
    void *to;
    const void *from;
    uint32_t group;
};

struct worker_fiber {
    weft_fiber fiber;
    weft_emulated_thread self;
    uint32_t thread; /* flat index inside the block */
    std::vector<async_copy> copies;
    uint32_t copy_group; /* that the next copy belongs to */
};

struct thread_state {
    worker_fiber *fiber;
    weft_emulated_warp_run *run; /* of the warp operation it waits in */
    void *data;
    uint32_t mask;
    const char *what;
};

struct warp_state {
    uint32_t alive;      /* lanes that have not left the kernel */
    uint32_t ready;      /* begun, waiting for nothing but their turn */
    uint32_t waiting;    /* in a warp operation */
    uint32_t at_barrier; /* in __syncthreads() */
};

} // namespace

struct weft_emulated_machine {
    weft_fiber host;
    std::vector<worker_fiber *> fibers;
    std::vector<worker_fiber *> idle;
    worker_fiber *running; /* NULL: the host */
    const weft_emulated_thread **self; /* weft_emulated_self of the host thread: finding it takes as long as a switch */
    unsigned char *shared;

    const weft_emulated_grid *grid;
    const std::function<bool()> *is_stopped;
    uint32_t random; /* state */
    uint3 block;
    uint32_t thread_count;
    uint32_t warp_count;
    uint32_t begun_count;
    uint32_t done_count;
    uint32_t yield_count;              /* since everybody alive had a turn */
    uint16_t begin_order[THREADS_MAX]; /* threads in the order in which they begin */
    bool is_descending;
    thread_state threads[THREADS_MAX];
    warp_state warps[WARPS_MAX];

    uint32_t barrier_count; /* threads in __syncthreads() */
    uint32_t barrier_votes;
    weft_emulated_votes barrier_result;
    const char *barrier_file;
    int barrier_line;

    std::string fault;
};

__thread const weft_emulated_thread *weft_emulated_self;
static __thread weft_emulated_machine *the_machine;

/* ---- faults ---- */

/* "0..3, 7" of the threads for which has(thread). */
template <typename F> static std::string list_threads(const weft_emulated_machine &m, F has)
{
    std::string text;

    for (uint32_t i = 0; i < m.thread_count; i++) {
        uint32_t end = i;

        if (!has(i)) {
            continue;
        }
        while (end + 1 < m.thread_count && has(end + 1)) {
            end++;
        }
        text += (text.empty() ? "" : ", ") + std::to_string(i) + (end > i ? ".." + std::to_string(end) : "");
        i = end;
    }
    return text;
}

static std::string where_text(const weft_emulated_machine &m)
{
    char text[200];

    snprintf(text, sizeof(text), "kernel %s, block (%u, %u, %u) of (%u, %u, %u)", m.grid->kernel, m.block.x, m.block.y,
             m.block.z, m.grid->grid.x, m.grid->grid.y, m.grid->grid.z);
    return text;
}

static const char *barrier_file(const weft_emulated_machine &m)
{
    const char *name = strrchr(m.barrier_file, '/');

    return name != nullptr ? name + 1 : m.barrier_file;
}

/* Nobody can go on, and not all are done: who waits for whom. */
static std::string deadlock_text(const weft_emulated_machine &m)
{
    auto bit = [&](uint32_t i, uint32_t warp_state::*set) { return (m.warps[i / 32].*set >> i % 32 & 1) != 0; };
    std::string text = where_text(m) + ": deadlock:";

    if (m.barrier_count > 0) {
        std::string left = list_threads(m, [&](uint32_t i) { return !bit(i, &warp_state::alive); });

        text += std::string(" __syncthreads at ") + barrier_file(m) + ":" + std::to_string(m.barrier_line);
        text += " waits for threads ";
        text += list_threads(m, [&](uint32_t i) { return !bit(i, &warp_state::at_barrier); });
        text += left.empty() ? "" : " (left the kernel: " + left + ")";
    }
    for (uint32_t w = 0; w < m.warp_count; w++) {
        if (m.warps[w].waiting != 0) {
            const thread_state &first = m.threads[w * 32 + (uint32_t)__builtin_ctz(m.warps[w].waiting)];

            text += std::string(m.barrier_count > 0 ? "; " : " ") + first.what + " of warp " + std::to_string(w) +
                    " waits for threads ";
            text += list_threads(m, [&](uint32_t i) {
                return i / 32 == w && (first.mask >> i % 32 & 1) != 0 && bit(i, &warp_state::alive) &&
                       !bit(i, &warp_state::waiting);
            });
            break;
        }
    }
    return text;
}

/* ---- scheduling ---- */

static void switch_from(weft_emulated_machine &m, worker_fiber *own, worker_fiber *next)
{
    m.running = next;
    weft_fiber_switch(own == nullptr ? &m.host : &own->fiber, next == nullptr ? &m.host : &next->fiber);
    m.running = own;
    *m.self = own == nullptr ? nullptr : &own->self;
}

void weft_emulated_fault(const char *format, ...)
{
    weft_emulated_machine *m = the_machine;
    char text[400];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (m == nullptr || m->running == nullptr) {
        fprintf(stderr, "emulated GPU: outside of a kernel: %s\n", text);
        abort();
    }
    m->fault = where_text(*m) + ", thread (" + std::to_string(threadIdx.x) + ", " + std::to_string(threadIdx.y) + ", " +
               std::to_string(threadIdx.z) + "): " + text;
    switch_from(*m, m->running, nullptr);
    abort(); /* nobody comes back to a faulty block */
}

enum next_kind { NEXT_NONE, NEXT_BEGIN, NEXT_RESUME };

/* The lane whose turn it is after lane `after`, round and round. */
static uint32_t pick_lane(const weft_emulated_machine &m, uint32_t ready, uint32_t after)
{
    uint32_t below = ready & ((1U << after) - 1);
    uint32_t above = ready & ~below;

    if (m.is_descending) {
        return 31U - (uint32_t)__builtin_clz(below != 0 ? below : ready);
    }
    return (uint32_t)__builtin_ctz(above != 0 ? above : ready);
}

static uint32_t next_warp(const weft_emulated_machine &m, uint32_t warp)
{
    if (m.is_descending) {
        return warp > 0 ? warp - 1 : m.warp_count - 1;
    }
    return warp + 1 < m.warp_count ? warp + 1 : 0;
}

static next_kind pick(weft_emulated_machine &m, uint32_t thread, worker_fiber **fiber_out)
{
    uint32_t warp = thread / 32;

    if (m.warps[warp].ready == 0 && m.begun_count < m.thread_count) {
        return NEXT_BEGIN;
    }
    for (uint32_t i = 0; i < m.warp_count; i++) {
        if (m.warps[warp].ready != 0) {
            uint32_t lane = pick_lane(m, m.warps[warp].ready, thread % 32);

            m.warps[warp].ready &= ~(1U << lane);
            *fiber_out = m.threads[warp * 32 + lane].fiber;
            return NEXT_RESUME;
        }
        warp = next_warp(m, warp);
    }
    return NEXT_NONE;
}

static void fiber_main();

static worker_fiber *take_fiber(weft_emulated_machine &m)
{
    worker_fiber *fiber;

    if (m.idle.empty()) {
        fiber = new worker_fiber();
        weft_fiber_init(&fiber->fiber, fiber_main);
        m.fibers.push_back(fiber);
        return fiber;
    }
    fiber = m.idle.back();
    m.idle.pop_back();
    return fiber;
}

/* The running thread cannot go on: others do until it is picked. With nobody left, the host reports the deadlock. */
static void give_way(weft_emulated_machine &m)
{
    worker_fiber *own = m.running;
    worker_fiber *next = nullptr;

    if (pick(m, own->thread, &next) == NEXT_BEGIN) {
        next = take_fiber(m);
    }
    if (next != own) {
        switch_from(m, own, next);
    }
}

static void begin_thread(weft_emulated_machine &m, worker_fiber *own)
{
    const dim3 &block = m.grid->block;
    uint32_t thread = m.begin_order[m.begun_count++];

    own->thread = thread;
    own->copies.clear();
    own->self.thread_index = {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
    own->self.block_index = m.block;
    own->self.block_dim = block;
    own->self.grid_dim = m.grid->grid;
    own->self.lane = thread % 32;
    own->self.shared = m.shared;
    m.threads[thread].fiber = own;
    *m.self = &own->self;
}

static bool try_warp(weft_emulated_machine &m, uint32_t thread);

static void end_thread(weft_emulated_machine &m, uint32_t thread)
{
    warp_state &warp = m.warps[thread / 32];

    warp.alive &= ~(1U << thread % 32);
    m.done_count++;
    for (uint32_t waiting = warp.waiting; waiting != 0; waiting &= waiting - 1) { /* it may have been waited for */
        uint32_t lane = (uint32_t)__builtin_ctz(waiting);

        if ((warp.waiting >> lane & 1) != 0) {
            try_warp(m, thread / 32 * 32 + lane);
        }
    }
}

static void fiber_main()
{
    weft_emulated_machine &m = *the_machine;
    worker_fiber *own = m.running;

    weft_fiber_entered(&m.host);
    for (;;) {
        worker_fiber *next = nullptr;

        do {
            begin_thread(m, own);
            m.grid->call->run();
            end_thread(m, own->thread);
        } while (pick(m, own->thread, &next) == NEXT_BEGIN);
        m.idle.push_back(own);
        switch_from(m, own, next);
    }
}

/* ---- barriers and warp operations ---- */

/* Nearly always it is the same literal; sanitizers make every call of strcmp() dear. */
static bool differ(const char *a, const char *b)
{
    return a != b && strcmp(a, b) != 0;
}

weft_emulated_votes weft_emulated_barrier(const char *file, int line, bool predicate)
{
    weft_emulated_machine &m = *the_machine;
    uint32_t thread = m.running->thread;

    if (m.barrier_count == 0) {
        m.barrier_file = file;
        m.barrier_line = line;
        m.barrier_votes = 0;
    } else if (m.barrier_line != line || differ(m.barrier_file, file)) {
        weft_emulated_fault("at __syncthreads of line %d while others are at that of %s:%d", line, barrier_file(m),
                            m.barrier_line);
    }
    m.barrier_votes += predicate ? 1 : 0;
    m.barrier_count++;
    if (m.barrier_count < m.thread_count) {
        m.warps[thread / 32].at_barrier |= 1U << thread % 32;
        give_way(m);
        return m.barrier_result; /* the next barrier needs this thread too: nobody has overwritten it */
    }
    m.barrier_result = {m.barrier_votes, m.thread_count};
    m.barrier_count = 0;
    for (uint32_t w = 0; w < m.warp_count; w++) {
        m.warps[w].ready |= m.warps[w].at_barrier;
        m.warps[w].at_barrier = 0;
    }
    return m.barrier_result;
}

/* The thread that runs when this one yields: one that has not begun, else the next that can, round the block. */
static worker_fiber *pick_other(weft_emulated_machine &m, uint32_t thread)
{
    const uint32_t lane = thread % 32;
    const uint32_t beyond = m.is_descending ? (1U << lane) - 1 : ~((2U << lane) - 1); /* lanes after this one */

    if (m.begun_count < m.thread_count) {
        return take_fiber(m);
    }
    for (uint32_t i = 0;; i++) { /* ends with the yielding thread itself at the latest */
        uint32_t step = m.is_descending ? m.warp_count - i % m.warp_count : i;
        warp_state &warp = m.warps[(thread / 32 + step) % m.warp_count];
        uint32_t ready = i == 0 ? warp.ready & beyond : warp.ready;

        if (ready != 0) {
            uint32_t next = m.is_descending ? 31U - (uint32_t)__builtin_clz(ready) : (uint32_t)__builtin_ctz(ready);

            warp.ready &= ~(1U << next);
            return m.threads[(uint32_t)(&warp - m.warps) * 32 + next].fiber;
        }
    }
}

void weft_emulated_yield()
{
    weft_emulated_machine &m = *the_machine;
    worker_fiber *own = m.running;
    struct timespec pause = {0, 20000};

    if ((*m.is_stopped)()) {
        weft_emulated_fault("stopped while it waited for memory to change");
    }
    m.yield_count++;
    if (m.begun_count == m.thread_count && m.yield_count >= m.begun_count - m.done_count) {
        m.yield_count = 0;
        nanosleep(&pause, nullptr); /* once per round: what is waited for is another host thread's work */
    }
    m.warps[own->thread / 32].ready |= 1U << own->thread % 32;
    worker_fiber *next = pick_other(m, own->thread);
    if (next != own) {
        switch_from(m, own, next);
    }
}

/* The warp operation that `thread` waits in, when all its lanes are there: runs it and lets them go on. */
static bool try_warp(weft_emulated_machine &m, uint32_t thread)
{
    warp_state &warp = m.warps[thread / 32];
    const thread_state &own = m.threads[thread];
    uint32_t lanes = own.mask & warp.alive;
    void *data[32];

    if ((warp.waiting & lanes) != lanes) {
        return false;
    }
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(left);
        const thread_state &other = m.threads[thread / 32 * 32 + lane];

        if (other.run != own.run || other.mask != own.mask || differ(other.what, own.what)) {
            weft_emulated_fault("lane %u at %s of lanes 0x%x while lane %u is at %s of lanes 0x%x", thread % 32,
                                own.what, own.mask, lane, other.what, other.mask);
        }
        data[lane] = other.data;
    }
    own.run(data, lanes);
    warp.waiting &= ~lanes;
    warp.ready |= lanes;
    return true;
}

void weft_emulated_warp(uint32_t mask, weft_emulated_warp_run *run, void *data, const char *what)
{
    weft_emulated_machine &m = *the_machine;
    uint32_t thread = m.running->thread;
    warp_state &warp = m.warps[thread / 32];

    if ((mask >> thread % 32 & 1) == 0) {
        weft_emulated_fault("%s of lanes 0x%x by lane %u, which is none of them", what, mask, thread % 32);
    }
    m.threads[thread].run = run;
    m.threads[thread].data = data;
    m.threads[thread].mask = mask;
    m.threads[thread].what = what;
    warp.waiting |= 1U << thread % 32;
    if (try_warp(m, thread)) {
        warp.ready &= ~(1U << thread % 32); /* it runs on */
    } else {
        give_way(m);
    }
}

static void run_nothing(void **, uint32_t)
{
}

void __syncwarp(uint32_t mask)
{
    weft_emulated_warp(mask, run_nothing, nullptr, "__syncwarp");
}

struct vote {
    bool predicate;
    uint32_t ballot;
    uint32_t lanes;
};

static void run_ballot(void **data, uint32_t lanes)
{
    uint32_t ballot = 0;

    for (uint32_t i = 0; i < 32; i++) {
        if ((lanes >> i & 1) != 0) {
            ballot |= (static_cast<vote *>(data[i])->predicate ? 1U : 0U) << i;
        }
    }
    for (uint32_t i = 0; i < 32; i++) {
        if ((lanes >> i & 1) != 0) {
            static_cast<vote *>(data[i])->ballot = ballot;
            static_cast<vote *>(data[i])->lanes = lanes;
        }
    }
}

uint32_t __ballot_sync(uint32_t mask, int predicate)
{
    vote own = {predicate != 0, 0, 0};

    weft_emulated_warp(mask, run_ballot, &own, "__ballot_sync");
    return own.ballot;
}

int __all_sync(uint32_t mask, int predicate)
{
    vote own = {predicate != 0, 0, 0};

    weft_emulated_warp(mask, run_ballot, &own, "__all_sync");
    return own.ballot == own.lanes;
}

uint32_t __activemask()
{
    return 1U << weft_emulated_self->lane; /* all that is promised: the lane itself */
}

/* ---- asynchronous copies ---- */

void weft_emulated_copy_async(void *shared, const void *global)
{
    worker_fiber *own = the_machine->running;

    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        weft_emulated_fault("cp.async from %p to %p: no multiples of 16", global, shared);
    }
    memset(shared, 0xff, 16);
    own->copies.push_back({shared, global, own->copy_group});
}

void weft_emulated_copy_async_commit()
{
    the_machine->running->copy_group++;
}

void weft_emulated_copy_async_wait(uint32_t left)
{
    worker_fiber *own = the_machine->running;
    size_t kept = 0;

    for (const async_copy &copy : own->copies) {
        if (own->copy_group - copy.group > left) {
            memcpy(copy.to, copy.from, 16);
        } else {
            own->copies[kept++] = copy;
        }
    }
    own->copies.resize(kept);
}

/* ---- grids ---- */

weft_emulated_machine *weft_emulated_machine_open()
{
    weft_emulated_machine *m = new weft_emulated_machine();

    weft_fiber_init_host(&m->host);
    m->shared = static_cast<unsigned char *>(aligned_alloc(128, SHARED_MAX + 128));
    return m;
}

void weft_emulated_machine_close(weft_emulated_machine *m)
{
    for (worker_fiber *fiber : m->fibers) {
        weft_fiber_fini(&fiber->fiber);
        delete fiber;
    }
    free(m->shared);
    delete m;
}

static uint32_t next_random(weft_emulated_machine &m)
{
    m.random = m.random * 1664525U + 1013904223U; /* Knuth's and Lewis's, good enough for an order */
    return m.random >> 8;
}

/* Warps in random order, lanes up or down: what a GPU may do. */
static void order_threads(weft_emulated_machine &m, uint32_t order)
{
    uint32_t warps[WARPS_MAX];
    uint32_t count = 0;

    m.is_descending = order == 1 || (order > 1 && next_random(m) % 2 == 0);
    for (uint32_t w = 0; w < m.warp_count; w++) {
        warps[w] = m.is_descending ? m.warp_count - 1 - w : w;
    }
    for (uint32_t w = m.warp_count; w > 1 && order > 1; w--) {
        std::swap(warps[w - 1], warps[next_random(m) % w]);
    }
    for (uint32_t w = 0; w < m.warp_count; w++) {
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t thread = warps[w] * 32 + (m.is_descending ? 31 - i : i);

            if (thread < m.thread_count) {
                m.begin_order[count++] = (uint16_t)thread;
            }
        }
    }
}

static bool run_block(weft_emulated_machine &m, uint32_t order)
{
    m.begun_count = 0;
    m.done_count = 0;
    m.yield_count = 0;
    m.barrier_count = 0;
    for (uint32_t w = 0; w < m.warp_count; w++) {
        uint32_t lanes = m.thread_count - w * 32 < 32 ? m.thread_count - w * 32 : 32;

        m.warps[w] = {lanes == 32 ? WEFT_EMULATED_FULL_MASK : (1U << lanes) - 1, 0, 0, 0};
    }
    if (order > 1) {
        order_threads(m, order);
    }
    memset(m.shared, 0xff, m.grid->shared_size); /* NaN: shared memory begins with anything */
    switch_from(m, nullptr, take_fiber(m));
    if (m.fault.empty() && m.done_count < m.thread_count) {
        m.fault = deadlock_text(m);
    }
    if (m.fault.empty()) {
        return true;
    }
    m.idle.clear();
    for (worker_fiber *fiber : m.fibers) {
        weft_fiber_reset(&fiber->fiber, fiber_main);
        m.idle.push_back(fiber);
    }
    return false;
}

bool weft_emulated_machine_run(weft_emulated_machine *machine, const weft_emulated_grid &grid, uint32_t order,
                               const std::function<bool()> &is_stopped, std::string &report_out)
{
    weft_emulated_machine &m = *machine;
    uint64_t count = (uint64_t)grid.grid.x * grid.grid.y * grid.grid.z;
    uint64_t first;
    bool is_descending;

    the_machine = machine;
    m.self = &weft_emulated_self;
    m.grid = &grid;
    m.is_stopped = &is_stopped;
    m.random += order;
    m.thread_count = grid.block.x * grid.block.y * grid.block.z;
    m.warp_count = (m.thread_count + 31) / 32;
    m.fault.clear();
    order_threads(m, order);
    is_descending = m.is_descending && !grid.is_resident; /* of the blocks; threads may have another order in each */
    first = order > 1 && !grid.is_resident ? next_random(m) % count : 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t block = is_descending ? count - 1 - i : (first + i) % count;

        m.block = {(unsigned)(block % grid.grid.x), (unsigned)(block / grid.grid.x % grid.grid.y),
                   (unsigned)(block / grid.grid.x / grid.grid.y)};
        if (!run_block(m, order)) {
            report_out = m.fault;
            return false;
        }
    }
    return true;
}
