/*
 * Fibers: stacks of their own that switch by hand, for the threads of an emulated block. A switch saves the registers
 * that a C function must keep, about 5 ns on x86-64; elsewhere ucontext, with a system call each.
 */
#ifndef WEFT_TESTS_EMULATOR_FIBER_H
#define WEFT_TESTS_EMULATOR_FIBER_H

#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct weft_fiber {
    void *stack; /* NULL: the host thread's own; begins with a guard page */
    size_t stack_size;
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t context;
#endif
    void *fake_stack; /* AddressSanitizer's */
};

typedef void weft_fiber_main(); /* never returns */

/* The host thread itself, to switch away from and back to. */
void weft_fiber_init_host(weft_fiber *fiber);
/* A fiber that begins in `main` when it is first switched to. Aborts without memory. */
void weft_fiber_init(weft_fiber *fiber, weft_fiber_main *main);
/* Begins anew in `main`, whatever it was in the middle of. */
void weft_fiber_reset(weft_fiber *fiber, weft_fiber_main *main);
void weft_fiber_fini(weft_fiber *fiber);
void weft_fiber_switch(weft_fiber *from, weft_fiber *to);
/* First thing in a fiber's main. `host`: learns where its stack is (AddressSanitizer wants to know). */
void weft_fiber_entered(weft_fiber *host);

#endif
