/* What this process may use of its machine: CPUs and memory, as the scheduler and the cgroups allow, read once. */
#ifndef WEFT_ENGINE_MACHINE_H
#define WEFT_ENGINE_MACHINE_H

#include <stdint.h>

#define WEFT_CPU_COUNT_MAX 1024

struct weft_machine {
    char host_name[64];
    uint8_t cpu_mask[WEFT_CPU_COUNT_MAX / 8]; /* bit i: may run on CPU i */
    uint32_t cpu_quota;                       /* CPUs' worth of time that cgroups allow, rounded up; 0: no limit */
    uint64_t memory_available;                /* bytes: MemAvailable, or less where a cgroup has less left */
};

/* Never fails: what cannot be read is taken as unlimited, at least one CPU. */
void weft_machine_read(struct weft_machine *machine_out);

/* The number behind `key` ("MemTotal:") in /proc/meminfo, in its own unit; 0 when absent. */
uint64_t weft_machine_meminfo(const char *key);

#endif
