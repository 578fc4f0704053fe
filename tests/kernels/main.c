/*
 * kernels_check: every micro-kernel of every CPU level of this machine against the reference by bits, the reference
 * against double precision, and the device table on top; with --bench it times them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "weft/log.h"

/* A member of the table that the list forgets would go unchecked. */
#define COUNT_ONE(name) +1
_Static_assert(sizeof(struct weft_cpu_kernels) == (0 WEFT_CPU_KERNEL_LIST(COUNT_ONE)) * sizeof(void (*)(void)),
               "WEFT_CPU_KERNEL_LIST names every member of struct weft_cpu_kernels");
#undef COUNT_ONE

struct part {
    const char *name;
    void (*run)(struct check *check);
};

#define PART(name) {#name, check_##name},
static const struct part kernel_parts[] = {WEFT_CPU_KERNEL_LIST(PART)};
#undef PART

static const struct part device_parts[] = {
    {"options", check_device_options},     {"memory", check_device_memory},
    {"matmul", check_device_matmul},       {"matmul quant", check_device_matmul_quant},
    {"matmul f8", check_device_matmul_f8}, {"matmul gated", check_device_gated},
    {"rows", check_device_rows},           {"angles", check_device_angles},
    {"attention", check_device_attention}, {"candidates", check_device_candidates},
    {"tree add", check_device_tree_add},   {"ordered", check_device_ordered},
};

/* A GPU has the CPU's bits when it multiplies as the CPU does; tensor cores keep to rules of their own. */
static const struct part gpu_parts[] = {
    {"memory", check_device_memory},
    {"matmul", check_device_matmul},
    {"matmul quant", check_device_matmul_quant},
    {"matmul gated", check_device_gated},
    {"matmul f8", check_device_matmul_f8},
    {"rows", check_device_rows},
    {"angles", check_device_angles},
    {"attention", check_device_attention},
    {"candidates", check_device_candidates},
    {"tree add", check_device_tree_add},
    {"ordered", check_device_ordered},
};
static const struct part gpu_exact_parts[] = {{"matmul exact", check_device_matmul_exact},
                                              {"matmul quant", check_device_matmul_quant},
                                              {"matmul gated", check_device_gated},
                                              {"matmul f8", check_device_matmul_f8}};

/* What does not depend on the level. */
static const struct part common_parts[] = {{"numeric", check_numeric}, {"pool", check_pool}};

static bool is_among(const struct part *parts, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(parts[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

#define IS_AMONG(parts, name) is_among(parts, sizeof(parts) / sizeof((parts)[0]), name)

/* A misspelt part would be a check of nothing. */
static bool is_part(const char *name)
{
    return IS_AMONG(kernel_parts, name) || IS_AMONG(device_parts, name) || IS_AMONG(gpu_parts, name) ||
           IS_AMONG(gpu_exact_parts, name) || IS_AMONG(common_parts, name);
}

static uint32_t run_parts(struct check *check, const struct part *parts, size_t count, const char *only)
{
    uint32_t failure_count = 0;

    for (size_t i = 0; i < count; i++) {
        if (only != NULL && strcmp(only, parts[i].name) != 0) {
            continue;
        }
        check->compared_count = 0;
        check->failure_count = 0;
        parts[i].run(check);
        if (check->compared_count == 0) {
            check_fail(check, "%s: compared nothing", parts[i].name);
        }
        printf("%-7s %-15s %10llu values  %s\n", check->level, parts[i].name, (unsigned long long)check->compared_count,
               check->failure_count == 0 ? "ok" : "FAILED");
        failure_count += check->failure_count;
    }
    return failure_count;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: kernels_check [--device cpu|cuda] [--module FILE] [--level NAME|best] [--seed N] [--only PART] "
            "[--bench] [kernels|device]\n"
            "FILE: the CUDA module for cuda; otherwise the emulated one beside this program\n");
    return 2;
}

struct options {
    const char *level;
    const char *only;
    const char *group;  /* NULL: both */
    const char *device; /* NULL: both */
    const char *module; /* NULL: the emulated one */
    uint64_t seed;
    bool is_bench;
};

static bool parse(int argument_count, char **arguments, struct options *options)
{
    for (int i = 1; i < argument_count; i++) {
        const char *argument = arguments[i];
        const char *value = i + 1 < argument_count ? arguments[i + 1] : NULL;

        if (strcmp(argument, "--bench") == 0) {
            options->is_bench = true;
        } else if (strcmp(argument, "kernels") == 0 || strcmp(argument, "device") == 0) {
            options->group = argument;
        } else if (value == NULL) {
            return false;
        } else if (strcmp(argument, "--level") == 0) {
            options->level = arguments[++i];
        } else if (strcmp(argument, "--device") == 0) {
            options->device = arguments[++i];
        } else if (strcmp(argument, "--module") == 0) {
            options->module = arguments[++i];
        } else if (strcmp(argument, "--only") == 0) {
            options->only = arguments[++i];
        } else if (strcmp(argument, "--seed") == 0) {
            options->seed = strtoull(arguments[++i], NULL, 0);
        } else {
            return false;
        }
    }
    return true;
}

static uint32_t check_level(const struct options *options, enum weft_cpu_level level)
{
    struct weft_cpu_kernels ref;
    struct weft_cpu_kernels kernels;
    struct check check = {.ref = &ref, .level = weft_cpu_level_name(level), .random = options->seed};
    uint32_t failure_count = 0;

    weft_cpu_kernels_init(&ref, WEFT_CPU_REF);
    weft_cpu_kernels_init(&kernels, level);
    check.kernels = level == WEFT_CPU_REF ? &ref : &kernels;
    if (level == WEFT_CPU_REF && options->group == NULL) {
        failure_count += run_parts(&check, common_parts, 2, options->only);
    }
    if (options->group == NULL || strcmp(options->group, "kernels") == 0) {
        failure_count += run_parts(&check, kernel_parts, sizeof(kernel_parts) / sizeof(kernel_parts[0]), options->only);
    }
    if (options->group == NULL || strcmp(options->group, "device") == 0) {
        failure_count += run_parts(&check, device_parts, sizeof(device_parts) / sizeof(device_parts[0]), options->only);
    }
    return failure_count;
}

/* Where the build puts it. */
static bool find_emulated(char *path_out, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", path_out, size - 1);
    char *slash;

    if (length <= 0) {
        return false;
    }
    path_out[length] = '\0';
    slash = strrchr(path_out, '/');
    snprintf(slash + 1, size - (size_t)(slash + 1 - path_out), "weft_cuda_emulated.so");
    return access(path_out, R_OK) == 0;
}

/* The module to use, emulated[size] when none is given; NULL: there is none. */
static const char *module_of(const struct options *options, char *emulated, size_t size)
{
    if (options->module != NULL) {
        return options->module;
    }
    if (!find_emulated(emulated, size)) {
        printf("SKIPPED cuda: there is no weft_cuda_emulated.so beside this program\n");
        return NULL;
    }
    return emulated;
}

static uint32_t check_gpu(const struct options *options)
{
    static const char *const numerics[] = {"reference", "exact"};
    char emulated[4096];
    const char *module = module_of(options, emulated, sizeof(emulated));
    uint32_t failure_count = 0;

    for (int i = 0; i < 2 && module != NULL; i++) {
        struct weft_cpu_kernels ref;
        struct check check = {.ref = &ref,
                              .kernels = &ref,
                              .level = "cuda",
                              .module = module,
                              .numerics = numerics[i],
                              .random = options->seed};

        weft_cpu_kernels_init(&ref, WEFT_CPU_REF);
        failure_count += i == 0 ? run_parts(&check, gpu_parts, sizeof(gpu_parts) / sizeof(gpu_parts[0]), options->only)
                                : run_parts(&check, gpu_exact_parts,
                                            sizeof(gpu_exact_parts) / sizeof(gpu_exact_parts[0]), options->only);
    }
    return failure_count;
}

static bool is_wanted(const struct options *options, const char *device)
{
    return options->device == NULL || strcmp(options->device, device) == 0;
}

static void bench(const struct options *options, enum weft_cpu_level best)
{
    char emulated[4096];
    const char *module;

    if (options->device == NULL || strcmp(options->device, "cuda") != 0) {
        bench_run(best, options->only);
        return;
    }
    module = module_of(options, emulated, sizeof(emulated));
    if (module != NULL) {
        bench_gpu_run(module);
    }
}

int main(int argument_count, char **arguments)
{
    struct options options = {.seed = 20261124};
    const char *reason;
    enum weft_cpu_level best = weft_cpu_level_detect(&reason);
    uint32_t failure_count = 0;

    if (!parse(argument_count, arguments, &options)) {
        return usage();
    }
    if (best + 1 < WEFT_CPU_LEVEL_COUNT) {
        printf("SKIPPED levels above %s: %s\n", weft_cpu_level_name(best), reason);
    }
    if (options.is_bench) {
        bench(&options, best);
        return 0;
    }
    if (options.only != NULL && !is_part(options.only)) {
        fprintf(stderr, "kernels_check: --only %s: no part has this name\n", options.only);
        return 2;
    }
    printf("seed %llu\n", (unsigned long long)options.seed);
    if (options.level != NULL && strcmp(options.level, "best") == 0) {
        options.level = weft_cpu_level_name(best);
    }
    for (int level = 0; level <= (int)best && is_wanted(&options, "cpu"); level++) {
        if (options.level == NULL || strcmp(options.level, weft_cpu_level_name((enum weft_cpu_level)level)) == 0) {
            failure_count += check_level(&options, (enum weft_cpu_level)level);
        }
    }
    if (is_wanted(&options, "cuda") && options.level == NULL &&
        (options.group == NULL || strcmp(options.group, "device") == 0)) {
        failure_count += check_gpu(&options);
    }
    printf("%u failures\n", failure_count);
    return failure_count == 0 ? 0 : 1;
}
