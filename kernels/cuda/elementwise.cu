/*
 * Operations on token rows with the CPU's bits (cpu/elementwise.h): norms, activations, copies of rows.
 *
 * All are bound by memory, a decode step's by their launch: rows of a step fit into the L2. Elements go by four, 16
 * bytes per thread, where widths and addresses allow it.
 */
#include "cuda/device_cuda.h"
#include "cuda/norm.h"
#include "cuda/numeric_cuda.h"
#include "cuda/ptx.h"
#include "cuda/tree_cuda.h"

typedef struct weft_cuda_four four;
typedef struct weft_cuda_one one;

static const uint32_t BLOCK = 256;

static bool is_by_four(const void *a, const void *b, const void *c, uint32_t width)
{
    uintptr_t bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c);

    return bits % sizeof(four) == 0 && width % 4 == 0;
}

/* Blocks that cover `count` elements by `by` per thread. */
static dim3 grid_for(size_t count, uint32_t by)
{
    return dim3(static_cast<unsigned int>((count + by * BLOCK - 1) / (by * BLOCK)));
}

/* ---- RMS norm ---- */

/* What is normalised: the row x as it is. */
struct row_alone {
};

/* x + (y + bias), which also goes to x; bias may be NULL. */
struct row_plus {
    const float *y;
    const float *bias;
};

/* The same with a y that is a sum along the tree. */
struct row_plus_tree {
    struct weft_cuda_tree_program y;
    const float *bias;
};

template <typename V> static __device__ __forceinline__ V element_of(const row_alone &, V *x, size_t, uint32_t i)
{
    return x[i];
}

template <typename V>
static __device__ __forceinline__ V element_of(const row_plus &what, V *x, size_t begin, uint32_t i)
{
    return weft_cuda_norm_add(x, reinterpret_cast<const V *>(what.y)[begin + i], what.bias, i);
}

template <typename V>
static __device__ __forceinline__ V element_of(const row_plus_tree &what, V *x, size_t begin, uint32_t i)
{
    V stack[WEFT_CUDA_STACK_DEPTH][1]; /* in local memory, that is in the L1 */

    return weft_cuda_norm_add(x, weft_cuda_tree_at(&what.y, begin + i, stack, 0), what.bias, i);
}

template <typename What> static __device__ __forceinline__ void row_is_there(const What &)
{
}

/*
 * One block per row. Starts early and touches nothing until its predecessor has ended; then its successor, a matmul,
 * has been let in already, and reads weights in the meantime.
 */
template <typename V, typename What>
static __global__ void __launch_bounds__(BLOCK)
    norm(const What what, float *x, const float *weight, uint32_t width, float eps, float *out)
{
    __shared__ weft_cuda_norm_room<V> room;

    static_assert(sizeof(room.chunk) / sizeof(V) % BLOCK == 0, "an element has the same thread in both passes");
    weft_ptx_let_next_start();
    weft_ptx_wait_for_previous();
    weft_cuda_norm_row(what, weft_cuda_norm_rows{x, weight, out, width, eps}, blockIdx.x, BLOCK, &room);
}

/* is_wide: what `what` reads allows accesses by four. */
template <typename What>
static void launch_norm(struct weft_cuda_device *device, const What &what, const struct weft_add_norm_args *args,
                        bool is_wide)
{
    auto *kernel =
        is_wide && is_by_four(args->x, args->weight, args->out, args->width) ? norm<four, What> : norm<one, What>;

    if (args->token_count == 0 || args->width == 0) {
        return;
    }
    WEFT_CUDA_LAUNCH_EARLY(device->can_start_early, kernel, dim3(args->token_count), dim3(BLOCK), 0, device->stream,
                           what, args->x, args->weight, args->width, args->eps, args->out);
    (void)weft_cuda_launched(device, "a norm");
}

void weft_cuda_rms_norm(struct weft_device *base, const float *x, const float *weight, uint32_t token_count,
                        uint32_t width, float eps, float *out)
{
    struct weft_add_norm_args args = {};

    args.x = const_cast<float *>(x); /* which is only read */
    args.weight = weight;
    args.out = out;
    args.eps = eps;
    args.token_count = token_count;
    args.width = width;
    launch_norm(weft_cuda_device(base), row_alone{}, &args, true);
}

void weft_cuda_add_norm(struct weft_device *base, const struct weft_add_norm_args *args)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    bool is_wide = is_by_four(args->bias, NULL, NULL, args->width);
    struct row_plus_tree what = {};

    if (args->y->before != NULL) {
        if (weft_cuda_peer_norm(device, args)) {
            return;
        }
        weft_cuda_peer_sum(base, args->y->before);
    }
    for (uint32_t n = 0; n < args->y->input_count; n++) {
        is_wide = is_wide && is_by_four(args->y->inputs[n], NULL, NULL, args->width);
    }
    if (args->y->input_count == 1) {
        launch_norm(device, row_plus{args->y->inputs[0], args->bias}, args, is_wide);
        return;
    }
    weft_cuda_tree_program_init(&what.y, args->y);
    what.bias = args->bias;
    launch_norm(device, what, args, is_wide);
}

/* ---- rows ---- */

template <typename V>
static __global__ void __launch_bounds__(BLOCK)
    select_rows(const V *x, const uint32_t *rows, size_t count, uint32_t width, V *out)
{
    const size_t i = blockIdx.x * static_cast<size_t>(BLOCK) + threadIdx.x;

    if (i < count) {
        out[i] = x[static_cast<size_t>(rows[i / width]) * width + i % width];
    }
}

void weft_cuda_select_rows(struct weft_device *base, const float *x, const uint32_t *rows, uint32_t count,
                           uint32_t width, float *out)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const size_t total = static_cast<size_t>(count) * width;

    if (total == 0) {
        return;
    }
    const uint32_t *uploaded = static_cast<const uint32_t *>(weft_cuda_upload(device, rows, count * sizeof(*rows)));
    if (uploaded == NULL) {
        return;
    }
    if (is_by_four(x, out, NULL, width)) {
        WEFT_CUDA_LAUNCH(select_rows<four>, grid_for(total, 4), dim3(BLOCK), 0, device->stream,
                         reinterpret_cast<const four *>(x), uploaded, total / 4, width / 4,
                         reinterpret_cast<four *>(out));
    } else {
        WEFT_CUDA_LAUNCH(select_rows<one>, grid_for(total, 1), dim3(BLOCK), 0, device->stream,
                         reinterpret_cast<const one *>(x), uploaded, total, width, reinterpret_cast<one *>(out));
    }
    (void)weft_cuda_launched(device, "select_rows");
}
