/*
 * Weight matrices: packed into panels of 16 rows, multiplied leaf by leaf.
 *
 * A panel of K columns is contiguous; panels follow one another. The last panel is padded with zero rows. Work is dealt
 * in groups of up to WEFT_DOT_PANELS_MAX panels, so that a worker has several streams of weights and as many
 * independent chains of fused multiply-adds in flight.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/device_cpu.h"
#include "weft/log.h"
#include "weft/numeric.h"

enum {
    GROUP_PANELS = WEFT_DOT_PANELS_MAX,
    GROUP_ROWS = GROUP_PANELS * WEFT_LANES,
    GROUPS_PER_THREAD = 4, /* at least, before groups are made smaller: keeps the shares about equal */
    STREAM_TOKENS_MAX = 4, /* up to here one pass over the panels waits for memory alone: nothing to fetch ahead */
    STATIC_TOKENS_MAX = 8, /* up to here a step is bound by memory: equal shares; beyond, free workers take more */
};

struct weft_matrix {
    enum weft_dtype dtype;
    uint32_t row_count;
    uint32_t col_count;
    uint32_t leaf_count; /* 1 for a column-parallel matrix */
    uint32_t add_count;
    uint32_t node_count;
    struct weft_range leaves[WEFT_LEAF_COUNT_MAX];
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    uint8_t node_slots[WEFT_LEAF_COUNT_MAX]; /* [node_count] leaf slot in which each node ends up */
    size_t panel_size;                       /* bytes */
    unsigned char *panels;                   /* [panel_count][panel_size], owned */
};

static uint32_t panel_count(uint32_t row_count)
{
    return weft_ceil_div(row_count, WEFT_LANES);
}

/* bf16 keeps pairs of columns together: an odd last column takes a whole pair. */
static size_t panel_size(enum weft_dtype dtype, uint32_t col_count)
{
    size_t columns = dtype == WEFT_BF16 ? (size_t)col_count + col_count % 2 : col_count;

    return columns * WEFT_LANES * weft_dtype_size(dtype);
}

/* Bytes from the start of a panel to `column`; even for bf16. */
static size_t column_offset(enum weft_dtype dtype, uint32_t column)
{
    return (size_t)column * WEFT_LANES * weft_dtype_size(dtype);
}

size_t weft_cpu_matrix_size(const struct weft_device *device, const struct weft_matrix_desc *desc)
{
    (void)device;
    return panel_count(desc->row_count) * panel_size(desc->dtype, desc->col_count);
}

static void set_leaves(struct weft_matrix *matrix, const struct weft_matrix_desc *desc)
{
    bool is_consumed[WEFT_LEAF_COUNT_MAX] = {false};
    uint32_t column = 0;

    if (desc->leaves == NULL) {
        matrix->leaf_count = 1;
        matrix->leaves[0] = (struct weft_range){0, desc->col_count};
    } else {
        assert(desc->leaf_count >= 1 && desc->leaf_count <= WEFT_LEAF_COUNT_MAX && desc->add_count < desc->leaf_count);
        matrix->leaf_count = desc->leaf_count;
        matrix->add_count = desc->add_count;
        memcpy(matrix->leaves, desc->leaves, desc->leaf_count * sizeof(*desc->leaves));
        if (desc->add_count > 0) {
            memcpy(matrix->adds, desc->adds, desc->add_count * sizeof(*desc->adds));
        }
    }
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        struct weft_range leaf = matrix->leaves[i];

        assert(leaf.begin == column && leaf.begin <= leaf.end && (leaf.begin % 2 == 0 || leaf.begin == leaf.end));
        column = leaf.end;
    }
    assert(column == matrix->col_count);
    for (uint32_t i = 0; i < matrix->add_count; i++) {
        assert(matrix->adds[i].left < matrix->adds[i].right && matrix->adds[i].right < matrix->leaf_count);
        is_consumed[matrix->adds[i].right] = true;
    }
    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        if (!is_consumed[i]) {
            matrix->node_slots[matrix->node_count++] = (uint8_t)i;
        }
    }
    assert(matrix->node_count == matrix->leaf_count - matrix->add_count);
}

enum weft_status weft_cpu_matrix_open(struct weft_device *device, const struct weft_matrix_desc *desc,
                                      struct weft_matrix **out)
{
    struct weft_matrix *matrix;

    if (weft_dtype_is_quantised(desc->dtype)) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "weights as %s are not there yet", weft_dtype_name(desc->dtype));
        return WEFT_ERR_UNSUPPORTED;
    }
    matrix = calloc(1, sizeof(*matrix));
    if (matrix == NULL) {
        weft_log(WEFT_LOG_ERROR, "kernels/cpu", "out of memory for a matrix");
        return WEFT_ERR_MEMORY;
    }
    matrix->dtype = desc->dtype;
    matrix->row_count = desc->row_count;
    matrix->col_count = desc->col_count;
    matrix->panel_size = panel_size(desc->dtype, desc->col_count);
    set_leaves(matrix, desc);
    matrix->panels = weft_cpu_alloc(device, weft_cpu_matrix_size(device, desc));
    if (matrix->panels == NULL) {
        free(matrix);
        return WEFT_ERR_MEMORY;
    }
    *out = matrix;
    return WEFT_OK;
}

void weft_cpu_matrix_close(struct weft_device *device, struct weft_matrix *matrix)
{
    weft_cpu_free(device, matrix->panels);
    free(matrix);
}

/* ---- packing ---- */

struct pack_job {
    const struct weft_matrix *matrix;
    uint32_t row_begin;
    uint32_t row_end;
    const unsigned char *rows;
    size_t row_stride;
    uint32_t panel_first;
};

/* Transposes `count` units of rows first_lane .. first_lane + lane_count - 1 of one panel. Rows may be unaligned. */
static void pack_32(uint32_t *panel, const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                    uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy(&panel[(size_t)k * WEFT_LANES + first_lane + i], rows[i] + (size_t)k * 4, 4);
        }
    }
}

static void pack_16(uint16_t *panel, const unsigned char *const *rows, uint32_t first_lane, uint32_t lane_count,
                    uint32_t count)
{
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t i = 0; i < lane_count; i++) {
            memcpy(&panel[(size_t)k * WEFT_LANES + first_lane + i], rows[i] + (size_t)k * 2, 2);
        }
    }
}

static void pack_panel(const struct pack_job *job, uint32_t index)
{
    const struct weft_matrix *matrix = job->matrix;
    const unsigned char *rows[WEFT_LANES];
    uint32_t panel_begin = index * WEFT_LANES;
    uint32_t begin = job->row_begin > panel_begin ? job->row_begin : panel_begin;
    uint32_t end = weft_min_u32(job->row_end, panel_begin + WEFT_LANES);
    unsigned char *panel = matrix->panels + index * matrix->panel_size;
    uint32_t pair_count = matrix->col_count / 2;

    for (uint32_t row = begin; row < end; row++) {
        rows[row - begin] = job->rows + (size_t)(row - job->row_begin) * job->row_stride;
    }
    if (matrix->dtype == WEFT_F32) {
        pack_32((uint32_t *)panel, rows, begin - panel_begin, end - begin, matrix->col_count);
    } else if (matrix->dtype == WEFT_F16) {
        pack_16((uint16_t *)panel, rows, begin - panel_begin, end - begin, matrix->col_count);
    } else { /* two little-endian neighbours in a row are one pair */
        pack_32((uint32_t *)panel, rows, begin - panel_begin, end - begin, pair_count);
        for (uint32_t row = begin; row < end && matrix->col_count % 2 != 0; row++) {
            memcpy((uint32_t *)panel + (size_t)pair_count * WEFT_LANES + row - panel_begin,
                   rows[row - begin] + (size_t)pair_count * 4, 2);
        }
    }
}

static void pack_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct pack_job *job = context;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        pack_panel(job, job->panel_first + i);
    }
}

enum weft_status weft_cpu_matrix_write_rows(struct weft_device *device, struct weft_matrix *matrix, uint32_t row_begin,
                                            uint32_t row_count, const void *rows, size_t row_stride)
{
    struct pack_job job = {.matrix = matrix,
                           .row_begin = row_begin,
                           .row_end = row_begin + row_count,
                           .rows = rows,
                           .row_stride = row_stride,
                           .panel_first = row_begin / WEFT_LANES};

    assert(row_begin <= matrix->row_count && row_count <= matrix->row_count - row_begin);
    if (row_count > 0) {
        weft_pool_run(weft_cpu_device(device)->pool, WEFT_POOL_STATIC, panel_count(job.row_end) - job.panel_first,
                      pack_task, &job);
    }
    return WEFT_OK;
}

/* ---- embedding ---- */

static void unpack_row(const struct weft_matrix *matrix, uint32_t row, float *out)
{
    const unsigned char *panel = matrix->panels + (size_t)(row / WEFT_LANES) * matrix->panel_size;
    uint32_t lane = row % WEFT_LANES;

    for (uint32_t k = 0; k < matrix->col_count; k++) {
        size_t index = (size_t)k * WEFT_LANES + lane;

        if (matrix->dtype == WEFT_F32) {
            out[k] = ((const float *)panel)[index];
        } else if (matrix->dtype == WEFT_F16) {
            out[k] = weft_f16_to_f32(((const uint16_t *)panel)[index]);
        } else {
            uint32_t pair = ((const uint32_t *)panel)[(size_t)(k / 2) * WEFT_LANES + lane];

            out[k] = weft_bf16_to_f32((uint16_t)(k % 2 == 0 ? pair : pair >> 16));
        }
    }
}

struct embed_job {
    const struct weft_matrix *matrix;
    const uint32_t *rows;
    float *out;
};

static void embed_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct embed_job *job = context;

    (void)worker;
    for (uint32_t i = begin; i < end; i++) {
        assert(job->rows[i] < job->matrix->row_count);
        unpack_row(job->matrix, job->rows[i], job->out + (size_t)i * job->matrix->col_count);
    }
}

void weft_cpu_embed(struct weft_device *device, const struct weft_matrix *matrix, const uint32_t *rows, uint32_t count,
                    float *out)
{
    struct embed_job job = {.matrix = matrix, .rows = rows, .out = out};

    weft_pool_run(weft_cpu_device(device)->pool, WEFT_POOL_STATIC, count, embed_task, &job);
}

/* ---- multiplication ---- */

struct matmul_job {
    struct weft_cpu_device *device;
    const struct weft_matrix *matrix;
    const float *x;
    const float *bias;
    float *out;
    uint32_t token_count;
    uint32_t group_panels; /* 1 .. GROUP_PANELS */
    weft_cpu_dot_fn *dot;
};

static weft_cpu_dot_fn *dot_of(const struct weft_cpu_kernels *kernels, enum weft_dtype dtype)
{
    switch (dtype) {
    case WEFT_F32: return kernels->dot_f32;
    case WEFT_F16: return kernels->dot_f16;
    case WEFT_BF16: return kernels->dot_bf16_pairs;
    case WEFT_Q8_0:
    case WEFT_Q4_0: break;
    }
    abort();
}

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
    uint32_t next_column = is_last ? 0 : matrix->leaves[index + 1].begin;
    uint32_t next_count = weft_min_u32(panels, panel_count(matrix->row_count) - next_first);

    for (uint32_t p = 0; p < panels; p++) {
        starts[p] = matrix->panels + (panel_first + p) * matrix->panel_size +
                    column_offset(matrix->dtype, matrix->leaves[index].begin);
    }
    for (uint32_t p = 0; p < next_count; p++) {
        ahead[p] = matrix->panels + (next_first + p) * matrix->panel_size + column_offset(matrix->dtype, next_column);
    }
    return next_count;
}

/* sums [token_count][stride] <- one leaf of `panels` panels from `panel_first` on, for tokens from token_first on. */
static void multiply_leaf(const struct matmul_job *job, uint32_t index, uint32_t panel_first, uint32_t panels,
                          uint32_t token_first, uint32_t token_count, float *sums, size_t stride)
{
    struct weft_range leaf = job->matrix->leaves[index];
    uint32_t call_count = weft_ceil_div(token_count, WEFT_DOT_VECTORS_MAX);
    const void *starts[GROUP_PANELS];
    const void *ahead[GROUP_PANELS];
    uint32_t next_count = find_leaf(job, index, panel_first, panels, starts, ahead);
    uint32_t ahead_count = token_count > STREAM_TOKENS_MAX ? next_count : 0;
    const float *vectors[WEFT_DOT_VECTORS_MAX];
    struct weft_cpu_dot args = {.panels = starts,
                                .panel_count = panels,
                                .x = vectors,
                                .col_count = weft_range_count(leaf),
                                .out_stride = stride};

    for (uint32_t call = 0; call < call_count; call++) { /* each fetches its share of what comes next */
        uint32_t token = call * WEFT_DOT_VECTORS_MAX;
        uint32_t ahead_begin = ahead_count * call / call_count;

        args.ahead = ahead + ahead_begin;
        args.ahead_count = ahead_count * (call + 1) / call_count - ahead_begin;
        args.vector_count = weft_min_u32(token_count - token, WEFT_DOT_VECTORS_MAX);
        for (uint32_t v = 0; v < args.vector_count; v++) {
            vectors[v] = job->x + (size_t)(token_first + token + v) * job->matrix->col_count + leaf.begin;
        }
        args.out = sums + token * stride;
        job->dot(&args);
    }
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

    for (uint32_t i = 0; i < matrix->leaf_count; i++) {
        multiply_leaf(job, i, panel_first, panels, token_first, token_count, scratch + i * slot_size, width);
    }
    for (uint32_t i = 0; i < matrix->add_count; i++) {
        kernels->add(scratch + matrix->adds[i].left * slot_size, scratch + matrix->adds[i].right * slot_size,
                     slot_size);
    }
    for (uint32_t j = 0; j < matrix->node_count; j++) {
        const float *node = scratch + matrix->node_slots[j] * slot_size;
        float *out = job->out + ((size_t)j * job->token_count + token_first) * matrix->row_count + row_first;

        for (uint32_t t = 0; t < token_count; t++) {
            memcpy(out + (size_t)t * matrix->row_count, node + t * width, rows * sizeof(*out));
        }
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
        multiply_leaf(job, 0, panel_first, panels, 0, job->token_count, job->out + row_first, matrix->row_count);
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
    uint32_t panels = panel_count(job->matrix->row_count);

    for (uint32_t group = begin; group < end; group++) {
        uint32_t first = group * job->group_panels;

        multiply_group(job, worker, first, weft_min_u32(job->group_panels, panels - first));
    }
}

void weft_cpu_matmul(struct weft_device *device, const struct weft_matrix *matrix, const float *x, uint32_t token_count,
                     const float *bias, float *out)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    uint32_t panels = panel_count(matrix->row_count);
    uint32_t share = panels / (cpu->thread_count * GROUPS_PER_THREAD);
    struct matmul_job job = {.device = cpu,
                             .matrix = matrix,
                             .x = x,
                             .bias = bias,
                             .out = out,
                             .token_count = token_count,
                             .group_panels = share < 1 ? 1 : weft_min_u32(share, GROUP_PANELS),
                             .dot = dot_of(&cpu->kernels, matrix->dtype)};

    assert(bias == NULL || matrix->node_count == 1);
    if (token_count > 0) {
        weft_pool_run(cpu->pool, token_count <= STATIC_TOKENS_MAX ? WEFT_POOL_STATIC : WEFT_POOL_DYNAMIC,
                      weft_ceil_div(panels, job.group_panels), matmul_task, &job);
    }
}
