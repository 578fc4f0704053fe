/* Addresses of this host that a transport may use: by interface name, by CIDR, or all that are up. */
#ifndef WEFT_COMM_NETIF_H
#define WEFT_COMM_NETIF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct weft_netif_address {
    uint8_t family;      /* 4 or 6 */
    uint8_t prefix_size; /* bits of the subnet */
    uint8_t is_loopback;
    uint8_t unused;
    uint8_t bytes[16]; /* network order; IPv4 in the first four */
};

/*
 * Fills out[capacity] with addresses of interfaces that are up, in the kernel's order, loopback last; link-local ones
 * are left out (they need a scope). `interface`: NULL for all, a name ("eth0"), an address or a CIDR ("10.0.0.0/8",
 * "fd00::/64"). Returns how many; 0 when nothing matches or the text is neither.
 */
size_t weft_netif_list(const char *interface, struct weft_netif_address *out, size_t capacity);

/* Name of the first such interface ("eth0") into name_out[size]; false when nothing matches. */
bool weft_netif_name(const char *interface, char *name_out, size_t size);

/* True when b lies in a's subnet. */
bool weft_netif_is_same_subnet(const struct weft_netif_address *a, const struct weft_netif_address *b);

/* A socket address for `port`; returns its size. */
socklen_t weft_netif_sockaddr(const struct weft_netif_address *address, uint16_t port, struct sockaddr_storage *out);

/* "10.0.0.3:5001" or "[fd00::1]:5001" into text[size]; returns text. */
const char *weft_netif_text(const struct weft_netif_address *address, uint16_t port, char *text, size_t size);

#endif
