/*
 * The mpi bootstrap, one process per rank, started by tests/comm/mpirun.sh (not cmocka: mpirun is the runner).
 *   test_bootstrap_mpi well           exchange, big frames, leaving
 *   test_bootstrap_mpi death VICTIM   VICTIM kills itself, every other rank must name it
 * Prints "rank R: fine" when all is as it should be.
 */
#include <fcntl.h>

#include "bodies.h"

/* Ranks meet here after a death, when nothing of MPI works any more: files in a folder of mpirun.sh's. */
static void mark(const char *what, uint32_t rank)
{
    char path[256];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/%s%u", getenv("WEFT_TEST_FOLDER"), what, rank);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
    }
}

static bool is_marked(const char *what, uint32_t rank)
{
    char path[256];

    (void)snprintf(path, sizeof(path), "%s/%s%u", getenv("WEFT_TEST_FOLDER"), what, rank);
    return access(path, F_OK) == 0;
}

/* mpirun passes nothing on for a second once a rank has ended: the leader ends first, unless it is the dead one. */
static int close_after_death(struct weft_bootstrap **bootstrap, uint32_t victim)
{
    uint32_t rank = weft_bootstrap_rank(*bootstrap);

    if (rank == 0) {
        pause_ms(100); /* as for its last line, and its clients */
        mark("leader", 0);
    }
    weft_bootstrap_close(bootstrap);
    GROUP_CHECK(victim == 0 || is_marked("leader", 0));
    return 0;
}

/* mpirun ends the rest when the first rank ends: not before all have spoken. */
static void leave_together(uint32_t rank, uint32_t rank_count, uint32_t victim)
{
    int64_t end = now_ms() + LONG_MS;

    mark("spoken", rank);
    for (uint32_t other = 0; other < rank_count; other++) {
        while (other != victim && !is_marked("spoken", other) && now_ms() < end) {
            pause_ms(5);
        }
    }
}

int main(int argument_count, char **arguments)
{
    struct weft_bootstrap *bootstrap = NULL;
    bool is_death = argument_count == 3 && strcmp(arguments[1], "death") == 0;
    struct death death = {.place = IN_RECV, .victim = is_death ? (uint32_t)atoi(arguments[2]) : 0, .reason = ""};
    uint32_t rank;
    uint32_t rank_count;
    int result;

    if (!is_death && (argument_count != 2 || strcmp(arguments[1], "well") != 0)) {
        fprintf(stderr, "usage: test_bootstrap_mpi well | death VICTIM\n");
        return 2;
    }
    if (weft_bootstrap_open_mpi(NULL, LONG_MS, &bootstrap) != WEFT_OK ||
        strcmp(weft_bootstrap_kind(bootstrap), "mpi") != 0) {
        fprintf(stderr, "%s:%d: no group\n", __FILE__, __LINE__);
        return 1;
    }
    rank = weft_bootstrap_rank(bootstrap);
    rank_count = weft_bootstrap_rank_count(bootstrap);
    if (is_death) {
        result = death_body(&bootstrap, &death);
    } else {
        result = gather_body(&bootstrap, NULL);
        result = result == 0 && weft_bootstrap_rank_count(bootstrap) > 1 ? frames_body(&bootstrap, NULL) : result;
        result = result == 0 ? wait_body(&bootstrap, NULL) : result;
    }
    if (is_death) {
        result = result == 0 ? close_after_death(&bootstrap, death.victim) : result;
    }
    weft_bootstrap_close(&bootstrap);
    if (result == 0) {
        printf("rank %u: fine\n", rank);
        fflush(stdout);
    }
    /* A survivor of a death leaves as Weft does then: non-zero and without MPI_Finalize. */
    if (is_death) {
        leave_together(rank, rank_count, death.victim);
    }
    _exit(is_death || result != 0 ? 1 : 0);
}
