/* libFuzzer: config.json and, after a NUL byte, generation_config.json. What is accepted must be usable. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/config.h"
#include "model/model.h"
#include "weft/log.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void drop(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    weft_log_configure(WEFT_LOG_ERROR, drop, NULL);
    return 0;
}

static void check(const struct weft_model_config *config)
{
    struct weft_slice slice;

    assert(config->layer_count >= 1 && config->layer_count <= WEFT_LAYER_COUNT_MAX);
    assert(config->width >= 1 && config->vocab_size >= 1 && config->ffn_width >= 1 && config->context_length >= 1);
    assert(config->head_size >= 2 && config->head_size % 2 == 0 && config->head_size <= WEFT_HEAD_SIZE_MAX);
    assert(config->head_count % config->kv_head_count == 0);
    assert(config->eos_token_count <= WEFT_EOS_COUNT_MAX);
    assert(isfinite(config->rope_scale));
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        assert(isfinite(config->inv_freq[i]));
    }
    for (uint32_t leaf = 0; leaf < 8; leaf++) {
        weft_slice_init(config, 8, (struct weft_range){leaf, leaf + 1}, &slice);
        assert(slice.heads.end <= config->head_count && slice.kv_heads.end <= config->kv_head_count);
        assert(slice.ffn.end <= config->ffn_width && slice.vocab.end <= config->vocab_size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *end = size == 0 ? NULL : memchr(text, '\0', size);
    const char *generation = end == NULL ? NULL : end + 1;
    size_t text_size = end == NULL ? size : (size_t)(end - text);
    size_t generation_size = end == NULL ? 0 : size - text_size - 1;
    struct weft_model_config config;

    if (weft_model_config_parse("fuzz", text, text_size, generation, generation_size, &config) == WEFT_OK) {
        check(&config);
    }
    return 0;
}
