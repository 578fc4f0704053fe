/* What the files of the emulator's test share. */
#ifndef WEFT_TESTS_EMULATOR_TEST_EMULATOR_H
#define WEFT_TESTS_EMULATOR_TEST_EMULATOR_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include <cmocka.h>
}

#include "cuda/port.h"
#include "emulator/control.h"

#define assert_cuda(call) assert_int_equal(call, cudaSuccess)

/* A device buffer of 32-bit words that begins as zeros, and its contents after the device is done. */
uint32_t *device_words(size_t count);
void read_words(uint32_t *to, const uint32_t *from, size_t count);
/* Default settings with this order of threads. */
void configure_order(uint32_t order);

int run_runtime_tests();
int run_peer_tests();
/* The program as another process of run_peer_tests(): its exit status. */
int visit(char **arguments);

#endif
