/* Stop strings by plain comparison: at most 16 of them against a few held bytes per token. */
#include "engine/stop.h"

#include <stdlib.h>
#include <string.h>

#include "weft/log.h"

static enum weft_status reserve(struct weft_stop *stop, size_t size)
{
    if (size <= stop->held_capacity) {
        return WEFT_OK;
    }
    size_t capacity = size + size / 2 + 64;
    char *held = realloc(stop->held, capacity);
    if (held == NULL) {
        weft_log(WEFT_LOG_ERROR, "engine/stop", "out of memory for %zu bytes of held text", capacity);
        return WEFT_ERR_MEMORY;
    }
    stop->held = held;
    stop->held_capacity = capacity;
    return WEFT_OK;
}

enum weft_status weft_stop_init(struct weft_stop *stop, const char *const *strings, size_t count)
{
    *stop = (struct weft_stop){0};
    if (count > WEFT_STOP_COUNT_MAX) {
        weft_log_keep_error("%zu stop strings: at most %d", count, WEFT_STOP_COUNT_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    for (size_t i = 0; i < count; i++) {
        size_t size = strings[i] == NULL ? 0 : strlen(strings[i]);
        if (size < 1 || size > WEFT_STOP_SIZE_MAX) {
            weft_log_keep_error("stop string %zu has %zu bytes: expected 1 to %d", i + 1, size, WEFT_STOP_SIZE_MAX);
            weft_stop_fini(stop);
            return WEFT_ERR_ARGUMENT;
        }
        stop->strings[i] = strdup(strings[i]);
        if (stop->strings[i] == NULL) {
            weft_log(WEFT_LOG_ERROR, "engine/stop", "out of memory for a stop string of %zu bytes", size);
            weft_stop_fini(stop);
            return WEFT_ERR_MEMORY;
        }
        stop->sizes[i] = size;
        stop->count = i + 1;
    }
    enum weft_status status = reserve(stop, 2 * WEFT_STOP_SIZE_MAX);
    if (status != WEFT_OK) {
        weft_stop_fini(stop);
    }
    return status;
}

void weft_stop_fini(struct weft_stop *stop)
{
    for (size_t i = 0; i < stop->count; i++) {
        free(stop->strings[i]);
    }
    free(stop->held);
    *stop = (struct weft_stop){0};
}

/* True when the whole of some stop string stands at text[size]; *is_begun_out: text is the beginning of one. */
static bool matches_at(const struct weft_stop *stop, const char *text, size_t size, bool *is_begun_out)
{
    *is_begun_out = false;
    for (size_t i = 0; i < stop->count; i++) {
        size_t compared = size < stop->sizes[i] ? size : stop->sizes[i];
        if (memcmp(text, stop->strings[i], compared) == 0) {
            if (compared == stop->sizes[i]) {
                return true;
            }
            *is_begun_out = true;
        }
    }
    return false;
}

/* What the last call gave out stayed in front, so that the caller's pointer was valid until now. */
static void drop_given(struct weft_stop *stop)
{
    stop->held_size -= stop->given_size;
    if (stop->held_size > 0) {
        memmove(stop->held, stop->held + stop->given_size, stop->held_size);
    }
    stop->given_size = 0;
}

enum weft_status weft_stop_push(struct weft_stop *stop, const char *text, size_t size, const char **out,
                                size_t *out_size, bool *is_stopped_out)
{
    bool is_stopped = false;
    bool is_begun = false;
    size_t shown = 0;

    drop_given(stop);
    WEFT_TRY(reserve(stop, stop->held_size + size + 1));
    if (size > 0) {
        memcpy(stop->held + stop->held_size, text, size);
    }
    stop->held_size += size;
    /* A complete stop string wins over one that only begins earlier: waiting for the longer one could hang a stream. */
    size_t begun = stop->held_size;
    for (shown = 0; shown < stop->held_size; shown++) {
        is_stopped = matches_at(stop, stop->held + shown, stop->held_size - shown, &is_begun);
        if (is_stopped) {
            break;
        }
        begun = is_begun && shown < begun ? shown : begun;
    }
    stop->given_size = is_stopped ? shown : begun;
    if (is_stopped) {
        stop->held_size = shown;
    }
    *out = stop->held;
    *out_size = stop->given_size;
    *is_stopped_out = is_stopped;
    return WEFT_OK;
}

void weft_stop_flush(struct weft_stop *stop, const char **out, size_t *out_size)
{
    drop_given(stop);
    stop->given_size = stop->held_size;
    *out = stop->held == NULL ? "" : stop->held;
    *out_size = stop->held_size;
}
