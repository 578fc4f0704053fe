/* Prints the read bandwidth of this machine for 1 .. N threads: bandwidth [N] (default 2). */
#include <stdio.h>
#include <stdlib.h>

#include "bandwidth.h"

int main(int argument_count, char **arguments)
{
    uint32_t thread_max = argument_count > 1 ? (uint32_t)strtoul(arguments[1], NULL, 10) : 2;

    for (uint32_t threads = 1; threads <= thread_max; threads++) {
        struct bench_bandwidth rate = bench_read_bandwidth(threads, (uint64_t)1 << 30, 10);

        if (!(rate.wall > 0)) {
            fprintf(stderr, "bandwidth: no memory or threads for %u readers\n", threads);
            return 1;
        }
        printf("%u thread%s: %.1f GB/s read", threads, threads == 1 ? "" : "s", rate.wall * 1e-9);
        if (threads == 1) { /* several need not have run at the same time */
            printf(", %.1f GB/s by CPU time", rate.cpu * 1e-9);
        }
        printf("\n");
    }
    return 0;
}
