/* "host:port" or "[v6]:port", as servers are told where to listen. */
#ifndef WEFT_SERVE_ADDRESS_H
#define WEFT_SERVE_ADDRESS_H

#include <stdint.h>

#include "weft/status.h"

/*
 * A socket that listens there, non-blocking, closed by the caller; port 0 takes a free one. *port_out <- the port.
 * ERR_ARGUMENT when the address cannot be understood, ERR_BUSY, ERR_MISSING (no right to it) or ERR_IO when it cannot
 * be bound (all logged).
 */
WEFT_MUST_CHECK enum weft_status weft_address_listen(const char *address, int *fd_out, uint32_t *port_out);

#endif
