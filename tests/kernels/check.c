/* Values, guarded buffers and verdicts of kernels_check. */
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft/numeric.h"

enum {
    GUARD_SIZE = 64,
    GUARD_BYTE = 0xa5,
    ALIGNMENT = 64,
    PRINTED_MAX = 20,
};

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t check_random(struct check *check)
{
    uint64_t z = (check->random += 0x9e3779b97f4a7c15U);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

uint32_t check_below(struct check *check, uint32_t count)
{
    return (uint32_t)((check_random(check) >> 32) * count >> 32);
}

static const float edge_values[] = {
    0.0f,      -0.0f,      0x1p-149f, -0x1p-149f, 0x1.8p-130f,      -0x1p-127f,
    0x1p-126f, -0x1p-126f, 1.0f,      -1.0f,      0x1.fffffep+127f, -0x1.fffffep+127f,
    INFINITY,  -INFINITY,  NAN,       88.0f,      -88.0f,           89.5f,
    -104.5f,   1e30f,      -1e-30f,
};

float check_value(struct check *check, enum check_values values)
{
    float uniform = (float)(int32_t)(check_random(check) >> 32) * 0x1p-31f;

    if (values == CHECK_EDGE && check_below(check, 6) == 0) {
        return edge_values[check_below(check, sizeof(edge_values) / sizeof(edge_values[0]))];
    }
    return uniform * weft_f32_from_bits((120U + check_below(check, 10)) << 23); /* times 2^-7 .. 2^2 */
}

void check_fill(struct check *check, enum check_values values, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = check_value(check, values);
    }
}

struct check_buffer check_buffer(size_t size, size_t offset)
{
    struct check_buffer buffer = {.size = size, .offset = offset};
    size_t total = GUARD_SIZE + offset + size + GUARD_SIZE;

    if (posix_memalign((void **)&buffer.base, ALIGNMENT, total) != 0) {
        abort();
    }
    memset(buffer.base, GUARD_BYTE, total);
    buffer.data = buffer.base + GUARD_SIZE + offset;
    return buffer;
}

struct check_buffer check_floats(size_t count, size_t offset)
{
    return check_buffer(count * sizeof(float), offset * sizeof(float));
}

void check_buffer_end(struct check *check, struct check_buffer *buffer, const char *what)
{
    size_t begin = GUARD_SIZE + buffer->offset;

    for (size_t i = 0; i < begin + buffer->size + GUARD_SIZE; i++) {
        bool is_guard = i < begin || i >= begin + buffer->size;

        if (is_guard && buffer->base[i] != GUARD_BYTE) {
            check_fail(check, "%s: wrote outside its buffer, %td bytes from the start of %zu", what,
                       (ptrdiff_t)i - (ptrdiff_t)begin, buffer->size);
            break;
        }
    }
    free(buffer->base);
    buffer->base = NULL;
}

static void print_failure(struct check *check, const char *format, va_list arguments)
{
    check->failure_count++;
    if (check->failure_count > PRINTED_MAX) {
        return;
    }
    fprintf(stderr, "FAIL %s ", check->level);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    if (check->failure_count == PRINTED_MAX) {
        fprintf(stderr, "(further failures are only counted)\n");
    }
}

void check_fail(struct check *check, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print_failure(check, format, arguments);
    va_end(arguments);
}

static bool is_same(float a, float b)
{
    return (isnan(a) && isnan(b)) || weft_f32_bits(a) == weft_f32_bits(b);
}

bool check_same(struct check *check, const float *found, const float *expected, size_t count, const char *format, ...)
{
    char what[200];
    va_list arguments;

    check->compared_count += count;
    for (size_t i = 0; i < count; i++) {
        if (is_same(found[i], expected[i])) {
            continue;
        }
        va_start(arguments, format);
        vsnprintf(what, sizeof(what), format, arguments);
        va_end(arguments);
        check_fail(check, "%s: element %zu of %zu is %a, expected %a", what, i, count, (double)found[i],
                   (double)expected[i]);
        return false;
    }
    return true;
}

bool check_near(struct check *check, float found, double exact, double bound, const char *format, ...)
{
    char what[200];
    va_list arguments;
    double error = fabs((double)found - exact);

    check->compared_count++;
    if (error <= bound) {
        return true;
    }
    va_start(arguments, format);
    vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    check_fail(check, "%s: %.9g, exact %.9g, error %.3g, allowed %.3g", what, (double)found, exact, error, bound);
    return false;
}

struct weft_device *check_device(const struct check *check, uint32_t thread_count)
{
    struct weft_device_options options = {.kind = check->module != NULL ? "cuda" : "cpu",
                                          .thread_count = thread_count,
                                          .cpu_level = check->module != NULL ? NULL : check->level,
                                          .wait = WEFT_WAIT_YIELD,
                                          .numerics = check->numerics,
                                          .module = check->module};
    struct weft_device *device = NULL;

    if (weft_device_open(&options, &device) != WEFT_OK) {
        abort();
    }
    return device;
}

void *check_lend(struct weft_device *device, const void *host, size_t size)
{
    size_t offset = (uintptr_t)host % ALIGNMENT;
    unsigned char *memory;

    if (host == NULL || weft_device_is_host(device)) {
        return (void *)(uintptr_t)host;
    }
    memory = weft_device_alloc(device, offset + size);
    if (memory == NULL || weft_device_write(device, memory + offset, host, size) != WEFT_OK) {
        abort();
    }
    return memory + offset;
}

void check_return(struct check *check, struct weft_device *device, void *lent, void *host, size_t size)
{
    size_t offset = (uintptr_t)host % ALIGNMENT;
    unsigned char before[ALIGNMENT] = {0};

    if (weft_device_sync(device) != WEFT_OK) {
        check_fail(check, "%s failed", weft_device_name(device));
    }
    if (host == NULL || weft_device_is_host(device)) {
        return;
    }
    if (weft_device_read(device, host, lent, size) != WEFT_OK ||
        weft_device_read(device, before, (unsigned char *)lent - offset, offset) != WEFT_OK) {
        check_fail(check, "%s: cannot read %zu bytes", weft_device_name(device), size);
    }
    for (size_t i = 0; i < offset; i++) {
        if (before[i] != 0) {
            check_fail(check, "%s: wrote before the start of %zu bytes", weft_device_name(device), size);
            break;
        }
    }
    weft_device_free(device, (unsigned char *)lent - offset);
}
