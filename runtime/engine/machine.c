/* sched_getaffinity, /proc/meminfo, and cgroups: v2 up to the root, and v1's usual places. */
#include "engine/machine.h"

#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 };

#define CGROUP_ROOT "/sys/fs/cgroup"

static bool read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");

    if (file == NULL) {
        return false;
    }
    size_t got = fread(text, 1, size - 1, file);
    text[got] = '\0';
    fclose(file);
    return got > 0;
}

/* The number in `folder`/`name`; false for "max" and for what is not there. */
static bool read_number(const char *folder, const char *name, uint64_t *number_out)
{
    char path[PATH_SIZE + 64];
    char text[64];
    char *end;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    if (!read_text(path, text, sizeof(text))) {
        return false;
    }
    unsigned long long number = strtoull(text, &end, 10);
    if (end == text) {
        return false;
    }
    *number_out = number;
    return true;
}

/* Value after `key` at the start of a line of `path`. */
static bool read_keyed(const char *path, const char *key, uint64_t *number_out)
{
    FILE *file = fopen(path, "re");
    char line[256];
    bool is_found = false;

    if (file == NULL) {
        return false;
    }
    while (!is_found && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0) {
            is_found = sscanf(line + strlen(key), "%" SCNu64, number_out) == 1;
        }
    }
    fclose(file);
    return is_found;
}

static void at_most(uint64_t limit, uint64_t *value)
{
    *value = limit < *value ? limit : *value;
}

/* What one cgroup leaves. The page cache it holds would be given back, so inactive files do not count as used. */
static void cgroup_memory(const char *folder, const char *limit_name, const char *usage_name, const char *cache_key,
                          uint64_t *available)
{
    char path[PATH_SIZE + 64];
    uint64_t limit;
    uint64_t usage;
    uint64_t cache = 0;

    if (!read_number(folder, limit_name, &limit) || !read_number(folder, usage_name, &usage)) {
        return;
    }
    snprintf(path, sizeof(path), "%s/memory.stat", folder);
    (void)read_keyed(path, cache_key, &cache);
    usage = usage > cache ? usage - cache : 0;
    at_most(limit > usage ? limit - usage : 0, available);
}

static void cgroup_cpu(const char *folder, uint32_t *quota)
{
    char path[PATH_SIZE + 64];
    char text[64];
    uint64_t time;
    uint64_t period;

    snprintf(path, sizeof(path), "%s/cpu.max", folder);
    if (read_text(path, text, sizeof(text)) && sscanf(text, "%" SCNu64 " %" SCNu64, &time, &period) == 2 &&
        period > 0) {
        uint64_t count = (time + period - 1) / period;
        if (count > 0 && (*quota == 0 || count < *quota)) {
            *quota = count > WEFT_CPU_COUNT_MAX ? WEFT_CPU_COUNT_MAX : (uint32_t)count;
        }
    }
}

/* From the process's own cgroup up to the root: every level may limit. */
static void cgroups_v2(struct weft_machine *machine)
{
    char text[PATH_SIZE];
    char folder[PATH_SIZE + sizeof(CGROUP_ROOT)];

    if (!read_text("/proc/self/cgroup", text, sizeof(text))) {
        return;
    }
    char *line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
    if (line == NULL) {
        return;
    }
    line = strstr(line, "0::") + 3;
    line[strcspn(line, "\n")] = '\0';
    snprintf(folder, sizeof(folder), "%s%s", CGROUP_ROOT, strcmp(line, "/") == 0 ? "" : line);
    while (strlen(folder) >= strlen(CGROUP_ROOT)) {
        cgroup_memory(folder, "memory.max", "memory.current", "inactive_file ", &machine->memory_available);
        cgroup_cpu(folder, &machine->cpu_quota);
        *strrchr(folder, '/') = '\0';
    }
}

uint64_t weft_machine_meminfo(const char *key)
{
    uint64_t number = 0;

    return read_keyed("/proc/meminfo", key, &number) ? number : 0;
}

void weft_machine_read(struct weft_machine *machine_out)
{
    struct weft_machine machine = {.memory_available = UINT64_MAX};
    uint64_t kib;
    cpu_set_t *set = CPU_ALLOC(WEFT_CPU_COUNT_MAX);
    size_t set_size = CPU_ALLOC_SIZE(WEFT_CPU_COUNT_MAX);

    if (set != NULL && sched_getaffinity(0, set_size, set) == 0) {
        for (uint32_t i = 0; i < WEFT_CPU_COUNT_MAX; i++) {
            if (CPU_ISSET_S(i, set_size, set)) {
                machine.cpu_mask[i / 8] |= (uint8_t)(1U << i % 8);
            }
        }
    } else {
        machine.cpu_mask[0] = 1;
    }
    CPU_FREE(set);
    if (gethostname(machine.host_name, sizeof(machine.host_name)) != 0) {
        snprintf(machine.host_name, sizeof(machine.host_name), "?");
    }
    machine.host_name[sizeof(machine.host_name) - 1] = '\0';
    if (read_keyed("/proc/meminfo", "MemAvailable:", &kib)) {
        machine.memory_available = kib * 1024;
    }
    cgroups_v2(&machine);
    cgroup_memory(CGROUP_ROOT "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ",
                  &machine.memory_available);
    *machine_out = machine;
}
