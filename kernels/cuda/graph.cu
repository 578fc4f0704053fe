/*
 * Decode steps as graphs (weft/device.h has the contract). The first step of a shape is captured, part by part, instead
 * of being issued; later ones are not issued either: their operations come to functions that do nothing, and at the end
 * of a part its graph is launched. A step has one part, unless something in it cannot be captured.
 *
 * A shape is the number of rows and what the lengths of contexts mean for attention's grid (weft_cuda_context_of).
 * Whatever else varies lies in one area of device memory at a fixed address, and is copied there at once, in the
 * stream's order, before the first part starts: token rows, sequences, pages.
 */
#include "cuda/graph.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention.h"

/* Seven sizes of batches up to 64 with three contexts each are 21; larger ones have one. */
static const uint32_t GRAPH_COUNT_MAX = 64;
static const size_t ALIGNMENT = 256; /* of the parts of the area */

/* A step of one shape. */
struct graph {
    uint32_t row_count;
    enum weft_cuda_context context;
    uint32_t part_count;
    cudaGraphExec_t *parts; /* [part_max], owned; NULL: a part without operations */
};

struct weft_graphs {
    struct weft_graphs_desc desc;
    const struct weft_device_ops *ops; /* the device's own table */
    unsigned char *area;               /* device memory, owned */
    unsigned char *host;               /* the same in host memory, owned */
    size_t area_size;
    size_t used;      /* bytes of this step */
    bool is_uploaded; /* this step's */
    bool has_rows;
    bool is_sealed;
    size_t free_size;         /* of the GPU when the first was recorded */
    enum weft_recording mode; /* of this step, also while it is paused */
    bool is_paused;
    struct graph *graph; /* of this step, unless NONE */
    uint32_t part;
    struct graph graphs[GRAPH_COUNT_MAX];
    uint32_t graph_count;
};

static size_t rows_size(const struct weft_graphs_desc *desc)
{
    return weft_cuda_align_up(desc->embed_max * sizeof(uint32_t), ALIGNMENT);
}

size_t weft_cuda_graphs_size(const struct weft_device *device, const struct weft_graphs_desc *desc)
{
    (void)device;
    return rows_size(desc) +
           desc->row_max * (sizeof(struct weft_cuda_sequence) + static_cast<size_t>(desc->page_max) * sizeof(uint32_t));
}

/* ---- opening ---- */

enum weft_status weft_cuda_graphs_open(struct weft_device *device, const struct weft_graphs_desc *desc,
                                       struct weft_graphs **out)
{
    struct weft_graphs *graphs = static_cast<struct weft_graphs *>(calloc(1, sizeof(*graphs)));
    size_t size = weft_cuda_graphs_size(device, desc);

    if (graphs != NULL) {
        graphs->desc = *desc;
        graphs->ops = device->ops;
        graphs->area_size = size;
        graphs->host = static_cast<unsigned char *>(calloc(1, size));
        graphs->area = static_cast<unsigned char *>(weft_cuda_alloc(device, size));
    }
    if (graphs == NULL || graphs->host == NULL || graphs->area == NULL) {
        if (graphs == NULL || graphs->host == NULL) {
            weft_cuda_log(WEFT_LOG_ERROR, "out of memory for %zu bytes of a step's data", size);
        }
        if (graphs != NULL) {
            weft_cuda_graphs_close(device, graphs);
        }
        return WEFT_ERR_MEMORY;
    }
    *out = graphs;
    return WEFT_OK;
}

static void close_graph(struct weft_cuda_device *device, struct graph *graph)
{
    for (uint32_t i = 0; i < graph->part_count && !device->is_stuck; i++) {
        if (graph->parts[i] != NULL) {
            (void)weft_cuda_check(device, cudaGraphExecDestroy(graph->parts[i]), "closing a graph");
        }
    }
    free(graph->parts);
}

void weft_cuda_graphs_close(struct weft_device *base, struct weft_graphs *graphs)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    (void)weft_cuda_wait(device, NULL);
    for (uint32_t i = 0; i < graphs->graph_count; i++) {
        close_graph(device, &graphs->graphs[i]);
    }
    if (graphs->area != NULL) {
        weft_cuda_free(base, graphs->area);
    }
    free(graphs->host);
    free(graphs);
}

static size_t free_memory(void)
{
    size_t free_size = 0;
    size_t total_size = 0;

    (void)cudaMemGetInfo(&free_size, &total_size);
    return free_size;
}

void weft_cuda_graphs_seal(struct weft_device *base, struct weft_graphs *graphs)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    size_t part_count = 0;
    size_t left = free_memory();

    graphs->is_sealed = true;
    for (uint32_t i = 0; i < graphs->graph_count; i++) {
        part_count += graphs->graphs[i].part_count;
    }
    weft_cuda_log(WEFT_LOG_INFO, "GPU %d: decode steps of %u shapes recorded, %zu graphs in %zu KiB", device->index,
                  graphs->graph_count, part_count, (graphs->free_size > left ? graphs->free_size - left : 0) >> 10);
}

/* ---- a step's data ---- */

const void *weft_cuda_graphs_upload(struct weft_graphs *graphs, const void *data, size_t size)
{
    /* More than the rows of the embedding would be replayed as it was. */
    assert(!graphs->has_rows && size <= graphs->desc.embed_max * sizeof(uint32_t));
    memcpy(graphs->host, data, size);
    graphs->has_rows = true;
    return graphs->area;
}

struct weft_cuda_sequences weft_cuda_graphs_sequences(const struct weft_graphs *graphs)
{
    struct weft_cuda_sequences table = {};

    table.sequences = reinterpret_cast<const struct weft_cuda_sequence *>(graphs->area + rows_size(&graphs->desc));
    table.pages = reinterpret_cast<const uint32_t *>(table.sequences + graphs->graph->row_count);
    table.count = graphs->graph->row_count;
    return table;
}

static bool take_sequences(struct weft_graphs *graphs, const struct weft_batch *batch)
{
    size_t begin = rows_size(&graphs->desc);
    size_t size = weft_cuda_sequences_size(batch, batch->token_count);

    if (size > graphs->area_size - begin) {
        return false;
    }
    weft_cuda_sequences_fill(batch, batch->token_count, graphs->host + begin);
    graphs->used = begin + size;
    graphs->has_rows = false;
    graphs->is_uploaded = false;
    return true;
}

/* ---- replaying: nothing is issued, as it has been captured ---- */

static void replay_embed(struct weft_device *base, const struct weft_matrix *matrix, const uint32_t *rows,
                         uint32_t count, float *out)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    (void)matrix;
    (void)out;
    (void)weft_cuda_graphs_upload(device->graphs, rows, count * sizeof(*rows));
}

static void replay_rms_norm(struct weft_device *, const float *, const float *, uint32_t, uint32_t, float, float *)
{
}

static void replay_matmul(struct weft_device *, const struct weft_matrix *, const float *, uint32_t, const float *,
                          float *)
{
}

static void replay_rope_angles(struct weft_device *, const struct weft_batch *, const float *, uint32_t, float, float *)
{
}

static void replay_rope_append(struct weft_device *, struct weft_kv_cache *, const struct weft_batch *,
                               const struct weft_rope_args *)
{
}

static void replay_attention(struct weft_device *, const struct weft_kv_cache *, const struct weft_batch *,
                             const struct weft_attention_args *)
{
}

static void replay_add_norm(struct weft_device *, const struct weft_add_norm_args *)
{
}

static void replay_tree_add(struct weft_device *, const struct weft_tree_add_args *)
{
}

static void replay_peer_sum(struct weft_device *, const struct weft_peer_sum_args *)
{
}

/* What a graph may hold. Anything else between begin and end is not there: a mistake that ends the program. */
static constexpr struct weft_device_ops make_replay_ops(void)
{
    struct weft_device_ops ops = {};

    ops.embed = replay_embed;
    ops.rms_norm = replay_rms_norm;
    ops.matmul = replay_matmul;
    ops.rope_angles = replay_rope_angles;
    ops.rope_append = replay_rope_append;
    ops.attention = replay_attention;
    ops.add_norm = replay_add_norm;
    ops.tree_add = replay_tree_add;
    ops.peer_sum = replay_peer_sum;
    ops.graphs_pause = weft_cuda_graphs_pause;
    ops.graphs_end = weft_cuda_graphs_end;
    return ops;
}

static constexpr struct weft_device_ops replay_ops = make_replay_ops();

/* ---- parts ---- */

static void begin_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    device->graphs = graphs;
    device->base.recording = graphs->mode;
    graphs->is_paused = false;
    if (graphs->mode == WEFT_RECORDING_PLAYED) {
        device->base.ops = &replay_ops;
        return;
    }
    (void)weft_cuda_check(device, cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal),
                          "recording a step");
}

/* *exec_out <- what was captured, in the GPU's memory; NULL: nothing. */
static bool finish_capture(struct weft_cuda_device *device, cudaGraphExec_t *exec_out)
{
    cudaGraph_t graph = NULL;
    size_t node_count = 0;
    bool is_good = weft_cuda_check(device, cudaStreamEndCapture(device->stream, &graph), "recording a step");

    *exec_out = NULL;
    if (!is_good) {
        return false;
    }
    is_good = weft_cuda_check(device, cudaGraphGetNodes(graph, NULL, &node_count), "recording a step") &&
              (node_count == 0 || weft_cuda_check(device, cudaGraphInstantiate(exec_out, graph, 0), "making a graph"));
    (void)cudaGraphDestroy(graph);
    return is_good && (*exec_out == NULL ||
                       weft_cuda_check(device, cudaGraphUpload(*exec_out, device->stream), "uploading a graph"));
}

static void keep_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    struct graph *graph = graphs->graph;
    cudaGraphExec_t exec;

    assert(graph->part_count < graphs->desc.part_max);
    const bool is_good = finish_capture(device, &exec);
    if (is_good || exec != NULL) {
        graph->parts[graph->part_count++] = exec;
    }
    device->is_scratch_recorded = true;
}

/* One copy for all that the step's parts read. */
static void upload(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    if (!graphs->is_uploaded) {
        weft_cuda_upload_to(device, graphs->area, graphs->host, graphs->used);
        graphs->is_uploaded = true;
    }
}

static void launch_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    assert(graphs->part < graphs->graph->part_count);
    cudaGraphExec_t exec = graphs->graph->parts[graphs->part++];

    if (exec != NULL) {
        upload(device, graphs);
        (void)weft_cuda_check(device, cudaGraphLaunch(exec, device->stream), "launching a graph");
    }
}

/* Operations are issued again. */
static void leave_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    device->base.ops = graphs->ops;
    device->base.recording = WEFT_RECORDING_NONE;
    device->graphs = NULL;
}

static void end_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    leave_part(device, graphs);
    if (graphs->mode == WEFT_RECORDING_MADE) {
        keep_part(device, graphs);
    } else if (device->status == WEFT_OK) {
        launch_part(device, graphs);
    }
}

/* What was captured so far of a step that is broken off; whoever broke it off has said why. */
static void drop_part(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    cudaGraph_t graph = NULL;

    leave_part(device, graphs);
    if (graphs->mode == WEFT_RECORDING_MADE) {
        if (cudaStreamEndCapture(device->stream, &graph) == cudaSuccess) {
            (void)cudaGraphDestroy(graph);
        }
        (void)cudaGetLastError();
    }
}

/* ---- steps ---- */

static struct graph *find(struct weft_graphs *graphs, uint32_t row_count, enum weft_cuda_context context)
{
    for (uint32_t i = 0; i < graphs->graph_count; i++) {
        if (graphs->graphs[i].row_count == row_count && graphs->graphs[i].context == context) {
            return &graphs->graphs[i];
        }
    }
    return NULL;
}

static struct graph *add(struct weft_cuda_device *device, struct weft_graphs *graphs, uint32_t row_count,
                         enum weft_cuda_context context)
{
    struct graph *graph = &graphs->graphs[graphs->graph_count];

    if (graphs->graph_count == GRAPH_COUNT_MAX) {
        return NULL;
    }
    *graph = {row_count, context, 0, NULL};
    graph->parts = static_cast<cudaGraphExec_t *>(calloc(graphs->desc.part_max, sizeof(*graph->parts)));
    if (graph->parts == NULL) {
        (void)weft_cuda_check(device, cudaErrorMemoryAllocation, "a list of graphs");
        return NULL;
    }
    graphs->free_size = graphs->graph_count == 0 ? free_memory() : graphs->free_size;
    graphs->graph_count++;
    return graph;
}

/* With other ranks not what this one could do with fewer graphs. */
static enum weft_cuda_context context_of(const struct weft_cuda_device *device, const struct weft_graphs *graphs,
                                         const struct weft_batch *batch)
{
    return graphs->desc.is_shared ? weft_cuda_context_shared(batch)
                                  : weft_cuda_context_merged(device, graphs->desc.kv, batch->token_count,
                                                             weft_cuda_context_of(graphs->desc.kv, batch));
}

void weft_cuda_graphs_begin(struct weft_device *base, struct weft_graphs *graphs, const struct weft_batch *batch)
{
    struct weft_cuda_device *device = weft_cuda_device(base);
    const enum weft_cuda_context context = context_of(device, graphs, batch);
    struct graph *graph = find(graphs, batch->token_count, context);

    assert(graphs->mode == WEFT_RECORDING_NONE);
    if (device->status != WEFT_OK || batch->token_count > graphs->desc.row_max || !take_sequences(graphs, batch)) {
        return;
    }
    graphs->mode = graph != NULL ? WEFT_RECORDING_PLAYED : WEFT_RECORDING_MADE;
    if (graph == NULL) {
        graph = graphs->is_sealed ? NULL : add(device, graphs, batch->token_count, context);
    }
    if (graph == NULL) {
        graphs->mode = WEFT_RECORDING_NONE;
        return;
    }
    graphs->graph = graph;
    graphs->part = 0;
    begin_part(device, graphs);
}

void weft_cuda_graphs_pause(struct weft_device *base, struct weft_graphs *graphs)
{
    if (graphs->mode != WEFT_RECORDING_NONE) {
        end_part(weft_cuda_device(base), graphs);
        graphs->is_paused = true;
    }
}

void weft_cuda_graphs_resume(struct weft_device *base, struct weft_graphs *graphs)
{
    if (graphs->mode != WEFT_RECORDING_NONE) {
        begin_part(weft_cuda_device(base), graphs);
    }
}

/* A step that failed while it was recorded is forgotten. */
static void forget(struct weft_cuda_device *device, struct weft_graphs *graphs)
{
    close_graph(device, graphs->graph);
    graphs->graph_count--;
}

void weft_cuda_graphs_end(struct weft_device *base, struct weft_graphs *graphs, bool is_whole)
{
    struct weft_cuda_device *device = weft_cuda_device(base);

    if (graphs->mode == WEFT_RECORDING_NONE) {
        return;
    }
    if (is_whole) {
        end_part(device, graphs);
    } else if (!graphs->is_paused) {
        drop_part(device, graphs);
    }
    if (graphs->mode == WEFT_RECORDING_MADE && (!is_whole || device->status != WEFT_OK)) {
        forget(device, graphs);
    }
    graphs->mode = WEFT_RECORDING_NONE;
}
