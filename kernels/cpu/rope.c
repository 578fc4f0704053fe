/*
 * Rotary position embedding. Angles are computed once per step, in double precision from the f32 product that Hugging
 * Face forms; no vector versions, so every level has the same bits.
 */
#include <assert.h>
#include <string.h>

#include "cpu/device_cpu.h"

/*
 * pi/2 in three parts. k < 2^20 for angles below 1.6e6: with fused multiply-adds the reduced angle is good to about
 * 1e-19 absolute; beyond, the error grows as k * 2^-161 and stays far below f32.
 */
static const double half_pi[3] = {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54, -0x1.f1976b7ed8fbcp-110};

/* Taylor series to r^15 and r^16: |r| <= pi/4 leaves 5e-17. */
static double sin_series(double r)
{
    static const double c[] = {-1.0 / 6,        1.0 / 120,        -1.0 / 5040,         1.0 / 362880,
                               -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000};
    double r2 = r * r;
    double sum = c[6];

    for (int i = 5; i >= 0; i--) {
        sum = __builtin_fma(sum, r2, c[i]);
    }
    return __builtin_fma(sum * r2, r, r);
}

static double cos_series(double r)
{
    static const double c[] = {-1.0 / 2,       1.0 / 24,        -1.0 / 720,           1.0 / 40320,
                               -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
    double r2 = r * r;
    double sum = c[7];

    for (int i = 6; i >= 0; i--) {
        sum = __builtin_fma(sum, r2, c[i]);
    }
    return __builtin_fma(sum, r2, 1.0);
}

/* cos and sin of an f32 angle, |angle| < 2^31, correctly rounded to f32 in all but about one case in 10^8. */
static void cos_sin(float angle, float *cos_out, float *sin_out)
{
    const double round = 0x1.8p+52; /* adding it leaves the nearest integer in the low bits */
    double shifted = __builtin_fma((double)angle, 0x1.45f306dc9c883p-1, round);
    double k = shifted - round;
    double r = __builtin_fma(-k, half_pi[0], (double)angle);
    double s;
    double c;
    uint64_t bits;

    r = __builtin_fma(-k, half_pi[1], r);
    r = __builtin_fma(-k, half_pi[2], r);
    s = sin_series(r);
    c = cos_series(r);
    memcpy(&bits, &shifted, sizeof(bits));
    switch (bits & 3) {
    case 0: *cos_out = (float)c, *sin_out = (float)s; break;
    case 1: *cos_out = (float)-s, *sin_out = (float)c; break;
    case 2: *cos_out = (float)-c, *sin_out = (float)-s; break;
    default: *cos_out = (float)s, *sin_out = (float)-c; break;
    }
}

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

                cos_sin(position * inv_freq[i], &cosine, &sine);
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
