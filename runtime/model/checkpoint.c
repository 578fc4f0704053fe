/* A folder's safetensors: the index, the shards, and the tensors of all of them sorted by name. */
#include "model/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/json.h"
#include "weft/log.h"

static const char where[] = "model/checkpoint";
static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

enum { FILE_COUNT_MAX = 4096, INDEX_SIZE_MAX = 256 << 20 };

struct checkpoint_file {
    const char *path;
    int fd;
    struct weft_tensor *tensors; /* [count], in file order */
    size_t count;
};

struct weft_checkpoint {
    struct weft_arena arena;
    const char *folder;
    json_t *weight_map; /* of the index, owned; NULL for a single file */
    struct checkpoint_file *files;
    uint32_t file_count;
    struct weft_tensor *tensors; /* [tensor_count], of all files, by name */
    size_t tensor_count;
};

enum weft_status weft_checkpoint_path(const char *folder, const char *file, char *path)
{
    int size = snprintf(path, WEFT_PATH_SIZE, "%s/%s", folder, file);

    if (size < 0 || size >= WEFT_PATH_SIZE) {
        weft_log(WEFT_LOG_ERROR, where, "path of %.80s in %.200s... is longer than %d bytes", file, folder,
                 WEFT_PATH_SIZE - 1);
        return WEFT_ERR_LIMIT;
    }
    return WEFT_OK;
}

static bool has_file(const char *folder, const char *file)
{
    char path[WEFT_PATH_SIZE];
    int size = snprintf(path, sizeof(path), "%s/%s", folder, file);

    return size > 0 && size < WEFT_PATH_SIZE && access(path, F_OK) == 0;
}

bool weft_checkpoint_exists(const char *folder)
{
    return has_file(folder, single_name) || has_file(folder, index_name);
}

/* Opens one file of the folder as the next of checkpoint->files and reads its header. */
static enum weft_status add_file(struct weft_checkpoint *checkpoint, const char *name)
{
    struct checkpoint_file *file = &checkpoint->files[checkpoint->file_count];
    char path[WEFT_PATH_SIZE];

    WEFT_TRY(weft_checkpoint_path(checkpoint->folder, name, path));
    file->path = weft_arena_text(&checkpoint->arena, path, strlen(path));
    if (file->path == NULL) {
        return WEFT_ERR_MEMORY;
    }
    file->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0) {
        int error = errno;
        weft_log(WEFT_LOG_ERROR, where, "%s: %s%s", path, strerror(error),
                 checkpoint->weight_map != NULL ? " (the index names this file)" : "");
        return weft_status_of_errno(error);
    }
    checkpoint->file_count++;
    WEFT_TRY(weft_safetensors_read(path, file->fd, &checkpoint->arena, &file->tensors, &file->count));
    for (size_t i = 0; i < file->count; i++) {
        file->tensors[i].file = checkpoint->file_count - 1;
    }
    checkpoint->tensor_count += file->count;
    return WEFT_OK;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* names_out [*count_out] <- the distinct files of the weight map, each a plain name in the folder. */
static enum weft_status list_shards(struct weft_checkpoint *checkpoint, const char ***names_out, size_t *count_out)
{
    const char *key;
    json_t *value;
    size_t count = 0;
    const char **names =
        weft_arena_alloc(&checkpoint->arena, json_object_size(checkpoint->weight_map), sizeof(names[0]));

    if (names == NULL) {
        return WEFT_ERR_MEMORY;
    }
    json_object_foreach(checkpoint->weight_map, key, value)
    {
        const char *name = json_string_value(value);
        if (name == NULL || name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL) {
            weft_log(WEFT_LOG_ERROR, where,
                     "%s/%s: weight_map: %.200s: expected the name of a file in the folder, "
                     "found \"%.200s\"",
                     checkpoint->folder, index_name, key, name != NULL ? name : "(not a string)");
            return WEFT_ERR_FORMAT;
        }
        names[count++] = name;
    }
    qsort(names, count, sizeof(names[0]), compare_texts);
    size_t distinct = 0;
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || strcmp(names[i], names[distinct - 1]) != 0) {
            names[distinct++] = names[i];
        }
    }
    if (distinct == 0 || distinct > FILE_COUNT_MAX) {
        weft_log(WEFT_LOG_ERROR, where, "%s/%s: weight_map: expected 1 to %d files, found %zu", checkpoint->folder,
                 index_name, FILE_COUNT_MAX, distinct);
        return WEFT_ERR_FORMAT;
    }
    *names_out = names;
    *count_out = distinct;
    return WEFT_OK;
}

static enum weft_status open_index(struct weft_checkpoint *checkpoint, const char ***names_out, size_t *count_out)
{
    char path[WEFT_PATH_SIZE];
    json_t *root = NULL;

    WEFT_TRY(weft_checkpoint_path(checkpoint->folder, index_name, path));
    WEFT_TRY(weft_json_read(path, INDEX_SIZE_MAX, &root));
    json_t *map = json_object_get(root, "weight_map");
    if (json_is_object(map)) {
        checkpoint->weight_map = json_incref(map);
    }
    json_decref(root);
    if (checkpoint->weight_map == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: weight_map: expected an object", path);
        return WEFT_ERR_FORMAT;
    }
    return list_shards(checkpoint, names_out, count_out);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct weft_tensor *)a)->name, ((const struct weft_tensor *)b)->name);
}

/* One list of all tensors, by name. */
static enum weft_status join(struct weft_checkpoint *checkpoint)
{
    size_t count = 0;

    checkpoint->tensors =
        weft_arena_alloc(&checkpoint->arena, checkpoint->tensor_count, sizeof(checkpoint->tensors[0]));
    if (checkpoint->tensors == NULL) {
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t i = 0; i < checkpoint->file_count; i++) {
        const struct checkpoint_file *file = &checkpoint->files[i];
        if (file->count > 0) {
            memcpy(checkpoint->tensors + count, file->tensors, file->count * sizeof(file->tensors[0]));
        }
        count += file->count;
    }
    qsort(checkpoint->tensors, count, sizeof(checkpoint->tensors[0]), compare_names);
    for (size_t i = 1; i < count; i++) {
        const struct weft_tensor *a = &checkpoint->tensors[i - 1], *b = &checkpoint->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: %.200s: the tensor is also in %s", checkpoint->files[b->file].path,
                     b->name, checkpoint->files[a->file].path);
            return WEFT_ERR_FORMAT;
        }
    }
    return WEFT_OK;
}

static enum weft_status load(struct weft_checkpoint *checkpoint)
{
    const char *single[] = {single_name};
    const char **names = single;
    size_t count = 1;

    if (!has_file(checkpoint->folder, single_name)) {
        if (!has_file(checkpoint->folder, index_name)) {
            weft_log(WEFT_LOG_ERROR, where, "%s: expected %s or %s, found neither%s", checkpoint->folder, single_name,
                     index_name,
                     has_file(checkpoint->folder, "pytorch_model.bin") ? " (pytorch_model.bin is not supported)" : "");
            return WEFT_ERR_MISSING;
        }
        WEFT_TRY(open_index(checkpoint, &names, &count));
    }
    checkpoint->files = weft_arena_alloc(&checkpoint->arena, count, sizeof(checkpoint->files[0]));
    if (checkpoint->files == NULL) {
        return WEFT_ERR_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        WEFT_TRY(add_file(checkpoint, names[i]));
    }
    return join(checkpoint);
}

enum weft_status weft_checkpoint_open(const char *folder, struct weft_checkpoint **out)
{
    struct weft_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    if (checkpoint == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory", folder);
        return WEFT_ERR_MEMORY;
    }
    checkpoint->folder = weft_arena_text(&checkpoint->arena, folder, strlen(folder));
    enum weft_status status = checkpoint->folder != NULL ? load(checkpoint) : WEFT_ERR_MEMORY;
    if (status != WEFT_OK) {
        weft_checkpoint_close(&checkpoint);
        return status;
    }
    *out = checkpoint;
    return WEFT_OK;
}

void weft_checkpoint_close(struct weft_checkpoint **checkpoint)
{
    if (*checkpoint == NULL) {
        return;
    }
    for (uint32_t i = 0; i < (*checkpoint)->file_count; i++) {
        close((*checkpoint)->files[i].fd);
    }
    json_decref((*checkpoint)->weight_map);
    weft_arena_fini(&(*checkpoint)->arena);
    free(*checkpoint);
    *checkpoint = NULL;
}

const struct weft_tensor *weft_checkpoint_find(const struct weft_checkpoint *checkpoint, const char *name)
{
    struct weft_tensor key = {.name = name};

    return bsearch(&key, checkpoint->tensors, checkpoint->tensor_count, sizeof(key), compare_names);
}

const char *weft_checkpoint_claim(const struct weft_checkpoint *checkpoint, const char *name)
{
    return json_string_value(json_object_get(checkpoint->weight_map, name));
}

const char *weft_checkpoint_folder(const struct weft_checkpoint *checkpoint)
{
    return checkpoint->folder;
}

const char *weft_checkpoint_file(const struct weft_checkpoint *checkpoint, uint32_t file)
{
    return checkpoint->files[file].path;
}

int weft_checkpoint_fd(const struct weft_checkpoint *checkpoint, uint32_t file)
{
    return checkpoint->files[file].fd;
}

enum weft_status weft_checkpoint_read(const struct weft_checkpoint *checkpoint, uint32_t file, uint64_t offset,
                                      void *to, size_t size, uint64_t *call_count)
{
    int fd = weft_checkpoint_fd(checkpoint, file);
    size_t done = 0;

    while (done < size) {
        ssize_t got = pread(fd, (char *)to + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: read stopped at byte %llu: %s", weft_checkpoint_file(checkpoint, file),
                     (unsigned long long)(offset + done), got < 0 ? strerror(errno) : "end of file");
            return WEFT_ERR_IO;
        }
        (*call_count)++;
        done += (size_t)got;
    }
    return WEFT_OK;
}

void weft_checkpoint_read_ahead(const struct weft_checkpoint *checkpoint, uint32_t file, uint64_t offset, uint64_t size)
{
    if (size > 0) {
        (void)posix_fadvise(weft_checkpoint_fd(checkpoint, file), (off_t)offset, (off_t)size, POSIX_FADV_WILLNEED);
    }
}
