/*
 * The device table: memory and whole operations on tensors, for one rank. forward.c calls only this. Backends: cpu
 * (kernels/cpu) and cuda (kernels/cuda).
 *
 * Shape legend (one for the project): B sequences, T tokens in this step, D width, H query heads, G KV heads, E head
 * width, F FFN width, N vocabulary, L layers. H, G, F, N are this rank's share here. Row-major, slowest first: [T, H,
 * E].
 *
 * Numerics contract: a result depends on weights, their dtype, the KV dtype and the device class only. Never on T, B,
 * the order or chunking of tokens, thread count or instruction set. All activations are f32. The C reference
 * micro-kernels (kernels/cpu) are the specification; every faster version has the same bits.
 *
 * Calls on one device come from one thread at a time and take effect in order; results are visible to the host after
 * weft_device_sync(). Sizes are checked by assertion: shapes come from our own code, never straight from a file.
 */
#ifndef WEFT_DEVICE_H
#define WEFT_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/peer.h"
#include "weft/status.h"
#include "weft/tree.h"
#include "weft/wait.h"

struct weft_device;
struct weft_matrix;
struct weft_kv_cache;
struct weft_graphs;

enum weft_dtype {
    WEFT_F32 = 0,
    WEFT_F16 = 1,
    WEFT_BF16 = 2,
    WEFT_Q8_0 = 3, /* weights only: blocks of 32 columns, see weft/quant.h */
    WEFT_Q4_0 = 4,
    WEFT_F8_E4M3 = 5, /* weights only: bytes with scales, multiplied as bf16, see weft/f8.h */
};

/* Bytes per element: 4, 2, 2; 1 of f8_e4m3, scales apart. Not for quantised types, whose blocks share a scale. */
size_t weft_dtype_size(enum weft_dtype dtype);
bool weft_dtype_is_quantised(enum weft_dtype dtype);
/* "f32", "f16", "bf16", "q8_0", "q4_0", "f8_e4m3". */
const char *weft_dtype_name(enum weft_dtype dtype);

struct weft_device_options {
    /* "cpu"; "cuda": the GPU gpu_index; "cuda:1": GPU 1; NULL or "auto": as "cuda" when there is a usable GPU, else as
     * "cpu". */
    const char *kind;
    uint32_t thread_count; /* CPU threads, the calling one included; at least 1 */
    /* NULL or "auto": best of this machine; "ref", "avx2", "avx512", "avx512vnni" force one; ERR_UNSUPPORTED when it
     * lacks that. */
    const char *cpu_level;
    const uint32_t *cores;      /* [thread_count] cores to pin to, or NULL: not pinned */
    enum weft_wait_policy wait; /* between the device's own threads, and for the GPU */
    uint32_t gpu_index;         /* for "cuda" and "auto" */
    /* GPU only, how 16-bit weights are multiplied: NULL or "exact": tensor cores, one order for every batch size;
     * "reference": the CPU's order and bits; "fast": products of many tokens by cuBLASLt, whose bits
     * depend on batch and ranks; as "exact", with a warning, where there is no such library. */
    const char *numerics;
    const char *module;  /* file of the CUDA module; NULL: weft_cuda.so beside this program or library */
    uint32_t timeout_ms; /* for everything that waits for the GPU; 0: 30000 */
};

enum weft_device_kind { WEFT_DEVICE_AUTO, WEFT_DEVICE_CPU, WEFT_DEVICE_CUDA, WEFT_DEVICE_CUDA_INDEX };
/* What `kind` of the options says; *gpu_index_out is written for "cuda:N" only. ERR_ARGUMENT, logged. */
WEFT_MUST_CHECK enum weft_status weft_device_kind_parse(const char *kind, enum weft_device_kind *kind_out,
                                                        uint32_t *gpu_index_out);

/* ERR_UNSUPPORTED, logged, when a GPU was asked for and there is no CUDA module, no driver, too old a driver or no GPU;
 * ERR_ARGUMENT for a GPU that this process does not have. */
WEFT_MUST_CHECK enum weft_status weft_device_open(const struct weft_device_options *options, struct weft_device **out);
void weft_device_close(struct weft_device **device);
/* "cpu avx512, 2 threads". */
const char *weft_device_name(const struct weft_device *device);
/* Waits until everything issued so far has happened. */
WEFT_MUST_CHECK enum weft_status weft_device_sync(struct weft_device *device);
/* Device memory is host memory, and every operation is done when it returns. */
bool weft_device_is_host(const struct weft_device *device);
/* The cudaStream_t in whose order operations take effect; NULL: there is none that NCCL could use. */
void *weft_device_stream(const struct weft_device *device);
/* Bytes that two devices share exactly when they are the same piece of hardware, in whatever process; zeroes: host. */
#define WEFT_DEVICE_ID_SIZE 16
void weft_device_id(const struct weft_device *device, unsigned char id_out[WEFT_DEVICE_ID_SIZE]);

/* ---- memory ---- */

/* `size` zeroed bytes of device memory, 64-byte aligned (huge pages when large); NULL out of memory (logged). Freed by
 * weft_device_free(). */
void *weft_device_alloc(struct weft_device *device, size_t size);
void weft_device_free(struct weft_device *device, void *memory);
/* Copies between device memory and the host. */
WEFT_MUST_CHECK enum weft_status weft_device_write(struct weft_device *device, void *to, const void *from_host,
                                                   size_t size);
WEFT_MUST_CHECK enum weft_status weft_device_read(struct weft_device *device, void *to_host, const void *from,
                                                  size_t size);

/*
 * The same without waiting, and how to wait: for communication through host memory. Copies take effect in order with
 * all other operations; the host leaves its side alone until a mark set afterwards was waited for. Host memory from
 * weft_device_alloc_host() (64-byte aligned, zeroed; NULL out of memory, logged) is copied at the link's speed, other
 * memory may make the call wait.
 */
void *weft_device_alloc_host(struct weft_device *device, size_t size);
void weft_device_free_host(struct weft_device *device, void *memory);
void weft_device_begin_read(struct weft_device *device, void *to_host, const void *from, size_t size);
void weft_device_begin_write(struct weft_device *device, void *to, const void *from_host, size_t size);
/* Inside device memory. */
void weft_device_copy(struct weft_device *device, void *to, const void *from, size_t size);
/* Sets mark `mark` (below WEFT_DEVICE_MARK_COUNT) behind everything issued so far; setting it again moves it. */
#define WEFT_DEVICE_MARK_COUNT 8
void weft_device_mark(struct weft_device *device, uint32_t mark);
/*
 * Waits until all before the mark has happened. ERR_TIMEOUT (not logged, nothing lost: call again) after timeout_ms, 0
 * only looks; otherwise the device's first error. A mark never set has been reached.
 */
WEFT_MUST_CHECK enum weft_status weft_device_wait(struct weft_device *device, uint32_t mark, uint32_t timeout_ms);

/*
 * Operations also take scratch memory, whose size weft_matrix_scratch_size() and its likes say. They share it: the
 * largest counts, once. It grows when it is too small, which waits and allocates; so that no step does, it is reserved
 * beforehand.
 */
WEFT_MUST_CHECK enum weft_status weft_device_reserve(struct weft_device *device, size_t size);
/* Bytes of device memory that an open device takes by itself. */
size_t weft_device_own_size(const struct weft_device *device);

/*
 * Memory that devices of other ranks on this host reach directly, see weft/peer.h: as weft_device_alloc(), with a
 * handle to send them. NULL with one phrase in reason_out[reason_size] where the device cannot.
 */
void *weft_device_alloc_shared(struct weft_device *device, size_t size, struct weft_peer_handle *handle_out,
                               char *reason_out, size_t reason_size);
/* Ranks of this process may still have it open, and it lives as long; those of others have closed it. */
void weft_device_free_shared(struct weft_device *device, void *memory);
/* The memory behind a handle, as this device reaches it; NULL with one phrase where it cannot, or it is there no more.
 */
void *weft_device_peer_open(struct weft_device *device, const struct weft_peer_handle *handle, char *reason_out,
                            size_t reason_size);
/* Waits for the operations so far, which may use it. */
void weft_device_peer_close(struct weft_device *device, void *memory);

/* ---- weight matrices ---- */

/*
 * W [row_count, col_count]: y[n] = sum over k of W[n, k] * x[k].
 *
 * Column-parallel (leaves NULL): one sum over all columns. Row-parallel: the columns are cut into this rank's leaves,
 * whose sums are combined by `adds` (weft_tree_adds of the rank's leaves) to its maximal tree nodes. Leaf ranges are
 * relative to the slice, ascending, tiling [0, col_count), each beginning at an even column; a leaf may be empty (sum
 * +0.0).
 *
 * A quantised matrix is multiplied with activations quantised to 8 bits, as weft/quant.h specifies: the same bits on
 * CPU and GPU, whatever the numerics.
 */
struct weft_matrix_desc {
    enum weft_dtype dtype;
    enum weft_dtype source; /* of the rows written to a quantised matrix: f32, f16 or bf16; otherwise not used */
    uint32_t scale_cols;    /* f8_e4m3 only, as weft/f8.h has them */
    uint32_t scale_phase;
    uint32_t row_count;
    uint32_t col_count;
    const struct weft_range *leaves; /* [leaf_count] or NULL; copied */
    uint32_t leaf_count;
    const struct weft_tree_add *adds; /* [add_count]; copied */
    uint32_t add_count;
    /* Two matrices in one, column-parallel, for weft_device_matmul() to multiply at once: rows [0, F) gates, rows [F,
     * row_count = 2F) what they let through. How the rows lie is the device's to say. Not for embeddings. */
    bool is_gated;
};

/* Bytes of device memory that a matrix takes, without making it (for the memory table). */
size_t weft_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
/* Scratch of packing its rows and multiplying by it, see weft_device_reserve(). */
size_t weft_matrix_scratch_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
WEFT_MUST_CHECK enum weft_status weft_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                                  struct weft_matrix **out);
void weft_matrix_close(struct weft_device *device, struct weft_matrix **matrix);
/*
 * Packs rows [row_begin, row_begin + row_count) from rows[row_count][col_count] of the matrix's dtype (of its source
 * when it is quantised, which happens here; of f8_e4m3 each with its scales before it, weft/f8.h), little endian, row
 * stride row_stride bytes, host memory. Any order, each row once.
 */
WEFT_MUST_CHECK enum weft_status weft_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix,
                                                        uint32_t row_begin, uint32_t row_count, const void *rows,
                                                        size_t row_stride);

/* ---- the tokens of one step ---- */

/* Positions per KV page. 16: one AVX-512 vector of positions, and what paged engines use. */
#define WEFT_PAGE_POSITIONS 16

/* Consecutive tokens of one sequence inside the step's token rows. Host memory. */
struct weft_batch_sequence {
    uint32_t token_begin;  /* first row */
    uint32_t token_count;  /* rows; their positions are position, position + 1, ... */
    uint32_t position;     /* absolute position of the first */
    uint32_t page_count;   /* covers position + token_count - 1 */
    const uint32_t *pages; /* page of positions [16 i, 16 i + 16) is pages[i]; < page_count of the cache */
};

struct weft_batch {
    uint32_t token_count;    /* T; rows beyond the last sequence are nobody's: operations leave anything in them */
    uint32_t sequence_count; /* B; sequences tile the rows before that in order */
    const struct weft_batch_sequence *sequences;
};

/* ---- KV cache, paged, all layers ---- */

struct weft_kv_desc {
    enum weft_dtype dtype; /* WEFT_F32 or WEFT_BF16 (round to nearest even) */
    uint32_t layer_count;
    uint32_t kv_head_count; /* G of this rank; may be 0 */
    uint32_t head_size;     /* E, a multiple of 2 */
    uint32_t page_count;
    /* The most that a step asks of attention; needed for its scratch alone, 0: any number. */
    uint32_t token_max;      /* T */
    uint32_t sequence_max;   /* B */
    uint32_t position_max;   /* cached positions of a sequence */
    uint32_t group_head_max; /* query heads of this rank that share a KV head */
};

size_t weft_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc);
/* Scratch of attention, see weft_device_reserve(); page_count is not looked at, none of the maxima may be 0. */
size_t weft_kv_cache_scratch_size(const struct weft_device *device, const struct weft_kv_desc *desc);
WEFT_MUST_CHECK enum weft_status weft_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                                    struct weft_kv_cache **out);
void weft_kv_cache_close(struct weft_device *device, struct weft_kv_cache **cache);

/* ---- graphs: the operations of a decode step issued as one ---- */

/*
 * A decode step is the same few hundred small operations every time. A GPU can keep them and be given all at once,
 * which saves the gaps between them and most of the host's work; on a device that has no use for it, graphs are NULL
 * and all of this does nothing.
 *
 * Operations between begin and end are issued by the same code in every step. Before the set is sealed, the first step
 * of a shape (its token_count, and roughly its longest context) is recorded: that allocates, and nothing of it takes
 * effect. Later steps of that shape are replayed, and take effect by the time end returns; they must issue the same
 * operations with the same arguments, only the batch and the rows of one weft_device_embed() may have other contents.
 * Steps of any other shape take effect as they are issued. Between pause and resume, and outside, so does everything:
 * communication through the host, copies, waiting.
 *
 * embed, rms_norm, matmul, rope_angles, rope_append, attention, add_norm, tree_add and peer_sum can be
 * recorded, no others; so can what somebody else puts into weft_device_stream(), if he asks weft_device_recording()
 * and puts nothing there while a step is replayed. Whatever they point to must outlive the set, and code and scratch
 * memory that they need are there because every shape was issued outside begin and end before.
 */
enum weft_recording {
    WEFT_RECORDING_NONE,   /* operations take effect as they are issued */
    WEFT_RECORDING_MADE,   /* they are recorded instead */
    WEFT_RECORDING_PLAYED, /* they were recorded before, and are not issued */
};
enum weft_recording weft_device_recording(const struct weft_device *device);

struct weft_graphs_desc {
    const struct weft_kv_cache *kv; /* of all steps; borrowed until close */
    uint32_t row_max;               /* token_count of a step, at most */
    uint32_t embed_max;             /* rows of its weft_device_embed() */
    uint32_t page_max;              /* of one sequence */
    uint32_t part_max;              /* pauses of a step and 1 */
    /* Steps are recorded and replayed by several ranks together, with sums between them: shapes depend on nothing that
     * not all ranks have alike, such as the number of heads. */
    bool is_shared;
};

/* Bytes of device memory for what varies between steps; kv is not looked at. What the driver takes for the graphs
 * themselves it does not say beforehand: seal logs it. */
size_t weft_graphs_size(const struct weft_device *device, const struct weft_graphs_desc *desc);
WEFT_MUST_CHECK enum weft_status weft_graphs_open(struct weft_device *device, const struct weft_graphs_desc *desc,
                                                  struct weft_graphs **out);
void weft_graphs_close(struct weft_device *device, struct weft_graphs **graphs);
/* Nothing is recorded from now on. */
void weft_graphs_seal(struct weft_device *device, struct weft_graphs *graphs);
/* Sequences of one token each; batch->token_count may be larger. */
void weft_graphs_begin(struct weft_device *device, struct weft_graphs *graphs, const struct weft_batch *batch);
void weft_graphs_pause(struct weft_device *device, struct weft_graphs *graphs);
void weft_graphs_resume(struct weft_device *device, struct weft_graphs *graphs);
/* is_whole false: the step was broken off, paused or not. Then nothing is recorded, and what would be launched now is
 * not. Errors of the device come out of the next sync, as ever. */
void weft_graphs_end(struct weft_device *device, struct weft_graphs *graphs, bool is_whole);

/* ---- operations; every pointer below is device memory unless it says host ---- */

/* out[i, :] <- row rows[i] of W as f32; of WEFT_NO_ROW: -0.0, which added to anything leaves its bits as they are.
 * rows[count] host memory, each < row_count or WEFT_NO_ROW. out [count, col_count]. */
#define WEFT_NO_ROW UINT32_MAX
void weft_device_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows,
                       uint32_t count, float *out);

/* out[t, :] <- x[t, :] / sqrt(mean(x[t, :]^2) + eps) * weight[:]. x, out [T, D], may be the same. weight [D] f32. */
void weft_device_rms_norm(struct weft_device *device, const float *x, const float *weight, uint32_t token_count,
                          uint32_t width, float eps, float *out);

/*
 * out[j, t, :] <- node j of W x[t, :] (+ bias[:]), nodes in leaf order. x [T, col_count]; bias [row_count] or NULL and
 * only for single-node matrices; out [node_count, T, row_count], node_count = leaf_count - add_count (1 when
 * column-parallel).
 *
 * Gated: out[t, i] <- silu(y[i]) * y[F + i], y[:] as above with its bias, out [T, F]; silu(a) = a / (1 + exp(-a)), the
 * bits of the same operations one by one.
 */
void weft_device_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x,
                        uint32_t token_count, const float *bias, float *out);

/* angles[t, i] <- (cos, sin)(position of t * inv_freq[i]) * scale; the product in f32 as Hugging Face does. angles [T,
 * E/2, 2]; inv_freq [E/2] host. */
void weft_device_rope_angles(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                             uint32_t head_size, float scale, float *angles);

/* Heads of this rank inside fused projections qkv [T, H + 2G, E]: queries, then keys, then values. */
struct weft_heads {
    uint32_t head_count;    /* H; may be 0 */
    uint32_t kv_head_count; /* G; 0 exactly when H is 0 */
    uint32_t head_size;     /* E */
    uint32_t group_first;   /* query head i uses KV head (group_first + i) / group_size */
    uint32_t group_size;    /* query heads per KV head of the whole model */
};

/*
 * What attention needs of qkv: queries and keys are RMS-normalised per head when norms are given (Qwen3), then rotated:
 * pairs (i, i + E/2), as Hugging Face's rotate_half. Queries stay in qkv; keys, and values as they are, go into the
 * pages of the batch's positions of `layer`. The keys in qkv are unspecified afterwards.
 */
struct weft_rope_args {
    struct weft_heads heads;
    uint32_t layer;
    float *qkv;          /* [T, H + 2G, E] */
    const float *angles; /* [T, E/2, 2] */
    const float *q_norm; /* [E] or NULL */
    const float *k_norm; /* [E] or NULL */
    float eps;
};
void weft_device_rope_append(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                             const struct weft_rope_args *args);

/*
 * out[t, h, :] <- softmax(q k^T * scale) v over cached positions p of t's sequence with p <= position(t) and, when
 * window > 0, p > position(t) - window. KV is walked in pieces of 256 positions aligned at 0, partial results combined
 * in ascending order, so that a row's bits depend on nothing but its own sequence.
 */
struct weft_attention_args {
    struct weft_heads heads;
    uint32_t layer;
    uint32_t window; /* 0: none */
    float scale;
    const float *qkv; /* [T, H + 2G, E]: queries, rotated; keys and values are in the cache already */
    float *out;       /* [T, H, E] */
};
void weft_device_attention(struct weft_device *device, const struct weft_kv_cache *cache,
                           const struct weft_batch *batch, const struct weft_attention_args *args);

/*
 * The end of one sublayer and the beginning of the next: x[t, :] <- x[t, :] + (y[t, :] + bias[:]), then out[t, :] <-
 * the RMS norm of that, as weft_device_rms_norm(). y [T, D] is what weft_device_tree_add(y) would write; with a single
 * input that is the input. What y->before would write, too, may stay unwritten; so does y->out otherwise.
 */
struct weft_add_norm_args {
    float *x;                           /* [T, D] */
    const struct weft_tree_add_args *y; /* host; its count is T * D */
    const float *bias;                  /* [D] or NULL */
    const float *weight;                /* [D] */
    float *out;                         /* [T, D]; overlaps none of the others */
    float eps;
    uint32_t token_count;
    uint32_t width;
};
void weft_device_add_norm(struct weft_device *device, const struct weft_add_norm_args *args);

/* args->out[i] <- the sum of args->inputs[...][i] along the leaf tree, one f32 addition per edge; after args->before,
 * with which nothing else is to be done: its result is args->out. */
void weft_device_tree_add(struct weft_device *device, const struct weft_tree_add_args *args);

/*
 * args->out[i] <- the sum over all ranks' nodes along the leaf tree, with the bits of weft_device_tree_add(), but for
 * the payload of NaNs. Every rank issues the same sums in the same order. What it does depends on nothing but args and
 * device memory, so a graph that contains it can be launched again and again.
 */
void weft_device_peer_sum(struct weft_device *device, const struct weft_peer_sum_args *args);

/* out[i, :] <- x[rows[i], :]. rows[count] host. */
void weft_device_select_rows(struct weft_device *device, const float *x, const uint32_t *rows, uint32_t count,
                             uint32_t width, float *out);

/* What a request's penalties do to one logit: y = (x > 0 ? x / repetition : x * repetition) - subtract. */
struct weft_penalty {
    uint32_t row;     /* of logits */
    uint32_t column;  /* of this rank's slice of the vocabulary */
    float repetition; /* > 0; 1: none */
    float subtract;   /* presence + frequency * occurrences */
};
/* In place on logits [B, N of this rank]; penalties[count] host, each (row, column) at most once. */
void weft_device_penalize(struct weft_device *device, float *logits, uint32_t width,
                          const struct weft_penalty *penalties, uint32_t count);

/* One vocabulary entry. */
struct weft_candidate {
    float logit;
    int32_t token_id;
};

/*
 * Log-sum-exp in two parts: sum over i of exp((logit[i] - max) * inv_temperature) with max the largest; NaN counts as
 * largest and makes both NaN. An empty leaf, or one of -infinity alone, has max -infinity and sum +0.0.
 */
struct weft_lse {
    float max;
    float sum;
};

/*
 * Per row b the `count` best entries of logits[b, :], by descending logit, ties by ascending id (NaN first, so that it
 * cannot hide), and one partial log-sum-exp per vocabulary leaf of this rank. Fewer entries than count: the rest has
 * token_id -1 and logit -infinity.
 */
struct weft_candidates_args {
    const float *logits;             /* [B, N] */
    uint32_t row_count;              /* B */
    uint32_t width;                  /* N */
    int32_t token_first;             /* id of column 0 */
    const struct weft_range *leaves; /* [leaf_count] column ranges, tiling [0, N), host */
    uint32_t leaf_count;
    uint32_t count;
    const float *inv_temperatures;   /* [B] host */
    struct weft_candidate *best_out; /* [B, count] host */
    struct weft_lse *lse_out;        /* [B, leaf_count] host */
};
void weft_device_candidates(struct weft_device *device, const struct weft_candidates_args *args);
/* Scratch, see weft_device_reserve(), for args with these row_count, width, leaf_count and count, or less of any. */
size_t weft_candidates_scratch_size(const struct weft_device *device, const struct weft_candidates_args *most);

#endif
