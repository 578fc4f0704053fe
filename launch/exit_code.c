/* What a process that could not start says to whoever might start it again; the one place that decides. */
#include "options.h"

int weft_exit_code(enum weft_status status)
{
    switch (status) {
    case WEFT_OK: return WEFT_EXIT_OK;
    case WEFT_ERR_ARGUMENT:    /* options that cannot be, or not together, or not on this many ranks */
    case WEFT_ERR_FORMAT:      /* a damaged model */
    case WEFT_ERR_UNSUPPORTED: /* a model or device that this build cannot use */
    case WEFT_ERR_MISSING: /* no such model, or no right to read it */ return WEFT_EXIT_CONFIG;
    case WEFT_ERR_BUSY:
    case WEFT_ERR_LIMIT: /* what a predecessor that is just ending holds may be what is short */ return WEFT_EXIT_BUSY;
    case WEFT_ERR_MEMORY:
    case WEFT_ERR_IO:
    case WEFT_ERR_PEER:
    case WEFT_ERR_TIMEOUT:
    case WEFT_ERR_CANCELLED:
    case WEFT_ERR_STATE: break;
    }
    return WEFT_EXIT_FAILURE;
}
