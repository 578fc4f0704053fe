/* A device made of host memory. Contract in fake_device.h. */
#include "fake_device.h"
#include "fake_peer.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* Device memory; addresses only, until they are used. */
#define MEMORY_SIZE ((size_t)512 << 20)
#define ALIGNMENT   64u
/* What a read's destination holds until the stream gets there. */
#define POISON 0xa5

#define LEFT_MAX 8

struct operation {
    void (*function)(void *argument);
    void (*release)(void *argument); /* or NULL */
    void *argument;
    struct operation *next;
};

struct fake_device {
    struct fake_stream stream; /* first: the stream is the device */
    struct weft_comm_device seat;
    char *shown; /* [MEMORY_SIZE] without access: what device pointers point into */
    char *real;  /* [MEMORY_SIZE] what they mean */
    size_t used;
    int live_count; /* allocations */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct operation *first;
    struct operation **last;
    uint64_t issued_count;
    uint64_t done_count;
    uint64_t marks[WEFT_COMM_MARK_COUNT]; /* issued_count when set */
    uint64_t random;
    void *left[LEFT_MAX]; /* host memory given back while the stream hung: it may still write there */
    int left_count;
    bool is_closing;
    bool is_hanging;
    atomic_bool is_broken;
};

static void nap(uint64_t nanoseconds)
{
    const struct timespec time = {.tv_nsec = (long)nanoseconds};

    nanosleep(&time, NULL);
}

static void *run_stream(void *argument)
{
    struct fake_device *device = argument;

    pthread_mutex_lock(&device->mutex);
    for (;;) {
        struct operation *operation = device->first;

        if (device->is_closing && operation == NULL) {
            break;
        }
        if (operation == NULL || (device->is_hanging && !device->is_closing)) {
            pthread_cond_wait(&device->changed, &device->mutex);
            continue;
        }
        device->first = operation->next;
        device->last = device->first == NULL ? &device->first : device->last;
        device->random = device->random * 6364136223846793005u + 1442695040888963407u;
        pthread_mutex_unlock(&device->mutex);
        if (device->random >> 60 == 0) { /* only this thread uses it */
            nap((device->random >> 40) % 200000);
        }
        operation->function(operation->argument);
        if (operation->release != NULL) {
            operation->release(operation->argument);
        }
        free(operation);
        pthread_mutex_lock(&device->mutex);
        device->done_count++;
        pthread_cond_broadcast(&device->changed);
    }
    pthread_mutex_unlock(&device->mutex);
    return NULL;
}

static void enqueue_held(struct fake_stream *stream, void (*function)(void *argument), void (*release)(void *argument),
                         void *argument)
{
    struct fake_device *device = (struct fake_device *)stream;
    struct operation *operation = malloc(sizeof(*operation));

    assert(operation != NULL);
    *operation = (struct operation){.function = function, .release = release, .argument = argument};
    pthread_mutex_lock(&device->mutex);
    *device->last = operation;
    device->last = &operation->next;
    device->issued_count++;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->mutex);
}

/* The function frees its argument. */
static void enqueue(struct fake_stream *stream, void (*function)(void *argument), void *argument)
{
    enqueue_held(stream, function, NULL, argument);
}

static void *memory_of(struct fake_stream *stream, const void *pointer)
{
    struct fake_device *device = (struct fake_device *)stream;
    size_t offset = (size_t)((const char *)pointer - device->shown);

    if (offset >= device->used && fake_peer_has(pointer)) {
        return (void *)(uintptr_t)pointer;
    }
    assert(offset < device->used); /* otherwise it is no device memory */
    return device->real + offset;
}

void fake_device_drain(struct fake_device *device)
{
    pthread_mutex_lock(&device->mutex);
    while (device->done_count < device->issued_count) {
        pthread_cond_wait(&device->changed, &device->mutex);
    }
    pthread_mutex_unlock(&device->mutex);
}

/* ---- the seat ---- */

static void *seat_alloc(void *context, size_t size)
{
    struct fake_device *device = context;
    char *memory = device->shown + device->used;

    assert(device->used + size + ALIGNMENT <= MEMORY_SIZE);
    device->used += (size / ALIGNMENT + 1) * ALIGNMENT;
    device->live_count++;
    return memory;
}

static void seat_free(void *context, void *memory)
{
    struct fake_device *device = context;

    (void)memory_of(&device->stream, memory);
    device->live_count--;
}

static void *seat_alloc_host(void *context, size_t size)
{
    struct fake_device *device = context;

    device->live_count++;
    return aligned_alloc(ALIGNMENT, (size / ALIGNMENT + 1) * ALIGNMENT);
}

static void seat_free_host(void *context, void *memory)
{
    struct fake_device *device = context;

    device->live_count--;
    if (atomic_load(&device->is_broken)) {
        fake_device_drain(device);
    }
    if (device->is_hanging) { /* only this thread sets it */
        assert(device->left_count < LEFT_MAX);
        device->left[device->left_count++] = memory;
    } else {
        free(memory);
    }
}

struct copy {
    void *to;
    const void *from;
    size_t size;
};

static void run_copy(void *argument)
{
    struct copy *copy = argument;

    memcpy(copy->to, copy->from, copy->size);
    free(copy);
}

static void issue_copy(struct fake_device *device, void *to, const void *from, size_t size)
{
    struct copy *copy = malloc(sizeof(*copy));

    assert(copy != NULL);
    *copy = (struct copy){to, from, size};
    enqueue(&device->stream, run_copy, copy);
}

static void seat_read(void *context, void *to_host, const void *from, size_t size)
{
    struct fake_device *device = context;

    memset(to_host, POISON, size);
    issue_copy(device, to_host, memory_of(&device->stream, from), size);
}

static void seat_write(void *context, void *to, const void *from_host, size_t size)
{
    struct fake_device *device = context;

    issue_copy(device, memory_of(&device->stream, to), from_host, size);
}

static void seat_copy(void *context, void *to, const void *from, size_t size)
{
    struct fake_device *device = context;

    issue_copy(device, memory_of(&device->stream, to), memory_of(&device->stream, from), size);
}

struct addition {
    const float *inputs[WEFT_LEAF_COUNT_MAX];
    uint32_t input_count;
    struct weft_tree_add adds[WEFT_LEAF_COUNT_MAX];
    size_t count;
    float *out;
};

static void run_addition(void *argument)
{
    struct addition *addition = argument;

    for (size_t i = 0; i < addition->count; i++) {
        float slots[WEFT_LEAF_COUNT_MAX] = {0};

        for (uint32_t n = 0; n < addition->input_count; n++) {
            slots[n] = addition->inputs[n][i];
        }
        for (uint32_t a = 0; a + 1 < addition->input_count; a++) {
            slots[addition->adds[a].left] += slots[addition->adds[a].right];
        }
        addition->out[i] = slots[0];
    }
    free(addition);
}

static void seat_tree_add(void *context, const struct weft_tree_add_args *args)
{
    struct fake_device *device = context;
    struct addition *addition;

    if (args->before != NULL) {
        device->seat.peer_sum(context, args->before);
        return;
    }
    addition = calloc(1, sizeof(*addition));
    assert(addition != NULL && args->input_count >= 1 && args->input_count <= WEFT_LEAF_COUNT_MAX);
    addition->input_count = args->input_count;
    addition->count = args->count;
    addition->out = memory_of(&device->stream, args->out);
    for (uint32_t n = 0; n < args->input_count; n++) {
        addition->inputs[n] = memory_of(&device->stream, args->inputs[n]);
    }
    memcpy(addition->adds, args->adds, (args->input_count - 1) * sizeof(args->adds[0]));
    enqueue(&device->stream, run_addition, addition);
}

static void seat_mark(void *context, uint32_t mark)
{
    struct fake_device *device = context;

    assert(mark < WEFT_COMM_MARK_COUNT);
    device->marks[mark] = device->issued_count; /* only this thread issues */
}

static enum weft_status seat_wait(void *context, uint32_t mark, uint32_t timeout_ms)
{
    struct fake_device *device = context;
    struct timespec deadline;
    int error = 0;
    bool is_done;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += timeout_ms / 1000;
    deadline.tv_nsec += timeout_ms % 1000 * 1000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    if (atomic_load(&device->is_broken)) {
        return WEFT_ERR_IO;
    }
    pthread_mutex_lock(&device->mutex);
    while (device->done_count < device->marks[mark] && error == 0) {
        error = pthread_cond_timedwait(&device->changed, &device->mutex, &deadline);
    }
    is_done = device->done_count >= device->marks[mark];
    pthread_mutex_unlock(&device->mutex);
    return is_done ? WEFT_OK : WEFT_ERR_TIMEOUT;
}

/* ---- opening and the rest ---- */

struct fake_device *fake_device_open(uint32_t seed, bool has_stream)
{
    struct fake_device *device = calloc(1, sizeof(*device));
    int failed;

    assert(device != NULL);
    *device = (struct fake_device){.stream = {enqueue_held, memory_of}, .random = seed * 7919u + 1};
    device->shown = mmap(NULL, MEMORY_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    device->real = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    device->last = &device->first;
    device->seat = (struct weft_comm_device){.context = device,
                                             .stream = has_stream ? &device->stream : NULL,
                                             .alloc = seat_alloc,
                                             .free = seat_free,
                                             .alloc_host = seat_alloc_host,
                                             .free_host = seat_free_host,
                                             .read = seat_read,
                                             .write = seat_write,
                                             .copy = seat_copy,
                                             .tree_add = seat_tree_add,
                                             .mark = seat_mark,
                                             .wait = seat_wait};
    memcpy(device->seat.id, &seed, sizeof(seed));
    pthread_mutex_init(&device->mutex, NULL);
    pthread_cond_init(&device->changed, NULL);
    failed = pthread_create(&device->thread, NULL, run_stream, device);
    assert(device->shown != MAP_FAILED && device->real != MAP_FAILED && failed == 0);
    return device;
}

bool fake_device_close(struct fake_device **pointer)
{
    struct fake_device *device = *pointer;
    bool is_clean = device->live_count == 0;

    pthread_mutex_lock(&device->mutex);
    device->is_closing = true;
    pthread_cond_broadcast(&device->changed);
    pthread_mutex_unlock(&device->mutex);
    pthread_join(device->thread, NULL);
    for (int i = 0; i < device->left_count; i++) {
        free(device->left[i]);
    }
    munmap(device->shown, MEMORY_SIZE);
    munmap(device->real, MEMORY_SIZE);
    pthread_mutex_destroy(&device->mutex);
    pthread_cond_destroy(&device->changed);
    free(device);
    *pointer = NULL;
    return is_clean;
}

const struct weft_comm_device *fake_device_seat(struct fake_device *device)
{
    return &device->seat;
}

void fake_device_take(struct fake_device *device, int count)
{
    device->live_count += count;
}

void fake_device_share(struct fake_device *device)
{
    fake_peer_seat(&device->seat);
}

void fake_device_put(struct fake_device *device, void *to, const void *from_host, size_t size)
{
    struct copy *copy = malloc(sizeof(*copy) + size);

    assert(copy != NULL);
    *copy = (struct copy){memory_of(&device->stream, to), copy + 1, size};
    memcpy(copy + 1, from_host, size);
    enqueue(&device->stream, run_copy, copy);
}

void fake_device_get(struct fake_device *device, void *to_host, const void *from, size_t size)
{
    if (size > 0) {
        seat_read(device, to_host, from, size);
        fake_device_drain(device);
    }
}

void fake_device_hang(struct fake_device *device)
{
    pthread_mutex_lock(&device->mutex);
    device->is_hanging = true;
    pthread_mutex_unlock(&device->mutex);
}

void fake_device_break(struct fake_device *device)
{
    atomic_store(&device->is_broken, true);
}
