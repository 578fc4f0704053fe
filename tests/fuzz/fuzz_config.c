/* libFuzzer: config.json and, after a NUL byte, generation_config.json. What is accepted must be usable. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fuzz.h"

#include "model/config.h"
#include "model/model.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_silence();
    return 0;
}

static void check(const struct weft_model_config *config)
{
    struct weft_slice slice;

    fuzz_require(config->layer_count >= 1 && config->layer_count <= WEFT_LAYER_COUNT_MAX);
    fuzz_require(config->width >= 1 && config->vocab_size >= 1 && config->ffn_width >= 1 &&
                 config->context_length >= 1);
    fuzz_require(config->head_size >= 2 && config->head_size % 2 == 0 && config->head_size <= WEFT_HEAD_SIZE_MAX);
    fuzz_require(config->head_count % config->kv_head_count == 0);
    fuzz_require(config->eos_token_count <= WEFT_EOS_COUNT_MAX);
    fuzz_require(isfinite(config->rope_scale));
    fuzz_require((config->fp8.block_rows != 0) == (config->fp8.block_cols != 0));
    fuzz_require(config->fp8.is_there || config->fp8.block_rows == 0);
    fuzz_require(config->fp8.is_there == (config->dtype == WEFT_F8_E4M3));
    for (uint32_t i = 0; i < config->head_size / 2; i++) {
        fuzz_require(isfinite(config->inv_freq[i]));
    }
    for (uint32_t leaf = 0; leaf < 8; leaf++) {
        weft_slice_init(config, 8, (struct weft_range){leaf, leaf + 1}, &slice);
        fuzz_require(slice.heads.end <= config->head_count && slice.kv_heads.end <= config->kv_head_count);
        fuzz_require(slice.ffn.end <= config->ffn_width && slice.vocab.end <= config->vocab_size);
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
