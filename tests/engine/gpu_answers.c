#include "gpu_answers.h"

uint32_t answer_on_gpu(const struct weft_emulated_handle *gpu, const struct weft_engine_options *options,
                       const struct weft_request *requests, uint32_t count, struct answer *answers)
{
    struct weft_engine *engine = open_engine(options);
    uint32_t launched = gpu->count("cudaGraphLaunch");

    run_requests(engine, requests, count, answers);
    launched = gpu->count("cudaGraphLaunch") - launched;
    weft_engine_close(&engine);
    assert_string_equal(gpu->report(), "");
    assert_int_equal(gpu->live_count(), 0);
    return launched;
}

void make_random_requests(uint64_t seed, uint32_t count, uint32_t prompt_max, int32_t *prompts,
                          struct weft_request *requests)
{
    for (uint32_t i = 0; i < count; i++) {
        int32_t *prompt = prompts + (size_t)i * prompt_max;

        weft_request_init(&requests[i]);
        requests[i].token_count = i == 0 ? prompt_max : 1 + (uint32_t)(test_random(&seed) % prompt_max);
        for (uint32_t j = 0; j < requests[i].token_count; j++) {
            prompt[j] = (int32_t)(test_random(&seed) % 250);
        }
        requests[i].token_ids = prompt;
        requests[i].max_tokens = 4 + 2 * i;
        requests[i].has_logits_digest = true;
        requests[i].is_eos_ignored = true;
        requests[i].seed = 100 + i;
        requests[i].temperature = i < 2 ? 0.0f : 1.5f;
    }
}

void configure_gpus(const struct weft_emulated_handle *gpu, uint32_t order)
{
    struct weft_emulated_config config;

    gpu->config_init(&config);
    config.device_count = 4;
    config.order = order;
    gpu->configure(&config);
}

void gpu_options(const struct weft_emulated_handle *gpu, struct weft_engine_options *options, const char *model,
                 uint32_t rank_count, const char *numerics)
{
    test_options(options, model, rank_count);
    options->device = "cuda";
    options->numerics = numerics;
    options->cuda_module = gpu->path;
}
