/* The log: formatting, level filter, sink. Lines are composed on the stack, so logging works when memory is gone. */
#include "weft/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 1024 };

static struct {
    _Atomic int level;
    weft_log_sink *sink;
    void *context;
    pthread_mutex_t mutex;
} log_state = {WEFT_LOG_INFO, NULL, NULL, PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int thread_rank = -1;
static _Thread_local bool thread_is_quiet;
static _Thread_local char thread_last_error[LINE_SIZE];

void weft_log_configure(enum weft_log_level level, weft_log_sink *sink, void *context)
{
    pthread_mutex_lock(&log_state.mutex);
    atomic_store(&log_state.level, (int)level);
    log_state.sink = sink;
    log_state.context = context;
    pthread_mutex_unlock(&log_state.mutex);
}

void weft_log_set_rank(int rank)
{
    thread_rank = rank;
}

int weft_log_rank(void)
{
    return thread_rank;
}

const char *weft_log_last_error(void)
{
    return thread_last_error;
}

bool weft_log_set_quiet(bool is_quiet)
{
    bool was_quiet = thread_is_quiet;

    thread_is_quiet = is_quiet;
    return was_quiet;
}

void weft_log_keep_error(const char *format, ...)
{
    char line[LINE_SIZE]; /* the arguments may point into thread_last_error */
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    memcpy(thread_last_error, line, sizeof(line));
}

/* One write() per line, so that lines of several processes on one terminal do not mix. */
static void write_stderr(const char *line)
{
    char text[LINE_SIZE + 32];
    int size;

    if (thread_rank >= 0) {
        size = snprintf(text, sizeof(text), "weft[%d]: %s\n", thread_rank, line);
    } else {
        size = snprintf(text, sizeof(text), "weft: %s\n", line);
    }
    if (size > 0 && write(STDERR_FILENO, text, (size_t)size) < 0) {
        return; /* nobody left to tell */
    }
}

void weft_log(enum weft_log_level level, const char *where, const char *format, ...)
{
    char line[LINE_SIZE];
    int used;
    va_list arguments;

    if (level != WEFT_LOG_ERROR && (int)level > atomic_load(&log_state.level)) {
        return;
    }
    used = snprintf(line, sizeof(line), "%s: ", where);
    if (used < 0 || (size_t)used >= sizeof(line)) {
        used = 0;
    }
    va_start(arguments, format);
    (void)vsnprintf(line + used, sizeof(line) - (size_t)used, format, arguments);
    va_end(arguments);
    if (level == WEFT_LOG_ERROR) {
        memcpy(thread_last_error, line, sizeof(line));
    }
    if (thread_is_quiet) {
        return;
    }
    pthread_mutex_lock(&log_state.mutex);
    if (log_state.sink != NULL) {
        log_state.sink(log_state.context, level, line);
    } else {
        write_stderr(line);
    }
    pthread_mutex_unlock(&log_state.mutex);
}
