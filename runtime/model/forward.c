/*
 * The forward pass, straight down in the paper's order. T tokens, D width, H query heads, G KV heads, E head width, F
 * FFN width, N vocabulary; H, G, F, N are this rank's share. Two sums per layer cross ranks, always along the canonical
 * tree; everything else is computed on one rank or copied.
 */
#include <assert.h>
#include <math.h>

#include "model/model_impl.h"

/*
 * rows[t] <- row of this rank's embedding for token t; no row for those of other ranks, for rows beyond the last
 * sequence, and in this rank's other nodes.
 */
static void list_rows(struct weft_model *model, const struct weft_forward_args *args)
{
    const struct weft_batch_sequence *last = &args->batch.sequences[args->batch.sequence_count - 1];
    uint32_t token_count = last->token_begin + last->token_count;
    struct weft_range own = model->slice.vocab;

    for (uint32_t t = 0; t < model->node_count * args->batch.token_count; t++) {
        uint32_t token_id = t < token_count ? (uint32_t)args->token_ids[t] : own.end;
        model->rows[t] = token_id >= own.begin && token_id < own.end ? token_id - own.begin : WEFT_NO_ROW;
    }
}

/* Sums through the host cannot be part of a recorded step. */
static void pause_for_sum(struct weft_model *model, const struct weft_comm *comm, size_t count)
{
    if (!weft_comm_is_recordable(comm, count)) {
        weft_graphs_pause(model->device, model->graphs);
    }
}

static void resume_after_sum(struct weft_model *model, const struct weft_comm *comm, size_t count)
{
    if (!weft_comm_is_recordable(comm, count)) {
        weft_graphs_resume(model->device, model->graphs);
    }
}

/*
 * x [T, D] <- embeddings. Each row of the table is on one rank; to add nothing to it costs the others as much as to
 * send it about, is the same call in every step, and goes the way of all sums.
 */
static enum weft_status embed(struct weft_model *model, const struct weft_forward_args *args)
{
    const struct weft_activations *a = &model->activations;
    bool is_alone = model->rank_count == 1;
    uint32_t token_count = args->batch.token_count;
    size_t count = (size_t)token_count * model->config.width;
    float *nodes = is_alone ? a->x : weft_comm_sum_buffer(args->comm, count);

    list_rows(model, args);
    weft_device_embed(model->device, model->weights.embedding, model->rows, model->node_count * token_count,
                      nodes); /* [nodes, T, D] */
    if (is_alone) {
        return WEFT_OK;
    }
    pause_for_sum(model, args->comm, count);
    WEFT_TRY(weft_comm_tree_sum(args->comm, nodes, count, a->x)); /* [T, D] */
    resume_after_sum(model, args->comm, count);
    return WEFT_OK;
}

/* How a block ends. */
struct block_end {
    const struct weft_matrix *matrix; /* W */
    const float *y;                   /* [T, columns of this rank] */
    const float *bias;                /* [D] or NULL */
    const float *next_norm;           /* [D] weights of the norm that comes next */
};

/*
 * x [T, D] <- x + (W y + bias), W y over all ranks; norm [T, D] <- the norm of x that comes next. W is row-parallel,
 * its maximal tree nodes are what this rank sends; what comm leaves to be added the device adds on the way.
 */
static enum weft_status end_block(struct weft_model *model, const struct weft_forward_args *step,
                                  const struct block_end *end, uint32_t token_count)
{
    const struct weft_activations *a = &model->activations;
    size_t count = (size_t)token_count * model->config.width;
    const float *one = a->sum;
    struct weft_tree_add_args sum = {.inputs = &one, .input_count = 1, .count = count, .out = a->sum};
    const struct weft_add_norm_args args = {.x = a->x,
                                            .y = &sum,
                                            .bias = end->bias,
                                            .weight = end->next_norm,
                                            .out = a->norm,
                                            .eps = model->config.norm_eps,
                                            .token_count = token_count,
                                            .width = model->config.width};
    bool is_alone = model->rank_count == 1; /* the one node is the sum */
    float *nodes = is_alone ? a->sum : weft_comm_sum_buffer(step->comm, count);

    weft_device_matmul(model->device, end->matrix, end->y, token_count, NULL, nodes); /* [nodes, T, D] */
    if (!is_alone) {
        pause_for_sum(model, step->comm, count);
        WEFT_TRY(weft_comm_tree_gather(step->comm, nodes, count, a->sum, &sum)); /* [nodes of all or 1, T, D] */
        resume_after_sum(model, step->comm, count);
    }
    weft_device_add_norm(model->device, &args); /* [T, D] twice */
    return WEFT_OK;
}

/* heads [T, H, E] <- attention of one layer to norm [T, D]; keys and values of every token are in the cache afterwards.
 */
static void attention(struct weft_model *model, const struct weft_forward_args *args, uint32_t layer)
{
    const struct weft_model_config *config = &model->config;
    const struct weft_activations *a = &model->activations;
    const struct weft_layer *w = &model->weights.layers[layer];
    struct weft_device *device = model->device;
    uint32_t group_size = config->head_count / config->kv_head_count;
    const struct weft_heads heads = {.head_count = weft_range_count(model->slice.heads),
                                     .kv_head_count = weft_range_count(model->slice.kv_heads),
                                     .head_size = config->head_size,
                                     .group_first = model->slice.heads.begin % group_size,
                                     .group_size = group_size};
    const struct weft_rope_args rope = {.heads = heads,
                                        .layer = layer,
                                        .qkv = a->qkv,
                                        .angles = a->angles,
                                        .q_norm = w->vectors[WEFT_Q_NORM],
                                        .k_norm = w->vectors[WEFT_K_NORM],
                                        .eps = config->norm_eps};
    const struct weft_attention_args attend = {.heads = heads,
                                               .layer = layer,
                                               .window = config->windows[layer],
                                               .scale = 1.0f / sqrtf((float)config->head_size),
                                               .qkv = a->qkv,
                                               .out = a->heads};

    weft_device_matmul(device, w->matrices[WEFT_QKV], a->norm, args->batch.token_count, w->vectors[WEFT_QKV_BIAS],
                       a->qkv);                                      /* [T, H + 2G, E] */
    weft_device_rope_append(device, model->kv, &args->batch, &rope); /* q in place; k, v */
    weft_device_attention(device, model->kv, &args->batch, &attend); /* [T, H, E] */
}

/* x [T, D] <- x + attention output of this rank's and all other heads; norm [T, D] for the FFN. */
static enum weft_status attention_out(struct weft_model *model, const struct weft_forward_args *args, uint32_t layer,
                                      uint32_t token_count)
{
    const struct weft_layer *w = &model->weights.layers[layer];
    const struct block_end end = {.matrix = w->matrices[WEFT_ATTENTION_OUT],
                                  .y = model->activations.heads,
                                  .bias = w->vectors[WEFT_OUTPUT_BIAS],
                                  .next_norm = w->vectors[WEFT_FFN_NORM]};

    return end_block(model, args, &end, token_count);
}

/* The norm that follows a layer: the next one's, in the end the head's. */
static const float *norm_after(const struct weft_model *model, uint32_t layer)
{
    const struct weft_weights *weights = &model->weights;

    return layer + 1 < model->config.layer_count ? weights->layers[layer + 1].vectors[WEFT_ATTENTION_NORM]
                                                 : weights->norm;
}

/* x [T, D] <- x + FFN(norm); norm [T, D] for what comes next. */
static enum weft_status ffn(struct weft_model *model, const struct weft_forward_args *args, uint32_t layer,
                            uint32_t token_count)
{
    const struct weft_activations *a = &model->activations;
    const struct weft_layer *w = &model->weights.layers[layer];
    const struct block_end end = {.matrix = w->matrices[WEFT_DOWN],
                                  .y = a->ffn,
                                  .bias = w->vectors[WEFT_DOWN_BIAS],
                                  .next_norm = norm_after(model, layer)};

    weft_device_matmul(model->device, w->matrices[WEFT_GATE_UP], a->norm, token_count, w->vectors[WEFT_GATE_UP_BIAS],
                       a->ffn);                       /* [T, F]: silu(gate) * up */
    return end_block(model, args, &end, token_count); /* [T, D] */
}

/*
 * After the last attention nothing but the wanted rows matters: x [R, D] <- x [T, D], heads [R, H, E] <- heads [T, H,
 * E]. A row's bits do not depend on the other rows, so this only saves work: about 1 / L of a prompt's.
 */
static void keep_wanted(struct weft_model *model, const struct weft_forward_args *args)
{
    const struct weft_activations *a = &model->activations;
    uint32_t count = args->logit_row_count, width = model->config.width;
    uint32_t heads_width = weft_range_count(model->slice.heads) * model->config.head_size;

    weft_device_select_rows(model->device, a->x, args->logit_rows, count, width, a->sum);
    weft_device_select_rows(model->device, a->heads, args->logit_rows, count, heads_width, a->qkv);
    for (uint32_t i = 0; i < count; i++) {
        model->rows[i] = i;
    }
    weft_device_select_rows(model->device, a->sum, model->rows, count, width, a->x);
    weft_device_select_rows(model->device, a->qkv, model->rows, count, heads_width, a->heads);
}

/* Everything but waiting. */
static enum weft_status pass(struct weft_model *model, const struct weft_forward_args *args)
{
    const struct weft_model_config *config = &model->config;
    const struct weft_activations *a = &model->activations;
    struct weft_device *device = model->device;
    uint32_t token_count = args->batch.token_count;

    WEFT_TRY(embed(model, args)); /* [T, D] */
    weft_device_rope_angles(device, &args->batch, config->inv_freq, config->head_size, config->rope_scale,
                            a->angles); /* [T, E/2, 2] */
    weft_device_rms_norm(device, a->x, model->weights.layers[0].vectors[WEFT_ATTENTION_NORM], token_count,
                         config->width, config->norm_eps, a->norm); /* [T, D]; later norms come with what is added */
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        attention(model, args, layer); /* [T, H, E] */
        if (layer + 1 == config->layer_count && args->logit_row_count < token_count) {
            keep_wanted(model, args);
            token_count = args->logit_row_count;
        }
        if (token_count == 0) {
            return WEFT_OK; /* part of a prompt: its keys and values were all that was wanted */
        }
        WEFT_TRY(attention_out(model, args, layer, token_count)); /* [T, D] */
        WEFT_TRY(ffn(model, args, layer, token_count));           /* [T, D] */
    }
    weft_device_matmul(device, model->weights.head, a->norm, token_count, NULL, a->logits); /* [R, N] */
    return WEFT_OK;
}

/* One token of every sequence, and the logits of all: a step that comes again and again. */
static bool is_decode(const struct weft_forward_args *args)
{
    bool is_single = args->batch.sequence_count > 0 && args->logit_row_count == args->batch.token_count;

    for (uint32_t i = 0; i < args->batch.sequence_count && is_single; i++) {
        is_single = args->batch.sequences[i].token_count == 1;
    }
    return is_single;
}

enum weft_status weft_model_forward(struct weft_model *model, const struct weft_forward_args *args, float **logits_out)
{
    struct weft_forward_args step = *args;
    enum weft_status status;

    assert(args->batch.token_count <= model->limits.token_count_max);
    assert(args->logit_row_count <= model->limits.logit_row_max && args->logit_row_count <= args->batch.token_count);
    if (is_decode(args)) {
        step.batch.token_count = weft_model_rows(model, args->batch.token_count);
        step.logit_row_count = step.batch.token_count;
        weft_graphs_begin(model->device, model->graphs, &step.batch);
        status = pass(model, &step);
        weft_graphs_end(model->device, model->graphs, status == WEFT_OK);
    } else {
        status = pass(model, args);
    }
    WEFT_TRY(status);
    if (args->logit_row_count > 0) {
        *logits_out = model->activations.logits;
    }
    return weft_comm_sync(args->comm);
}
