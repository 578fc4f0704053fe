/*
 * Rotary position embedding, and storing what was rotated. Angles are computed once per step, in double precision from
 * the f32 product that Hugging Face forms (weft_cos_sin()); no vector versions, so every level has the same bits.
 */
#include <assert.h>

#include "cpu/kv_cache.h"
#include "weft/numeric.h"

void weft_cpu_rope_angles(struct weft_device *device, const struct weft_batch *batch, const float *inv_freq,
                          uint32_t head_size, float scale, float *angles)
{
    uint32_t half = head_size / 2;

    (void)device;
    for (uint32_t s = 0; s < batch->sequence_count; s++) {
        const struct weft_batch_sequence *sequence = &batch->sequences[s];

        for (uint32_t t = 0; t < sequence->token_count; t++) {
            float position = (float)(sequence->position + t);
            float *row = angles + ((size_t)sequence->token_begin + t) * head_size;

            for (uint32_t i = 0; i < half; i++) {
                float cosine;
                float sine;

                weft_cos_sin(position * inv_freq[i], &cosine, &sine);
                row[2 * i] = cosine * scale;
                row[2 * i + 1] = sine * scale;
            }
        }
    }
}

struct rope_job {
    const struct weft_cpu_kernels *kernels;
    const struct weft_kv_cache *cache;
    const struct weft_batch *batch;
    const struct weft_rope_args *args;
};

/* The sequence that has token t, at or after `sequence`. */
static const struct weft_batch_sequence *find_sequence(const struct weft_batch_sequence *sequence, uint32_t t)
{
    while (t - sequence->token_begin >= sequence->token_count) { /* empty ones are passed over */
        sequence++;
    }
    return sequence;
}

static struct weft_kv_place place_of(const struct rope_job *job, const struct weft_batch_sequence *sequence, uint32_t t)
{
    uint32_t position = sequence->position + (t - sequence->token_begin);

    assert(position / WEFT_PAGE_POSITIONS < sequence->page_count);
    return (struct weft_kv_place){.layer = job->args->layer,
                                  .page = sequence->pages[position / WEFT_PAGE_POSITIONS],
                                  .slot = position % WEFT_PAGE_POSITIONS};
}

/* Items are tokens. */
static void rope_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct rope_job *job = context;
    const struct weft_rope_args *args = job->args;
    const struct weft_heads *heads = &args->heads;
    const struct weft_batch_sequence *sequence = job->batch->sequences;
    uint32_t size = heads->head_size;

    (void)worker;
    for (uint32_t t = begin; t < end; t++) {
        float *row = args->qkv + t * ((size_t)heads->head_count + 2 * (size_t)heads->kv_head_count) * size;
        const float *keys = row + (size_t)heads->head_count * size;
        const float *values = keys + (size_t)heads->kv_head_count * size;

        sequence = find_sequence(sequence, t);
        struct weft_kv_place place = place_of(job, sequence, t);
        assert(place.page < job->cache->desc.page_count);
        for (uint32_t h = 0; h < heads->head_count + heads->kv_head_count; h++) {
            const float *norm = h < heads->head_count ? args->q_norm : args->k_norm;
            float *head = row + (size_t)h * size;

            if (norm != NULL) {
                job->kernels->rms_norm(head, norm, size, args->eps, head);
            }
            job->kernels->rope(head, args->angles + (size_t)t * size, size / 2);
        }
        for (uint32_t g = 0; g < heads->kv_head_count; g++) {
            weft_kv_store(job->cache, &place, g, keys + (size_t)g * size, values + (size_t)g * size);
        }
    }
}

void weft_cpu_rope_append(struct weft_device *device, struct weft_kv_cache *cache, const struct weft_batch *batch,
                          const struct weft_rope_args *args)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    struct rope_job job = {.kernels = &cpu->kernels, .cache = cache, .batch = batch, .args = args};

    assert(args->layer < cache->desc.layer_count && args->heads.kv_head_count == cache->desc.kv_head_count &&
           args->heads.head_size == cache->desc.head_size);
    if (args->heads.kv_head_count > 0) {
        weft_pool_run(cpu->pool, WEFT_POOL_STATIC, batch->token_count, rope_task, &job);
    }
}
