/*
 * Weft for embedders: open an engine on a model folder, submit prompts, poll events, close. `weft run` and `weft serve`
 * use nothing else.
 *
 * One engine is one group of ranks running one model. The process that opens it may be any rank: on rank 0 (the leader)
 * requests can be submitted; on every other rank the caller hands its thread over to weft_engine_work() until the group
 * ends. With WEFT_LAUNCH_LOCAL the library forks the other ranks itself and only the leader ever returns from open.
 *
 * Threads: submit, cancel and poll may be called from any thread of the leader; poll from one at a time. The answer to
 * a request depends on model, prompt, sampling and seed alone: not on ranks, threads, other requests or chunking.
 */
#ifndef WEFT_WEFT_H
#define WEFT_WEFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct weft_engine;

enum weft_launch {
    WEFT_LAUNCH_LOCAL = 0,   /* rank_count processes on this host, forked by open: call it before starting threads */
    WEFT_LAUNCH_TCP = 2,     /* rank, rank_count and leader are given; every process opens the same group */
    WEFT_LAUNCH_MPI = 3,     /* started by mpirun or another launcher of MPI, which knows rank and rank_count */
    WEFT_LAUNCH_THREADS = 4, /* rank_count ranks as threads of this process: embedding and tests */
};

/* Loading progress, on the leader: what is being loaded and how far, 0 <= done <= total. Called from the thread that
 * opens. */
typedef void weft_progress_callback(void *context, const char *what, uint64_t done, uint64_t total);
/* One line of the memory table, before anything is allocated. */
typedef void weft_text_callback(void *context, const char *line);

/*
 * Called by weft_engine_open() on the leader as soon as it is known to be the leader and nothing forks any more: with
 * TCP before the others are waited for, else before the model is read. May start threads. An error (logged) ends the
 * group and is what open returns.
 */
typedef enum weft_status weft_leading_callback(void *context);
/* weft_engine_close() would wait for a step that takes long, from the thread that closes; every other rank and whoever
 * started them know that this is the end. May end the process: nothing of it is needed any more. */
typedef void weft_leave_callback(void *context);

#define WEFT_RANK_ANY UINT32_MAX

/* Zero means the default everywhere; fill with weft_engine_options_init(). */
struct weft_engine_options {
    const char *model; /* Hugging Face model folder */
    enum weft_launch launch;
    uint32_t rank_count;           /* 0: what the launcher gave, else 1 */
    uint32_t rank;                 /* WEFT_LAUNCH_TCP; WEFT_RANK_ANY: the leader gives one */
    uint32_t local_rank;           /* with WEFT_RANK_ANY: among the local_rank_count ranks of this host, */
    uint32_t local_rank_count;     /* which get neighbouring numbers; 0: 1 */
    const char *const *rank_hosts; /* [rank_count] names for messages about who is missing, until open; NULL: unknown */
    int launcher_fd;               /* > 0: whoever starts the other ranks writes "RANK REASON\n" there when it cannot */
    const char *leader;            /* WEFT_LAUNCH_TCP: "host:port" */
    const char *secret;            /* WEFT_LAUNCH_TCP: shared by all ranks, or NULL */
    uint32_t thread_count;         /* per rank; 0: cores of this host / ranks on it, at least 1 */
    const uint32_t *shares;        /* [share_count] proportions of the model per rank; NULL: equal */
    uint32_t share_count;          /* 0, or rank_count */
    bool is_share_measured; /* shares by how fast each rank reads weights, measured when they meet; the same answer */
    const char *weights;    /* NULL or "local": every rank reads the folder; "stream": rank 0 reads it for all */
    uint32_t leaf_count;    /* V; 0: 8, at most 64. Part of the model's identity: changes the bits */
    /* NULL or "auto": GPUs when every rank has one, else CPUs; "cpu"; "cuda": each rank its own GPU; "cuda:1": GPU 1
     * for every rank of this host, shared if they are several. A group runs on GPUs or on CPUs, not on both. */
    const char *device;
    const char *numerics; /* GPU only: NULL or "exact", "reference": the CPU's bits, slow, "fast": prompts by cuBLASLt.
                             On CPUs always exact */
    bool is_eager; /* GPU only: decode steps are issued operation by operation, not as CUDA graphs; the same answer */
    const char *cuda_module;     /* file of the CUDA module; NULL: beside this program or library */
    const char *cpu_level;       /* NULL: best; "ref", "avx2", "avx512", "avx512vnni" */
    const char *comm;            /* NULL: auto; "self", "shm", "tcp", "ucx", "mpi", "nccl", "peer" */
    const char *interface;       /* networks between hosts, by preference: names or CIDRs, "eth0,10.0.0.0/8" */
    const char *kv_dtype;        /* NULL: "f32"; "bf16" halves the cache (and changes the bits) */
    const char *quantize;        /* NULL or "none": weights as they are stored; "q8_0", "q4_0": quantised while they are
                                    loaded, 8.5 or 4.5 bits each (and other numbers); "bf16": FP8 converted to that
                                    (and the same numbers), others as they are stored */
    uint64_t memory_limit;       /* bytes per rank for weights + KV + activations; 0: 90 % of what is available there */
    uint32_t context_length;     /* positions per request; 0: the model's */
    uint32_t sequence_count_max; /* requests running at once; 0: 16 */
    uint32_t queue_count_max;    /* requests waiting; 0: 1024. Beyond it submit says ERR_LIMIT */
    uint32_t kv_token_count;     /* positions of KV cache in all; 0: what fits, at most sequence_count_max contexts */
    uint32_t prefill_chunk;      /* prompt tokens per step; 0: 256, with numerics fast 2048 */
    uint32_t candidate_count;    /* best logits each rank hands to the sampler; 0: 64. Cost only, never the answer */
    uint32_t timeout_ms;         /* of every wait between ranks; 0: 30000 */
    uint32_t rendezvous_timeout_ms; /* until all ranks have come, and between signs of life while they load; 0: 60000 */
    uint32_t heartbeat_ms; /* a rank that sends no heartbeat for this long is given up; 0: 900. UINT32_MAX: never */
    uint32_t lost_exit_ms; /* 0: never. Else this process leaves by _exit(1) this long after the group was lost, should
                              it be stuck (in MPI, a driver, a disk). Not with WEFT_LAUNCH_THREADS */
    bool is_traced;        /* time every collective */
    weft_progress_callback *progress;
    weft_text_callback *memory_table;
    weft_leading_callback *leading; /* with leading_context */
    void *leading_context;
    weft_leave_callback *leave; /* WEFT_LAUNCH_MPI; NULL: MPI_Finalize is left out when the process ends in a step */
    void *callback_context;
};

WEFT_API void weft_engine_options_init(struct weft_engine_options *options);

/* What a model folder is and what each rank would hold, without starting ranks or reading weights. */
struct weft_model_summary {
    char architecture[48];
    char weight_dtype[8]; /* of the layers' matrices in memory */
    uint32_t scale_cols;  /* columns that share a scale when that is f8_e4m3; 0: each row has one, or the tensor */
    char weight_text[96]; /* "q4_0 (embedding and head q8_0), quantised while loading, from bf16" */
    uint64_t parameter_count;
    uint32_t layer_count;
    uint32_t width;
    uint32_t head_count;
    uint32_t kv_head_count;
    uint32_t head_size;
    uint32_t ffn_width;
    uint32_t vocab_size;
    uint32_t context_length;
    uint32_t leaf_count;
    uint32_t rank_count;
};
struct weft_rank_summary {
    uint32_t leaf_begin; /* leaves [begin, end) */
    uint32_t leaf_end;
    uint32_t head_begin; /* query heads */
    uint32_t head_end;
    uint64_t weight_size;     /* bytes in memory, packed */
    uint64_t kv_size;         /* bytes of KV cache for kv_token_count positions, else for one whole context */
    uint64_t activation_size; /* bytes */
    uint64_t kv_token_size;   /* bytes per cached position */
};
/*
 * Uses model, rank_count (0: 1), shares, leaf_count, kv_dtype, quantize and the limits of `options`; fills
 * rank_out[capacity] with at most rank_count entries. The same refusals as weft_engine_open().
 */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_inspect(const struct weft_engine_options *options,
                                                              struct weft_model_summary *summary_out,
                                                              struct weft_rank_summary *ranks_out, uint32_t capacity);

/* Starts or joins the group, loads this rank's slices, and returns when every rank is ready. ERR_*: logged. */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_open(const struct weft_engine_options *options,
                                                           struct weft_engine **out);
WEFT_API bool weft_engine_is_leader(const struct weft_engine *engine);

/* Ranks other than the leader: executes plans until the leader closes (WEFT_OK) or the group fails. */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_work(struct weft_engine *engine);

/* Ends every rank after the step that runs, or in the middle of one that takes long; requests still open get no more
 * events. No other call on this engine may be in progress or follow. Sets *engine to NULL; NULL inside is fine. */
WEFT_API void weft_engine_close(struct weft_engine **engine);

/* ---- requests ---- */

/* Fill with weft_request_init(): greedy, 256 tokens, no penalties. Pointers are borrowed until submit returns. */
struct weft_request {
    const char *prompt;       /* text, or NULL when token_ids are given */
    size_t prompt_size;       /* bytes */
    const int32_t *token_ids; /* [token_count], instead of prompt */
    uint32_t token_count;
    bool is_raw;              /* do not add the tokenizer's BOS/EOS to prompt */
    uint32_t max_tokens;      /* at most; the context also ends it */
    float temperature;        /* 0: greedy */
    uint32_t top_k;           /* 0: all */
    float top_p;              /* (0, 1]; 1: all */
    float min_p;              /* [0, 1); 0: off */
    float repetition_penalty; /* > 0; 1: off. Over prompt and output, as Hugging Face */
    float presence_penalty;   /* 0: off. Over output, as OpenAI */
    float frequency_penalty;  /* 0: off. Over output, as OpenAI */
    uint64_t seed;            /* same seed, same answer */
    const char *const *stop;  /* [stop_count] strings that end the answer; not part of the text */
    uint32_t stop_count;      /* at most 16 */
    bool is_eos_ignored;      /* go on to max_tokens */
    bool has_logits_digest;   /* SHA-256 over the f32 logits row of every sampled position, in order */
    void *user;               /* handed back in events */
};

WEFT_API void weft_request_init(struct weft_request *request);

/*
 * Queues a request. *id_out > 0. ERR_ARGUMENT (a setting out of range), ERR_LIMIT (prompt longer than the context,
 * queue full), ERR_STATE (group failed or closing); the reason is in weft_engine_error() of this thread.
 */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_submit(struct weft_engine *engine,
                                                             const struct weft_request *request, uint64_t *id_out);

/* Ends a request early; its last event has WEFT_FINISH_CANCELLED. Unknown or finished ids are ignored. */
WEFT_API void weft_engine_cancel(struct weft_engine *engine, uint64_t id);

enum weft_finish {
    WEFT_FINISH_NONE = 0,   /* more to come */
    WEFT_FINISH_STOP = 1,   /* end-of-sequence token or stop string */
    WEFT_FINISH_LENGTH = 2, /* max_tokens or context reached */
    WEFT_FINISH_CANCELLED = 3,
    WEFT_FINISH_ERROR = 4, /* status says why */
};
enum { WEFT_FINISH_COUNT = 5 };
/* "stop", "length", "cancelled", "error"; "" for NONE. */
WEFT_API const char *weft_finish_name(enum weft_finish finish);

struct weft_timings {
    double queue_ms;          /* submit to first step */
    double prefill_ms;        /* first step to first token */
    double decode_ms;         /* first token to last */
    double ttft_ms;           /* submit to first token */
    double tokens_per_second; /* decode; 0 with fewer than two tokens */
};

/* What is new about one request. Strings and arrays are valid until the next poll. */
struct weft_event {
    uint64_t id;
    void *user;
    const char *text; /* [text_size] valid UTF-8, NUL-terminated; may be empty while bytes of a character are missing */
    size_t text_size;
    const int32_t *token_ids; /* [token_count]; the end-of-sequence token and those of a stop string included */
    uint32_t token_count;
    enum weft_finish finish;
    /* when finish is not NONE: */
    enum weft_status status;
    uint32_t prompt_token_count;
    uint32_t output_token_count;
    struct weft_timings timings;
    char logits_sha256[65]; /* hex; "" unless asked for */
};

/*
 * Waits up to timeout_ms for events; events_out[capacity], *count_out of them (0 after a timeout). A group failure
 * gives every open request a last event and then returns its status from every call.
 */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_poll(struct weft_engine *engine, uint32_t timeout_ms,
                                                           struct weft_event *events_out, uint32_t capacity,
                                                           uint32_t *count_out);

/* ---- the rest ---- */

/* Token ids of text[size]; *ids_out from malloc, freed by the caller. */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_tokenize(struct weft_engine *engine, const char *text,
                                                               size_t size, bool is_raw, int32_t **ids_out,
                                                               size_t *count_out);
/* Text of ids[count], special tokens left out; *text_out from malloc, NUL-terminated, freed by the caller. */
WEFT_MUST_CHECK WEFT_API enum weft_status weft_engine_detokenize(struct weft_engine *engine, const int32_t *ids,
                                                                 size_t count, char **text_out, size_t *size_out);

struct weft_engine_info {
    const char *model; /* as opened */
    const char *architecture;
    const char *device; /* of the leader */
    const char *comm;
    uint64_t parameter_count;
    uint32_t vocab_size;
    uint32_t context_length;
    uint32_t rank_count;
    uint32_t thread_count;
    uint32_t leaf_count;
    const char *weight_dtype; /* of the layers' matrices in memory */
    const char *weight_text;  /* and where it comes from, as in weft_model_summary */
    const char *kv_dtype;
    double load_ms;
};
WEFT_API void weft_engine_info(const struct weft_engine *engine, struct weft_engine_info *info_out);

/* How often something took how long: buckets[i] counts what took at most weft_histogram_bound_ms(i) and more than the
 * bound before it; the last bucket has no bound. */
enum { WEFT_HISTOGRAM_BOUND_COUNT = 18 };
struct weft_histogram {
    uint64_t buckets[WEFT_HISTOGRAM_BOUND_COUNT + 1];
    double sum_ms;
};
WEFT_API double weft_histogram_bound_ms(uint32_t index);

/* The leader's load now, and what it has done since open. */
struct weft_engine_stats {
    uint32_t rank_count;
    uint32_t waiting_count; /* requests without a place yet */
    uint32_t running_count; /* requests with one */
    uint32_t waiting_max;   /* more are refused */
    uint32_t running_max;
    uint32_t kv_page_count;
    uint32_t kv_page_used_count;
    uint32_t kv_page_positions; /* positions of one page */
    uint64_t step_count;
    uint64_t prompt_token_count; /* of requests that have got their first token */
    uint64_t output_token_count;
    uint64_t finish_counts[WEFT_FINISH_COUNT]; /* requests that have ended, by how; [NONE] is 0 */
    uint64_t refused_count;                    /* because the queue was full */
    struct weft_histogram queue;               /* submit to first step, per request that got a token */
    struct weft_histogram ttft;                /* submit to first token, per request */
    struct weft_histogram inter_token;         /* from each token to the next */
    struct weft_histogram request;             /* submit to last token, per request that ended by itself */
};
/* From any thread, at any time, without making a step wait. All zero on ranks other than the leader. */
WEFT_API void weft_engine_stats(const struct weft_engine *engine, struct weft_engine_stats *stats_out);

struct weft_collective_stats {
    const char *name; /* "tree_sum", "all_gather", ... */
    uint64_t call_count;
    uint64_t byte_count;
    double time_ms;
};
/* Totals of the leader since open, zero unless is_traced; fills at most capacity, returns how many there are. */
WEFT_API uint32_t weft_engine_collectives(struct weft_engine *engine, struct weft_collective_stats *stats_out,
                                          uint32_t capacity);

/* Rank that ended the group, -1 while it lives. */
WEFT_API int weft_engine_failed_rank(const struct weft_engine *engine);

/* What ended the group, from any thread: text_out[size] <- "rank 3 on node-b failed: ...", "" while it lives. True, and
 * here, even while the engine's own thread is stuck. */
WEFT_API void weft_engine_failure(const struct weft_engine *engine, char *text_out, size_t size);

/* Reason of this thread's last failed call, "" when none. */
WEFT_API const char *weft_engine_error(void);

/* "0.1.0". */
WEFT_API const char *weft_version(void);

#ifdef __cplusplus
}
#endif

#endif
