/* Fibers, see fiber.h. The stacks are mapped, not allocated: a page that no kernel touches costs nothing. */
#include "emulator/fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define WEFT_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEFT_FIBER_ASAN 1
#endif
#endif

#ifdef WEFT_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* Kernels keep little on the stack; sanitized code and log formatting need more. */
static const size_t stack_size = 256 << 10;
static const size_t guard_size = 4096;

#if defined(__x86_64__)

extern "C" void weft_fiber_swap(void **save, void *load) __attribute__((visibility("hidden")));

/* System V ABI: rbx, rbp, r12 to r15 survive a call; the x87 and SSE control words are never changed here. */
__asm__(".text\n"
        ".globl weft_fiber_swap\n"
        ".hidden weft_fiber_swap\n"
        ".type weft_fiber_swap, @function\n"
        "weft_fiber_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size weft_fiber_swap, . - weft_fiber_swap\n");

/* Stacks begin at different places of their last page: at the same one all would share a few lines of the caches. */
static size_t colour(const weft_fiber *fiber)
{
    return reinterpret_cast<uintptr_t>(fiber->stack) / stack_size % 32 * 128;
}

static void set_entry(weft_fiber *fiber, weft_fiber_main *main)
{
    void **top = reinterpret_cast<void **>(static_cast<char *>(fiber->stack) + stack_size - colour(fiber));

    top -= 8; /* six registers, the return address, and a null caller: the stack is aligned as after a call */
    for (int i = 0; i < 8; i++) {
        top[i] = nullptr;
    }
    top[6] = reinterpret_cast<void *>(main);
    fiber->stack_pointer = top;
}

static void swap(weft_fiber *from, weft_fiber *to)
{
    weft_fiber_swap(&from->stack_pointer, to->stack_pointer);
}

#else

static void set_entry(weft_fiber *fiber, weft_fiber_main *main)
{
    if (getcontext(&fiber->context) != 0) {
        abort();
    }
    fiber->context.uc_stack.ss_sp = static_cast<char *>(fiber->stack) + guard_size;
    fiber->context.uc_stack.ss_size = stack_size - guard_size;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, main, 0);
}

static void swap(weft_fiber *from, weft_fiber *to)
{
    swapcontext(&from->context, &to->context);
}

#endif

void weft_fiber_init_host(weft_fiber *fiber)
{
    *fiber = weft_fiber();
}

void weft_fiber_init(weft_fiber *fiber, weft_fiber_main *main)
{
    *fiber = weft_fiber();
    fiber->stack =
        mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->stack == MAP_FAILED || mprotect(fiber->stack, guard_size, PROT_NONE) != 0) {
        abort();
    }
    fiber->stack_size = stack_size;
    set_entry(fiber, main);
}

void weft_fiber_reset(weft_fiber *fiber, weft_fiber_main *main)
{
#ifdef WEFT_FIBER_ASAN
    __asan_unpoison_memory_region(static_cast<char *>(fiber->stack) + guard_size, stack_size - guard_size);
    fiber->fake_stack = nullptr;
#endif
    set_entry(fiber, main);
}

void weft_fiber_fini(weft_fiber *fiber)
{
#ifdef WEFT_FIBER_ASAN
    __asan_unpoison_memory_region(static_cast<char *>(fiber->stack) + guard_size, stack_size - guard_size);
#endif
    munmap(fiber->stack, stack_size);
    fiber->stack = nullptr;
}

void weft_fiber_switch(weft_fiber *from, weft_fiber *to)
{
#ifdef WEFT_FIBER_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_size);
#endif
    swap(from, to);
#ifdef WEFT_FIBER_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void weft_fiber_entered(weft_fiber *host)
{
#ifdef WEFT_FIBER_ASAN
    const void *bottom;
    size_t size;

    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (host->stack == nullptr) { /* the first fiber is entered from the host thread */
        host->stack = const_cast<void *>(bottom);
        host->stack_size = size;
    }
#else
    (void)host;
#endif
}
