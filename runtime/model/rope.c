/*
 * RoPE frequencies. The order of operations and the places where a value is rounded to f32 are those of transformers,
 * so that golden values agree. Powers and logarithms are our own: libm's may differ between the hosts of one group, and
 * then so would the results of its ranks.
 */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "weft/log.h"

static const char where[] = "model/config";
static const double pi = 3.14159265358979323846;

/* Where the members are and what all types have in common. */
struct rope_source {
    char name[160];       /* for errors: "config.json: rope_scaling" */
    const json_t *root;   /* config.json */
    const json_t *object; /* rope_scaling, rope_parameters, or an empty object */
    double theta;
};

/* Natural logarithm of x > 0, finite: about 1e-15 relative, the same bits everywhere (only + - * / and frexp). */
static double log_exact(double x)
{
    int exponent;
    double mantissa = frexp(x, &exponent); /* [0.5, 1) */

    if (mantissa < 0.70710678118654752) {
        mantissa *= 2.0;
        exponent--;
    }
    /* log m = 2 atanh z, |z| <= 0.172: the term z^25 / 25 is below 1e-20 */
    double z = (mantissa - 1.0) / (mantissa + 1.0);
    double sum = 0.0;
    for (int n = 25; n >= 1; n -= 2) {
        sum = sum * (z * z) + 1.0 / n;
    }
    return 2.0 * z * sum + exponent * 0.69314718055994531;
}

/* e^x for |x| <= 700, same remarks. */
static double exp_exact(double x)
{
    double n = floor(x / 0.69314718055994531 + 0.5);
    /* ln 2 in two parts: the first has 32 bits, so that n times it is exact */
    double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double sum = 1.0;
    for (int k = 18; k >= 1; k--) {
        sum = 1.0 + r / k * sum;
    }
    return ldexp(sum, (int)n);
}

/* base^(2i / E) in f32, 0 <= i < E/2: what torch gives for `base ** (arange(0, E, 2) / E)`. */
static float frequency_power(double theta, uint32_t i, uint32_t head_size)
{
    float exponent = (float)(2 * i) / (float)head_size;

    return (float)exp_exact((double)exponent * log_exact((double)(float)theta));
}

static void init_default(struct weft_model_config *config, double theta)
{
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        config->inv_freq[i] = 1.0f / frequency_power(theta, i, config->head_size);
    }
}

/* The member as a positive number. Absent or null gives *fallback, an error without. */
static enum weft_status positive(const struct rope_source *source, const char *key, const double *fallback, double *out)
{
    double value;

    WEFT_TRY(weft_json_real(source->object, source->name, key, fallback, &value));
    if (!(value > 0.0 && value <= 1e30)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected a number above 0, found %g", source->name, key, value);
        return WEFT_ERR_FORMAT;
    }
    *out = value;
    return WEFT_OK;
}

/* original_max_position_embeddings: of the config itself, of the scaling object, or max_position_embeddings. */
static enum weft_status original_context(const struct rope_source *source, uint32_t context_length, double *out)
{
    struct rope_source top = *source;
    double fallback = context_length;

    WEFT_TRY(positive(source, "original_max_position_embeddings", &fallback, &fallback));
    top.object = source->root;
    return positive(&top, "original_max_position_embeddings", &fallback, out);
}

static enum weft_status init_linear(const struct rope_source *source, struct weft_model_config *config)
{
    double factor;

    WEFT_TRY(positive(source, "factor", NULL, &factor));
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        config->inv_freq[i] /= (float)factor;
    }
    return WEFT_OK;
}

static enum weft_status init_llama3(const struct rope_source *source, struct weft_model_config *config)
{
    double factor, low, high, original;

    WEFT_TRY(positive(source, "factor", NULL, &factor));
    WEFT_TRY(positive(source, "low_freq_factor", NULL, &low));
    WEFT_TRY(positive(source, "high_freq_factor", NULL, &high));
    WEFT_TRY(original_context(source, config->context_length, &original));
    if (!(high > low)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected high_freq_factor above low_freq_factor, found %g and %g",
                 source->name, high, low);
        return WEFT_ERR_FORMAT;
    }
    float low_wavelength = (float)(original / low);
    float high_wavelength = (float)(original / high);
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        float frequency = config->inv_freq[i];
        float wavelength = 1.0f / frequency * (float)(2.0 * pi);
        if (wavelength > low_wavelength) {
            config->inv_freq[i] = frequency / (float)factor;
        } else if (!(wavelength < high_wavelength)) {
            float smooth = (1.0f / wavelength * (float)original - (float)low) / (float)(high - low);
            config->inv_freq[i] = (1.0f - smooth) * frequency / (float)factor + smooth * frequency;
        }
    }
    return WEFT_OK;
}

/* yarn's attention factor from `factor` (paper, section 3.4). */
static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log_exact(factor) + 1.0;
}

static enum weft_status yarn_scale(const struct rope_source *source, double factor, double *scale_out)
{
    const double zero = 0.0;
    double scale, mscale, mscale_all_dim;

    WEFT_TRY(weft_json_real(source->object, source->name, "mscale", &zero, &mscale));
    WEFT_TRY(weft_json_real(source->object, source->name, "mscale_all_dim", &zero, &mscale_all_dim));
    if (mscale != 0.0 && mscale_all_dim != 0.0) {
        scale = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim);
    } else {
        scale = yarn_mscale(factor, 1.0);
    }
    return positive(source, "attention_factor", isfinite(scale) && scale > 0.0 ? &scale : NULL, scale_out);
}

/* Index of the pair that turns `rotations` times over the original context (paper, equation 20). */
static double yarn_pair(double rotations, const struct weft_model_config *config, double theta, double original)
{
    return config->head_size * log_exact(original / (rotations * 2.0 * pi)) / (2.0 * log_exact(theta));
}

static enum weft_status init_yarn(const struct rope_source *source, struct weft_model_config *config)
{
    double factor, scale, original, beta_fast = 32.0, beta_slow = 1.0;
    bool is_truncated;

    WEFT_TRY(original_context(source, config->context_length, &original));
    factor = config->context_length / original;
    bool is_null = json_is_null(json_object_get(source->object, "factor"));
    WEFT_TRY(positive(source, "factor", is_null ? &factor : NULL, &factor));
    WEFT_TRY(yarn_scale(source, factor, &scale));
    WEFT_TRY(positive(source, "beta_fast", &beta_fast, &beta_fast));
    WEFT_TRY(positive(source, "beta_slow", &beta_slow, &beta_slow));
    WEFT_TRY(weft_json_bool(source->object, source->name, "truncate", true, &is_truncated));

    double low = yarn_pair(beta_fast, config, source->theta, original);
    double high = yarn_pair(beta_slow, config, source->theta, original);
    if (is_truncated) {
        low = floor(low);
        high = ceil(high);
    }
    low = low > 0.0 ? low : 0.0;
    high = high < config->head_size - 1.0 ? high : config->head_size - 1.0;
    if (low == high) {
        high += 0.001; /* as transformers: no division by zero */
    }
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        float power = frequency_power(source->theta, i, config->head_size);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp > 0.0f ? (ramp < 1.0f ? ramp : 1.0f) : 0.0f;
        float extrapolated = 1.0f - ramp;
        float interpolated = 1.0f / ((float)factor * power) * (1.0f - extrapolated);
        config->inv_freq[i] = interpolated + 1.0f / power * extrapolated;
    }
    config->rope_scale = (float)scale;
    /* Folders differ in whether max_position_embeddings already counts the factor. */
    double stretched = factor * original;
    if (stretched > config->context_length && stretched <= 1 << 30) {
        config->context_length = (uint32_t)stretched;
    }
    return WEFT_OK;
}

/* Newer folders may hold one object per layer type; none of our families needs two. */
static enum weft_status check_flat(const struct rope_source *source)
{
    const char *key;
    json_t *member;

    json_object_foreach((json_t *)source->object, key, member)
    {
        if (json_is_object(member)) {
            weft_log(WEFT_LOG_ERROR, where, "%s: RoPE parameters per layer type (\"%.40s\") are not supported",
                     source->name, key);
            return WEFT_ERR_UNSUPPORTED;
        }
    }
    return WEFT_OK;
}

static enum weft_status source_init(const char *name, const json_t *root, const json_t *empty,
                                    struct rope_source *source)
{
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    double one = 1.0, theta = 10000.0;

    *source = (struct rope_source){.root = root, .object = empty};
    snprintf(source->name, sizeof(source->name), "%.140s", name);
    for (size_t i = 0; i < 2 && json_object_size(source->object) == 0; i++) {
        const json_t *member = json_object_get(root, keys[i]);
        if (member != NULL && !json_is_null(member) && !json_is_object(member)) {
            weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected an object or null", name, keys[i]);
            return WEFT_ERR_FORMAT;
        }
        if (json_is_object(member)) {
            source->object = member;
            snprintf(source->name, sizeof(source->name), "%.120s: %s", name, keys[i]);
        }
    }
    WEFT_TRY(check_flat(source));
    WEFT_TRY(weft_json_real(root, name, "rope_theta", &theta, &theta));
    WEFT_TRY(weft_json_real(source->object, source->name, "rope_theta", &theta, &source->theta));
    if (!(source->theta > 1.0 && source->theta <= 1e30)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: rope_theta: expected a number above 1, found %g", source->name,
                 source->theta);
        return WEFT_ERR_FORMAT;
    }
    WEFT_TRY(weft_json_real(root, name, "partial_rotary_factor", &one, &one));
    WEFT_TRY(weft_json_real(source->object, source->name, "partial_rotary_factor", &one, &one));
    if (one != 1.0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: partial_rotary_factor %g is not supported, only 1", source->name, one);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status type_init(const struct rope_source *source, struct weft_model_config *config)
{
    const json_t *member = json_object_get(source->object, "rope_type");
    enum weft_status status;

    if (member == NULL) {
        member = json_object_get(source->object, "type");
    }
    if (member != NULL && !json_is_string(member)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: rope_type: expected a string", source->name);
        return WEFT_ERR_FORMAT;
    }
    const char *type = member == NULL ? "default" : json_string_value(member);
    if (strcmp(type, "default") == 0) {
        status = WEFT_OK;
    } else if (strcmp(type, "linear") == 0) {
        status = init_linear(source, config);
    } else if (strcmp(type, "llama3") == 0) {
        status = init_llama3(source, config);
    } else if (strcmp(type, "yarn") == 0) {
        status = init_yarn(source, config);
    } else {
        weft_log(WEFT_LOG_ERROR, where, "%s: rope_type \"%.40s\" is not supported: default, linear, llama3, yarn are",
                 source->name, type);
        return WEFT_ERR_UNSUPPORTED;
    }
    if (status == WEFT_OK) {
        snprintf(config->rope_type, sizeof(config->rope_type), "%s", type);
    }
    return status;
}

enum weft_status weft_rope_init(const char *name, const json_t *root, struct weft_model_config *config)
{
    struct rope_source source;
    json_t *empty = json_object();

    if (empty == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", name);
        return WEFT_ERR_MEMORY;
    }
    config->rope_scale = 1.0f;
    enum weft_status status = source_init(name, root, empty, &source);
    if (status == WEFT_OK) {
        init_default(config, source.theta);
        status = type_init(&source, config);
    }
    for (uint32_t i = 0; status == WEFT_OK && i < config->head_size / 2; i++) {
        if (!isfinite(config->inv_freq[i])) {
            weft_log(WEFT_LOG_ERROR, where, "%s: RoPE frequency %u is not finite", source.name, i);
            status = WEFT_ERR_FORMAT;
        }
    }
    json_decref(empty);
    return status;
}
