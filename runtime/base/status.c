/* Names of status values. */
#include "weft/status.h"

#include <errno.h>

#ifdef NDEBUG
#error "Weft's assertions stay on: build without -DNDEBUG"
#endif

const char *weft_status_name(enum weft_status status)
{
    switch (status) {
    case WEFT_OK: return "ok";
    case WEFT_ERR_ARGUMENT: return "invalid argument";
    case WEFT_ERR_MEMORY: return "out of memory";
    case WEFT_ERR_IO: return "input/output error";
    case WEFT_ERR_FORMAT: return "damaged data";
    case WEFT_ERR_UNSUPPORTED: return "unsupported";
    case WEFT_ERR_LIMIT: return "limit exceeded";
    case WEFT_ERR_PEER: return "peer failed";
    case WEFT_ERR_TIMEOUT: return "timeout";
    case WEFT_ERR_CANCELLED: return "cancelled";
    case WEFT_ERR_STATE: return "invalid state";
    case WEFT_ERR_MISSING: return "not found";
    case WEFT_ERR_BUSY: return "in use";
    }
    return "unknown status";
}

enum weft_status weft_status_of_errno(int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EACCES:
    case EPERM: return WEFT_ERR_MISSING;
    case EADDRINUSE:
    case EADDRNOTAVAIL: return WEFT_ERR_BUSY;
    case ENOMEM: return WEFT_ERR_MEMORY;
    default: return WEFT_ERR_IO;
    }
}
