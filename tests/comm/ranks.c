/* Running one function on every rank. Contract in ranks.h. */
#include "ranks.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "weft/log.h"

#define RANK_MAX 64
/* A group that is not done by then hangs. */
#define HANG_SECONDS 300
/* Of the leader with ranks that have not said what came of it. */
#define PATIENCE_MS 60000

struct thread_rank {
    struct weft_bootstrap *bootstrap;
    ranks_body *body;
    const void *context;
    bool is_good;
};

static void *run_thread(void *argument)
{
    struct thread_rank *rank = argument;

    weft_log_set_rank((int)weft_bootstrap_rank(rank->bootstrap));
    rank->is_good = rank->body(rank->bootstrap, rank->context);
    weft_bootstrap_close(&rank->bootstrap);
    return NULL;
}

static bool run_threads(uint32_t rank_count, ranks_body *body, const void *context)
{
    struct weft_bootstrap *bootstraps[RANK_MAX];
    struct thread_rank ranks[RANK_MAX];
    pthread_t threads[RANK_MAX];
    bool is_good = true;

    CHECK(weft_bootstrap_open_threads(rank_count, bootstraps) == WEFT_OK);
    for (uint32_t r = 0; r < rank_count; r++) {
        ranks[r] = (struct thread_rank){bootstraps[r], body, context, false};
        CHECK(pthread_create(&threads[r], NULL, run_thread, &ranks[r]) == 0);
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        pthread_join(threads[r], NULL);
        is_good = is_good && ranks[r].is_good;
    }
    return is_good;
}

enum outcome { OUTCOME_NONE, OUTCOME_GOOD, OUTCOME_BAD };

/* The leader kills who has not left soon after a failure: not before everybody has looked at what came of it. */
static void wait_for_outcomes(uint32_t rank_count, const volatile unsigned char *outcomes, int expected_dead)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    for (uint32_t r = 0; r < rank_count; r++) {
        for (int i = 0; i < PATIENCE_MS && (int)r != expected_dead && outcomes[r] == OUTCOME_NONE; i++) {
            nanosleep(&moment, NULL);
        }
    }
}

/* In a process of its own, so that the test program stays what it was. Results come back through shared memory. */
static void run_local_group(uint32_t rank_count, ranks_body *body, const void *context, int expected_dead,
                            unsigned char *outcomes)
{
    struct weft_bootstrap *bootstrap;
    uint32_t rank;

    alarm(HANG_SECONDS);
    if (weft_bootstrap_open_local(rank_count, &bootstrap) != WEFT_OK) {
        _exit(1);
    }
    rank = weft_bootstrap_rank(bootstrap);
    weft_log_set_rank((int)rank);
    outcomes[rank] = body(bootstrap, context) ? OUTCOME_GOOD : OUTCOME_BAD;
    if (rank == 0) {
        wait_for_outcomes(rank_count, outcomes, expected_dead);
    }
    weft_bootstrap_close(&bootstrap);
    _exit(0);
}

static bool run_processes(uint32_t rank_count, ranks_body *body, const void *context, int expected_dead)
{
    unsigned char *outcomes = mmap(NULL, RANK_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bool is_good = true;
    int wait_status;
    pid_t group;

    CHECK(outcomes != MAP_FAILED);
    fflush(NULL);
    group = fork();
    if (group == 0) {
        run_local_group(rank_count, body, context, expected_dead, outcomes);
    }
    CHECK(group > 0 && waitpid(group, &wait_status, 0) == group);
    if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0) {
        fprintf(stderr, "rank 0 of %u ended with wait status %#x\n", rank_count, wait_status);
        is_good = false;
    }
    for (uint32_t r = 0; r < rank_count; r++) {
        enum outcome expected = (int)r == expected_dead ? OUTCOME_NONE : OUTCOME_GOOD;

        if (outcomes[r] != expected) {
            fprintf(stderr, "rank %u of %u: %s\n", r, rank_count,
                    outcomes[r] == OUTCOME_NONE ? "did not finish" : "bad");
            is_good = false;
        }
    }
    munmap(outcomes, RANK_MAX);
    return is_good;
}

/* MPI starts once per process, so one group serves all tests. */
static struct weft_bootstrap *mpi_group;

static bool run_mpi(uint32_t rank_count, ranks_body *body, const void *context)
{
    if (mpi_group == NULL) {
        CHECK(weft_bootstrap_open_mpi(NULL, HANG_SECONDS * 1000, &mpi_group) == WEFT_OK);
        alarm(HANG_SECONDS);
    }
    return weft_bootstrap_rank_count(mpi_group) != rank_count || body(mpi_group, context);
}

uint32_t ranks_fini_mpi(void)
{
    uint32_t rank = weft_bootstrap_rank(mpi_group);

    weft_bootstrap_close(&mpi_group);
    return rank;
}

bool ranks_run(enum ranks_mode mode, uint32_t rank_count, ranks_body *body, const void *context, int expected_dead)
{
    switch (mode) {
    case RANKS_THREADS: return run_threads(rank_count, body, context);
    case RANKS_PROCESSES: return run_processes(rank_count, body, context, expected_dead);
    case RANKS_MPI: return run_mpi(rank_count, body, context);
    }
    return false;
}
