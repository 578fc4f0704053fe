/* Host lists and the placement of a process: every launcher's variables, half sets, contradictions, overrides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
/* after those four */
#include <cmocka.h>

#include "hostlist.h"
#include "placement.h"

/* An environment in one string: "RANK=3 WORLD_SIZE=8". A value lives for the next 63 calls. */
static const char *variable(void *context, const char *name)
{
    static char values[64][128];
    static unsigned next;
    size_t size = strlen(name);

    for (const char *text = context; text != NULL && *text != 0; text += strspn(text, " ")) {
        size_t word = strcspn(text, " ");

        if (word > size && strncmp(text, name, size) == 0 && text[size] == '=') {
            char *value = values[next++ % 64];

            (void)snprintf(value, sizeof(values[0]), "%.*s", (int)(word - size - 1), text + size + 1);
            return value;
        }
        text += word;
    }
    return NULL;
}

#define OUR_HOST "here"

static bool resolve(const struct weft_placement_request *more, const char *environment, struct weft_placement *out,
                    char *error)
{
    struct weft_placement_request request = more != NULL ? *more : (struct weft_placement_request){.has_mpi = true};

    request.variable = variable;
    request.context = (void *)(uintptr_t)environment;
    request.host_name = OUR_HOST;
    return weft_placement_resolve(&request, out, error);
}

/* What all is well looks like, in one line. */
static const char *shown(const struct weft_placement_request *more, const char *environment)
{
    static char text[1024];
    char error[WEFT_PLACEMENT_ERROR_SIZE];
    struct weft_placement p;

    if (!resolve(more, environment, &p, error)) {
        (void)snprintf(text, sizeof(text), "refused: %s", error);
        return text;
    }
    (void)snprintf(text, sizeof(text), "%s %s%d/%u (%s, %s) local %u/%u (%s) x%u %s (%s)",
                   weft_launcher_name(p.launcher), p.has_rank ? "" : "any ", (int)p.rank, p.rank_count, p.rank_origin,
                   p.rank_count_origin, p.local_rank, p.local_count, p.local_rank_origin, p.fork_count,
                   p.is_tcp ? p.leader : "-", p.leader_origin);
    return text;
}

static void test_host_lists(void **state)
{
    static const struct {
        const char *list;
        uint32_t count;
        const char *hosts; /* the first, some, the last */
    } cases[] = {
        {"a", 1, "0=a"},
        {"a,b.example.org,c", 3, "0=a 1=b.example.org 2=c"},
        {"node[1-4,7]", 5, "0=node1 3=node4 4=node7"},
        {"gnode[08-11]", 4, "0=gnode08 1=gnode09 2=gnode10 3=gnode11"},
        {"n[001-100]", 100, "0=n001 99=n100"},
        {"rack[1-2]n[01-04],login", 9, "0=rack1n01 3=rack1n04 4=rack2n01 7=rack2n04 8=login"},
        {"x[1,3]-ib[0-1],y[5]", 5, "0=x1-ib0 1=x1-ib1 2=x3-ib0 3=x3-ib1 4=y5"},
        {"x[9-10]", 2, "0=x9 1=x10"},
        {"", 0, ""},
        {",a", 0, ""},
        {"a,", 0, ""},
        {"a[", 0, ""},
        {"a[1", 0, ""},
        {"a[]", 0, ""},
        {"a[1-]", 0, ""},
        {"a[2-1]", 0, ""},
        {"a[1,]", 0, ""},
        {"a]1[", 0, ""},
        {"a[x]", 0, ""},
        {"a[1]]", 0, ""},
        {"a[[1]]", 0, ""},
        {"a b", 0, ""},
        {"a[0-99999]", 0, ""},
        {"a[0-999][0-999]", 0, ""},
        {"a[12345678901]", 0, ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t count = weft_hostlist_count(cases[i].list);
        const char *next = cases[i].hosts;
        char host[64];

        assert_int_equal(count, cases[i].count);
        while (*next != 0) {
            uint32_t index;
            char wanted[64];
            int used;

            assert_int_equal(sscanf(next, "%u=%63s%n", &index, wanted, &used), 2);
            assert_true(weft_hostlist_get(cases[i].list, index, host, sizeof(host)));
            assert_string_equal(host, wanted);
            next += used;
            next += strspn(next, " ");
        }
        assert_false(weft_hostlist_get(cases[i].list, count, host, sizeof(host)));
    }
    char small[4];
    assert_false(weft_hostlist_get("node1", 0, small, sizeof(small)));
}

static void test_hosts_of_ranks(void **state)
{
    static const int32_t expected[] = {0, 0, 1, 1, 2, 2, 3, -1};
    uint32_t host;

    (void)state;
    for (uint32_t rank = 0; rank < 8; rank++) {
        assert_int_equal(weft_hostlist_block("2(x3),1", rank, &host), expected[rank] >= 0);
        assert_true(expected[rank] < 0 || host == (uint32_t)expected[rank]);
    }
    assert_false(weft_hostlist_block("", 0, &host));
    assert_false(weft_hostlist_block("2(3)", 5, &host));
    assert_false(weft_hostlist_block("2(x3", 1, &host));
    assert_false(weft_hostlist_block("0", 0, &host));
}

#define SLURM                                                                                                          \
    "SLURM_STEP_ID=0 SLURM_JOB_ID=7 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=8 SLURM_NTASKS=9 SLURM_LOCALID=1 "             \
    "SLURM_STEP_NODELIST=n[5-8] SLURM_JOB_NODELIST=n[1-8] SLURM_STEP_TASKS_PER_NODE=2(x4) SLURM_NODEID=1"
#define OMPI                                                                                                           \
    "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2 "         \
    "PMIX_RANK=2 PMIX_NAMESPACE=x"
#define LWS      "LWS_LEADER_ADDRESS=w-1.w.space LWS_GROUP_SIZE=4 LWS_WORKER_INDEX=2"
#define TORCHRUN "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=m MASTER_PORT=29500"
#define KSERVE   "RAY_NODE_COUNT=3 TENSOR_PARALLEL_SIZE=1 PIPELINE_PARALLEL_SIZE=3"

static void test_every_launcher(void **state)
{
    static const struct {
        const char *environment, *expected;
    } cases[] = {
        {"", "none 0/1 (default, default) local 0/1 () x1 - (default)"},
        {SLURM, "Slurm 3/8 (SLURM_PROCID, SLURM_STEP_NUM_TASKS) local 1/2 (SLURM_LOCALID) x1 n5:20427 "
                "(SLURM_STEP_NODELIST, port from SLURM_JOB_ID and SLURM_STEP_ID)"},
        {"SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a,b",
         "Slurm 0/2 (SLURM_PROCID, SLURM_NTASKS) local 0/0 () x1 a:20000 (SLURM_JOB_NODELIST, default port)"},
        /* the batch script itself */
        {"SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_JOB_NODELIST=n[1-4]",
         "none 0/1 (default, default) local 0/1 () x1 - (default)"},
        {OMPI, "mpirun 2/4 (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE) local 0/2 (OMPI_COMM_WORLD_LOCAL_RANK) x1 - "
               "(MPI)"},
        /* mpirun's ranks inherit the variables of the Slurm task that started them */
        {OMPI " " SLURM, "mpirun 2/4 (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE) local 0/2 "
                         "(OMPI_COMM_WORLD_LOCAL_RANK) x1 - (MPI)"},
        {"PMIX_RANK=1 PMIX_NAMESPACE=slurm.pmix.7.0 " SLURM, "mpirun 1/0 (PMIX_RANK, MPI) local 0/0 () x1 - (MPI)"},
        {LWS, "LeaderWorkerSet 2/4 (LWS_WORKER_INDEX, LWS_GROUP_SIZE) local 0/1 (LeaderWorkerSet) x1 "
              "w-1.w.space:20000 (LWS_LEADER_ADDRESS, default port)"},
        {"LWS_LEADER_ADDRESS=w-1.w.space LWS_GROUP_SIZE=4 LWS_WORKER_INDEX=0",
         "LeaderWorkerSet 0/4 (LWS_WORKER_INDEX, LWS_GROUP_SIZE) local 0/1 (LeaderWorkerSet) x1 here:20000 "
         "(host name, default port)"},
        {TORCHRUN, "torchrun 5/8 (RANK, WORLD_SIZE) local 1/4 (LOCAL_RANK) x1 m:29500 (MASTER_ADDR, port from "
                   "MASTER_PORT)"},
        {TORCHRUN " TORCHELASTIC_USE_AGENT_STORE=True",
         "torchrun 5/8 (RANK, WORLD_SIZE) local 1/4 (LOCAL_RANK) x1 m:29501 (MASTER_ADDR, port from MASTER_PORT + 1, "
         "the former is torchrun's)"},
        {"RANK=0 WORLD_SIZE=1 MASTER_ADDR=fd00::1", "torchrun 0/1 (RANK, WORLD_SIZE) local 0/0 () x1 [fd00::1]:20000 "
                                                    "(MASTER_ADDR, default port)"},
        {KSERVE, "KServe 0/3 (HEAD_SVC is not set, RAY_NODE_COUNT) local 0/1 (KServe) x1 here:20000 (host name, "
                 "default port)"},
        {KSERVE " HEAD_SVC=llm-head-1", "KServe any 0/3 (the leader, by arrival, RAY_NODE_COUNT) local 0/1 (KServe) x1 "
                                        "llm-head-1:20000 (HEAD_SVC, default port)"},
        /* the first in the order wins */
        {SLURM " " LWS " " TORCHRUN " " KSERVE,
         "Slurm 3/8 (SLURM_PROCID, SLURM_STEP_NUM_TASKS) local 1/2 (SLURM_LOCALID) x1 n5:20427 (SLURM_STEP_NODELIST, "
         "port from SLURM_JOB_ID and SLURM_STEP_ID)"},
        {LWS " " TORCHRUN, "LeaderWorkerSet 2/4 (LWS_WORKER_INDEX, LWS_GROUP_SIZE) local 0/1 (LeaderWorkerSet) x1 "
                           "w-1.w.space:20000 (LWS_LEADER_ADDRESS, default port)"},
        /* empty is unset */
        {"RANK= WORLD_SIZE= MASTER_ADDR=", "none 0/1 (default, default) local 0/1 () x1 - (default)"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_string_equal(shown(NULL, cases[i].environment), cases[i].expected);
    }
}

static void test_half_sets_and_contradictions(void **state)
{
    static const struct {
        const char *environment, *expected;
    } cases[] = {
        {"RANK=1", "WORLD_SIZE is not"},
        {"WORLD_SIZE=2", "RANK is not"},
        {"MASTER_ADDR=m", "WORLD_SIZE is not"},
        {"RANK=1 WORLD_SIZE=2", "MASTER_ADDR is not"},
        {"RANK=2 WORLD_SIZE=2 MASTER_ADDR=m", "RANK: expected a rank below WORLD_SIZE, which is 2, found 2"},
        {"RANK=-1 WORLD_SIZE=2 MASTER_ADDR=m", "RANK: expected a whole number from 0 to 1023, found \"-1\""},
        {"RANK=0 WORLD_SIZE=0 MASTER_ADDR=m", "WORLD_SIZE: expected a whole number from 1 to 1024, found \"0\""},
        {"RANK=0 WORLD_SIZE=2x MASTER_ADDR=m", "found \"2x\""},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=m MASTER_PORT=0", "MASTER_PORT: expected a whole number from 1 to 65535"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=m LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK: expected a number below"},
        {"LWS_GROUP_SIZE=2", "LWS_WORKER_INDEX is not"},
        {"LWS_WORKER_INDEX=0", "LWS_GROUP_SIZE is not"},
        {"LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=1", "LWS_LEADER_ADDRESS is not"},
        {"LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=2 LWS_LEADER_ADDRESS=x", "expected a rank below LWS_GROUP_SIZE"},
        {"HEAD_SVC=x", "RAY_NODE_COUNT is not"},
        {"RAY_NODE_COUNT=none", "RAY_NODE_COUNT: expected a whole number"},
        {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_JOB_NODELIST=a", "SLURM_NTASKS is not"},
        {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2", "SLURM_JOB_NODELIST is not"},
        {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a[", "expected a host list such as"},
        {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE is not"},
        {"OMPI_COMM_WORLD_SIZE=1", "OMPI_COMM_WORLD_RANK is not"},
        {"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=2", "expected a rank below OMPI_COMM_WORLD_SIZE"},
        {"PMIX_RANK=1", "PMIX_NAMESPACE is not"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *text = shown(NULL, cases[i].environment);

        assert_ptr_equal(strstr(text, "refused: "), text);
        assert_non_null(strstr(text, cases[i].expected));
        assert_null(strchr(text, '\n'));
    }
}

static const struct {
    const char *environment;
    struct weft_placement_request request;
    const char *expected;
} option_cases[] = {
    /* everything by options: no launcher is asked */
    {SLURM,
     {.leader = "h:1",
      .leader_origin = "--leader",
      .rank_origin = "--rank",
      .rank = 1,
      .rank_count_origin = "WEFT_RANK_COUNT",
      .rank_count = 3},
     "options 1/3 (--rank, WEFT_RANK_COUNT) local 0/0 () x1 h:1 (--leader)"},
    {"",
     {.leader = "h:1",
      .leader_origin = "--leader",
      .rank_origin = "--rank",
      .rank = 2,
      .rank_count_origin = "--ranks",
      .rank_count = 4,
      .local_count = 2},
     "options 2/4 (--rank, --ranks) local 0/2 (--local-ranks) x2 h:1 (--leader)"},
    {"", {.rank_count_origin = "--ranks", .rank_count = 4}, "none 0/4 (default, --ranks) local 0/4 () x1 - (default)"},
    /* one value overridden, or repeated */
    {LWS,
     {.leader = "h:1", .leader_origin = "--leader"},
     "LeaderWorkerSet 2/4 (LWS_WORKER_INDEX, LWS_GROUP_SIZE) local 0/1 (LeaderWorkerSet) x1 h:1 (--leader)"},
    {LWS,
     {.leader_port = 9, .rank_count_origin = "--ranks", .rank_count = 4},
     "LeaderWorkerSet 2/4 (LWS_WORKER_INDEX, LWS_GROUP_SIZE) local 0/1 (LeaderWorkerSet) x1 w-1.w.space:9 "
     "(LWS_LEADER_ADDRESS, port from --leader-port)"},
    {OMPI,
     {.leader = "h:1", .leader_origin = "--leader", .has_mpi = true},
     "mpirun 2/4 (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE) local 0/2 (OMPI_COMM_WORLD_LOCAL_RANK) x1 h:1 "
     "(--leader)"},
    /* several ranks of one process */
    {LWS,
     {.local_count = 8},
     "LeaderWorkerSet 16/32 (LWS_WORKER_INDEX, LWS_GROUP_SIZE x --local-ranks) local 0/8 (LeaderWorkerSet) x8 "
     "w-1.w.space:20000 (LWS_LEADER_ADDRESS, default port)"},
    {KSERVE " HEAD_SVC=h",
     {.local_count = 2},
     "KServe any 0/6 (the leader, by arrival, RAY_NODE_COUNT x --local-ranks) local 0/2 (KServe) x2 h:20000 "
     "(HEAD_SVC, default port)"},
    /* a build without MPI */
    {"PMIX_RANK=1 PMIX_NAMESPACE=x SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_JOB_NODELIST=a,b",
     {0},
     "Slurm 1/2 (SLURM_PROCID, SLURM_NTASKS) local 0/0 () x1 a:20000 (SLURM_JOB_NODELIST, default port)"},
    {OMPI,
     {0},
     "refused: started by mpirun (OMPI_COMM_WORLD_RANK), but this build has no MPI: expected a build with "
     "it, or --hosts, or --leader HOST:PORT"},
    /* wrong */
    {"", {.rank_origin = "--rank", .rank = 1}, "refused: --rank needs --leader HOST:PORT"},
    {"",
     {.leader = "h:1", .leader_origin = "--leader", .rank_count_origin = "--ranks", .rank_count = 2},
     "refused: --leader needs --rank R and --ranks N, or a launcher that gives them"},
    {"",
     {.leader = "h:1", .leader_origin = "--leader", .rank_origin = "--rank"},
     "refused: --leader and --rank need --ranks N: how many ranks there are"},
    {"",
     {.leader = "h:1",
      .leader_origin = "--leader",
      .rank_origin = "--rank",
      .rank = 2,
      .rank_count_origin = "--ranks",
      .rank_count = 2},
     "refused: --rank: expected a rank below --ranks, which is 2, found 2"},
    {"",
     {.local_count = 2},
     "refused: --local-ranks needs --leader or a launcher; --ranks N starts N ranks on this host"},
    {"",
     {.leader = "h:1",
      .leader_origin = "--leader",
      .rank_origin = "--rank",
      .rank = 3,
      .rank_count_origin = "--ranks",
      .rank_count = 4,
      .local_count = 2},
     "refused: --local-ranks 2 from rank 3 on: expected at most the 4 ranks of --ranks"},
    {OMPI,
     {.local_count = 2, .has_mpi = true},
     "refused: --local-ranks: mpirun starts every rank itself (slots of the hostfile, -n)"},
    {LWS,
     {.rank_count_origin = "--ranks", .rank_count = 8},
     "refused: --ranks is 8, but LeaderWorkerSet has 4 ranks by LWS_GROUP_SIZE: leave the one or unset the other"},
    {LWS,
     {.rank_origin = "WEFT_RANK", .rank = 1},
     "refused: WEFT_RANK is 1, but LeaderWorkerSet gives this process rank 2 by LWS_WORKER_INDEX: leave the one or "
     "unset the other"},
    {LWS,
     {.leader = "h:1", .leader_origin = "--leader", .leader_port = 2},
     "refused: --leader-port: --leader already names a port, found h:1"},
    {"PMIX_RANK=1 PMIX_NAMESPACE=x",
     {.leader = "h:1", .leader_origin = "WEFT_LEADER", .has_mpi = true},
     "refused: WEFT_LEADER: the number of ranks is known to MPI only; expected --rank R and --ranks N too"},
};

static void test_options(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(option_cases) / sizeof(option_cases[0]); i++) {
        assert_string_equal(shown(&option_cases[i].request, option_cases[i].environment), option_cases[i].expected);
    }
}

static void test_who_is_where(void **state)
{
    static const struct {
        const char *environment;
        uint32_t local_count, rank;
        const char *host; /* NULL: not known */
    } cases[] = {
        {SLURM, 0, 0, "n5"},
        {SLURM, 0, 3, "n6"},
        {SLURM, 0, 7, "n8"},
        {SLURM, 0, 8, NULL},
        {SLURM, 2, 7, "n6"},
        /* dealt in turn: rank 1 on the second node */
        {"SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_JOB_NODELIST=a,b SLURM_TASKS_PER_NODE=2(x2) "
         "SLURM_NODEID=1 SLURM_LOCALID=0",
         0, 0, NULL},
        {LWS, 0, 0, "w-1"},
        {LWS, 0, 3, "w-1-3"},
        {LWS, 4, 7, "w-1-1"},
        {TORCHRUN, 0, 0, NULL},
        {OMPI, 0, 1, NULL},
        {"", 0, 0, NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct weft_placement_request request = {.local_count = cases[i].local_count, .has_mpi = true};
        struct weft_placement placement;
        char error[WEFT_PLACEMENT_ERROR_SIZE];
        char host[64];

        assert_true(resolve(&request, cases[i].environment, &placement, error));
        assert_int_equal(weft_placement_host(&placement, cases[i].rank, host, sizeof(host)), cases[i].host != NULL);
        if (cases[i].host != NULL) {
            assert_string_equal(host, cases[i].host);
        }
    }
}

static void test_a_batch_script_is_told(void **state)
{
    struct weft_placement placement;
    char error[WEFT_PLACEMENT_ERROR_SIZE];

    (void)state;
    assert_true(resolve(NULL, "SLURM_PROCID=0 SLURM_NTASKS=4", &placement, error));
    assert_non_null(strstr(placement.note, "srun"));
    assert_true(resolve(NULL, "SLURM_PROCID=0 SLURM_NTASKS=1", &placement, error));
    assert_null(placement.note);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_lists),
        cmocka_unit_test(test_hosts_of_ranks),
        cmocka_unit_test(test_every_launcher),
        cmocka_unit_test(test_half_sets_and_contradictions),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_who_is_where),
        cmocka_unit_test(test_a_batch_script_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
