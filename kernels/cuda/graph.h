/* What the other files need of graph.cu: where a recorded step's data lie. */
#ifndef WEFT_CUDA_GRAPH_H
#define WEFT_CUDA_GRAPH_H

#include "cuda/kv_cache.h"

/* Between begin and end of a recorded or replayed step: what weft_cuda_upload() and weft_cuda_upload_sequences() give,
 * addresses that are the same in every step; the bytes get there before the graph starts. */
const void *weft_cuda_graphs_upload(struct weft_graphs *graphs, const void *data, size_t size);
struct weft_cuda_sequences weft_cuda_graphs_sequences(const struct weft_graphs *graphs);

#endif
