/* What the tests of this folder share: captured log lines, temporary copies of model folders, golden values. */
#ifndef TESTS_MODEL_SUPPORT_H
#define TESTS_MODEL_SUPPORT_H

#include <stddef.h>
#include <stdint.h>

/* Where tests/model/golden and ../shared/data are; set by CMake. */
#ifndef GOLDEN_FOLDER
#error "GOLDEN_FOLDER is missing"
#endif

/* Keeps log lines from stderr and remembers the last one and their number, until end. */
void log_capture_begin(void);
void log_capture_end(void);
const char *log_capture_line(void);
int log_capture_count(void);

/* A file's bytes, from malloc. */
unsigned char *file_bytes(const char *path, size_t *size_out);
void file_write(const char *path, const void *bytes, size_t size);

/* Copies the files of `from` into a new folder below /tmp; its path into to[4096]. */
void folder_copy(const char *from, char *to);
void folder_remove(const char *folder);

/* golden.safetensors of a folder. */
struct golden {
    int32_t *prompt; /* [prompt_count] */
    uint32_t prompt_count;
    int32_t *rows; /* [row_count] rows of the prompt whose logits are there */
    uint32_t row_count;
    float *logits; /* [row_count][vocab_size] */
    uint32_t vocab_size;
    int32_t *tokens; /* [token_count] greedy continuation */
    uint32_t token_count;
};
void golden_open(const char *folder, struct golden *golden);
void golden_close(struct golden *golden);

#endif
