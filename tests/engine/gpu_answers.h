/* Whole engines on emulated GPUs, which must be left as they were found. */
#ifndef WEFT_TESTS_ENGINE_GPU_ANSWERS_H
#define WEFT_TESTS_ENGINE_GPU_ANSWERS_H

#include "../emulator/handle.h"
#include "harness.h"

/*
 * An engine answers requests[count] at once and is closed; then the GPUs have nothing to report and hold nothing.
 * Returns how many graphs were launched for the requests. Configure the GPUs beforehand.
 */
uint32_t answer_on_gpu(const struct weft_emulated_handle *gpu, const struct weft_engine_options *options,
                       const struct weft_request *requests, uint32_t count, struct answer *answers);

/*
 * requests[count]: the first has a prompt of prompt_max random tokens, the others of 1 to prompt_max; two are greedy.
 * prompts: [count][prompt_max], which they borrow.
 */
void make_random_requests(uint64_t seed, uint32_t count, uint32_t prompt_max, int32_t *prompts,
                          struct weft_request *requests);
/* Four GPUs that work; threads in the order of `order`. */
void configure_gpus(const struct weft_emulated_handle *gpu, uint32_t order);
/* test_options() for ranks on GPUs. */
void gpu_options(const struct weft_emulated_handle *gpu, struct weft_engine_options *options, const char *model,
                 uint32_t rank_count, const char *numerics);

#endif
