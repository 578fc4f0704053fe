/* Addresses of this host that a transport may use: by interface name, by CIDR, or all that are up. One syntax for the
 * rendezvous and all transports. */
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
 * Fills out[capacity] with addresses of interfaces that are up; link-local ones are left out (they need a scope).
 * `interfaces`: NULL for all, in the kernel's order, loopback last; or a list by preference, "eth0,10.0.0.0/8": each
 * item a name, an address or a CIDR ("fd00::/64"). Items that match nothing are passed over, and no address comes
 * twice. Returns how many; 0 when nothing matches.
 */
size_t weft_netif_list(const char *interfaces, struct weft_netif_address *out, size_t capacity);

/*
 * The same list as names of interfaces, each once, for libraries that want those: "eth0,eth1" into text[size]. An item
 * that matches nothing stays as it is (only the library may know it: mlx5_0:1). False when it does not fit.
 */
bool weft_netif_names(const char *interfaces, char *text, size_t size);

/* Name of the interface that has `address` into name_out[size]; "?" when none has. */
void weft_netif_name_of(const struct weft_netif_address *address, char *name_out, size_t size);

/* The address in `name`, without a subnet; false for other families. IPv4 inside IPv6 comes out as IPv4. */
bool weft_netif_from_sockaddr(const struct sockaddr_storage *name, struct weft_netif_address *out);

/* True when b lies in a's subnet. */
bool weft_netif_is_same_subnet(const struct weft_netif_address *a, const struct weft_netif_address *b);

/* A socket address for `port`; returns its size. */
socklen_t weft_netif_sockaddr(const struct weft_netif_address *address, uint16_t port, struct sockaddr_storage *out);

/* "10.0.0.3:5001" or "[fd00::1]:5001" into text[size]; returns text. */
const char *weft_netif_text(const struct weft_netif_address *address, uint16_t port, char *text, size_t size);

#endif
