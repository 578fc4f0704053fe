/*
 * Rotation, the KV cache and attention: every way of running a prompt gives the same bits as the reference level
 * running it in one go on one thread, and that is close to double precision.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "weft/numeric.h"

enum {
    LAYERS = 2,
    LAYER = 1,
    OTHER_TOKENS = 19,
    PIECE = 256, /* of the contract in weft/device.h */
    HEAD_SIZE_MAX = 256,
};

static const float scale_factor = 0.2f; /* of the scores */
static const float norm_eps = 1e-6f;

/* One model layer and a prompt for it. */
struct scene {
    struct weft_heads heads;
    enum weft_dtype kv_dtype;
    uint32_t window;
    uint32_t token_count;
    bool has_norm;  /* of the heads */
    float *qkv;     /* [token_count][H + 2G][E], owned */
    float *angles;  /* [token_count][E / 2][2], owned */
    float *norms;   /* [2][E]: of queries, of keys; owned */
    float *rotated; /* qkv as attention gets it, owned */
};

/* How the prompt is run. */
struct way {
    struct weft_device *device;
    bool is_chunked;  /* random chunks, else one */
    bool is_shuffled; /* pages in random order, else ascending */
    bool has_company; /* every step also holds another sequence, before it */
};

static size_t row_width(const struct weft_heads *heads)
{
    return ((size_t)heads->head_count + 2 * (size_t)heads->kv_head_count) * heads->head_size;
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);

    if (memory == NULL) {
        abort();
    }
    return memory;
}

/* One step's rotation and appending, from host memory; qkv comes back. */
static void append(struct check *check, const struct scene *scene, struct weft_device *device,
                   struct weft_kv_cache *cache, const struct weft_batch *batch, uint32_t layer, float *qkv,
                   float *angles)
{
    uint32_t size = scene->heads.head_size;
    size_t qkv_size = batch->token_count * row_width(&scene->heads) * sizeof(float);
    size_t angles_size = (size_t)batch->token_count * size * sizeof(float);
    float *lent_norms = check_lend(device, scene->norms, 2 * size * sizeof(float));
    float *lent_angles = check_lend(device, angles, angles_size);
    struct weft_rope_args args = {.heads = scene->heads,
                                  .layer = layer,
                                  .qkv = check_lend(device, qkv, qkv_size),
                                  .angles = lent_angles,
                                  .q_norm = scene->has_norm ? lent_norms : NULL,
                                  .k_norm = scene->has_norm ? lent_norms + size : NULL,
                                  .eps = norm_eps};

    weft_device_rope_append(device, cache, batch, &args);
    check_return(check, device, lent_norms, scene->norms, 2 * size * sizeof(float));
    check_return(check, device, lent_angles, angles, angles_size);
    check_return(check, device, args.qkv, qkv, qkv_size);
}

/* Every slot of the cache holds NaN before it is used: reading a position that is not there shows. */
static void poison(struct check *check, const struct scene *scene, struct weft_device *device,
                   struct weft_kv_cache *cache, const uint32_t *pages, uint32_t page_count)
{
    uint32_t count = page_count * WEFT_PAGE_POSITIONS;
    size_t qkv_count = count * row_width(&scene->heads);
    size_t angle_count = (size_t)count * scene->heads.head_size;
    float *qkv = allocate(qkv_count + angle_count, sizeof(float));
    struct weft_batch_sequence sequence = {.token_count = count, .page_count = page_count, .pages = pages};
    struct weft_batch batch = {.token_count = count, .sequence_count = 1, .sequences = &sequence};

    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (size_t i = 0; i < qkv_count + angle_count; i++) {
            qkv[i] = NAN;
        }
        append(check, scene, device, cache, &batch, layer, qkv, qkv + qkv_count);
    }
    free(qkv);
}

static void shuffle(struct check *check, uint32_t *pages, uint32_t count)
{
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = check_below(check, i);
        uint32_t page = pages[i - 1];

        pages[i - 1] = pages[j];
        pages[j] = page;
    }
}

/* Queries as attention gets them, values as they were. */
static void check_rotated(struct check *check, const struct scene *scene, const float *found, uint32_t first,
                          uint32_t count)
{
    const struct weft_heads *heads = &scene->heads;
    size_t queries = (size_t)heads->head_count * heads->head_size;
    size_t values = queries + (size_t)heads->kv_head_count * heads->head_size;

    for (uint32_t t = 0; t < count; t++) {
        const float *row = found + t * row_width(heads);
        const float *expected = scene->rotated + (first + t) * row_width(heads);

        check_same(check, row, expected, queries, "rotated queries of token %u", first + t);
        check_same(check, row + values, expected + values, row_width(heads) - values, "values of token %u", first + t);
    }
}

/* Appends and attends `count` tokens from `position` on; the other sequence is the prompt's own beginning. */
static void run_step(struct check *check, const struct scene *scene, const struct way *way, struct weft_kv_cache *cache,
                     const struct weft_batch_sequence *other, struct weft_batch_sequence own, float *out)
{
    size_t in_width = row_width(&scene->heads);
    size_t out_width = (size_t)scene->heads.head_count * scene->heads.head_size;
    uint32_t size = scene->heads.head_size;
    uint32_t before = way->has_company ? other->token_count : 0;
    uint32_t count = before + own.token_count;
    float *qkv = allocate(count * in_width, sizeof(float));
    float *angles = allocate((size_t)count * size, sizeof(float));
    float *step_out = allocate(count * out_width, sizeof(float));
    struct weft_batch_sequence sequences[2] = {*other, own};
    struct weft_batch batch = {count, way->has_company ? 2 : 1, way->has_company ? sequences : &sequences[1]};
    struct weft_attention_args args = {scene->heads, LAYER, scene->window, scale_factor, NULL, NULL};

    sequences[1].token_begin = before;
    memcpy(qkv, scene->qkv, before * in_width * sizeof(float));
    memcpy(qkv + before * in_width, scene->qkv + own.position * in_width, own.token_count * in_width * sizeof(float));
    memcpy(angles, scene->angles, (size_t)before * size * sizeof(float));
    memcpy(angles + (size_t)before * size, scene->angles + (size_t)own.position * size,
           (size_t)own.token_count * size * sizeof(float));
    append(check, scene, way->device, cache, &batch, LAYER, qkv, angles);
    check_rotated(check, scene, qkv, 0, before);
    check_rotated(check, scene, qkv + before * in_width, own.position, own.token_count);
    float *lent_qkv = check_lend(way->device, qkv, count * in_width * sizeof(float));
    float *lent_out = check_lend(way->device, step_out, count * out_width * sizeof(float));
    args.qkv = lent_qkv;
    args.out = lent_out;
    weft_device_attention(way->device, cache, &batch, &args);
    check_return(check, way->device, lent_qkv, qkv, count * in_width * sizeof(float));
    check_return(check, way->device, lent_out, step_out, count * out_width * sizeof(float));
    memcpy(out + own.position * out_width, step_out + before * out_width, own.token_count * out_width * sizeof(float));
    free(qkv);
    free(angles);
    free(step_out);
}

/* out [token_count][H][E] of the whole prompt. */
static void run_scene(struct check *check, const struct scene *scene, const struct way *way, float *out)
{
    uint32_t own_pages = scene->token_count / WEFT_PAGE_POSITIONS + 1;
    uint32_t other_pages = OTHER_TOKENS / WEFT_PAGE_POSITIONS + 1;
    uint32_t *pages = allocate(own_pages + other_pages, sizeof(*pages));
    struct weft_kv_desc desc = {.dtype = scene->kv_dtype,
                                .layer_count = LAYERS,
                                .kv_head_count = scene->heads.kv_head_count,
                                .head_size = scene->heads.head_size,
                                .page_count = own_pages + other_pages};
    struct weft_batch_sequence own = {.page_count = own_pages, .pages = pages};
    struct weft_batch_sequence other = {
        .token_count = OTHER_TOKENS, .page_count = other_pages, .pages = pages + own_pages};
    struct weft_kv_cache *cache;

    if (weft_kv_cache_open(way->device, &desc, &cache) != WEFT_OK) {
        abort();
    }
    for (uint32_t i = 0; i < own_pages + other_pages; i++) {
        pages[i] = i;
    }
    if (way->is_shuffled) {
        shuffle(check, pages, own_pages + other_pages);
    }
    poison(check, scene, way->device, cache, pages, own_pages + other_pages);
    while (own.position < scene->token_count) {
        uint32_t left = scene->token_count - own.position;

        own.token_count = way->is_chunked ? 1 + check_below(check, left < 70 ? left : 70) : left;
        run_step(check, scene, way, cache, &other, own, out);
        own.position += own.token_count;
    }
    weft_kv_cache_close(way->device, &cache);
    free(pages);
}

/* What the cache holds for x. */
static float cached(const struct scene *scene, float x)
{
    return scene->kv_dtype == WEFT_BF16 ? weft_bf16_to_f32(weft_f32_to_bf16(x)) : x;
}

/* Row of head `index` (queries, then keys, then values) of a token, rotated. */
static const float *head_of(const struct scene *scene, uint32_t token, uint32_t index)
{
    return scene->rotated + token * row_width(&scene->heads) + (size_t)index * scene->heads.head_size;
}

/* One piece of one query by the contract: weights, their sum, and the weighted values, each in its fixed order. */
static void model_piece(struct check *check, const struct scene *scene, const float *query, uint32_t kv_head,
                        struct weft_range positions, float *max_out, float *sum_out, float *out)
{
    const struct weft_heads *heads = &scene->heads;
    uint32_t base = positions.begin - positions.begin % PIECE;
    float scores[PIECE];

    for (uint32_t p = positions.begin; p < positions.end; p++) {
        const float *key = head_of(scene, p, heads->head_count + kv_head);
        float score = 0;

        for (uint32_t e = 0; e < heads->head_size; e++) {
            score = __builtin_fmaf(cached(scene, key[e]), query[e], score);
        }
        scores[p - base] = score;
    }
    check->ref->softmax(scores, (struct weft_range){positions.begin - base, positions.end - base}, scale_factor,
                        max_out, sum_out);
    for (uint32_t e = 0; e < heads->head_size; e++) {
        out[e] = 0;
        for (uint32_t p = positions.begin; p < positions.end; p++) {
            const float *value = head_of(scene, p, heads->head_count + heads->kv_head_count + kv_head);

            out[e] = __builtin_fmaf(cached(scene, value[e]), scores[p - base], out[e]);
        }
    }
}

/* One query by the contract, bit for bit: pieces of 256 positions aligned at 0, merged in ascending order. */
static void check_model(struct check *check, const struct scene *scene, uint32_t token, uint32_t head,
                        const float *found)
{
    uint32_t size = scene->heads.head_size;
    uint32_t kv_head = (scene->heads.group_first + head) / scene->heads.group_size;
    uint32_t first = scene->window > 0 && token + 1 > scene->window ? token + 1 - scene->window : 0;
    float out[HEAD_SIZE_MAX];
    float piece[HEAD_SIZE_MAX];
    float max = 0;
    float sum = 0;
    uint32_t end;

    for (uint32_t begin = first; begin <= token; begin = end) {
        float piece_max;
        float piece_sum;
        float new_max;
        float a;
        float b;

        end = begin - begin % PIECE + PIECE < token + 1 ? begin - begin % PIECE + PIECE : token + 1;
        model_piece(check, scene, head_of(scene, token, head), kv_head, (struct weft_range){begin, end}, &piece_max,
                    &piece_sum, piece);
        new_max = begin == first || piece_max > max ? piece_max : max;
        a = begin == first ? 0 : weft_exp(max - new_max);
        b = begin == first ? 1 : weft_exp(piece_max - new_max);
        for (uint32_t e = 0; e < size; e++) {
            out[e] = begin == first ? piece[e] : __builtin_fmaf(out[e], a, piece[e] * b);
        }
        sum = begin == first ? piece_sum : __builtin_fmaf(sum, a, piece_sum * b);
        max = new_max;
    }
    for (uint32_t e = 0; e < size; e++) {
        out[e] /= sum;
    }
    check_same(check, found, out, size, "attention of token %u, head %u by the contract", token, head);
}

/* One query in double precision. */
static void check_query(struct check *check, const struct scene *scene, uint32_t token, uint32_t head,
                        const float *found)
{
    const struct weft_heads *heads = &scene->heads;
    uint32_t size = heads->head_size;
    uint32_t kv_head = (heads->group_first + head) / heads->group_size;
    uint32_t first = scene->window > 0 && token + 1 > scene->window ? token + 1 - scene->window : 0;
    const float *query = head_of(scene, token, head);
    double *weights = allocate(token + 1, sizeof(double));
    double sum = 0;
    double score_error = 0;

    for (uint32_t p = first; p <= token; p++) {
        const float *key = head_of(scene, p, heads->head_count + kv_head);
        double score = 0;
        double score_size = 0;

        for (uint32_t e = 0; e < size; e++) {
            score += (double)query[e] * (double)cached(scene, key[e]);
            score_size += fabs((double)query[e] * (double)cached(scene, key[e]));
        }
        weights[p] = exp(score * (double)scale_factor);
        sum += weights[p];
        score_error = fmax(score_error, (size + 4) * CHECK_U * score_size * (double)scale_factor);
    }
    for (uint32_t e = 0; e < size; e++) {
        double exact = 0;
        double scale = 0;

        for (uint32_t p = first; p <= token; p++) {
            const float *value =
                scene->qkv + p * row_width(heads) + ((size_t)heads->head_count + heads->kv_head_count + kv_head) * size;

            exact += weights[p] / sum * (double)cached(scene, value[e]);
            scale += weights[p] / sum * fabs((double)cached(scene, value[e]));
        }
        /* weights: error of the score and of exp, twice (numerator and sum); 256 additions per piece, 6 per merge */
        check_near(check, found[e], exact, scale * (4 * score_error + (256 + 32) * CHECK_U),
                   "attention of token %u, head %u against double", token, head);
    }
    free(weights);
}

/* What the scene is about: random heads and angles, and what the micro-kernels make of them. */
static void scene_begin(struct check *check, struct scene *scene)
{
    const struct weft_heads *heads = &scene->heads;
    uint32_t size = heads->head_size;
    size_t count = scene->token_count * row_width(heads);

    scene->qkv = allocate(count, sizeof(float));
    scene->rotated = allocate(count, sizeof(float));
    scene->angles = allocate((size_t)scene->token_count * size, sizeof(float));
    scene->norms = allocate(2 * (size_t)size, sizeof(float));
    check_fill(check, CHECK_PLAIN, scene->qkv, count);
    check_fill(check, CHECK_PLAIN, scene->norms, 2 * (size_t)size);
    for (size_t i = 0; i < (size_t)scene->token_count * size; i += 2) {
        weft_cos_sin((float)check_below(check, 6283) * 1e-3f, &scene->angles[i], &scene->angles[i + 1]);
    }
    memcpy(scene->rotated, scene->qkv, count * sizeof(float));
    for (uint32_t t = 0; t < scene->token_count; t++) {
        for (uint32_t h = 0; h < heads->head_count + heads->kv_head_count; h++) {
            float *head = scene->rotated + t * row_width(heads) + (size_t)h * size;

            if (scene->has_norm) {
                check->ref->rms_norm(head, scene->norms + (h < heads->head_count ? 0 : size), size, norm_eps, head);
            }
            check->ref->rope(head, scene->angles + (size_t)t * size, size / 2);
        }
    }
}

static void scene_end(struct scene *scene)
{
    free(scene->qkv);
    free(scene->rotated);
    free(scene->angles);
    free(scene->norms);
}

static void attention_case(struct check *check, struct scene *scene)
{
    struct check reference = {.ref = check->ref, .kernels = check->ref, .level = "ref"};
    size_t width = (size_t)scene->heads.head_count * scene->heads.head_size;
    size_t count = scene->token_count * width;
    float *expected = allocate(count, sizeof(float));
    float *found = allocate(count, sizeof(float));
    struct way plain = {.device = check_device(&reference, 1)};

    scene_begin(check, scene);
    run_scene(check, scene, &plain, expected);
    for (uint32_t i = 0; i < 12 && check->ref == check->kernels && check->module == NULL; i++) {
        uint32_t token = i == 0 ? scene->token_count - 1 : check_below(check, scene->token_count);
        uint32_t head = check_below(check, scene->heads.head_count);

        check_query(check, scene, token, head, expected + token * width + (size_t)head * scene->heads.head_size);
        check_model(check, scene, token, head, expected + token * width + (size_t)head * scene->heads.head_size);
    }
    for (uint32_t i = 0; i < 4; i++) {
        struct way way = {.device = check_device(check, 1 + i % 3),
                          .is_chunked = i > 0,
                          .is_shuffled = i > 1,
                          .has_company = i > 2 && scene->token_count >= OTHER_TOKENS};

        memset(found, 0, count * sizeof(float));
        run_scene(check, scene, &way, found);
        check_same(check, found, expected, count,
                   "attention: %u tokens, %u heads from %u, groups of %u, size %u, %s cache, window %u, way %u",
                   scene->token_count, scene->heads.head_count, scene->heads.group_first, scene->heads.group_size,
                   scene->heads.head_size, weft_dtype_name(scene->kv_dtype), scene->window, i);
        weft_device_close(&way.device);
    }
    weft_device_close(&plain.device);
    scene_end(scene);
    free(expected);
    free(found);
}

/* A rank without heads: nothing happens, nothing is touched. */
static void no_heads_case(struct check *check)
{
    struct weft_device *device = check_device(check, 2);
    struct weft_kv_desc desc = {.dtype = WEFT_F32, .layer_count = 1, .head_size = 8, .page_count = 1};
    struct weft_batch_sequence sequence = {.token_count = 1, .page_count = 1, .pages = &(uint32_t){0}};
    struct weft_batch batch = {1, 1, &sequence};
    struct weft_heads heads = {.head_size = 8, .group_size = 2};
    struct weft_attention_args args = {.heads = heads, .scale = 1.0f};
    struct weft_rope_args rope = {.heads = heads};
    struct weft_kv_cache *cache = NULL;

    if (weft_kv_cache_open(device, &desc, &cache) != WEFT_OK || weft_kv_cache_size(device, &desc) != 0) {
        check_fail(check, "a cache without heads does not open");
    } else {
        weft_device_rope_append(device, cache, &batch, &rope);
        weft_device_attention(device, cache, &batch, &args);
    }
    weft_kv_cache_close(device, &cache);
    weft_device_close(&device);
}

void check_device_attention(struct check *check)
{
    static const struct scene scenes[] = {
        /* heads: H, G, E, group_first, group_size */
        {.heads = {1, 1, 2, 0, 1}, .kv_dtype = WEFT_F32, .token_count = 1},
        {.heads = {4, 2, 16, 0, 2}, .kv_dtype = WEFT_F32, .token_count = 300},
        {.heads = {4, 2, 16, 0, 2}, .kv_dtype = WEFT_BF16, .token_count = 300},
        {.heads = {3, 2, 22, 2, 3}, .kv_dtype = WEFT_BF16, .token_count = 50, .window = 7},
        {.heads = {2, 1, 64, 5, 8}, .kv_dtype = WEFT_F32, .token_count = 40, .window = 1},
        {.heads = {11, 1, 6, 0, 11}, .kv_dtype = WEFT_F32, .token_count = 70, .window = 37},
        {.heads = {2, 2, 80, 0, 1}, .kv_dtype = WEFT_BF16, .token_count = 33},
        {.heads = {1, 1, 256, 0, 1}, .kv_dtype = WEFT_F32, .token_count = 20},
        {.heads = {2, 1, 4, 0, 2}, .kv_dtype = WEFT_F32, .token_count = 700, .window = 300},
        {.heads = {2, 1, 4, 0, 2}, .kv_dtype = WEFT_BF16, .token_count = 520},
        {.heads = {7, 7, 2, 0, 1}, .kv_dtype = WEFT_BF16, .token_count = 1290}, /* some pieces per block on a GPU */
    };

    for (size_t i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++) {
        struct scene scene = scenes[i];

        scene.has_norm = i % 2 != 0;
        attention_case(check, &scene);
    }
    no_heads_case(check);
}
