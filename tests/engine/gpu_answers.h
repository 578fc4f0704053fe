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

#endif
