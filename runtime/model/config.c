/* config.json and generation_config.json to struct weft_model_config. RoPE is in rope.c, the tensors in tensors.c. */
#include "model/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "model/checkpoint.h"
#include "model/fp8.h"
#include "model/rope.h"
#include "model/tensors.h"
#include "weft/log.h"

static const char where[] = "model/config";

enum { CONFIG_SIZE_MAX = 16 << 20 };

/* What a family takes for granted when config.json is silent: the defaults of transformers' classes. */
struct family_traits {
    enum weft_family family;
    const char *architecture;
    const char *model_type;
    bool has_qkv_bias;
    bool has_attention_bias_switch; /* attention_bias, over q, k, v and the output */
    bool has_mlp_bias_switch;
    bool has_qk_norm;
    bool has_layer_windows; /* use_sliding_window, max_window_layers, layer_types */
    uint32_t kv_head_count; /* 0: as many as query heads */
    uint32_t head_size;     /* 0: D / H */
    uint32_t context_length;
};

static const struct family_traits families[] = {
    {.family = WEFT_FAMILY_LLAMA,
     .architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .has_attention_bias_switch = true,
     .has_mlp_bias_switch = true,
     .context_length = 2048},
    {.family = WEFT_FAMILY_MISTRAL,
     .architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .kv_head_count = 8,
     .context_length = 131072},
    {.family = WEFT_FAMILY_QWEN2,
     .architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .has_qkv_bias = true,
     .has_layer_windows = true,
     .kv_head_count = 32,
     .context_length = 32768},
    {.family = WEFT_FAMILY_QWEN3,
     .architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .has_attention_bias_switch = true,
     .has_qk_norm = true,
     .has_layer_windows = true,
     .kv_head_count = 32,
     .head_size = 128,
     .context_length = 32768},
};

enum { FAMILY_COUNT = sizeof(families) / sizeof(families[0]), WINDOW_DEFAULT = 4096, WINDOW_LAYER_DEFAULT = 28 };

const char *weft_family_name(enum weft_family family)
{
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        if (families[i].family == family) {
            return families[i].model_type;
        }
    }
    return "unknown";
}

/* The member as an integer in [min, max], into a uint32_t; fallback < 0: it must be there. */
static enum weft_status get_u32(const char *name, const json_t *root, const char *key, uint32_t min, uint32_t max,
                                int64_t fallback, uint32_t *out)
{
    struct weft_json_int_args args = {
        .name = name, .key = key, .min = min, .max = max, .has_fallback = fallback >= 0, .fallback = fallback};
    int64_t value;

    WEFT_TRY(weft_json_int(root, &args, &value));
    *out = (uint32_t)value;
    return WEFT_OK;
}

/* The member as a string, *out NULL when absent or null. */
static enum weft_status get_text(const char *name, const json_t *root, const char *key, const char **out)
{
    const json_t *member = json_object_get(root, key);

    if (member != NULL && !json_is_null(member) && !json_is_string(member)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected a string", name, key);
        return WEFT_ERR_FORMAT;
    }
    *out = json_string_value(member);
    return WEFT_OK;
}

static enum weft_status find_family(const char *name, const json_t *root, const struct family_traits **out)
{
    const json_t *list = json_object_get(root, "architectures");
    const char *architecture = json_string_value(json_array_get(list, 0));
    const char *model_type;

    WEFT_TRY(get_text(name, root, "model_type", &model_type));
    if (architecture == NULL && list != NULL && !json_is_null(list)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: architectures: expected a list of strings", name);
        return WEFT_ERR_FORMAT;
    }
    if (architecture == NULL && model_type == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected architectures or model_type, found neither", name);
        return WEFT_ERR_FORMAT;
    }
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        bool is_architecture = architecture == NULL || strcmp(architecture, families[i].architecture) == 0;
        bool is_type = model_type == NULL || strcmp(model_type, families[i].model_type) == 0;
        if (is_architecture && is_type) {
            *out = &families[i];
            return WEFT_OK;
        }
    }
    weft_log(WEFT_LOG_ERROR, where,
             "%s: architecture %.60s (model_type %.40s) is not supported: LlamaForCausalLM, MistralForCausalLM, "
             "Qwen2ForCausalLM, Qwen3ForCausalLM are",
             name, architecture != NULL ? architecture : "(none)", model_type != NULL ? model_type : "(none)");
    return WEFT_ERR_UNSUPPORTED;
}

/* Settings that change what the weights mean and that we do not do. */
static enum weft_status check_supported(const char *name, const json_t *root)
{
    const char *activation;

    WEFT_TRY(get_text(name, root, "hidden_act", &activation));
    if (activation != NULL && strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: hidden_act \"%.40s\" is not supported, only silu", name, activation);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status get_dtype(const char *name, const json_t *root, enum weft_dtype *out)
{
    const char *text;

    WEFT_TRY(get_text(name, root, "dtype", &text));
    if (text == NULL) {
        WEFT_TRY(get_text(name, root, "torch_dtype", &text));
    }
    if (text != NULL && strncmp(text, "torch.", 6) == 0) {
        text += 6;
    }
    if (text == NULL || strcmp(text, "float32") == 0 || strcmp(text, "auto") == 0) {
        *out = WEFT_F32;
    } else if (strcmp(text, "float16") == 0) {
        *out = WEFT_F16;
    } else if (strcmp(text, "bfloat16") == 0) {
        *out = WEFT_BF16;
    } else {
        weft_log(WEFT_LOG_ERROR, where, "%s: torch_dtype \"%.40s\" is not supported: float32, float16, bfloat16 are",
                 name, text);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status get_heads(const char *name, const json_t *root, const struct family_traits *traits,
                                  struct weft_model_config *config)
{
    WEFT_TRY(get_u32(name, root, "num_attention_heads", 1, 65536, -1, &config->head_count));
    uint32_t heads = config->head_count;
    const json_t *kv_heads = json_object_get(root, "num_key_value_heads");
    uint32_t fallback = kv_heads == NULL && traits->kv_head_count != 0 ? traits->kv_head_count : heads;
    WEFT_TRY(get_u32(name, root, "num_key_value_heads", 1, 65536, fallback, &config->kv_head_count));
    if (heads % config->kv_head_count != 0) {
        weft_log(WEFT_LOG_ERROR, where,
                 "%s: num_key_value_heads: expected a divisor of num_attention_heads %u, found %u", name, heads,
                 config->kv_head_count);
        return WEFT_ERR_FORMAT;
    }
    WEFT_TRY(get_u32(name, root, "head_dim", 0, WEFT_HEAD_SIZE_MAX, traits->head_size, &config->head_size));
    if (config->head_size == 0) {
        if (config->width % heads != 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: hidden_size %u is not a multiple of num_attention_heads %u", name,
                     config->width, heads);
            return WEFT_ERR_FORMAT;
        }
        config->head_size = config->width / heads;
    }
    if (config->head_size % 2 != 0 || config->head_size > WEFT_HEAD_SIZE_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: head width: expected an even number up to %d, found %u", name,
                 WEFT_HEAD_SIZE_MAX, config->head_size);
        return WEFT_ERR_UNSUPPORTED;
    }
    return WEFT_OK;
}

static enum weft_status get_shape(const char *name, const json_t *root, const struct family_traits *traits,
                                  struct weft_model_config *config)
{
    double eps = 1e-6;

    WEFT_TRY(get_u32(name, root, "num_hidden_layers", 1, WEFT_LAYER_COUNT_MAX, -1, &config->layer_count));
    WEFT_TRY(get_u32(name, root, "hidden_size", 1, 1 << 20, -1, &config->width));
    WEFT_TRY(get_u32(name, root, "intermediate_size", 1, 1 << 24, -1, &config->ffn_width));
    WEFT_TRY(get_u32(name, root, "vocab_size", 1, 1 << 24, -1, &config->vocab_size));
    WEFT_TRY(
        get_u32(name, root, "max_position_embeddings", 1, 1 << 30, traits->context_length, &config->context_length));
    WEFT_TRY(get_heads(name, root, traits, config));
    WEFT_TRY(weft_json_real(root, name, "rms_norm_eps", &eps, &eps));
    if (!(eps >= 0.0 && eps < 1.0)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: rms_norm_eps: expected a number in [0, 1), found %g", name, eps);
        return WEFT_ERR_FORMAT;
    }
    config->norm_eps = (float)eps;
    return WEFT_OK;
}

static enum weft_status get_switches(const char *name, const json_t *root, const struct family_traits *traits,
                                     struct weft_model_config *config)
{
    bool has_bias = false;

    if (traits->has_attention_bias_switch) {
        WEFT_TRY(weft_json_bool(root, name, "attention_bias", false, &has_bias));
    }
    config->has_qkv_bias = traits->has_qkv_bias || has_bias;
    config->has_output_bias = has_bias;
    if (traits->has_mlp_bias_switch) {
        WEFT_TRY(weft_json_bool(root, name, "mlp_bias", false, &config->has_mlp_bias));
    }
    config->has_qk_norm = traits->has_qk_norm;
    return weft_json_bool(root, name, "tie_word_embeddings", false, &config->is_tied);
}

/* layer_types[L] of a Qwen folder: which layers have the window. */
static enum weft_status get_layer_types(const char *name, const json_t *types, uint32_t window,
                                        struct weft_model_config *config)
{
    if (!json_is_array(types) || json_array_size(types) != config->layer_count) {
        weft_log(WEFT_LOG_ERROR, where, "%s: layer_types: expected a list of num_hidden_layers = %u strings", name,
                 config->layer_count);
        return WEFT_ERR_FORMAT;
    }
    for (uint32_t i = 0; i < config->layer_count; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type != NULL && strcmp(type, "full_attention") == 0) {
            config->windows[i] = 0;
        } else if (type != NULL && strcmp(type, "sliding_attention") == 0 && window != 0) {
            config->windows[i] = window;
        } else if (type != NULL && strcmp(type, "sliding_attention") == 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: layer_types[%u] is sliding_attention, but the config has no window",
                     name, i);
            return WEFT_ERR_FORMAT;
        } else {
            weft_log(WEFT_LOG_ERROR, where,
                     "%s: layer_types[%u]: \"%.40s\" is not supported: full_attention, sliding_attention are", name, i,
                     type != NULL ? type : "(not a string)");
            return WEFT_ERR_UNSUPPORTED;
        }
    }
    return WEFT_OK;
}

static enum weft_status get_windows(const char *name, const json_t *root, const struct family_traits *traits,
                                    struct weft_model_config *config)
{
    bool is_used = traits->family == WEFT_FAMILY_MISTRAL;
    uint32_t window = 0, first = 0;

    if (traits->has_layer_windows) {
        WEFT_TRY(weft_json_bool(root, name, "use_sliding_window", false, &is_used));
    }
    const json_t *member = json_object_get(root, "sliding_window");
    if (is_used && !json_is_null(member)) { /* null is "none", absent is the default of transformers */
        WEFT_TRY(get_u32(name, root, "sliding_window", 1, 1 << 30, WINDOW_DEFAULT, &window));
    }
    const json_t *types = json_object_get(root, "layer_types");
    if (traits->has_layer_windows && types != NULL && !json_is_null(types)) {
        return get_layer_types(name, types, window, config);
    }
    if (traits->has_layer_windows && window != 0) {
        WEFT_TRY(get_u32(name, root, "max_window_layers", 0, 1 << 20, WINDOW_LAYER_DEFAULT, &first));
    }
    for (uint32_t i = first; i < config->layer_count; i++) {
        config->windows[i] = window;
    }
    return WEFT_OK;
}

/* eos_token_id: an integer, a list of integers, or null. *is_there_out: the member decides, even when it is empty. */
static enum weft_status get_eos(const char *name, const json_t *root, struct weft_model_config *config,
                                bool *is_there_out)
{
    const json_t *member = json_object_get(root, "eos_token_id");
    size_t count = json_is_array(member) ? json_array_size(member) : 1;
    int32_t ids[WEFT_EOS_COUNT_MAX];

    *is_there_out = member != NULL && !json_is_null(member);
    if (!*is_there_out) {
        return WEFT_OK;
    }
    if (count > WEFT_EOS_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s: eos_token_id: at most %d are supported, found %zu", name,
                 WEFT_EOS_COUNT_MAX, count);
        return WEFT_ERR_LIMIT;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_is_array(member) ? json_array_get(member, i) : member;
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX) {
            weft_log(WEFT_LOG_ERROR, where, "%s: eos_token_id: expected a token id or a list of token ids", name);
            return WEFT_ERR_FORMAT;
        }
        ids[i] = (int32_t)id;
    }
    memcpy(config->eos_token_ids, ids, count * sizeof(ids[0]));
    config->eos_token_count = (uint32_t)count;
    return WEFT_OK;
}

static enum weft_status get_special_tokens(const char *name, const json_t *root, const json_t *generation,
                                           struct weft_model_config *config)
{
    struct weft_json_int_args args = {
        .name = name, .key = "bos_token_id", .min = -1, .max = INT32_MAX, .has_fallback = true, .fallback = -1};
    int64_t bos;
    bool is_there = false;

    WEFT_TRY(weft_json_int(root, &args, &bos));
    config->bos_token_id = (int32_t)bos;
    if (generation != NULL) {
        WEFT_TRY(get_eos("generation_config.json", generation, config, &is_there));
    }
    return is_there ? WEFT_OK : get_eos(name, root, config, &is_there);
}

static void set_dtypes(struct weft_model_config *config)
{
    struct weft_model_dtypes *dtypes = &config->dtypes;

    dtypes->embedding = config->dtype;
    dtypes->head = config->dtype;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        dtypes->qkv[i] = config->dtype;
        dtypes->attention_out[i] = config->dtype;
        dtypes->gate_up[i] = config->dtype;
        dtypes->down[i] = config->dtype;
    }
}

static enum weft_status parse(const char *name, const json_t *root, const json_t *generation,
                              struct weft_model_config *config)
{
    const struct family_traits *traits;

    if (!json_is_object(root) || (generation != NULL && !json_is_object(generation))) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected a JSON object",
                 json_is_object(root) ? "generation_config.json" : name);
        return WEFT_ERR_FORMAT;
    }
    WEFT_TRY(find_family(name, root, &traits));
    WEFT_TRY(check_supported(name, root));
    config->family = traits->family;
    snprintf(config->architecture, sizeof(config->architecture), "%s", traits->architecture);
    WEFT_TRY(get_shape(name, root, traits, config));
    WEFT_TRY(get_switches(name, root, traits, config));
    WEFT_TRY(get_windows(name, root, traits, config));
    WEFT_TRY(get_dtype(name, root, &config->dtype));
    WEFT_TRY(weft_fp8_parse(name, root, &config->fp8));
    config->dtype = config->fp8.is_there ? WEFT_F8_E4M3 : config->dtype;
    WEFT_TRY(get_special_tokens(name, root, generation, config));
    WEFT_TRY(weft_rope_init(name, root, config));
    set_dtypes(config);
    config->parameter_count = weft_tensors_parameter_count(config);
    return WEFT_OK;
}

enum weft_status weft_model_config_parse(const char *name, const char *text, size_t size, const char *generation_text,
                                         size_t generation_size, struct weft_model_config *config_out)
{
    struct weft_model_config config = {0};
    json_t *root = NULL, *generation = NULL;

    WEFT_TRY(weft_json_parse(name, text, size, &root));
    enum weft_status status = WEFT_OK;
    if (generation_text != NULL) {
        status = weft_json_parse("generation_config.json", generation_text, generation_size, &generation);
    }
    if (status == WEFT_OK) {
        status = parse(name, root, generation, &config);
    }
    if (status == WEFT_OK) {
        *config_out = config;
    }
    json_decref(generation);
    json_decref(root);
    return status;
}

/* Checks the headers of FOLDER's safetensors, when there are some, and takes over what they say. */
static enum weft_status read_tensors(const char *folder, struct weft_model_config *config)
{
    struct weft_checkpoint *checkpoint = NULL;

    if (!weft_checkpoint_exists(folder)) {
        return WEFT_OK;
    }
    WEFT_TRY(weft_checkpoint_open(folder, &checkpoint));
    enum weft_status status = weft_tensors_resolve(checkpoint, config);
    weft_checkpoint_close(&checkpoint);
    return status;
}

enum weft_status weft_model_texts_read(const char *folder, struct weft_model_texts *texts_out)
{
    struct weft_model_texts texts = {0};
    char path[4096];

    snprintf(path, sizeof(path), "%.4000s/config.json", folder);
    WEFT_TRY(weft_file_read(path, CONFIG_SIZE_MAX, &texts.config, &texts.config_size));
    snprintf(path, sizeof(path), "%.4000s/generation_config.json", folder);
    if (access(path, F_OK) == 0 || errno != ENOENT) {
        enum weft_status status = weft_file_read(path, CONFIG_SIZE_MAX, &texts.generation, &texts.generation_size);
        if (status != WEFT_OK) {
            weft_model_texts_fini(&texts);
            return status;
        }
    }
    *texts_out = texts;
    return WEFT_OK;
}

void weft_model_texts_fini(struct weft_model_texts *texts)
{
    free(texts->config);
    free(texts->generation);
    *texts = (struct weft_model_texts){0};
}

enum weft_status weft_model_config_read(const char *folder, struct weft_model_config *config_out)
{
    struct weft_model_config config;
    struct weft_model_texts texts;
    char path[4096];

    WEFT_TRY(weft_model_texts_read(folder, &texts));
    snprintf(path, sizeof(path), "%.4000s/config.json", folder);
    enum weft_status status = weft_model_config_parse(path, texts.config, texts.config_size, texts.generation,
                                                      texts.generation_size, &config);
    if (status == WEFT_OK) {
        status = read_tensors(folder, &config);
    }
    if (status == WEFT_OK) {
        *config_out = config;
    }
    weft_model_texts_fini(&texts);
    return status;
}
