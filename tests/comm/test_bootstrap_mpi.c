/*
 * The mpi bootstrap, one process per rank, started by tests/comm/mpirun.sh (not cmocka: mpirun is the runner).
 *   test_bootstrap_mpi well           exchange, big frames, leaving
 *   test_bootstrap_mpi death VICTIM   VICTIM kills itself, every other rank must name it
 * Prints "rank R: fine" when all is as it should be.
 */
#include <fcntl.h>

#include "bodies.h"

/*
 * mpirun passes nothing on for a second once a rank has ended: the leader ends first, unless it is the dead one. Its
 * mark lies under the name of what all ranks have in common, mpirun's pid.
 */
static int close_after_death(struct weft_bootstrap **bootstrap, uint32_t victim)
{
    uint32_t rank = weft_bootstrap_rank(*bootstrap);
    char path[64];
    int fd;

    (void)snprintf(path, sizeof(path), "/tmp/weft-test-mpi-%d", (int)getppid());
    if (rank == 0) {
        pause_ms(100); /* as for its last line, and its clients */
        fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        GROUP_CHECK(fd >= 0);
        close(fd);
    }
    weft_bootstrap_close(bootstrap);
    if (victim != 0 && rank != 0) {
        GROUP_CHECK(access(path, F_OK) == 0);
    } else if (victim != 0) {
        pause_ms(400); /* until the others have looked */
        GROUP_CHECK(unlink(path) == 0);
    }
    return 0;
}

int main(int argument_count, char **arguments)
{
    struct weft_bootstrap *bootstrap = NULL;
    bool is_death = argument_count == 3 && strcmp(arguments[1], "death") == 0;
    struct death death = {.place = IN_RECV, .victim = is_death ? (uint32_t)atoi(arguments[2]) : 0, .reason = ""};
    uint32_t rank;
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
    /* A survivor of a death leaves as Weft does then: non-zero and without MPI_Finalize. mpirun ends the rest when the
     * first one does: let them speak. */
    if (is_death) {
        pause_ms(500);
    }
    _exit(is_death || result != 0 ? 1 : 0);
}
