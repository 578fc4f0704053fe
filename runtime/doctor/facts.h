/* What one rank finds out about itself and its machine. Plain bytes: travels as it is between ranks of one build. */
#ifndef WEFT_DOCTOR_FACTS_H
#define WEFT_DOCTOR_FACTS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/deal.h"
#include "engine/identity.h"
#include "engine/machine.h"
#include "weft/bootstrap.h"

enum { WEFT_DOCTOR_TEXT_SIZE = 256 };

struct weft_doctor_facts {
    struct weft_machine machine; /* host name, cores, quota, memory available */
    uint64_t host_id;
    uint64_t pid;
    uint64_t memory_total; /* bytes */
    uint64_t memory_limit; /* asked for; 0: none */
    uint64_t huge_free;    /* bytes of reserved huge pages that are free */
    uint64_t lock_limit;   /* bytes; UINT64_MAX: none */
    uint64_t file_limit;   /* open files */
    uint64_t shm_size;     /* bytes of /dev/shm */
    uint32_t cpu_count;    /* online on this host */
    uint32_t numa_count;
    uint32_t thread_count; /* asked for; 0: cores / ranks */
    int32_t model_status;  /* enum weft_status; meaningful with has_model */
    uint8_t has_model;
    uint8_t has_binary;
    uint8_t binary[WEFT_SHA256_SIZE]; /* of the program's file */
    uint8_t model[WEFT_SHA256_SIZE];  /* fingerprint of the model's files */
    struct weft_member member;        /* device_kind and GPUs only */
    int32_t gpu_status;               /* enum weft_status of looking for them */
    char gpu_error[WEFT_DOCTOR_TEXT_SIZE];
    uint8_t is_fast;                          /* --numerics fast */
    char fast_library[WEFT_DOCTOR_TEXT_SIZE]; /* what that multiplies by; "" without GPUs or the library */
    char fast_reason[WEFT_DOCTOR_TEXT_SIZE];  /* why there is none */
    char huge_mode[16];                       /* of transparent huge pages: "always", "madvise", "never", "?" */
    char cpu_level[16];                       /* "avx512" */
    char cpu_model[64];                       /* as the kernel names it; "?" */
    int32_t slow_start_after_idle;            /* the sysctl; -1: not known */
    char version[32];
    uint32_t local_rank;   /* among the ranks of its host, as the launcher says */
    char rank_origin[96];  /* where the rank's number came from: "SLURM_PROCID" */
    char local_origin[96]; /* and the number on its host; "": not known */
    char model_error[WEFT_DOCTOR_TEXT_SIZE];
};

/* Only what costs microseconds: no digests, no model, no GPUs, no CPU level, no host id. */
void weft_doctor_facts_read_machine(struct weft_doctor_facts *facts_out);

/* model: folder, or NULL. Never fails: what cannot be read says so by its value. */
void weft_doctor_facts_read(const struct weft_bootstrap *bootstrap, const char *model,
                            struct weft_doctor_facts *facts_out);

#endif
