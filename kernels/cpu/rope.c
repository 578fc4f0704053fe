/*
 * Rotary position embedding. Angles are computed once per step, in double precision from the f32 product that Hugging
 * Face forms (weft_cos_sin()); no vector versions, so every level has the same bits.
 */
#include <assert.h>

#include "cpu/device_cpu.h"
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
    const struct weft_rope_args *args;
};

static void rope_task(void *context, uint32_t worker, uint32_t begin, uint32_t end)
{
    const struct rope_job *job = context;
    const struct weft_rope_args *args = job->args;
    const struct weft_heads *heads = &args->heads;
    uint32_t size = heads->head_size;

    (void)worker;
    for (uint32_t t = begin; t < end; t++) {
        float *row = args->qkv + t * ((size_t)heads->head_count + 2 * (size_t)heads->kv_head_count) * size;

        for (uint32_t h = 0; h < heads->head_count + heads->kv_head_count; h++) {
            const float *norm = h < heads->head_count ? args->q_norm : args->k_norm;
            float *head = row + (size_t)h * size;

            if (norm != NULL) {
                job->kernels->rms_norm(head, norm, size, args->eps, head);
            }
            job->kernels->rope(head, args->angles + (size_t)t * size, size / 2);
        }
    }
}

void weft_cpu_rope(struct weft_device *device, const struct weft_rope_args *args)
{
    struct weft_cpu_device *cpu = weft_cpu_device(device);
    struct rope_job job = {.kernels = &cpu->kernels, .args = args};

    assert(args->heads.head_size % 2 == 0);
    weft_pool_run(cpu->pool, WEFT_POOL_STATIC, args->token_count, rope_task, &job);
}
