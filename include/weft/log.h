/*
 * One log line per event, on stderr or to the embedder's sink.
 *
 * The sink and level are the process's, set once before anything else is opened (the one deliberate global of the
 * library: a log that needed a handle in every call would not be used). The rank label is per thread, so that ranks
 * running as threads of one test process stay distinguishable.
 */
#ifndef WEFT_LOG_H
#define WEFT_LOG_H

#include <stdbool.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum weft_log_level {
    WEFT_LOG_ERROR = 0,
    WEFT_LOG_WARN = 1,
    WEFT_LOG_INFO = 2,
    WEFT_LOG_DEBUG = 3,
};

/* Receives one line without newline or level; may be called from any thread, one call at a time. */
typedef void weft_log_sink(void *context, enum weft_log_level level, const char *line);

/* Lines above `level` are dropped. sink NULL: stderr, as "weft: LINE" (with rank: "weft[2]: LINE"). */
WEFT_API void weft_log_configure(enum weft_log_level level, weft_log_sink *sink, void *context);

/* Label of this thread's lines; -1 for none (the default). Threads started by Weft inherit their owner's. */
void weft_log_set_rank(int rank);
int weft_log_rank(void);

/*
 * Emits "where: message". `where` is folder/module of the speaker, for example "comm/tcp", "model/safetensors".
 * Message: cause, object, expected, found; no newline; cut at 1023 bytes.
 */
void weft_log(enum weft_log_level level, const char *where, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* While quiet, lines of this thread are not emitted, only remembered (weft_log_last_error()): a rank that reports its
 * errors to the leader, who logs them once for all. Returns what it was before. */
bool weft_log_set_quiet(bool is_quiet);

/* Sets what weft_log_last_error() of this thread returns without emitting a line: for refusals that the caller reports
 * to whoever asked (a bad request must not fill the server's log), and for handing a reason to another thread. */
void weft_log_keep_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The text of the last WEFT_LOG_ERROR line of this thread, "" when none: lets an API boundary hand the reason on. */
const char *weft_log_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
