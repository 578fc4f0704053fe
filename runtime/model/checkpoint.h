/*
 * The safetensors of a model folder as one set of tensors: model.safetensors alone, or the shards that
 * model.safetensors.index.json names. Headers only; reader.h reads the bytes.
 */
#ifndef WEFT_MODEL_CHECKPOINT_H
#define WEFT_MODEL_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/safetensors.h"

struct weft_checkpoint;

/* True when FOLDER has model.safetensors or model.safetensors.index.json. */
bool weft_checkpoint_exists(const char *folder);

/*
 * Opens every file and reads every header. Like transformers, model.safetensors wins over an index. Logged: nothing
 * there, a shard missing, an index naming files outside the folder, whatever weft_safetensors_read() finds, a tensor in
 * two shards.
 */
WEFT_MUST_CHECK enum weft_status weft_checkpoint_open(const char *folder, struct weft_checkpoint **out);
void weft_checkpoint_close(struct weft_checkpoint **checkpoint);

/* The tensor of that name, NULL when there is none. Borrowed. */
const struct weft_tensor *weft_checkpoint_find(const struct weft_checkpoint *checkpoint, const char *name);

/* Where the index says that a tensor lies (it need not be there), NULL when it says nothing. */
const char *weft_checkpoint_claim(const struct weft_checkpoint *checkpoint, const char *name);

/* Folder of the checkpoint; path and descriptor of one of its files. Borrowed. */
const char *weft_checkpoint_folder(const struct weft_checkpoint *checkpoint);
const char *weft_checkpoint_file(const struct weft_checkpoint *checkpoint, uint32_t file);
int weft_checkpoint_fd(const struct weft_checkpoint *checkpoint, uint32_t file);

/*
 * to[size] <- bytes [offset, offset + size) of a file, in as few calls as the kernel allows; *call_count is raised by
 * their number. ERR_IO, logged with file and place, when the file ends before or cannot be read.
 */
WEFT_MUST_CHECK enum weft_status weft_checkpoint_read(const struct weft_checkpoint *checkpoint, uint32_t file,
                                                      uint64_t offset, void *to, size_t size, uint64_t *call_count);

/* Asks the kernel to fetch these bytes while the caller does something else. */
void weft_checkpoint_read_ahead(const struct weft_checkpoint *checkpoint, uint32_t file, uint64_t offset,
                                uint64_t size);

/* "FOLDER/FILE" into path[WEFT_PATH_SIZE]; ERR_LIMIT when too long. */
#define WEFT_PATH_SIZE 4096
WEFT_MUST_CHECK enum weft_status weft_checkpoint_path(const char *folder, const char *file, char *path);

#endif
