/*
 * Running one function on every rank of a group: as threads of this process or as processes. cmocka's assertions jump
 * out of the test and so cannot be used in threads and children; the function reports by CHECK instead.
 */
#ifndef WEFT_TESTS_COMM_RANKS_H
#define WEFT_TESTS_COMM_RANKS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "weft/bootstrap.h"

enum ranks_mode {
    RANKS_THREADS,
    RANKS_PROCESSES,
    RANKS_MPI, /* this process is one rank of mpirun's */
};

/* Prints and makes the rank fail. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

/* The body of one rank; true when all was well. The bootstrap stays open until it returns. */
typedef bool ranks_body(struct weft_bootstrap *bootstrap, const void *context);

/*
 * Runs body on rank_count ranks; true when every rank's body said true. With expected_dead >= 0 (processes only) that
 * rank must not come back: it was killed or is stopped. With RANKS_MPI the size of the world is given: groups of
 * another size are passed over (true).
 */
bool ranks_run(enum ranks_mode mode, uint32_t rank_count, ranks_body *body, const void *context, int expected_dead);

/* RANKS_MPI: closes the group; call before leaving. Returns the rank. */
uint32_t ranks_fini_mpi(void);

#endif
