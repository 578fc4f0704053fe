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
