/*
 * One request from submit to its last event: its tokens, its sampling, its text, its times.
 *
 * The members above the line belong to the controller's thread once submitted; those below are shared with poll and
 * cancel under the controller's mutex. Everything a step needs is allocated here, when the request comes.
 */
#ifndef WEFT_ENGINE_JOB_H
#define WEFT_ENGINE_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/evp.h>

#include "engine/plan.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/stop.h"
#include "model/config.h"
#include "weft/status.h"
#include "weft/tokenizer.h"
#include "weft/weft.h"

/* Text that grows by appending. */
struct weft_text {
    char *data; /* [size] and a NUL; NULL while empty */
    size_t size;
    size_t capacity;
};

/* Tokens seen so far with what their penalties subtract, ascending ids. */
struct weft_penalties {
    uint32_t *ids;    /* [count] */
    uint32_t *counts; /* [count] occurrences in the output */
    float *subtracts; /* [count] */
    uint32_t count;
};

struct weft_job {
    struct weft_sequence sequence; /* first: the scheduler's entry is the job */
    int32_t *token_ids;            /* [prompt_count + output_max] */
    uint32_t prompt_count;
    uint32_t output_count;
    uint32_t output_max;
    struct weft_sampling sampling;
    float repetition;
    float presence;
    float frequency;
    struct weft_penalties penalties;
    bool is_eos_ignored;
    bool is_row_wanted; /* the last step's candidates could not decide: ask for the whole row at once */
    struct weft_stop stop;
    struct weft_detokenizer *detokenizer; /* NULL without tokenizer */
    struct weft_text fresh;               /* text of the last token */
    EVP_MD_CTX *digest;                   /* NULL unless asked for */
    int64_t submit_ns;
    int64_t first_step_ns; /* 0: not yet */
    int64_t first_token_ns;
    int64_t last_token_ns;

    /* ---- shared ---- */
    struct weft_job *previous; /* among all jobs */
    struct weft_job *next;
    struct weft_job *ready_next; /* among those with something to tell */
    bool is_ready;
    bool is_cancelled;
    uint64_t id;
    void *user;
    uint32_t published_count; /* output tokens that poll may hand out */
    uint32_t delivered_count; /* of them handed out */
    struct weft_text pending; /* not yet handed out */
    struct weft_text handed;  /* what the last event points to */
    enum weft_finish finish;
    enum weft_status status;
    char logits_sha256[65];
};

struct weft_job_limits {
    const struct weft_tokenizer *tokenizer; /* or NULL */
    uint32_t context_length;
    uint32_t vocab_size;
};

/* Checks the request, tokenizes and allocates. ERR_ARGUMENT, ERR_LIMIT, ERR_UNSUPPORTED with a kept reason (log.h). */
WEFT_MUST_CHECK enum weft_status weft_job_open(const struct weft_request *request, const struct weft_job_limits *limits,
                                               struct weft_job **out);
void weft_job_close(struct weft_job **job);

/* The row of logits that the job's next token needs, at token_row of the step; borrows the job's penalties. */
void weft_job_fill_row(const struct weft_job *job, uint32_t token_row, uint32_t candidate_count_max,
                       struct weft_step_row *row_out);
/* Candidates that decide for most of this job's tokens, at most count_max. */
uint32_t weft_job_candidate_count(const struct weft_job *job, uint32_t count_max);

/* A new token: appended to the job; job->fresh <- the text that may be shown now, *finish_out whether it was the last
 * one. ERR_MEMORY. */
WEFT_MUST_CHECK enum weft_status weft_job_take(struct weft_job *job, const struct weft_model_config *config,
                                               int32_t token, enum weft_finish *finish_out);

/* Appends to a text. ERR_MEMORY. */
WEFT_MUST_CHECK enum weft_status weft_text_append(struct weft_text *text, const char *data, size_t size);

/* Appends to those who have news, linked by ready_next, unless it is there. */
void weft_job_queue_ready(struct weft_job **first, struct weft_job **last, struct weft_job *job);

/* A doubly linked list of jobs, linked by previous and next. */
void weft_job_list_add(struct weft_job **first, struct weft_job *job);
void weft_job_list_remove(struct weft_job **first, struct weft_job *job);

/* The event of what is new; moves pending to handed. Under the mutex. */
void weft_job_event(struct weft_job *job, struct weft_event *event_out);

#endif
