/*
 * What must be the same on all ranks: the model on disk and the options that shape the computation, as digests.
 *
 * Weights are not read in full for this: names, sizes, and the first and last 64 KiB of every file.
 */
#ifndef WEFT_ENGINE_IDENTITY_H
#define WEFT_ENGINE_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "model/config.h"
#include "weft/status.h"
#include "weft/weft.h"

#define WEFT_SHA256_SIZE 32

struct weft_identity {
    struct weft_model_config config;
    uint8_t model[WEFT_SHA256_SIZE];
    uint8_t options[WEFT_SHA256_SIZE];
};

/* ERR_MISSING, logged, when there is no such folder. */
WEFT_MUST_CHECK enum weft_status weft_model_folder_check(const char *folder);

/* Reads the model's configuration and looks at its files. options: with defaults filled in. Logged. */
WEFT_MUST_CHECK enum weft_status weft_identity_read(const struct weft_engine_options *options,
                                                    struct weft_identity *identity_out);

/* The digest of the options alone, for a rank without the folder. ERR_MEMORY, logged. */
WEFT_MUST_CHECK enum weft_status weft_identity_read_options(const struct weft_engine_options *options,
                                                            struct weft_identity *identity_out);

/* Hex of digest[WEFT_SHA256_SIZE] into text[65]. */
void weft_sha256_text(const uint8_t *digest, char *text);

#endif
