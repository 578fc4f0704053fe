/* What every fuzzer begins with: the entry points libFuzzer looks for, a silent log, a check that is always on. */
#ifndef WEFT_TESTS_FUZZ_H
#define WEFT_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "weft/log.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_require(bool is_true)
{
    if (!is_true) {
        abort();
    }
}

static inline void fuzz_drop_line(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

/* Refusals are what fuzzing is about; printing each would be most of the work. */
static inline void fuzz_silence(void)
{
    weft_log_configure(WEFT_LOG_ERROR, fuzz_drop_line, NULL);
}

#endif
