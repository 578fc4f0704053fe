/* What every test of the engine includes: cmocka with its prerequisites, and a small random generator. */
#ifndef WEFT_TESTS_ENGINE_TEST_H
#define WEFT_TESTS_ENGINE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define TEST_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* xorshift64*: the tests' own, so that they do not depend on what they test. */
static inline uint64_t test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

#endif
