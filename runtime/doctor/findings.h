/* From facts and measurements to findings: pure, so that every rule can be tested without the machine it is about. */
#ifndef WEFT_DOCTOR_FINDINGS_H
#define WEFT_DOCTOR_FINDINGS_H

#include "doctor/facts.h"
#include "doctor/predict.h"
#include "doctor/probe.h"

enum weft_doctor_severity {
    WEFT_DOCTOR_NOTE,    /* worth knowing; nothing is wrong */
    WEFT_DOCTOR_WARNING, /* works, but slower or less safe than it could */
    WEFT_DOCTOR_ERROR,   /* a run would fail */
};

struct weft_doctor_finding {
    enum weft_doctor_severity severity;
    char where[96];
    char what[384];
    const char *why;    /* static */
    const char *change; /* static */
};

enum { WEFT_DOCTOR_FINDING_MAX = 256 };

struct weft_doctor_findings {
    struct weft_doctor_finding items[WEFT_DOCTOR_FINDING_MAX];
    uint32_t count;
    uint32_t dropped; /* found when the list was full */
};

struct weft_doctor_group {
    const struct weft_doctor_facts *facts; /* [rank_count] */
    uint32_t rank_count;
    const struct weft_doctor_link *links; /* [link_count] */
    uint32_t link_count;
    const uint64_t *memory_needs;                    /* [rank_count] bytes of weights and activations; NULL: no model */
    const struct weft_doctor_prediction *prediction; /* NULL: none */
    const int32_t *gpus;                             /* [rank_count] of weft_deal_devices(); NULL: all on CPUs */
};

/* Adds one; format makes `what`. */
void weft_doctor_findings_add(struct weft_doctor_findings *findings, const struct weft_doctor_finding *finding,
                              const char *format, ...) __attribute__((format(printf, 3, 4)));

/* gpus.c: what each rank would run on into gpus_out[rank_count]; a group that would be refused is a finding. */
void weft_doctor_gpus_deal(const struct weft_doctor_group *group, int32_t *gpus_out,
                           struct weft_doctor_findings *findings);
/* gpus.c: whether the model fits into the GPU of `rank`, which has one. */
void weft_doctor_judge_gpu_memory(const struct weft_doctor_group *group, uint32_t rank,
                                  struct weft_doctor_findings *findings);

/* gpus.c: whether `rank`, which has a GPU, can multiply as --numerics fast asks it to. */
void weft_doctor_judge_fast(const struct weft_doctor_group *group, uint32_t rank,
                            struct weft_doctor_findings *findings);

/* What is to say about the links; findings_links.c. */
void weft_doctor_judge_links(const struct weft_doctor_group *group, struct weft_doctor_findings *findings);

/* Adds what is to say about the group. */
void weft_doctor_judge(const struct weft_doctor_group *group, struct weft_doctor_findings *findings);

/* Cores that the ranks on the host of `rank` may use together: their affinities, at most the largest quota. */
uint32_t weft_doctor_host_cores(const struct weft_doctor_facts *facts, uint32_t rank_count, uint32_t rank);
/* Ranks on the host of `rank`. */
uint32_t weft_doctor_host_ranks(const struct weft_doctor_facts *facts, uint32_t rank_count, uint32_t rank);
/* True for warnings and errors. */
bool weft_doctor_is_trouble(const struct weft_doctor_findings *findings);

/* "0-3,8" into text; "-" for an empty mask. Cut when it does not fit. */
const char *weft_doctor_cores_text(const struct weft_machine *machine, char *text, size_t size);
uint32_t weft_doctor_core_count(const struct weft_machine *machine);

#endif
