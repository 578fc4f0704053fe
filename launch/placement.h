/*
 * Where this process stands in its group: which rank of how many, which of its host's, and where the leader is. The one
 * place that knows what launchers tell their processes. First match wins:
 *
 *   options    --leader --rank --ranks
 *   MPI        OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE (mpirun); PMIX_RANK with PMIX_NAMESPACE
 *   Slurm      SLURM_PROCID, SLURM_STEP_NUM_TASKS or SLURM_NTASKS, SLURM_LOCALID; the leader is the first host of
 *              SLURM_STEP_NODELIST or SLURM_JOB_NODELIST. Only in a step of srun (SLURM_STEP_ID): the batch script
 * itself has SLURM_PROCID too, and is no rank LWS        LWS_WORKER_INDEX, LWS_GROUP_SIZE, LWS_LEADER_ADDRESS
 * (LeaderWorkerSet) torchrun   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT KServe
 * RAY_NODE_COUNT, and HEAD_SVC in workers, which have no number: the leader gives it none       this process alone, or
 * --ranks N forked here
 *
 * Single options override single values of a launcher (--leader), or must agree with it (--rank, --ranks).
 */
#ifndef WEFT_LAUNCH_PLACEMENT_H
#define WEFT_LAUNCH_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WEFT_PLACEMENT_PORT = 20000, /* of the leader where the launcher gives none, see leader_port */
    WEFT_PLACEMENT_ORIGIN_SIZE = 96,
    WEFT_PLACEMENT_HOST_SIZE = 256,
    WEFT_PLACEMENT_ERROR_SIZE = 384,
};

enum weft_launcher {
    WEFT_LAUNCHER_NONE,
    WEFT_LAUNCHER_OPTIONS,
    WEFT_LAUNCHER_SSH, /* --hosts; the caller's to set */
    WEFT_LAUNCHER_MPI,
    WEFT_LAUNCHER_SLURM,
    WEFT_LAUNCHER_LWS,
    WEFT_LAUNCHER_TORCHRUN,
    WEFT_LAUNCHER_KSERVE,
};

/* What is asked for by options. Everything is borrowed. */
struct weft_placement_request {
    /* The environment: the value of `name`, NULL when unset. */
    const char *(*variable)(void *context, const char *name);
    void *context;
    const char *host_name;         /* of this host */
    const char *leader;            /* HOST:PORT; NULL: not given */
    const char *leader_origin;     /* "--leader", "WEFT_LEADER" */
    const char *rank_origin;       /* NULL: no rank was given */
    const char *rank_count_origin; /* NULL: none was given */
    uint32_t rank;
    uint32_t rank_count;
    uint32_t local_count; /* ranks that each process is to start on its host, itself included; 0: 1 */
    uint32_t leader_port; /* 0: MASTER_PORT; under Slurm one in 20000..31999 from the numbers of job and step; 20000 */
    bool has_mpi;         /* in this build */
};

struct weft_placement {
    enum weft_launcher launcher;
    bool is_tcp;          /* ranks meet at `leader`; else by MPI, by fork, or there is one */
    bool has_rank;        /* false: the leader will say (KServe workers) */
    uint32_t rank;        /* of this process */
    uint32_t rank_count;  /* 0: not known before MPI starts */
    uint32_t local_rank;  /* among the ranks of this host; meaningless where local_rank_origin is "" */
    uint32_t local_count; /* ranks of this host; 0: not known */
    uint32_t fork_count;  /* ranks from `rank` on that this process starts, itself included: 1 unless asked for */
    char leader[WEFT_PLACEMENT_HOST_SIZE + 16]; /* HOST:PORT; "" unless is_tcp */
    /* Where each value came from, as in "SLURM_PROCID"; "default". */
    char rank_origin[WEFT_PLACEMENT_ORIGIN_SIZE];
    char rank_count_origin[WEFT_PLACEMENT_ORIGIN_SIZE];
    char local_rank_origin[WEFT_PLACEMENT_ORIGIN_SIZE];
    char leader_origin[WEFT_PLACEMENT_ORIGIN_SIZE];
    const char *note; /* something odd that is no error; NULL: nothing */
    /* For weft_placement_host(); borrowed from the environment. */
    const char *node_list;
    const char *tasks_per_node;
    const char *leader_host;
};

/* "Slurm", "mpirun" ...; "none". */
const char *weft_launcher_name(enum weft_launcher launcher);

/*
 * Fills *out. False when the environment or the options are half set or contradict each other, with one line that says
 * what, where, expected and found in error[WEFT_PLACEMENT_ERROR_SIZE].
 */
bool weft_placement_resolve(const struct weft_placement_request *request, struct weft_placement *out, char *error);

/* The host on which `rank` runs, as far as the launcher's variables tell; false when they do not. */
bool weft_placement_host(const struct weft_placement *placement, uint32_t rank, char *out, size_t size);

#endif
