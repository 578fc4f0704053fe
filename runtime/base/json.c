/* JSON helpers over jansson. */
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "weft/log.h"

static const char where[] = "base/json";

static enum weft_status read_fd(int fd, const char *path, size_t size_max, char **text_out, size_t *size_out)
{
    struct stat info;

    if (fstat(fd, &info) != 0) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %s", path, strerror(errno));
        return WEFT_ERR_IO;
    }
    if (!S_ISREG(info.st_mode)) {
        weft_log(WEFT_LOG_ERROR, where, "%s: expected a regular file", path);
        return WEFT_ERR_MISSING;
    }
    if ((uint64_t)info.st_size > size_max) {
        weft_log(WEFT_LOG_ERROR, where, "%s: %lld bytes, at most %zu are read", path, (long long)info.st_size,
                 size_max);
        return WEFT_ERR_LIMIT;
    }
    size_t size = (size_t)info.st_size;
    char *text = malloc(size + 1);
    if (text == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: out of memory for %zu bytes", path, size);
        return WEFT_ERR_MEMORY;
    }
    size_t done = 0;
    while (done < size) {
        ssize_t got = read(fd, text + done, size - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            weft_log(WEFT_LOG_ERROR, where, "%s: read stopped at byte %zu of %zu: %s", path, done, size,
                     got < 0 ? strerror(errno) : "end of file");
            free(text);
            return WEFT_ERR_IO;
        }
        done += (size_t)got;
    }
    text[size] = '\0';
    *text_out = text;
    *size_out = size;
    return WEFT_OK;
}

enum weft_status weft_file_read(const char *path, size_t size_max, char **text_out, size_t *size_out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        enum weft_status missing = weft_status_of_errno(errno);
        weft_log(WEFT_LOG_ERROR, where, "%s: %s", path, strerror(errno));
        return missing;
    }
    enum weft_status status = read_fd(fd, path, size_max, text_out, size_out);
    close(fd);
    return status;
}

enum weft_status weft_json_parse(const char *name, const char *text, size_t size, json_t **out)
{
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_ALLOW_NUL, &error);

    /* tokenizer_config.json says "model_max_length": 1000000000000000019884624838656 for "no limit". */
    if (root == NULL && json_error_code(&error) == json_error_numeric_overflow) {
        root = json_loadb(text, size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    }
    if (root == NULL) {
        weft_log(WEFT_LOG_ERROR, where, "%s: not valid JSON at line %d, column %d: %s", name, error.line, error.column,
                 error.text);
        return WEFT_ERR_FORMAT;
    }
    *out = root;
    return WEFT_OK;
}

enum weft_status weft_json_read(const char *path, size_t size_max, json_t **out)
{
    char *text;
    size_t size;

    WEFT_TRY(weft_file_read(path, size_max, &text, &size));
    enum weft_status status = weft_json_parse(path, text, size, out);
    free(text);
    return status;
}

/* The found value, shortened, for an error line. Static text when it cannot be printed. */
static void log_mismatch(const char *name, const char *key, const char *expected, const json_t *found)
{
    char *text = found == NULL ? NULL : json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);

    weft_log(WEFT_LOG_ERROR, where, "%s: %s: expected %s, found %.80s", name, key, expected,
             found == NULL ? "nothing" : (text != NULL ? text : "an unprintable value"));
    free(text);
}

enum weft_status weft_json_int(const json_t *object, const struct weft_json_int_args *args, int64_t *out)
{
    const json_t *member = json_object_get(object, args->key);
    char expected[96];
    int64_t value = 0;
    bool is_integer = false;

    if ((member == NULL || json_is_null(member)) && args->has_fallback) {
        *out = args->fallback;
        return WEFT_OK;
    }
    if (json_is_integer(member)) {
        value = json_integer_value(member);
        is_integer = true;
    } else if (json_is_real(member)) {
        double real = json_real_value(member);
        if (real >= -9e15 && real <= 9e15 && floor(real) == real) {
            value = (int64_t)real;
            is_integer = true;
        }
    }
    if (!is_integer || value < args->min || value > args->max) {
        snprintf(expected, sizeof(expected), "an integer in [%lld, %lld]", (long long)args->min, (long long)args->max);
        log_mismatch(args->name, args->key, expected, member);
        return WEFT_ERR_FORMAT;
    }
    *out = value;
    return WEFT_OK;
}

enum weft_status weft_json_real(const json_t *object, const char *name, const char *key, const double *fallback,
                                double *out)
{
    const json_t *member = json_object_get(object, key);

    if ((member == NULL || json_is_null(member)) && fallback != NULL) {
        *out = *fallback;
        return WEFT_OK;
    }
    if (!json_is_number(member) || !isfinite(json_number_value(member))) {
        log_mismatch(name, key, "a finite number", member);
        return WEFT_ERR_FORMAT;
    }
    *out = json_number_value(member);
    return WEFT_OK;
}

enum weft_status weft_json_bool(const json_t *object, const char *name, const char *key, bool fallback, bool *out)
{
    const json_t *member = json_object_get(object, key);

    if (member == NULL || json_is_null(member)) {
        *out = fallback;
        return WEFT_OK;
    }
    if (!json_is_boolean(member)) {
        log_mismatch(name, key, "true or false", member);
        return WEFT_ERR_FORMAT;
    }
    *out = json_is_true(member);
    return WEFT_OK;
}
