/*
 * The CUDA backend's own state, shared by its files. Device memory, one stream, operations in order.
 *
 * Operations cannot fail by themselves (weft/device.h): the first CUDA error is kept in the device, logged once, and
 * returned by the next sync(), read() or write(). Nobody waits for the GPU without a deadline.
 */
#ifndef WEFT_CUDA_DEVICE_CUDA_H
#define WEFT_CUDA_DEVICE_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/port.h"
#include "device_ops.h"
#include "weft/log.h"

/*
 * How matrices of 16-bit weights are multiplied. EXACT: tensor cores (mma.sync m16n8k16), activations rounded to the
 * weights' type, one instruction shape and ascending k for every batch size: the GPU class of the numerics contract.
 * REFERENCE: the CPU's own order with fmaf, the CPU's bits; for tests and for doubts about a GPU. FAST: as EXACT, but
 * products of many tokens are cuBLASLt's, whose bits depend on everything (matrix_fast.h). Weights in f32 are always
 * multiplied as in REFERENCE, quantised ones on tensor cores with the CPU's bits. Everything that is no matrix
 * multiplication has the CPU's bits in all three.
 */
enum weft_cuda_numerics { WEFT_CUDA_EXACT, WEFT_CUDA_REFERENCE, WEFT_CUDA_FAST };

static const uint32_t KEPT_SCRATCH_MAX = 8;

struct weft_cuda_device {
    struct weft_device base;
    int index; /* of the GPU */
    enum weft_cuda_numerics numerics;
    uint32_t sm_count;
    bool can_start_early;   /* the code that runs has programmatic dependent launch: compute_90 and later */
    bool has_fresh_weights; /* packed since the last kernel that may read weights early: that one must not */
    uint32_t timeout_ms;    /* of every wait for the GPU */
    enum weft_wait_policy wait;
    cudaStream_t stream;
    enum weft_status status; /* of the first error */
    bool is_stuck; /* a wait ran into its deadline: whatever runs there may still use the memory, nothing is freed */
    struct weft_cuda_transfer *transfer; /* transfer.cu: pinned staging and the upload ring, owned */
    void *scratch;                       /* scratch_size bytes of device memory, owned; see weft_cuda_scratch() */
    size_t scratch_size;
    struct weft_cuda_peer *peers; /* peer.cu: memory of other ranks that is open; owned */
    struct weft_cuda_fast *fast;  /* matrix_fast.cu: cuBLASLt, with numerics fast and where it is there; owned */
    bool is_scratch_recorded;     /* graphs have its address: growing leaves it where it is */
    void *kept_scratch[KEPT_SCRATCH_MAX]; /* what was left so, owned */
    uint32_t kept_scratch_count;
    struct weft_graphs *graphs; /* between begin and end of a step that is recorded or replayed; borrowed */
    cudaEvent_t marks[WEFT_DEVICE_MARK_COUNT]; /* weft_device_mark(); made when first set, owned */
};

/* Makes the GPU current for this thread, which CUDA wants to be said in every thread. */
void weft_cuda_enter(const struct weft_cuda_device *device);

/* Every operation begins with this: it also makes the GPU current for the calling thread. */
static inline uint32_t weft_cuda_divide_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/* The next multiple of `alignment`. */
static inline size_t weft_cuda_align_up(size_t size, size_t alignment)
{
    return (size + alignment - 1) / alignment * alignment;
}

static inline struct weft_cuda_device *weft_cuda_device(struct weft_device *device)
{
    struct weft_cuda_device *cuda = reinterpret_cast<struct weft_cuda_device *>(device); /* base is its first member */

    weft_cuda_enter(cuda);
    return cuda;
}

/* One line into libweft's log, from "kernels/cuda". */
void weft_cuda_log(enum weft_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Keeps the first error (WEFT_ERR_IO, for cudaErrorMemoryAllocation WEFT_ERR_MEMORY) and logs it: "WHAT: text". True
 * when all is well. weft_cuda_launched() asks cudaPeekAtLastError() after a launch. */
bool weft_cuda_check(struct weft_cuda_device *device, cudaError_t error, const char *what);
bool weft_cuda_launched(struct weft_cuda_device *device, const char *kernel);
/* The same for an error that is not CUDA's. */
void weft_cuda_fail(struct weft_cuda_device *device, enum weft_status status, const char *what, const char *text);

/*
 * A copy of host data in device memory for the operations issued from now on: rows, tables of sequences and pages. The
 * host's memory is free at once; the copy is ordered in the stream and lives until the operations of this step are done
 * (a ring; when it is full this waits). Device memory, 16-byte aligned. NULL after any error of the device: there may
 * be anything in the ring then, and a kernel that took it for rows or pages would read anywhere; the operation is left
 * out.
 */
const void *weft_cuda_upload(struct weft_cuda_device *device, const void *data, size_t size);

/* The same to a place of the caller's. */
void weft_cuda_upload_to(struct weft_cuda_device *device, void *to, const void *data, size_t size);

/*
 * to_host[size] <- device memory `from`, as it is when the operations issued so far are done. to_host is written by the
 * next sync(), not before, and must live until then.
 */
void weft_cuda_download(struct weft_cuda_device *device, void *to_host, const void *from, size_t size);

/* Waits for `event`, or with NULL for the whole stream, at most timeout_ms. Returns the device's status. */
enum weft_status weft_cuda_wait(struct weft_cuda_device *device, cudaEvent_t event);
/* The same with a deadline that is no error: ERR_TIMEOUT, and nothing is kept or logged. */
enum weft_status weft_cuda_poll(struct weft_cuda_device *device, cudaEvent_t event, uint32_t timeout_ms);

/* At least `size` bytes of scratch for one operation, shared by all: the stream keeps operations in order. Grows when
 * needed (at opening matrices and caches, so that a step does not allocate); NULL after an error. */
void *weft_cuda_scratch(struct weft_cuda_device *device, size_t size);
enum weft_status weft_cuda_reserve(struct weft_device *device, size_t size);

/* device_cuda.cu */
WEFT_MUST_CHECK enum weft_status weft_cuda_open(const struct weft_device_options *options, int index,
                                                const struct weft_device_ops *ops, struct weft_device **out);
void weft_cuda_close(struct weft_device *device);

/* transfer.cu */
size_t weft_cuda_transfer_size(const struct weft_device *device); /* its device memory */
WEFT_MUST_CHECK enum weft_status weft_cuda_transfer_open(struct weft_cuda_device *device);
void weft_cuda_transfer_close(struct weft_cuda_device *device);
void *weft_cuda_alloc(struct weft_device *device, size_t size);
void weft_cuda_free(struct weft_device *device, void *memory);
enum weft_status weft_cuda_write(struct weft_device *device, void *to, const void *from_host, size_t size);
enum weft_status weft_cuda_read(struct weft_device *device, void *to_host, const void *from, size_t size);
enum weft_status weft_cuda_sync(struct weft_device *device);

/* ordered.cu: copies in the order of the stream, marks, pinned memory; sums along the leaf tree */
void weft_cuda_id(const struct weft_device *device, unsigned char id_out[WEFT_DEVICE_ID_SIZE]);
void *weft_cuda_alloc_host(struct weft_device *device, size_t size);
void weft_cuda_free_host(struct weft_device *device, void *memory);
void weft_cuda_begin_read(struct weft_device *device, void *to_host, const void *from, size_t size);
void weft_cuda_begin_write(struct weft_device *device, void *to, const void *from_host, size_t size);
void weft_cuda_copy(struct weft_device *device, void *to, const void *from, size_t size);
void weft_cuda_mark(struct weft_device *device, uint32_t mark);
enum weft_status weft_cuda_wait_mark(struct weft_device *device, uint32_t mark, uint32_t timeout_ms);
void weft_cuda_tree_add(struct weft_device *device, const struct weft_tree_add_args *args);

/* peer.cu: memory that other ranks of the host reach */
void *weft_cuda_alloc_shared(struct weft_device *device, size_t size, struct weft_peer_handle *handle_out,
                             char *reason_out, size_t reason_size);
void weft_cuda_free_shared(struct weft_device *device, void *memory);
void *weft_cuda_peer_open(struct weft_device *device, const struct weft_peer_handle *handle, char *reason_out,
                          size_t reason_size);
void weft_cuda_peer_close(struct weft_device *device, void *memory);

/* peer_sum.cu */
void weft_cuda_peer_sum(struct weft_device *device, const struct weft_peer_sum_args *args);

/* peer_norm.cu: weft_cuda_add_norm() after args->y->before, both in one kernel. False: that would be slower, and
 * nothing is issued. */
bool weft_cuda_peer_norm(struct weft_cuda_device *device, const struct weft_add_norm_args *args);
/* Loads its code, which may be recorded before it is ever issued. */
void weft_cuda_peer_norm_init(struct weft_cuda_device *device);

/* matrix.cu, pack.cu */
size_t weft_cuda_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
size_t weft_cuda_matrix_scratch_size(const struct weft_device *device, const struct weft_matrix_desc *desc);
enum weft_status weft_cuda_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                       struct weft_matrix **out);
void weft_cuda_matrix_close(struct weft_device *device, struct weft_matrix *matrix);
enum weft_status weft_cuda_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                             uint32_t row_count, const void *rows, size_t row_stride);
void weft_cuda_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                     float *out);
void weft_cuda_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x,
                      uint32_t token_count, const float *bias, float *out);

/* elementwise.cu */
void weft_cuda_rms_norm(struct weft_device *device, const float *x, const float *weight, uint32_t token_count,
                        uint32_t width, float eps, float *out);
void weft_cuda_add_norm(struct weft_device *device, const struct weft_add_norm_args *args);
void weft_cuda_select_rows(struct weft_device *device, const float *x, const uint32_t *rows, uint32_t count,
                           uint32_t width, float *out);

/* rope.cu */
void weft_cuda_rope_angles(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                           uint32_t head_size, float scale, float *angles);
void weft_cuda_rope_append(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                           const struct weft_rope_args *args);

/* attention.cu: cache and attention */
size_t weft_cuda_kv_cache_size(const struct weft_device *device, const struct weft_kv_desc *desc);
size_t weft_cuda_kv_cache_scratch_size(const struct weft_device *device, const struct weft_kv_desc *desc);
enum weft_status weft_cuda_kv_cache_open(struct weft_device *device, const struct weft_kv_desc *desc,
                                         struct weft_kv_cache **out);
void weft_cuda_kv_cache_close(struct weft_device *device, struct weft_kv_cache *cache);
void weft_cuda_attention(struct weft_device *device, const struct weft_kv_cache *cache, const struct weft_batch *batch,
                         const struct weft_attention_args *args);

/* graph.cu */
size_t weft_cuda_graphs_size(const struct weft_device *device, const struct weft_graphs_desc *desc);
enum weft_status weft_cuda_graphs_open(struct weft_device *device, const struct weft_graphs_desc *desc,
                                       struct weft_graphs **out);
void weft_cuda_graphs_close(struct weft_device *device, struct weft_graphs *graphs);
void weft_cuda_graphs_seal(struct weft_device *device, struct weft_graphs *graphs);
void weft_cuda_graphs_begin(struct weft_device *device, struct weft_graphs *graphs, const struct weft_batch *batch);
void weft_cuda_graphs_pause(struct weft_device *device, struct weft_graphs *graphs);
void weft_cuda_graphs_resume(struct weft_device *device, struct weft_graphs *graphs);
void weft_cuda_graphs_end(struct weft_device *device, struct weft_graphs *graphs, bool is_whole);

/* candidates.cu */
void weft_cuda_penalize(struct weft_device *device, float *logits, uint32_t width, const struct weft_penalty *penalties,
                        uint32_t count);
void weft_cuda_candidates(struct weft_device *device, const struct weft_candidates_args *args);
size_t weft_cuda_candidates_scratch_size(const struct weft_device *device, const struct weft_candidates_args *most);

#endif
