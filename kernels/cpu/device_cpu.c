/* The CPU backend: opening, and the operations that are one loop over tokens. */
#include "cpu/device_cpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft/log.h"

static void cpu_close(struct weft_device *device)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);

    weft_pool_close(&cpu->pool);
    free(cpu->scratch);
    free(cpu->quant_x);
    free(cpu);
}

static enum weft_status cpu_sync(struct weft_device *device)
{
    (void)device; /* every operation is done when it returns */
    return WEFT_OK;
}

static enum weft_status cpu_copy(struct weft_device *device, void *to, const void *from, size_t size)
{
    (void)device;
    if (size > 0) {
        memcpy(to, from, size);
    }
    return WEFT_OK;
}

/* One job type for the operations whose items are token rows. */
struct rows_job {
    const struct weft_cpu_kernels *kernels;
    const float *x;
    const float *weight;
    size_t width;
    float eps;
    float *out;
};

static void rms_norm_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct rows_job *job = context;

    (void)worker;
    for (size_t t = begin; t < end; t++) {
        job->kernels->rms_norm(job->x + t * job->width, job->weight, (uint32_t)job->width, job->eps,
                               job->out + t * job->width);
    }
}

static void cpu_rms_norm(struct weft_device *device, const float *x, const float *weight, uint32_t token_count,
                         uint32_t width, float eps, float *out)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    struct rows_job job = {.kernels = &cpu->kernels, .x = x, .weight = weight, .width = width, .eps = eps, .out = out};

    weft_pool_run(cpu->pool, WEFT_POOL_STATIC, token_count, rms_norm_task, &job);
}

/* out[count] <- elements [begin, begin + count) of the sum. */
static void add_along_tree(const struct weft_tree_add_args *sum, size_t begin, size_t count, float *out)
{
    float slots[WEFT_LEAF_COUNT_MAX] = {0};

    for (size_t i = 0; i < count; i++) {
        for (uint32_t n = 0; n < sum->input_count; n++) {
            slots[n] = sum->inputs[n][begin + i];
        }
        for (uint32_t a = 0; a + 1 < sum->input_count; a++) {
            slots[sum->adds[a].left] += slots[sum->adds[a].right];
        }
        out[i] = slots[0];
    }
}

struct add_norm_job {
    const struct weft_cpu_kernels *kernels;
    const struct weft_add_norm_args *args;
};

static void add_norm_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct add_norm_job *job = context;
    const struct weft_add_norm_args *args = job->args;

    (void)worker;
    for (size_t t = begin; t < end; t++) {
        size_t row = t * args->width;
        const float *y = args->y->inputs[0] + row;

        if (args->y->input_count > 1) { /* not on the hot path: ranks on CPUs add in comm/ */
            y = args->out + row;
            add_along_tree(args->y, row, args->width, args->out + row);
        }
        job->kernels->add_norm(args->x + row, y, args->bias, args->weight, args->width, args->eps, args->out + row);
    }
}

static void cpu_add_norm(struct weft_device *device, const struct weft_add_norm_args *args)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    struct add_norm_job job = {.kernels = &cpu->kernels, .args = args};

    weft_pool_run(cpu->pool, WEFT_POOL_STATIC, args->token_count, add_norm_task, &job);
}

static void cpu_select_rows(struct weft_device *device, const float *x, const uint32_t *rows, uint32_t count,
                            uint32_t width, float *out)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        memcpy(out + i * width, x + (size_t)rows[i] * width, width * sizeof(*out));
    }
}

static void cpu_id(const struct weft_device *device, unsigned char id_out[WEFT_DEVICE_ID_SIZE])
{
    (void)device;
    memset(id_out, 0, WEFT_DEVICE_ID_SIZE);
}

static void cpu_copy_in_order(struct weft_device *device, void *to, const void *from, size_t size)
{
    (void)cpu_copy(device, to, from, size);
}

static void cpu_mark(struct weft_device *device, uint32_t mark)
{
    (void)device;
    (void)mark;
}

static enum weft_status cpu_wait(struct weft_device *device, uint32_t mark, uint32_t timeout_ms)
{
    (void)device;
    (void)mark;
    (void)timeout_ms;
    return WEFT_OK;
}

/* The definition, for other devices to compare with; ranks on CPUs add in comm/. */
static void cpu_tree_add(struct weft_device *device, const struct weft_tree_add_args *args)
{
    (void)device;
    add_along_tree(args, 0, args->count, args->out);
}

static const struct weft_device_ops cpu_ops = {
    .close = cpu_close,
    .sync = cpu_sync,
    .id = cpu_id,
    .alloc = weft_cpu_alloc,
    .free = weft_cpu_free,
    .write = cpu_copy,
    .read = cpu_copy,
    .alloc_host = weft_cpu_alloc,
    .free_host = weft_cpu_free,
    .begin_read = cpu_copy_in_order,
    .begin_write = cpu_copy_in_order,
    .copy = cpu_copy_in_order,
    .mark = cpu_mark,
    .wait = cpu_wait,
    .matrix_size = weft_cpu_matrix_size,
    .matrix_scratch_size = weft_cpu_matrix_scratch_size,
    .matrix_open = weft_cpu_matrix_open,
    .matrix_close = weft_cpu_matrix_close,
    .matrix_write_rows = weft_cpu_matrix_write_rows,
    .kv_cache_size = weft_cpu_kv_cache_size,
    .kv_cache_open = weft_cpu_kv_cache_open,
    .kv_cache_close = weft_cpu_kv_cache_close,
    .embed = weft_cpu_embed,
    .rms_norm = cpu_rms_norm,
    .matmul = weft_cpu_matmul,
    .rope_angles = weft_cpu_rope_angles,
    .rope_append = weft_cpu_rope_append,
    .attention = weft_cpu_attention,
    .add_norm = cpu_add_norm,
    .tree_add = cpu_tree_add,
    .select_rows = cpu_select_rows,
    .penalize = weft_cpu_penalize,
    .candidates = weft_cpu_candidates,
};

enum weft_status weft_device_open_cpu(const struct weft_device_options *options, struct weft_device **out)
{
    struct weft_cpu_device *cpu;
    enum weft_cpu_level level;
    const char *reason;
    enum weft_status status;

    if (options->thread_count < 1 || options->thread_count > WEFT_CPU_THREAD_MAX) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "thread count: expected 1 to %d, found %u", WEFT_CPU_THREAD_MAX,
                 options->thread_count);
        return WEFT_ERR_ARGUMENT;
    }
    WEFT_TRY(weft_cpu_level_parse(options->cpu_level, &level));
    (void)weft_cpu_level_detect(&reason);
    cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL ||
        posix_memalign((void **)&cpu->scratch, 64, options->thread_count * sizeof(float) * WEFT_CPU_SCRATCH_FLOATS) ||
        posix_memalign((void **)&cpu->quant_x, 64, sizeof(*cpu->quant_x) * WEFT_CPU_QUANT_BLOCKS)) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a device of %u threads", options->thread_count);
        if (cpu != NULL) {
            free(cpu->scratch);
        }
        free(cpu);
        return WEFT_ERR_MEMORY;
    }
    cpu->base.ops = &cpu_ops;
    cpu->base.is_host = true;
    cpu->thread_count = options->thread_count;
    weft_cpu_kernels_init(&cpu->kernels, level);
    snprintf(cpu->base.name, sizeof(cpu->base.name), "cpu %s, %u thread%s", weft_cpu_level_name(level),
             options->thread_count, options->thread_count == 1 ? "" : "s");
    status = weft_pool_open(options->thread_count, options->cores, options->wait, &cpu->pool);
    if (status != WEFT_OK) {
        cpu_close(&cpu->base);
        return status;
    }
    weft_log(WEFT_LOG_DEBUG, "kernels/cpu", "%s%s%s", cpu->base.name, *reason != '\0' ? "; no higher level: " : "",
             reason);
    *out = &cpu->base;
    return WEFT_OK;
}
