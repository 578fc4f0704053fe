/* A model run by ranks as threads of this process: prefill of a golden prompt in chunks, then greedy decoding. */
#ifndef TESTS_MODEL_GROUP_H
#define TESTS_MODEL_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "model/config.h"
#include "support.h"
#include "weft/device.h"

struct group_options {
    const char *folder;
    uint32_t rank_count;
    const uint32_t *shares; /* [rank_count] or NULL */
    uint32_t thread_count;  /* per rank */
    uint32_t chunk;         /* prompt tokens per step */
    const char *cpu_level;  /* NULL: best */
    enum weft_dtype kv_dtype;
    enum weft_quantise quantise;
    bool is_sparse;   /* asks for the logits of the last position of the prompt and of each step after it only */
    bool is_streamed; /* rank 0 alone reads the folder */
    bool is_mixed;    /* a second sequence (the tokens mirrored) runs in the same steps */
};

struct group_result {
    float *logits;   /* [prompt_count + token_count][vocab_size], of every position; zeros where not asked for */
    int32_t *tokens; /* [token_count] */
    uint32_t position_count;
    uint32_t vocab_size;
    uint64_t read_size; /* bytes that rank 0 read from files */
};

/* Fails the test when anything goes wrong on any rank. Decodes as many tokens as golden has. */
void group_run(const struct group_options *options, const struct golden *golden, struct group_result *result);
void group_result_fini(struct group_result *result);

#endif
