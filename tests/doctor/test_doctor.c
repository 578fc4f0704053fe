/* Every rule of weft doctor on made-up machines: silent when all is well, one finding for one fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "doctor/doctor.h"

enum { RANKS = 4 };

/* Two hosts of 8 cores with two ranks each, all alike. */
struct fixture {
    struct weft_doctor_facts facts[RANKS];
    struct weft_doctor_link links[RANKS * RANKS];
    uint64_t needs[RANKS];
    struct weft_doctor_group group;
    struct weft_doctor_findings findings;
};

static struct fixture *make(struct fixture *fixture)
{
    memset(fixture, 0, sizeof(*fixture));
    for (uint32_t r = 0; r < RANKS; r++) {
        struct weft_doctor_facts *facts = &fixture->facts[r];

        facts->host_id = r / 2;
        snprintf(facts->machine.host_name, sizeof(facts->machine.host_name), "host%u", r / 2);
        facts->machine.cpu_mask[0] = 0xff;
        facts->machine.memory_available = (uint64_t)1 << 30;
        facts->cpu_count = 8;
        facts->lock_limit = UINT64_MAX;
        facts->file_limit = 65536;
        facts->shm_size = (uint64_t)1 << 30;
        facts->has_binary = facts->has_model = 1;
        snprintf(facts->huge_mode, sizeof(facts->huge_mode), "madvise");
        snprintf(facts->cpu_level, sizeof(facts->cpu_level), "avx2");
        snprintf(facts->version, sizeof(facts->version), "1");
        fixture->needs[r] = 100 << 20;
    }
    fixture->group = (struct weft_doctor_group){
        .facts = fixture->facts, .rank_count = RANKS, .links = fixture->links, .memory_needs = fixture->needs};
    fixture->group.link_count = weft_doctor_links_list(fixture->facts, RANKS, fixture->links);
    for (uint32_t i = 0; i < fixture->group.link_count; i++) {
        fixture->links[i].is_measured = 1;
        fixture->links[i].latency_us = 20;
        fixture->links[i].bandwidth = 1e9;
    }
    return fixture;
}

/* One finding exactly, of this severity, at this place, saying this. */
static void expect(struct fixture *fixture, enum weft_doctor_severity severity, const char *where, const char *what)
{
    weft_doctor_judge(&fixture->group, &fixture->findings);
    assert_int_equal(fixture->findings.count, 1);
    assert_int_equal(fixture->findings.items[0].severity, severity);
    assert_string_equal(fixture->findings.items[0].where, where);
    assert_non_null(strstr(fixture->findings.items[0].what, what));
    assert_true(strlen(fixture->findings.items[0].why) > 0 && strlen(fixture->findings.items[0].change) > 0);
    assert_int_equal(weft_doctor_is_trouble(&fixture->findings), severity != WEFT_DOCTOR_NOTE);
}

static void test_all_well(void **state)
{
    struct fixture f;

    (void)state;
    make(&f);
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    assert_false(weft_doctor_is_trouble(&f.findings));
}

static void test_pairs(void **state)
{
    static const uint32_t wanted[][3] = {{0, 1, 1}, {0, 2, 0}, {2, 3, 1}};
    struct fixture f;

    (void)state;
    make(&f);
    assert_int_equal(f.group.link_count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(f.links[i].a, wanted[i][0]);
        assert_int_equal(f.links[i].b, wanted[i][1]);
        assert_int_equal(f.links[i].is_same_host, wanted[i][2]);
    }
}

static void test_sameness(void **state)
{
    struct fixture f;

    (void)state;
    make(&f)->facts[3].binary[0] = 1;
    expect(&f, WEFT_DOCTOR_WARNING, "rank 3 on host1", "another binary");
    make(&f)->facts[1].model[31] = 1;
    expect(&f, WEFT_DOCTOR_ERROR, "rank 1 on host0", "other model files");
    make(&f)->facts[2].model_status = WEFT_ERR_IO;
    snprintf(f.facts[2].model_error, sizeof(f.facts[2].model_error), "no such folder");
    expect(&f, WEFT_DOCTOR_ERROR, "rank 2 on host1", "no such folder");
    make(&f)->facts[2].has_model = 0;
    expect(&f, WEFT_DOCTOR_WARNING, "rank 2 on host1", "without --model");
    snprintf(make(&f)->facts[2].version, sizeof(f.facts[2].version), "2");
    f.facts[2].binary[0] = 1; /* goes without saying */
    expect(&f, WEFT_DOCTOR_ERROR, "rank 2 on host1", "Weft 2");
    snprintf(make(&f)->facts[2].cpu_level, sizeof(f.facts[2].cpu_level), "ref");
    expect(&f, WEFT_DOCTOR_WARNING, "rank 2 on host1", "CPU level ref");
}

static void test_cores(void **state)
{
    struct fixture f;

    (void)state;
    make(&f);
    f.facts[2].machine.cpu_mask[0] = f.facts[3].machine.cpu_mask[0] = 4;
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 2);
    assert_string_equal(f.findings.items[0].what, "2 threads of 2 ranks on 1 core");
    assert_string_equal(f.findings.items[1].what, "bound to core 2, as is rank 2");
    make(&f)->facts[0].thread_count = 7;
    expect(&f, WEFT_DOCTOR_WARNING, "host host0", "11 threads of 2 ranks on 8 cores");
    make(&f);
    f.facts[2].machine.cpu_quota = f.facts[3].machine.cpu_quota = 1;
    expect(&f, WEFT_DOCTOR_WARNING, "host host1", "2 threads of 2 ranks on 1 core");
    /* One core each, different ones: as mpirun binds. */
    make(&f);
    f.facts[0].machine.cpu_mask[0] = 1;
    f.facts[1].machine.cpu_mask[0] = 2;
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
}

static void test_memory_and_limits(void **state)
{
    struct fixture f;

    (void)state;
    make(&f)->needs[1] = (uint64_t)900 << 20;
    expect(&f, WEFT_DOCTOR_ERROR, "host host0", "needs 1000 MiB");
    make(&f)->facts[1].memory_limit = 50 << 20;
    expect(&f, WEFT_DOCTOR_ERROR, "rank 1 on host0", "--memory allows 50");
    make(&f);
    snprintf(f.facts[0].huge_mode, sizeof(f.facts[0].huge_mode), "never");
    expect(&f, WEFT_DOCTOR_WARNING, "host host0", "no huge pages");
    make(&f)->facts[3].file_limit = 256;
    expect(&f, WEFT_DOCTOR_WARNING, "rank 3 on host1", "256 open files");
    make(&f)->facts[2].shm_size = 64 << 20;
    expect(&f, WEFT_DOCTOR_NOTE, "host host1", "/dev/shm has 64 MiB");
    make(&f)->facts[0].lock_limit = 65536;
    expect(&f, WEFT_DOCTOR_NOTE, "rank 0 on host0", "64 KiB");
}

static void test_links(void **state)
{
    static const char between[] = "rank 0 - rank 2 (host0 - host1)";
    struct fixture f;

    (void)state;
    make(&f)->links[1].latency_us = 900;
    expect(&f, WEFT_DOCTOR_WARNING, between, "takes 900 us");
    make(&f)->links[1].bandwidth = 12e6;
    expect(&f, WEFT_DOCTOR_WARNING, between, "12.0 MB/s");
    make(&f)->links[1].clock_offset_us = -2.5e6;
    expect(&f, WEFT_DOCTOR_WARNING, between, "clocks differ by -2.500 s");
    /* A slow answer says little about the clock. */
    make(&f)->links[1].clock_offset_us = 2e5;
    f.links[1].clock_error_us = 1.5e5;
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    make(&f)->links[2].is_measured = 0;
    expect(&f, WEFT_DOCTOR_NOTE, "links", "1 of 3 pairs not measured");
    make(&f)->links[1].resent_count = 5;
    expect(&f, WEFT_DOCTOR_WARNING, between, "5 segments were sent again");
    snprintf(make(&f)->links[1].other, sizeof(f.links[1].other), "ucx");
    f.links[1].other_latency_us = 10;
    expect(&f, WEFT_DOCTOR_NOTE, between, "ucx takes 10 us for a message, the chosen transport 20");
    f.links[1].other_latency_us = 18; /* as good as the same */
    memset(&f.findings, 0, sizeof(f.findings));
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
}

static void test_packets(void **state)
{
    static const char between[] = "rank 0 - rank 2 (host0 - host1)";
    static const struct weft_doctor_mtu good = {"eth0", 1500, 1500, 0}, unknown = {"eth0", 1500, 0, 0};
    static const struct weft_doctor_mtu hole = {"eth0", 9000, 1472, 0}, told = {"eth0", 1500, 1400, 1400};
    struct fixture f;

    (void)state;
    make(&f)->links[1].mtu_ab = good;
    f.links[1].mtu_ba = unknown;
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    f.links[1].mtu_ba = hole;
    f.links[1].bandwidth = 0; /* not measured, and not called slow */
    expect(&f, WEFT_DOCTOR_ERROR, between, "packets from host1 larger than 1472 bytes vanish");
    make(&f);
    f.links[1].mtu_ab = f.links[1].mtu_ba = hole;
    expect(&f, WEFT_DOCTOR_ERROR, between, "packets from host0 and back larger than 1472 bytes vanish");
    make(&f)->links[1].mtu_ab = told;
    f.links[1].mtu_ba = good;
    expect(&f, WEFT_DOCTOR_NOTE, between, "the way takes packets of 1400 bytes");
    /* Far away, and the kernel begins small again after a pause: told once. */
    make(&f);
    f.links[1].mtu_ab = f.links[1].mtu_ba = good;
    f.links[1].latency_us = 200;
    f.facts[1].slow_start_after_idle = f.facts[2].slow_start_after_idle = 1;
    expect(&f, WEFT_DOCTOR_NOTE, "host host0", "when it has been idle");
}

static void give_gpu(struct fixture *f, uint32_t rank, uint8_t uuid)
{
    struct weft_member *member = &f->facts[rank].member;

    member->gpu_count = 1;
    member->gpus[0] = (struct weft_member_gpu){.name = "H100", .memory_total = 1 << 30, .memory_free = 1 << 30};
    member->gpus[0].uuid[0] = uuid;
}

static void test_gpus(void **state)
{
    struct fixture f;
    int32_t gpus[RANKS];

    (void)state;
    make(&f);
    f.group.gpus = gpus;
    weft_doctor_gpus_deal(&f.group, gpus, &f.findings);
    assert_int_equal(f.findings.count, 0);
    assert_int_equal(gpus[0], WEFT_NO_GPU);
    /* One GPU each, with room; the host's memory does not matter. */
    for (uint32_t r = 0; r < RANKS; r++) {
        give_gpu(&f, r, (uint8_t)r);
        f.facts[r].machine.memory_available = 1;
    }
    weft_doctor_gpus_deal(&f.group, gpus, &f.findings);
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    assert_int_equal(gpus[3], 0);
    f.needs[2] = 1000 << 20;
    expect(&f, WEFT_DOCTOR_ERROR, "rank 2 on host1", "need 1000 MiB for weights");
    /* The library of --numerics fast, asked for only then: the leader and rank 1 have it, the others in another
     * version or not. */
    f.needs[2] = 0;
    memset(&f.findings, 0, sizeof(f.findings));
    for (uint32_t r = 0; r < RANKS; r++) {
        snprintf(f.facts[r].fast_library, sizeof(f.facts[r].fast_library), "cuBLASLt 13.%c.0, /host%u/lib",
                 r == 2 ? '0' : '1', r);
    }
    f.facts[3].fast_library[0] = '\0';
    snprintf(f.facts[3].fast_reason, sizeof(f.facts[3].fast_reason), "cannot load libcublasLt.so.13");
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    for (uint32_t r = 0; r < RANKS; r++) {
        f.facts[r].is_fast = true;
    }
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 2);
    assert_string_equal(f.findings.items[0].where, "rank 2 on host1");
    assert_string_equal(f.findings.items[0].what,
                        "cuBLASLt 13.0.0 for --numerics fast, the leader has cuBLASLt 13.1.0");
    assert_string_equal(f.findings.items[1].where, "rank 3 on host1");
    assert_string_equal(f.findings.items[1].what, "no cuBLASLt: cannot load libcublasLt.so.13");
    /* One rank without. */
    memset(&f.findings, 0, sizeof(f.findings));
    f.facts[1].member.gpu_count = 0;
    weft_doctor_gpus_deal(&f.group, gpus, &f.findings);
    assert_int_equal(f.findings.count, 1);
    assert_non_null(strstr(f.findings.items[0].what, "some ranks run on GPUs (0, 2-3)"));
    assert_int_equal(gpus[0], WEFT_NO_GPU);
    /* One that was told to use what it has not. */
    memset(&f.findings, 0, sizeof(f.findings));
    f.facts[1].gpu_status = WEFT_ERR_UNSUPPORTED;
    snprintf(f.facts[1].gpu_error, sizeof(f.facts[1].gpu_error), "device cuda: no NVIDIA driver");
    weft_doctor_gpus_deal(&f.group, gpus, &f.findings);
    assert_int_equal(f.findings.count, 1);
    assert_string_equal(f.findings.items[0].where, "rank 1 on host0");
    assert_non_null(strstr(f.findings.items[0].what, "no NVIDIA driver"));
}

/* Two ranks, the second with a third of the leaves on a slow host. */
static void test_prediction(void **state)
{
    const struct weft_model_summary model = {.layer_count = 10,
                                             .width = 1000,
                                             .head_count = 10,
                                             .kv_head_count = 5,
                                             .head_size = 100,
                                             .ffn_width = 3000,
                                             .vocab_size = 8000,
                                             .leaf_count = 12,
                                             .rank_count = 2,
                                             .weight_dtype = "bf16"};
    const struct weft_rank_summary ranks[] = {{.leaf_begin = 0, .leaf_end = 8}, {.leaf_begin = 8, .leaf_end = 12}};
    struct weft_doctor_rates rates = {.is_measured = 1, .speeds = {10e9, 4e9}, .alone_speed = 20e9, .sum_us = 500};
    struct weft_doctor_prediction prediction;
    struct weft_model_summary alone = model;
    struct fixture f;

    (void)state;
    /* Per layer 2 x 1000 x 1000 (q, o), 2 x 1000 x 500 (k, v), 3 x 1000 x 3000; the head 1000 x 8000; 2 bytes each. */
    assert_float_equal(weft_doctor_token_size(&model), 2.0 * (10 * 12e6 + 8e6), 1);
    snprintf(alone.weight_dtype, sizeof(alone.weight_dtype), "q8_0"); /* 34 bytes for 32 weights */
    assert_float_equal(weft_doctor_token_size(&alone), 34.0 / 32 * (10 * 12e6 + 8e6), 1);
    snprintf(alone.weight_dtype, sizeof(alone.weight_dtype), "f8_e4m3"); /* rows have a scale, but the head is bf16 */
    assert_float_equal(weft_doctor_token_size(&alone), 10 * 12e6 + 2.0 * 8e6, 1);
    alone.scale_cols = 128;
    assert_float_equal(weft_doctor_token_size(&alone), (1 + 4.0 / 128) * 10 * 12e6 + 2.0 * 8e6, 1);
    snprintf(alone.weight_dtype, sizeof(alone.weight_dtype), "q4_0"); /* 18, but the head is q8_0 */
    assert_float_equal(weft_doctor_token_size(&alone), 18.0 / 32 * 10 * 12e6 + 34.0 / 32 * 8e6, 1);
    alone = model;
    weft_doctor_predict(&model, ranks, &rates, &prediction);
    assert_true(prediction.is_known);
    assert_float_equal(prediction.alone_ms, 12.8, 1e-6);
    assert_int_equal(prediction.slowest_rank, 1);
    assert_float_equal(prediction.read_ms, 256e6 / 3 / 4e9 * 1e3, 1e-6);
    assert_int_equal(prediction.exchange_count, 22);
    assert_float_equal(prediction.exchange_ms, 11, 1e-6);
    assert_float_equal(prediction.tokens_per_s, 1e3 / (prediction.read_ms + 11), 1e-6);
    /* Said when one host would be faster, and could. */
    make(&f)->group.prediction = &prediction;
    expect(&f, WEFT_DOCTOR_NOTE, "host host0", "these 4 ranks give");
    make(&f)->group.prediction = &prediction;
    f.needs[3] = (uint64_t)1 << 30;
    f.facts[2].machine.memory_available = f.facts[3].machine.memory_available = (uint64_t)4 << 30;
    weft_doctor_judge(&f.group, &f.findings);
    assert_int_equal(f.findings.count, 0);
    alone.rank_count = 1;
    rates.speeds[0] = rates.alone_speed;
    weft_doctor_predict(&alone, &(struct weft_rank_summary){.leaf_end = 12}, &rates, &prediction);
    assert_int_equal(prediction.exchange_count, 0);
    assert_float_equal(prediction.tokens_per_s, prediction.alone_tokens_per_s, 1e-6);
    rates.is_measured = 0;
    weft_doctor_predict(&model, ranks, &rates, &prediction);
    assert_false(prediction.is_known);
}

static void test_cores_text(void **state)
{
    struct weft_machine machine = {.cpu_quota = 0};
    char text[32];
    char tiny[4];

    (void)state;
    assert_string_equal(weft_doctor_cores_text(&machine, text, sizeof(text)), "-");
    machine.cpu_mask[0] = 0x0f;
    machine.cpu_mask[1] = 0x05;
    assert_string_equal(weft_doctor_cores_text(&machine, text, sizeof(text)), "0-3,8,10");
    assert_int_equal(weft_doctor_core_count(&machine), 6);
    assert_string_equal(weft_doctor_cores_text(&machine, tiny, sizeof(tiny)), "0-3");
    memset(machine.cpu_mask, 0xff, sizeof(machine.cpu_mask));
    assert_string_equal(weft_doctor_cores_text(&machine, text, sizeof(text)), "0-1023");
}

static void test_full_list(void **state)
{
    const struct weft_doctor_finding note = {.why = "", .change = ""};
    struct fixture f;

    (void)state;
    make(&f);
    for (int i = 0; i < WEFT_DOCTOR_FINDING_MAX + 3; i++) {
        weft_doctor_findings_add(&f.findings, &note, "%d", i);
    }
    assert_int_equal(f.findings.count, WEFT_DOCTOR_FINDING_MAX);
    assert_int_equal(f.findings.dropped, 3);
    assert_true(weft_doctor_is_trouble(&f.findings));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpus),       cmocka_unit_test(test_all_well),   cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_sameness),   cmocka_unit_test(test_cores),      cmocka_unit_test(test_memory_and_limits),
        cmocka_unit_test(test_links),      cmocka_unit_test(test_prediction), cmocka_unit_test(test_packets),
        cmocka_unit_test(test_cores_text), cmocka_unit_test(test_full_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
