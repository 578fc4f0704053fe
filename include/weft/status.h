/*
 * Status values shared by every Weft module.
 *
 * 0 is success, negatives are errors. Whoever first decides that something is an error logs it, once, with cause,
 * object and rank (log.h); everybody above only propagates. Outputs are written on success only.
 */
#ifndef WEFT_STATUS_H
#define WEFT_STATUS_H

enum weft_status {
    WEFT_OK = 0,
    WEFT_ERR_ARGUMENT = -1,    /* a value from a caller, flag or request that cannot be used */
    WEFT_ERR_MEMORY = -2,      /* an allocation failed */
    WEFT_ERR_IO = -3,          /* the operating system refused: open, read, socket ... */
    WEFT_ERR_FORMAT = -4,      /* damaged bytes: file, wire */
    WEFT_ERR_UNSUPPORTED = -5, /* well-formed, but not something Weft can run */
    WEFT_ERR_LIMIT = -6,       /* does not fit: context, memory, queue */
    WEFT_ERR_PEER = -7,        /* a rank died or misbehaved; see weft_comm_failed_rank() */
    WEFT_ERR_TIMEOUT = -8,     /* a deadline passed */
    WEFT_ERR_CANCELLED = -9,   /* the caller asked to stop */
    WEFT_ERR_STATE = -10,      /* closed, poisoned or not ready */
    WEFT_ERR_MISSING = -11,    /* a file, folder or the like that was named is not there, or not for us */
    WEFT_ERR_BUSY = -12,       /* not to be had at present: a port that somebody else has */
    WEFT_ERR_LAST = WEFT_ERR_BUSY,
};

#define WEFT_MUST_CHECK __attribute__((warn_unused_result))
/* Part of the embedders' API: exported by the shared library. Everything else is hidden. */
#define WEFT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Static English name of `status`, for logs: "timeout". Never NULL. */
WEFT_API const char *weft_status_name(enum weft_status status);

/* What it means that the system did not give us something that was named: open(), bind() ... failed with `error`. */
enum weft_status weft_status_of_errno(int error);

/* Returns the error of `call` from the current function. Use only where nothing needs undoing. */
#define WEFT_TRY(call)                                                                                                 \
    do {                                                                                                               \
        enum weft_status weft_try_status_ = (call);                                                                    \
        if (weft_try_status_ != WEFT_OK) {                                                                             \
            return weft_try_status_;                                                                                   \
        }                                                                                                              \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
