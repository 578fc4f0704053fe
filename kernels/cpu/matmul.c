/*
 * Multiplication, leaf by leaf. Work is dealt in groups of up to WEFT_DOT_PANELS_MAX panels, so that a worker has
 * several streams of weights and as many independent chains of fused multiply-adds in flight.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/matrix.h"
#include "cpu/quant_panel.h"

enum {
    GROUP_PANELS = WEFT_DOT_PANELS_MAX,
    GROUP_ROWS = GROUP_PANELS * WEFT_LANES,
    GROUPS_PER_THREAD = 4, /* at least, before groups are made smaller: keeps the shares about equal */
    STREAM_TOKENS_MAX = 4, /* up to here one pass over the panels waits for memory alone: nothing to fetch ahead */
    F8_COLUMNS = 64,       /* E4M3 unpacked at a time: panels take turns often enough to be streams fetched ahead */
    STATIC_TOKENS_MAX = 8, /* up to here a step is bound by memory: equal shares; beyond, free workers take more */
};

/* All tokens, or as many of a quantised matrix's as the scratch holds activations of. */
struct matmul_job {
    struct weft_cpu_device *device;
    const struct weft_matrix *matrix;
    const float *x; /* of the first token of this job */
    const float *bias;
    float *out;            /* of the first token of this job, in the first node */
    uint32_t token_count;  /* of this job */
    uint32_t token_total;  /* in each node of out */
    uint32_t group_panels; /* 1 .. GROUP_PANELS */
};

/*
 * starts[panels] <- where leaf `index` begins in each panel of a group; ahead[] <- where what is read after it begins:
 * the next leaf, or the next group's first. Returns how many of these exist.
 */
static uint32_t find_leaf(const struct matmul_job *job, uint32_t index, uint32_t panel_first, uint32_t panels,
                          const void **starts, const void **ahead)
{
    const struct weft_matrix *matrix = job->matrix;
    bool is_last = index + 1 == matrix->leaf_count;
    uint32_t next_first = is_last ? panel_first + panels : panel_first;
    size_t next_offset = is_last ? 0 : matrix->leaf_offsets[index + 1];
    uint32_t next_count =
        weft_min_u32(panels, weft_cpu_panel_count(matrix->row_count, matrix->gate_count) - next_first);

    for (uint32_t p = 0; p < panels; p++) {
        starts[p] = matrix->panels + (panel_first + p) * matrix->panel_size + matrix->leaf_offsets[index];
    }
    for (uint32_t p = 0; p < next_count; p++) {
        ahead[p] = matrix->panels + (next_first + p) * matrix->panel_size + next_offset;
    }
    return next_count;
}

/* One call of a micro-kernel: a leaf of some panels for some tokens. */
struct leaf_call {
    uint32_t leaf;
    uint32_t panel_count;
    const void *starts[GROUP_PANELS];
    const void *const *ahead;
    uint32_t ahead_count;
    uint32_t token_first;
    uint32_t token_count; /* 1 .. WEFT_DOT_VECTORS_MAX */
    bool is_first;        /* of this leaf: its panels come from memory */
    float *sums;          /* [token_count][stride] */
    size_t stride;
};

static void call_plain(const struct matmul_job *job, const struct leaf_call *call)
{
    const struct weft_matrix *matrix = job->matrix;
    const struct weft_cpu_kernels *kernels = &job->device->kernels;
    const float *x[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot args = {.panels = call->starts,
                                .panel_count = call->panel_count,
                                .vector_count = call->token_count,
                                .x = x,
                                .col_count = weft_range_count(matrix->leaves[call->leaf]),
                                .out = call->sums,
                                .out_stride = call->stride,
                                .ahead = call->ahead,
                                .ahead_count = call->ahead_count};

    for (uint32_t v = 0; v < call->token_count; v++) {
        x[v] = job->x + (size_t)(call->token_first + v) * matrix->col_count + matrix->leaves[call->leaf].begin;
    }
    switch (matrix->dtype) {
    case WEFT_F32: kernels->dot_f32(&args); break;
    case WEFT_F16: kernels->dot_f16(&args); break;
    case WEFT_BF16: kernels->dot_bf16_pairs(&args); break;
    case WEFT_Q8_0:
    case WEFT_Q4_0:
    case WEFT_F8_E4M3: abort();
    }
}

static void call_quant(const struct matmul_job *job, const struct leaf_call *call)
{
    const struct weft_matrix *matrix = job->matrix;
    const struct weft_cpu_kernels *kernels = &job->device->kernels;
    const struct weft_cpu_quant_x *x[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot_quant args = {.panels = call->starts,
                                      .panel_count = call->panel_count,
                                      .vector_count = call->token_count,
                                      .x = x,
                                      .block_count =
                                          weft_quant_block_count(weft_range_count(matrix->leaves[call->leaf])),
                                      .out = call->sums,
                                      .out_stride = call->stride,
                                      .is_stream = call->is_first,
                                      .ahead = call->ahead,
                                      .ahead_count = call->ahead_count};

    for (uint32_t v = 0; v < call->token_count; v++) {
        x[v] = job->device->quant_x + (size_t)(call->token_first + v) * matrix->block_count +
               matrix->leaf_blocks[call->leaf];
    }
    if (matrix->dtype == WEFT_Q8_0) {
        kernels->dot_q8_0(&args);
    } else {
        kernels->dot_q4_0(&args);
    }
}

/* multiply_leaf() of E4M3: some columns are unpacked for all tokens, then the next; the sums go on where they were. */
static void multiply_leaf_f8(const struct matmul_job *job, uint32_t index, uint32_t panel_first, uint32_t panels,
                             uint32_t token_first, uint32_t token_count, float *sums, size_t stride)
{
    const struct weft_matrix *matrix = job->matrix;
    const struct weft_cpu_kernels *kernels = &job->device->kernels;
    struct weft_range leaf = matrix->leaves[index];
    _Alignas(64) uint32_t pairs[GROUP_PANELS][F8_COLUMNS / 2 * WEFT_LANES];
    const void *starts[GROUP_PANELS];
    const float *x[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot args = {.panels = starts, .panel_count = panels, .x = x, .out_stride = stride};
    uint32_t column = leaf.begin;

    do { /* once for an empty leaf, whose sum is +0.0 */
        args.col_count = weft_min_u32(leaf.end - column, F8_COLUMNS);
        args.is_continued = column > leaf.begin;
        for (uint32_t p = 0; p < panels; p++) {
            weft_cpu_f8_unpack(matrix, kernels, matrix->panels + (panel_first + p) * matrix->panel_size,
                               (struct weft_range){column, column + args.col_count}, pairs[p]);
            starts[p] = pairs[p];
        }
        for (uint32_t token = 0; token < token_count; token += args.vector_count) {
            args.vector_count = weft_min_u32(token_count - token, WEFT_DOT_VECTORS_MAX);
            args.out = sums + token * stride;
            for (uint32_t v = 0; v < args.vector_count; v++) {
                x[v] = job->x + (size_t)(token_first + token + v) * matrix->col_count + column;
            }
            kernels->dot_bf16_pairs(&args);
        }
        column += args.col_count;
    } while (column < leaf.end);
}

/* sums [token_count][stride] <- one leaf of `panels` panels from `panel_first` on, for tokens from token_first on. */
static void multiply_leaf(const struct matmul_job *job, uint32_t index, uint32_t panel_first, uint32_t panels,
                          uint32_t token_first, uint32_t token_count, float *sums, size_t stride)
{
    uint32_t call_count = weft_ceil_div(token_count, WEFT_DOT_VECTORS_MAX);
    const void *ahead[GROUP_PANELS];
    struct leaf_call call = {.leaf = index, .panel_count = panels, .stride = stride};
    uint32_t next_count = find_leaf(job, index, panel_first, panels, call.starts, ahead);
    bool is_quantised = weft_dtype_is_quantised(job->matrix->dtype);
    bool has_time = is_quantised || token_count > STREAM_TOKENS_MAX; /* for what the kernels do */
    uint32_t ahead_count = has_time ? next_count : 0;

    for (uint32_t i = 0; i < call_count; i++) { /* each fetches its share of what comes next */
        uint32_t token = i * WEFT_DOT_VECTORS_MAX;
        uint32_t ahead_begin = ahead_count * i / call_count;

        call.ahead = ahead + ahead_begin;
        call.ahead_count = ahead_count * (i + 1) / call_count - ahead_begin;
        call.is_first = i == 0;
        call.token_first = token_first + token;
        call.token_count = weft_min_u32(token_count - token, WEFT_DOT_VECTORS_MAX);
        call.sums = sums + token * stride;
        if (is_quantised) {
            call_quant(job, &call);
        } else {
            call_plain(job, &call);
        }
    }
}

typedef void multiply_leaf_fn(const struct matmul_job *job, uint32_t index, uint32_t panel_first, uint32_t panels,
                              uint32_t token_first, uint32_t token_count, float *sums, size_t stride);

static multiply_leaf_fn *multiply_leaf_of(const struct weft_matrix *matrix)
{
    return matrix->dtype == WEFT_F8_E4M3 ? multiply_leaf_f8 : multiply_leaf;
}

/* Leaf sums of one group and one block of tokens in scratch, then tree nodes, then the rows that exist. */
static void multiply_by_leaves(const struct matmul_job *job, uint32_t worker, uint32_t panel_first, uint32_t panels,
                               uint32_t token_first, uint32_t token_count)
{
    const struct weft_matrix *matrix = job->matrix;
    const struct weft_cpu_kernels *kernels = &job->device->kernels;
    float *scratch = weft_cpu_scratch(job->device, worker);
    uint32_t row_first = panel_first * WEFT_LANES;
    uint32_t rows = weft_min_u32(panels * WEFT_LANES, matrix->row_count - row_first);
    size_t width = (size_t)panels * WEFT_LANES;
    size_t slot_size = token_count * width;
    multiply_leaf_fn *multiply = multiply_leaf_of(matrix);

    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        multiply(job, i, panel_first, panels, token_first, token_count, scratch + i * slot_size, width);
    }
    for (uint32_t i = 0; i < matrix->add_count; i++) {
        kernels->add(scratch + matrix->adds[i].left * slot_size, scratch + matrix->adds[i].right * slot_size,
                     slot_size);
    }
    for (uint32_t j = 0; j < matrix->node_count; j++) {
        const float *node = scratch + matrix->node_slots[j] * slot_size;
        float *out = job->out + ((size_t)j * job->token_total + token_first) * matrix->row_count + row_first;

        for (uint32_t t = 0; t < token_count; t++) {
            memcpy(out + (size_t)t * matrix->row_count, node + t * width, rows * sizeof(*out));
        }
    }
}

/* Adds the bias of pairs of panels, from pair `first` on, of which `count` rows each exist. */
static void add_gated_bias(const struct matmul_job *job, uint32_t first, uint32_t count, float *sums)
{
    const struct weft_cpu_kernels *kernels = &job->device->kernels;
    const float *gate = job->bias + first;
    const float *up = gate + job->matrix->gate_count;

    for (uint32_t i = 0; i < count; i += WEFT_LANES) {
        kernels->add(sums + (size_t)2 * i, gate + i, weft_min_u32(count - i, WEFT_LANES));
        kernels->add(sums + (size_t)2 * i + WEFT_LANES, up + i, weft_min_u32(count - i, WEFT_LANES));
    }
}

/* A group of a gated matrix: pairs of panels, whose sums meet in scratch. */
static void multiply_gated(const struct matmul_job *job, uint32_t worker, uint32_t panel_first, uint32_t panels,
                           uint32_t token_first, uint32_t token_count)
{
    float *scratch = weft_cpu_scratch(job->device, worker);
    uint32_t gate_count = job->matrix->gate_count;
    uint32_t first = panel_first / 2 * WEFT_LANES;
    uint32_t count = weft_min_u32(panels / 2 * WEFT_LANES, gate_count - first);
    size_t width = (size_t)panels * WEFT_LANES;

    multiply_leaf_of(job->matrix)(job, 0, panel_first, panels, token_first, token_count, scratch, width);
    for (uint32_t t = 0; t < token_count; t++) {
        if (job->bias != NULL) {
            add_gated_bias(job, first, count, scratch + t * width);
        }
        job->device->kernels.silu_mul(scratch + t * width, count,
                                      job->out + (size_t)(token_first + t) * gate_count + first);
    }
}

/* In blocks of tokens for which there is scratch. */
static void multiply_gated_group(const struct matmul_job *job, uint32_t worker, uint32_t panel_first, uint32_t panels)
{
    uint32_t block = WEFT_CPU_SCRATCH_FLOATS / GROUP_ROWS;

    for (uint32_t t = 0; t < job->token_count; t += block) {
        multiply_gated(job, worker, panel_first, panels, t, weft_min_u32(block, job->token_count - t));
    }
}

static void add_bias(const struct matmul_job *job, uint32_t row_first, uint32_t rows)
{
    for (uint32_t t = 0; t < job->token_count; t++) {
        job->device->kernels.add(job->out + (size_t)t * job->matrix->row_count + row_first, job->bias + row_first,
                                 rows);
    }
}

static void multiply_group(const struct matmul_job *job, uint32_t worker, uint32_t panel_first, uint32_t panels)
{
    const struct weft_matrix *matrix = job->matrix;
    uint32_t row_first = panel_first * WEFT_LANES;
    uint32_t rows = weft_min_u32(panels * WEFT_LANES, matrix->row_count - row_first);

    if (matrix->leaf_count == 1 && rows == panels * WEFT_LANES) { /* straight into the output */
        multiply_leaf_of(matrix)(job, 0, panel_first, panels, 0, job->token_count, job->out + row_first,
                                 matrix->row_count);
    } else {
        uint32_t block = WEFT_CPU_SCRATCH_FLOATS / (matrix->leaf_count * GROUP_ROWS);

        for (uint32_t t = 0; t < job->token_count; t += block) {
            multiply_by_leaves(job, worker, panel_first, panels, t, weft_min_u32(block, job->token_count - t));
        }
    }
    if (job->bias != NULL) {
        add_bias(job, row_first, rows);
    }
}

_Static_assert(WEFT_CPU_SCRATCH_FLOATS / (WEFT_LEAF_COUNT_MAX * GROUP_ROWS) >= WEFT_DOT_VECTORS_MAX,
               "the scratch holds every leaf of one group for one dot call");

static void matmul_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct matmul_job *job = context;
    uint32_t panels = weft_cpu_panel_count(job->matrix->row_count, job->matrix->gate_count);

    for (uint32_t group = begin; group < end; group++) {
        uint32_t first = group * job->group_panels;
        uint32_t count = weft_min_u32(job->group_panels, panels - first);

        if (job->matrix->gate_count > 0) {
            multiply_gated_group(job, worker, first, count);
        } else {
            multiply_group(job, worker, first, count);
        }
    }
}

void weft_cpu_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x, uint32_t token_count,
                     const float *bias, float *out)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    bool is_quantised = weft_dtype_is_quantised(matrix->dtype);
    uint32_t panels = weft_cpu_panel_count(matrix->row_count, matrix->gate_count);
    uint32_t share = panels / (cpu->thread_count * GROUPS_PER_THREAD);
    uint32_t tokens_max = is_quantised ? weft_cpu_quant_tokens_max(matrix) : token_count;
    struct matmul_job job = {.device = cpu,
                             .matrix = matrix,
                             .bias = bias,
                             .token_total = token_count,
                             .group_panels = share < 1 ? 1 : weft_min_u32(share, GROUP_PANELS)};

    assert(bias == NULL || matrix->node_count == 1);
    if (matrix->gate_count > 0) { /* pairs of panels */
        job.group_panels = weft_ceil_div(job.group_panels, 2) * 2;
    }
    for (uint32_t t = 0; t < token_count; t += job.token_count) {
        job.x = x + (size_t)t * matrix->col_count;
        job.out = out + (size_t)t * weft_cpu_out_width(matrix);
        job.token_count = weft_min_u32(token_count - t, tokens_max);
        if (is_quantised) {
            weft_cpu_quant_activations(cpu, matrix, job.x, job.token_count);
        }
        weft_pool_run(cpu->pool, job.token_count <= STATIC_TOKENS_MAX ? WEFT_POOL_STATIC : WEFT_POOL_DYNAMIC,
                      weft_ceil_div(panels, job.group_panels), matmul_task, &job);
    }
}
