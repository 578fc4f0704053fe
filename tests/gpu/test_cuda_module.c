/* The CUDA module on the emulated GPU, from libweft's side: what GPUs there are, memory, transfers, errors, deadlines.
 */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "emulator/control.h"
#include "weft/device.h"
#include "weft/gpu.h"
#include "weft/log.h"

#define MIB ((size_t)1 << 20)

static struct {
    void (*config_init)(struct weft_emulated_config *config);
    void (*configure)(const struct weft_emulated_config *config);
    uint32_t (*call_count)(void);
    uint32_t (*live_count)(void);
} emulator;

static char last_line[1100];
static int error_count;

static void keep_line(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    snprintf(last_line, sizeof(last_line), "%s", line);
    error_count += level == WEFT_LOG_ERROR;
}

static int load_emulator(void **state)
{
    void *module = dlopen(WEFT_EMULATED_MODULE, RTLD_NOW | RTLD_NODELETE);

    (void)state;
    if (module == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    *(void **)&emulator.config_init = dlsym(module, "weft_emulated_config_init");
    *(void **)&emulator.configure = dlsym(module, "weft_emulated_configure");
    *(void **)&emulator.call_count = dlsym(module, "weft_emulated_call_count");
    *(void **)&emulator.live_count = dlsym(module, "weft_emulated_live_count");
    return emulator.config_init == NULL || emulator.configure == NULL || emulator.call_count == NULL ||
           emulator.live_count == NULL;
}

static struct weft_emulated_config fresh_config(void)
{
    struct weft_emulated_config config;

    emulator.config_init(&config);
    return config;
}

static int set_up(void **state)
{
    struct weft_emulated_config config = fresh_config();

    (void)state;
    emulator.configure(&config);
    last_line[0] = '\0';
    error_count = 0;
    weft_log_configure(WEFT_LOG_INFO, keep_line, NULL);
    return 0;
}

static enum weft_status try_open(const char *kind, struct weft_device **out)
{
    const struct weft_device_options options = {.kind = kind, .thread_count = 1, .module = WEFT_EMULATED_MODULE};

    return weft_device_open(&options, out);
}

static struct weft_device *open_gpu(const char *kind)
{
    struct weft_device *device = NULL;

    if (try_open(kind, &device) != WEFT_OK) {
        fail_msg("%s", last_line);
    }
    return device;
}

static int64_t now_ms(void)
{
    struct timespec time;

    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void test_list_says_what_there_is_or_why_not(void **state)
{
    struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
    char reason[256] = "";
    struct weft_emulated_config config = fresh_config();

    (void)state;
    config.device_count = 3;
    emulator.configure(&config);
    assert_int_equal(weft_gpu_list(WEFT_EMULATED_MODULE, gpus, reason, sizeof(reason)), 3);
    assert_memory_not_equal(gpus[0].uuid, gpus[1].uuid, WEFT_GPU_UUID_SIZE);
    assert_true(gpus[2].memory_free > 0 && gpus[2].memory_free <= gpus[2].memory_total);
    assert_true(strlen(gpus[2].name) > 0 && gpus[2].compute_major >= 8 && gpus[2].sm_count > 0);
    assert_int_equal(gpus[1].peer_mask >> 1 & 1, 0); /* not to itself */
    config.device_count = 0;
    emulator.configure(&config);
    assert_int_equal(weft_gpu_list(WEFT_EMULATED_MODULE, gpus, reason, sizeof(reason)), 0);
    assert_non_null(strstr(reason, "no GPU that this process may use"));
    config = fresh_config();
    config.driver_version = 12040;
    emulator.configure(&config);
    assert_int_equal(weft_gpu_list(WEFT_EMULATED_MODULE, gpus, reason, sizeof(reason)), 0);
    assert_string_equal(reason, "the NVIDIA driver is too old: it is for CUDA 12.4, this build needs 13.0");
    config.driver_version = 0;
    emulator.configure(&config);
    assert_int_equal(weft_gpu_list(WEFT_EMULATED_MODULE, gpus, reason, sizeof(reason)), 0);
    assert_string_equal(reason, "no NVIDIA driver on this host (libcuda.so.1)");
    assert_int_equal(error_count, 0);
}

static void test_open_says_why_not(void **state)
{
    struct weft_device *device = NULL;
    struct weft_device_options options = {
        .kind = "cuda", .thread_count = 1, .module = WEFT_EMULATED_MODULE, .numerics = "approximate"};
    struct weft_emulated_config config = fresh_config();

    (void)state;
    assert_int_equal(try_open("cuda:1", &device), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "GPU 1: no such GPU, this process may use 1"));
    assert_int_equal(weft_device_open(&options, &device), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "expected exact, reference or fast"));
    config.driver_version = 12040;
    emulator.configure(&config);
    assert_int_equal(try_open("cuda", &device), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(last_line, "too old"));
    /* auto goes on without a word about errors. */
    error_count = 0;
    assert_int_equal(try_open("auto", &device), WEFT_OK);
    assert_int_equal(strncmp(weft_device_name(device), "cpu ", 4), 0);
    assert_int_equal(error_count, 0);
    weft_device_close(&device);
    assert_null(device);
}

static void fill(unsigned char *bytes, size_t size, uint32_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (unsigned char)(seed >> 24);
    }
}

/* There and back in sizes around those of the pinned buffers, from pageable and from pinned memory. */
static void test_bulk_copies(void **state)
{
    static const size_t sizes[] = {0, 1, 4097, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 33 * MIB + 5};
    struct weft_device *device = open_gpu("cuda");
    unsigned char *from = malloc(34 * MIB);
    unsigned char *back = malloc(34 * MIB);
    unsigned char *pinned = weft_device_alloc_host(device, 34 * MIB);
    unsigned char *memory = weft_device_alloc(device, 34 * MIB);

    (void)state;
    assert_true(from != NULL && back != NULL && pinned != NULL && memory != NULL);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t size = sizes[i];
        fill(from, size, (uint32_t)i);
        memset(back, 0, size + 1);
        assert_int_equal(weft_device_write(device, memory + 1, from, size), WEFT_OK);
        memset(from, 0xee, size); /* ours again */
        assert_int_equal(weft_device_read(device, back, memory + 1, size), WEFT_OK);
        fill(from, size, (uint32_t)i);
        assert_memory_equal(back, from, size);
        assert_int_equal(back[size], 0);
        memcpy(pinned, from, size);
        assert_int_equal(weft_device_write(device, memory, pinned, size), WEFT_OK);
        memset(pinned, 0xee, size);
        assert_int_equal(weft_device_read(device, back, memory, size), WEFT_OK);
        assert_memory_equal(back, from, size);
    }
    weft_device_free(device, memory);
    weft_device_free_host(device, pinned);
    weft_device_close(&device);
    free(from);
    free(back);
    assert_int_equal(emulator.live_count(), 0);
}

/*
 * Operations take their rows from a ring of uploads: more of them than the ring holds, and single ones larger than it,
 * each read by the GPU only after the host has written many more.
 */
static void test_uploads_live_until_they_are_used(void **state)
{
    enum { ROWS = 64, WIDTH = 3, STEPS = 60, COUNT_MAX = 300000 };
    struct weft_device *device = open_gpu("cuda");
    float table[ROWS][WIDTH];
    uint32_t *rows = malloc(COUNT_MAX * sizeof(*rows));
    float *x = weft_device_alloc(device, sizeof(table));
    float *out[STEPS];
    float *back = malloc((size_t)COUNT_MAX * WIDTH * sizeof(*back));

    (void)state;
    assert_true(rows != NULL && x != NULL && back != NULL);
    for (int i = 0; i < ROWS * WIDTH; i++) {
        table[i / WIDTH][i % WIDTH] = (float)i;
    }
    assert_int_equal(weft_device_write(device, x, table, sizeof(table)), WEFT_OK);
    for (uint32_t step = 0; step < STEPS; step++) {
        /* 160 KB twice of a segment of 256 KB, again and again; once 1.2 MB. */
        uint32_t count = step == 17 ? COUNT_MAX : 40000 + step;
        out[step] = weft_device_alloc(device, (size_t)count * WIDTH * sizeof(float));
        assert_non_null(out[step]);
        for (uint32_t i = 0; i < count; i++) {
            rows[i] = (i * 7 + step) % ROWS;
        }
        weft_device_select_rows(device, x, rows, count, WIDTH, out[step]);
    }
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t count = step == 17 ? COUNT_MAX : 40000 + step;
        assert_int_equal(weft_device_read(device, back, out[step], (size_t)count * WIDTH * sizeof(float)), WEFT_OK);
        for (uint32_t i = 0; i < count; i++) {
            if (memcmp(back + (size_t)i * WIDTH, table[(i * 7 + step) % ROWS], sizeof(table[0])) != 0) {
                fail_msg("step %u, row %u", step, i);
            }
        }
        weft_device_free(device, out[step]);
    }
    weft_device_free(device, x);
    weft_device_close(&device);
    free(rows);
    free(back);
    assert_int_equal(emulator.live_count(), 0);
}

/* The smallest operation: memory[0] <- memory[0] + memory[1] */
static void add_one(struct weft_device *device, float *memory)
{
    const float *y = memory + 1;
    const struct weft_tree_add_args sum = {.inputs = &y, .input_count = 1, .count = 1};
    const struct weft_add_norm_args args = {
        .x = memory, .y = &sum, .weight = memory + 2, .out = memory + 3, .token_count = 1, .width = 1};

    weft_device_add_norm(device, &args);
}

/* Two GPUs from one thread, taking turns. */
static void test_two_gpus_in_one_thread(void **state)
{
    struct weft_emulated_config config = fresh_config();
    struct weft_device *devices[2];
    float *memory[2];
    const float values[2][2] = {{0, 3}, {0, 5}};

    (void)state;
    config.device_count = 2;
    emulator.configure(&config);
    devices[0] = open_gpu("cuda:0");
    devices[1] = open_gpu("cuda:1");
    for (int i = 0; i < 2; i++) {
        memory[i] = weft_device_alloc(devices[i], 4 * sizeof(float));
        assert_non_null(memory[i]);
        assert_int_equal(weft_device_write(devices[i], memory[i], values[i], sizeof(values[i])), WEFT_OK);
    }
    for (int i = 0; i < 4; i++) {
        float back = 0;
        add_one(devices[i % 2], memory[i % 2]);
        assert_int_equal(weft_device_read(devices[i % 2], &back, memory[i % 2], sizeof(back)), WEFT_OK);
        assert_true(back == values[i % 2][1] * (float)(1 + i / 2));
    }
    for (int i = 0; i < 2; i++) {
        weft_device_free(devices[i], memory[i]);
        weft_device_close(&devices[i]);
    }
    assert_int_equal(error_count, 0);
}

static void test_memory_that_is_not_there(void **state)
{
    struct weft_device *device = open_gpu("cuda");
    void *memory;

    (void)state;
    assert_null(weft_device_alloc(device, (size_t)1 << 40));
    assert_non_null(strstr(last_line, "GPU 0: cannot allocate 1099511627776 bytes"));
    assert_int_equal(error_count, 1);
    memory = weft_device_alloc(device, 64); /* nothing is spoilt by it */
    assert_non_null(memory);
    weft_device_free(device, memory);
    assert_int_equal(weft_device_sync(device), WEFT_OK);
    weft_device_close(&device);
}

/* A GPU that does not finish: an error within the deadline, told once, and closing does not hang either. */
static void test_a_hang_has_a_deadline(void **state)
{
    struct weft_emulated_config config = fresh_config();
    const struct weft_device_options options = {
        .kind = "cuda", .thread_count = 1, .module = WEFT_EMULATED_MODULE, .timeout_ms = 2000};
    struct weft_device *device = NULL;
    float *memory;
    int64_t begin;

    (void)state;
    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    memory = weft_device_alloc(device, 64);
    assert_non_null(memory);
    assert_int_equal(weft_device_sync(device), WEFT_OK);
    config.hang_operation = 1;
    emulator.configure(&config);
    add_one(device, memory);
    begin = now_ms();
    assert_int_equal(weft_device_sync(device), WEFT_ERR_TIMEOUT);
    assert_non_null(strstr(last_line, "GPU 0: not done after 2000 ms; given up"));
    assert_int_equal(weft_device_read(device, &config, memory, 4), WEFT_ERR_TIMEOUT);
    weft_device_free(device, memory);
    weft_device_close(&device);
    assert_true(now_ms() - begin < 30000);
    assert_int_equal(error_count, 1);
    config.hang_operation = 0;
    emulator.configure(&config);
}

static uint64_t free_memory(void)
{
    struct weft_gpu gpu[WEFT_GPU_COUNT_MAX];
    char reason[128];

    assert_int_equal(weft_gpu_list(WEFT_EMULATED_MODULE, gpu, reason, sizeof(reason)), 1);
    return gpu[0].memory_free;
}

/* What the memory table adds up: a matrix, and the scratch of the largest, once. */
static void test_memory_of_matrices_is_what_was_said(void **state)
{
    static const struct weft_range leaves[] = {{0, 96}, {96, 200}, {200, 512}, {512, 640}};
    static const struct weft_tree_add adds[] = {{0, 1}, {2, 3}};
    static const struct weft_matrix_desc descs[] = {{.dtype = WEFT_BF16, .row_count = 300, .col_count = 640},
                                                    {.dtype = WEFT_F16,
                                                     .row_count = 4096,
                                                     .col_count = 640,
                                                     .leaves = leaves,
                                                     .leaf_count = 4,
                                                     .adds = adds,
                                                     .add_count = 2},
                                                    {.dtype = WEFT_F32, .row_count = 5000, .col_count = 640},
                                                    {.dtype = WEFT_BF16, .row_count = 700, .col_count = 3000}};
    const struct weft_device_options options = {
        .kind = "cuda", .thread_count = 1, .module = WEFT_EMULATED_MODULE, .wait = WEFT_WAIT_YIELD};
    struct weft_matrix *matrices[4];
    struct weft_device *device;
    size_t scratch = 0;

    (void)state;
    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    for (int i = 0; i < 4; i++) {
        uint64_t before = free_memory();
        size_t own = weft_matrix_scratch_size(device, &descs[i]);
        size_t more = own > scratch ? own - scratch : 0;

        assert_true(own > 0);
        assert_int_equal(weft_device_reserve(device, own), WEFT_OK);
        assert_int_equal(weft_matrix_open(device, &descs[i], &matrices[i]), WEFT_OK);
        assert_int_equal(before - free_memory(), weft_matrix_size(device, &descs[i]) + more);
        scratch += more;
    }
    for (int i = 0; i < 4; i++) {
        weft_matrix_close(device, &matrices[i]);
    }
    weft_device_close(&device);
    assert_int_equal(emulator.live_count(), 0);
}

static void test_a_fault_is_kept_and_told_once(void **state)
{
    struct weft_emulated_config config = fresh_config();
    struct weft_device *device = open_gpu("cuda");
    float *memory = weft_device_alloc(device, 64);
    float back;

    (void)state;
    assert_non_null(memory);
    assert_int_equal(weft_device_sync(device), WEFT_OK);
    config.fault_launch = 1;
    emulator.configure(&config);
    add_one(device, memory);
    add_one(device, memory);
    assert_int_equal(weft_device_sync(device), WEFT_ERR_IO);
    assert_int_equal(weft_device_read(device, &back, memory, sizeof(back)), WEFT_ERR_IO);
    assert_int_equal(weft_device_write(device, memory, &back, sizeof(back)), WEFT_ERR_IO);
    weft_device_free(device, memory);
    weft_device_close(&device);
    assert_int_equal(error_count, 1);
}

/* Ranks are forked before the driver is used: afterwards it would be of no use to them. Both sides say so. */
static void test_a_child_of_a_user_is_told(void **state)
{
    struct weft_device *device = open_gpu("cuda");
    pid_t child = fork();
    int code = -1;

    (void)state;
    if (child == 0) {
        struct weft_gpu gpus[WEFT_GPU_COUNT_MAX];
        char reason[256] = "";
        bool is_told = weft_gpu_list(WEFT_EMULATED_MODULE, gpus, reason, sizeof(reason)) == 0 &&
                       strstr(reason, "initialization error") != NULL;
        _exit(is_told ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(code, 0);
    weft_device_close(&device);
}

/* Whatever call of the runtime fails while a device is opened, used and closed: one line, a status, nothing lost. */
static void test_any_call_may_fail(void **state)
{
    struct weft_emulated_config config = fresh_config();
    uint32_t before = emulator.live_count();
    uint32_t failed = 0;

    (void)state;
    for (uint32_t k = 1; k < 1000; k++) {
        struct weft_device *device = NULL;
        enum weft_status status;
        unsigned char *host = calloc(1, 9 * MIB);
        config.fail_call = k;
        emulator.configure(&config);
        error_count = 0;
        status = try_open("cuda", &device);
        if (status == WEFT_OK) {
            unsigned char *memory = weft_device_alloc(device, 9 * MIB);
            status = memory == NULL ? WEFT_ERR_MEMORY : weft_device_write(device, memory, host, 9 * MIB);
            if (status == WEFT_OK) {
                add_one(device, (float *)memory);
                status = weft_device_read(device, host, memory, 9 * MIB);
            }
            weft_device_free(device, memory);
            weft_device_close(&device);
        }
        free(host);
        uint32_t calls = emulator.call_count();
        if (status != WEFT_OK && error_count != 1) {
            fail_msg("call %u: %d lines, the last: %s", k, error_count, last_line);
        }
        failed += status != WEFT_OK;
        if (k > calls) {
            assert_true(failed > 10);
            assert_int_equal(status, WEFT_OK);
            break;
        }
    }
    config.fail_call = 0;
    emulator.configure(&config);
    /* Giving back may fail too, once for each of the calls that do. */
    assert_true(emulator.live_count() - before < 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_list_says_what_there_is_or_why_not, set_up),
        cmocka_unit_test_setup(test_open_says_why_not, set_up),
        cmocka_unit_test_setup(test_bulk_copies, set_up),
        cmocka_unit_test_setup(test_uploads_live_until_they_are_used, set_up),
        cmocka_unit_test_setup(test_two_gpus_in_one_thread, set_up),
        cmocka_unit_test_setup(test_memory_that_is_not_there, set_up),
        cmocka_unit_test_setup(test_memory_of_matrices_is_what_was_said, set_up),
        cmocka_unit_test_setup(test_a_fault_is_kept_and_told_once, set_up),
        cmocka_unit_test_setup(test_a_child_of_a_user_is_told, set_up),
        cmocka_unit_test_setup(test_any_call_may_fail, set_up),
        /* Last: what hung is let go when it ends, and would take a fault that another test has set. */
        cmocka_unit_test_setup(test_a_hang_has_a_deadline, set_up),
    };

    return cmocka_run_group_tests(tests, load_emulator, NULL);
}
