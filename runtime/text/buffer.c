/* Growable arrays over realloc. */
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "weft/log.h"

enum { CAPACITY_MIN = 64 };

enum weft_status weft_array_reserve(void *data_io, size_t *capacity_io, size_t count, size_t item_size)
{
    size_t capacity = *capacity_io < CAPACITY_MIN ? CAPACITY_MIN : *capacity_io;
    size_t size;
    void *data;

    if (count <= *capacity_io) {
        return WEFT_OK;
    }
    while (capacity < count && capacity <= SIZE_MAX / 2) {
        capacity *= 2;
    }
    memcpy(&data, data_io, sizeof(data));
    data = capacity >= count && weft_size_mul(capacity, item_size, &size) ? realloc(data, size) : NULL;
    if (data == NULL) {
        weft_log(WEFT_LOG_ERROR, "text/buffer", "out of memory for %zu items of %zu bytes", count, item_size);
        return WEFT_ERR_MEMORY;
    }
    memcpy(data_io, &data, sizeof(data));
    *capacity_io = capacity;
    return WEFT_OK;
}

enum weft_status weft_bytes_reserve(struct weft_bytes *bytes, size_t size)
{
    size_t count;

    if (!weft_size_add(bytes->size, size, &count)) {
        count = SIZE_MAX;
    }
    return weft_array_reserve(&bytes->data, &bytes->capacity, count, 1);
}

enum weft_status weft_bytes_append(struct weft_bytes *bytes, const char *data, size_t size)
{
    WEFT_TRY(weft_bytes_reserve(bytes, size == 0 ? 1 : size)); /* data is never NULL afterwards */
    if (size > 0) {
        memcpy(bytes->data + bytes->size, data, size);
    }
    bytes->size += size;
    return WEFT_OK;
}

void weft_bytes_fini(struct weft_bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct weft_bytes){0};
}

enum weft_status weft_words_reserve(struct weft_words *words, size_t count)
{
    size_t total;

    if (!weft_size_add(words->count, count, &total)) {
        total = SIZE_MAX;
    }
    return weft_array_reserve(&words->data, &words->capacity, total, sizeof(words->data[0]));
}

enum weft_status weft_words_push(struct weft_words *words, uint32_t word)
{
    if (words->count == words->capacity) {
        WEFT_TRY(weft_words_reserve(words, 1));
    }
    words->data[words->count++] = word;
    return WEFT_OK;
}

void weft_words_fini(struct weft_words *words)
{
    free(words->data);
    *words = (struct weft_words){0};
}
