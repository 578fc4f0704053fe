/* The leader's arithmetic on machines that nobody here has: threads, waiting, memory, refusals. */
#include "engine_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/deal.h"
#include "weft/log.h"

#define GIB (UINT64_C(1) << 30)
#define MIB (UINT64_C(1) << 20)

static char last_line[1100];

static void keep_line(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static int set_up(void **state)
{
    (void)state;
    last_line[0] = '\0';
    weft_log_configure(WEFT_LOG_INFO, keep_line, NULL);
    return 0;
}

static void member_init(struct weft_member *member, uint64_t host, uint32_t cpu_begin, uint32_t cpu_end)
{
    *member = (struct weft_member){.host_id = host, .machine = {.memory_available = 100 * GIB}};
    snprintf(member->machine.host_name, sizeof(member->machine.host_name), "host%d", (int)host);
    for (uint32_t i = cpu_begin; i < cpu_end; i++) {
        member->machine.cpu_mask[i / 8] |= (uint8_t)(1U << i % 8);
    }
}

static void test_threads_of_shared_and_bound_ranks(void **state)
{
    struct weft_member members[4];
    uint32_t threads[4];
    enum weft_wait_policy waits[4];

    (void)state;
    /* Two ranks may use all 16 CPUs of one host, two are bound to 4 CPUs each on another. */
    member_init(&members[0], 1, 0, 16);
    member_init(&members[1], 1, 0, 16);
    member_init(&members[2], 2, 0, 4);
    member_init(&members[3], 2, 4, 8);
    weft_deal_threads(members, NULL, 4, threads, waits);
    assert_int_equal(threads[0], 8);
    assert_int_equal(threads[1], 8);
    assert_int_equal(threads[2], 4);
    assert_int_equal(threads[3], 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(waits[r], WEFT_WAIT_SPIN);
    }
    /* One more thread than CPUs on the first host only. */
    members[0].thread_count = 9;
    weft_deal_threads(members, NULL, 4, threads, waits);
    assert_int_equal(threads[0], 9);
    assert_int_equal(waits[0], WEFT_WAIT_YIELD);
    assert_int_equal(waits[1], WEFT_WAIT_YIELD);
    assert_int_equal(waits[2], WEFT_WAIT_SPIN);
}

static void test_more_ranks_than_cpus_and_quotas(void **state)
{
    struct weft_member members[8];
    uint32_t threads[8];
    enum weft_wait_policy waits[8];

    (void)state;
    for (uint32_t r = 0; r < 8; r++) {
        member_init(&members[r], 1, 0, 2);
    }
    weft_deal_threads(members, NULL, 8, threads, waits);
    for (uint32_t r = 0; r < 8; r++) {
        assert_int_equal(threads[r], 1);
        assert_int_equal(waits[r], WEFT_WAIT_YIELD);
    }
    /* A container that sees 64 CPUs but may use the time of 6. */
    for (uint32_t r = 0; r < 2; r++) {
        member_init(&members[r], 1, 0, 64);
        members[r].machine.cpu_quota = 6;
    }
    weft_deal_threads(members, NULL, 2, threads, waits);
    assert_int_equal(threads[0], 3);
    assert_int_equal(waits[0], WEFT_WAIT_SPIN);
}

static void test_leaves_refusals_name_what_would_do(void **state)
{
    struct weft_range leaves[WEFT_RANK_COUNT_MAX];
    const uint32_t shares[] = {3, 0};

    (void)state;
    assert_int_equal(weft_deal_leaves(8, 9, NULL, 0, leaves), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "--leaves 16"));
    assert_int_equal(weft_deal_leaves(8, 65, NULL, 0, leaves), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_deal_leaves(8, 3, shares, 2, leaves), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_deal_leaves(8, 2, shares, 2, leaves), WEFT_ERR_ARGUMENT);
    assert_int_equal(weft_deal_leaves(8, 3, NULL, 0, leaves), WEFT_OK);
    assert_int_equal(leaves[0].begin, 0);
    assert_int_equal(leaves[2].end, 8);
}

struct table {
    int line_count;
    char text[4096];
};

static void table_line(void *context, const char *line)
{
    struct table *table = context;

    table->line_count++;
    strncat(table->text, line, sizeof(table->text) - strlen(table->text) - 2);
    strcat(table->text, "\n");
}

/* 2 ranks on one host: 10 GiB fixed each, 1 MiB per page of 16 positions each. */
static void memory_args(struct weft_member *members, struct weft_model_memory *fixed, struct table *table,
                        struct weft_deal_memory_args *args)
{
    for (uint32_t r = 0; r < 2; r++) {
        member_init(&members[r], 1, 0, 8);
        fixed[r] = (struct weft_model_memory){.weights = 9 * GIB, .activations = GIB, .kv_page = MIB};
    }
    *table = (struct table){0};
    *args = (struct weft_deal_memory_args){.members = members,
                                           .fixed = fixed,
                                           .rank_count = 2,
                                           .context_max = 4096,
                                           .sequence_count_max = 4,
                                           .line = table_line,
                                           .context = table};
}

static void test_memory_by_default_and_by_limits(void **state)
{
    struct weft_member members[2];
    struct weft_model_memory fixed[2];
    struct table table;
    struct weft_deal_memory_args args;
    uint32_t pages;
    uint32_t context;

    (void)state;
    memory_args(members, fixed, &table, &args);
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_int_equal(pages, 4 * 256); /* four whole contexts fit easily */
    assert_int_equal(context, 4096);
    assert_int_equal(table.line_count, 4);
    assert_non_null(strstr(table.text, "9.0 GiB"));
    /* The host has 23 GiB, 90 % of which leave 0.7 GiB for both ranks: fewer contexts, but still one. */
    members[0].machine.memory_available = members[1].machine.memory_available = 23 * GIB;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_true(pages >= 340 && pages <= 360);
    assert_int_equal(context, 4096);
    /* A limit of one rank rules them all. */
    members[1].memory_limit = 10 * GIB + 100 * MIB;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_int_equal(pages, 100);
    assert_int_equal(context, 1600); /* nobody asked for more */
    args.context_length = 4096;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    assert_non_null(strstr(last_line, "rank 1"));
    args.context_length = 512;
    args.kv_token_count = 640;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_int_equal(pages, 40);
    assert_int_equal(context, 512);
    args.context_length = 4097;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "4096"));
}

static void test_impossible_memory_is_refused_with_numbers(void **state)
{
    struct weft_member members[2];
    struct weft_model_memory fixed[2];
    struct table table;
    struct weft_deal_memory_args args;
    uint32_t pages = 7;
    uint32_t context = 7;

    (void)state;
    memory_args(members, fixed, &table, &args);
    members[0].machine.memory_available = members[1].machine.memory_available = 20 * GIB;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    assert_non_null(strstr(last_line, "host1"));
    assert_non_null(strstr(last_line, "needs 20.0 GiB"));
    assert_non_null(strstr(last_line, "18.0 GiB available"));
    assert_true(table.line_count > 0);
    assert_int_equal(pages, 7);
    /* More cache asked for than there is. */
    memory_args(members, fixed, &table, &args);
    args.kv_token_count = UINT32_MAX;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    /* A limit below the weights. */
    args.kv_token_count = 0;
    members[0].memory_limit = GIB;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    assert_non_null(strstr(last_line, "rank 0"));
    /* Ranks without KV heads need no memory for pages. */
    memory_args(members, fixed, &table, &args);
    fixed[0].kv_page = fixed[1].kv_page = 0;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_int_equal(pages, 1024);
}

/* GPUs 0 to count - 1 of a host, each with 80 GiB; uuids from `first` on. */
static void member_gpus(struct weft_member *member, enum weft_device_kind kind, uint32_t count, uint8_t first)
{
    member->device_kind = kind;
    member->gpu_count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct weft_member_gpu *gpu = &member->gpus[i];
        *gpu = (struct weft_member_gpu){.name = "H100", .memory_total = 80 * GIB, .memory_free = 80 * GIB};
        gpu->uuid[0] = (uint8_t)(first + i);
    }
}

static void test_every_rank_gets_a_gpu_of_its_own(void **state)
{
    struct weft_member members[4];
    int32_t gpus[4];

    (void)state;
    /* Two hosts whose ranks see both GPUs. */
    for (uint32_t r = 0; r < 4; r++) {
        member_init(&members[r], r / 2, 0, 8);
        member_gpus(&members[r], WEFT_DEVICE_AUTO, 2, (uint8_t)(10 * (r / 2)));
    }
    assert_int_equal(weft_deal_devices(members, 4, gpus), WEFT_OK);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(gpus[r], r % 2);
    }
    /* A launcher that shows each rank its own GPU, as number 0. */
    for (uint32_t r = 0; r < 4; r++) {
        member_gpus(&members[r], WEFT_DEVICE_CUDA, 1, (uint8_t)r);
    }
    assert_int_equal(weft_deal_devices(members, 4, gpus), WEFT_OK);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(gpus[r], 0);
    }
    /* More ranks than GPUs, and the same when sharing was asked for. */
    member_gpus(&members[3], WEFT_DEVICE_CUDA, 1, 2);
    assert_int_equal(weft_deal_devices(members, 4, gpus), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "rank 3 on host1 finds no GPU of its own"));
    members[3].device_kind = WEFT_DEVICE_CUDA_INDEX;
    assert_int_equal(weft_deal_devices(members, 4, gpus), WEFT_OK);
    assert_int_equal(gpus[3], 0);
    /* None anywhere. */
    for (uint32_t r = 0; r < 4; r++) {
        member_gpus(&members[r], WEFT_DEVICE_AUTO, 0, 0);
    }
    assert_int_equal(weft_deal_devices(members, 4, gpus), WEFT_OK);
    assert_int_equal(gpus[0], WEFT_NO_GPU);
    assert_int_equal(gpus[3], WEFT_NO_GPU);
}

static void test_mixed_groups_are_refused_by_rank(void **state)
{
    struct weft_member members[5];
    int32_t gpus[5];

    (void)state;
    for (uint32_t r = 0; r < 5; r++) {
        member_init(&members[r], r, 0, 8);
        member_gpus(&members[r], WEFT_DEVICE_AUTO, r < 2 ? 1 : 0, (uint8_t)r);
    }
    member_gpus(&members[3], WEFT_DEVICE_AUTO, 1, 3);
    snprintf(members[2].no_gpu_reason, sizeof(members[2].no_gpu_reason), "no NVIDIA driver");
    assert_int_equal(weft_deal_devices(members, 5, gpus), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "GPUs (0-1, 3)"));
    assert_non_null(strstr(last_line, "CPUs (2, 4, on host2: no NVIDIA driver)"));
    members[0].device_kind = WEFT_DEVICE_CPU;
    assert_int_equal(weft_deal_devices(members, 2, gpus), WEFT_ERR_ARGUMENT);
    assert_non_null(strstr(last_line, "CPUs (0, on host0: --device cpu)"));
}

static void test_memory_of_a_gpu_is_what_counts(void **state)
{
    struct weft_member members[2];
    struct weft_model_memory fixed[2];
    int32_t gpus[2] = {0, 1};
    struct table table;
    struct weft_deal_memory_args args;
    uint32_t pages;
    uint32_t context;

    (void)state;
    memory_args(members, fixed, &table, &args);
    args.gpus = gpus;
    for (uint32_t r = 0; r < 2; r++) {
        member_gpus(&members[r], WEFT_DEVICE_AUTO, 2, 0);
        members[r].machine.memory_available = GIB; /* of the host: not where the model goes */
        members[r].gpus[0].memory_free = members[r].gpus[1].memory_free = 12 * GIB;
    }
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_OK);
    assert_true(pages >= 800 && pages <= 820); /* 10.8 of 12 GiB, 10 of them for the rest */
    assert_non_null(strstr(table.text, "host1, 1"));
    /* Both on one GPU. */
    gpus[1] = 0;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    assert_non_null(strstr(last_line, "the GPU of rank 0 (H100) on host1 needs 20.0 GiB"));
    assert_non_null(strstr(last_line, "10.8 GiB available; at least 2 such GPUs"));
    /* Room for the model, not for the cache that was asked for. */
    gpus[1] = 1;
    args.kv_token_count = 160000;
    assert_int_equal(weft_deal_memory(&args, &pages, &context), WEFT_ERR_LIMIT);
    assert_non_null(strstr(last_line, " positions would fit"));
}

static void test_machine_tells_something_sensible(void **state)
{
    struct weft_machine machine;
    uint32_t cpus = 0;

    (void)state;
    weft_machine_read(&machine);
    for (size_t i = 0; i < sizeof(machine.cpu_mask); i++) {
        cpus += (uint32_t)__builtin_popcount(machine.cpu_mask[i]);
    }
    assert_true(cpus >= 1);
    assert_true(machine.memory_available > MIB);
    assert_true(machine.host_name[0] != '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_threads_of_shared_and_bound_ranks, set_up),
        cmocka_unit_test_setup(test_more_ranks_than_cpus_and_quotas, set_up),
        cmocka_unit_test_setup(test_leaves_refusals_name_what_would_do, set_up),
        cmocka_unit_test_setup(test_memory_by_default_and_by_limits, set_up),
        cmocka_unit_test_setup(test_impossible_memory_is_refused_with_numbers, set_up),
        cmocka_unit_test_setup(test_every_rank_gets_a_gpu_of_its_own, set_up),
        cmocka_unit_test_setup(test_mixed_groups_are_refused_by_rank, set_up),
        cmocka_unit_test_setup(test_memory_of_a_gpu_is_what_counts, set_up),
        cmocka_unit_test(test_machine_tells_something_sensible),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
