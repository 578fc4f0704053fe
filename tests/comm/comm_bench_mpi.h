/* What comm_bench compares with. */
#ifndef WEFT_TESTS_COMM_BENCH_MPI_H
#define WEFT_TESTS_COMM_BENCH_MPI_H

#include <stdbool.h>
#include <stddef.h>

/* MPI_Allreduce of f32 sums over MPI_COMM_WORLD. MPI was started by the mpi bootstrap. */
bool comm_bench_mpi_all_reduce(const float *input, float *output, size_t count);

#endif
