/* Shared pieces of the model tests. */
#include "support.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "model/safetensors.h"
#include "weft/log.h"

static struct {
    char line[1100];
    int count;
} capture;

static void capture_sink(void *context, enum weft_log_level level, const char *line)
{
    (void)context;
    (void)level;
    snprintf(capture.line, sizeof(capture.line), "%s", line);
    capture.count++;
}

void log_capture_begin(void)
{
    memset(&capture, 0, sizeof(capture));
    weft_log_configure(WEFT_LOG_WARN, capture_sink, NULL);
}

void log_capture_end(void)
{
    weft_log_configure(WEFT_LOG_WARN, NULL, NULL);
}

const char *log_capture_line(void)
{
    return capture.line;
}

int log_capture_count(void)
{
    return capture.count;
}

unsigned char *file_bytes(const char *path, size_t *size_out)
{
    struct stat info;
    int fd = open(path, O_RDONLY);

    if (fd < 0 || fstat(fd, &info) != 0) {
        fail_msg("%s: cannot be read", path);
    }
    unsigned char *bytes = malloc((size_t)info.st_size + 1);
    assert_non_null(bytes);
    assert_int_equal(read(fd, bytes, (size_t)info.st_size), info.st_size);
    close(fd);
    *size_out = (size_t)info.st_size;
    return bytes;
}

void file_write(const char *path, const void *bytes, size_t size)
{
    /* not O_TRUNC: ext4 would flush each of thousands of rewritten files to disk */
    int fd = open(path, O_WRONLY | O_CREAT, 0644);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

/* Calls visit(folder/name) for every file in `folder`. */
static void each_file(const char *folder, void (*visit)(const char *path, const char *name, void *context),
                      void *context)
{
    char path[4096];
    DIR *dir = opendir(folder);
    const struct dirent *entry;

    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.') {
            snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
            visit(path, entry->d_name, context);
        }
    }
    closedir(dir);
}

static void copy_file(const char *path, const char *name, void *context)
{
    char to[4096];
    size_t size;
    unsigned char *bytes = file_bytes(path, &size);

    snprintf(to, sizeof(to), "%s/%s", (const char *)context, name);
    file_write(to, bytes, size);
    free(bytes);
}

void folder_copy(const char *from, char *to)
{
    snprintf(to, 4096, "/tmp/weft-test-model-XXXXXX");
    assert_non_null(mkdtemp(to));
    if (from != NULL) {
        each_file(from, copy_file, to);
    }
}

static void remove_file(const char *path, const char *name, void *context)
{
    (void)name;
    (void)context;
    assert_int_equal(unlink(path), 0);
}

void folder_remove(const char *folder)
{
    each_file(folder, remove_file, NULL);
    assert_int_equal(rmdir(folder), 0);
}

static void *take(const struct weft_tensor *tensors, size_t count, const char *name, const unsigned char *bytes,
                  const struct weft_tensor **tensor_out)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(tensors[i].name, name) == 0) {
            void *copy = malloc(tensors[i].size);
            assert_non_null(copy);
            memcpy(copy, bytes + tensors[i].offset, tensors[i].size);
            *tensor_out = &tensors[i];
            return copy;
        }
    }
    fail_msg("golden.safetensors: %s is missing", name);
    return NULL;
}

void golden_open(const char *folder, struct golden *golden)
{
    struct weft_arena arena = {0};
    struct weft_tensor *tensors;
    const struct weft_tensor *tensor = NULL;
    char path[4096];
    size_t size, count;

    snprintf(path, sizeof(path), "%s/golden.safetensors", folder);
    unsigned char *bytes = file_bytes(path, &size);
    assert_int_equal(weft_safetensors_parse(path, bytes, size, size, &arena, &tensors, &count), WEFT_OK);
    golden->prompt = take(tensors, count, "prompt", bytes, &tensor);
    golden->prompt_count = (uint32_t)tensor->dims[0];
    golden->rows = take(tensors, count, "rows", bytes, &tensor);
    golden->row_count = (uint32_t)tensor->dims[0];
    golden->tokens = take(tensors, count, "tokens", bytes, &tensor);
    golden->token_count = (uint32_t)tensor->dims[0];
    golden->logits = take(tensors, count, "logits", bytes, &tensor);
    golden->vocab_size = (uint32_t)tensor->dims[1];
    assert_int_equal(tensor->dims[0], golden->row_count);
    weft_arena_fini(&arena);
    free(bytes);
}

void golden_close(struct golden *golden)
{
    free(golden->prompt);
    free(golden->rows);
    free(golden->tokens);
    free(golden->logits);
}
