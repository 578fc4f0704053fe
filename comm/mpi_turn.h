/*
 * MPI by turns (MPI_THREAD_SERIALIZED): the thread that works calls it in comm_mpi.c, and in a group that was ended
 * another thread of the process may call MPI_Finalize meanwhile (bootstrap_mpi.c). Of a bootstrap of kind "mpi".
 */
#ifndef WEFT_COMM_MPI_TURN_H
#define WEFT_COMM_MPI_TURN_H

#include <stdbool.h>

#include "weft/bootstrap.h"

/* True: MPI may be called until _end(). False: MPI is over, for good; no _end() then. Waits for another's turn. */
bool weft_mpi_turn_begin(struct weft_bootstrap *bootstrap);
void weft_mpi_turn_end(struct weft_bootstrap *bootstrap);

#endif
