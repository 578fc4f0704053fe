/* Addresses of this host. Contract in netif.h. */
#include "netif.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool has_common_prefix(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned whole = bits / 8, rest = bits % 8;
    uint8_t mask = (uint8_t)(0xff00u >> rest);

    return memcmp(a, b, whole) == 0 && (rest == 0 || (a[whole] & mask) == (b[whole] & mask));
}

bool weft_netif_is_same_subnet(const struct weft_netif_address *a, const struct weft_netif_address *b)
{
    return a->family == b->family && has_common_prefix(a->bytes, b->bytes, a->prefix_size);
}

/* "10.0.0.0/8", "fd00::1". False when the text is no address. */
static bool parse_cidr(const char *text, struct weft_netif_address *out)
{
    const char *slash = strchr(text, '/');
    size_t size = slash == NULL ? strlen(text) : (size_t)(slash - text);
    char host[INET6_ADDRSTRLEN];
    unsigned long bits_max;
    char *end = NULL;

    *out = (struct weft_netif_address){0};
    if (size >= sizeof(host)) {
        return false;
    }
    memcpy(host, text, size);
    host[size] = '\0';
    if (inet_pton(AF_INET, host, out->bytes) == 1) {
        out->family = 4;
    } else if (inet_pton(AF_INET6, host, out->bytes) == 1) {
        out->family = 6;
    } else {
        return false;
    }
    bits_max = out->family == 4 ? 32 : 128;
    out->prefix_size = (uint8_t)bits_max;
    if (slash != NULL) {
        unsigned long bits = strtoul(slash + 1, &end, 10);

        if (slash[1] < '0' || slash[1] > '9' || *end != '\0' || bits > bits_max) {
            return false;
        }
        out->prefix_size = (uint8_t)bits;
    }
    return true;
}

static uint8_t prefix_of(const uint8_t *mask, size_t size)
{
    uint8_t bits = 0;

    for (size_t i = 0; i < size * 8 && (mask[i / 8] & (0x80u >> (i % 8))) != 0; i++) {
        bits++;
    }
    return bits;
}

static bool convert(const struct ifaddrs *entry, struct weft_netif_address *out)
{
    *out = (struct weft_netif_address){.is_loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0};
    if (entry->ifa_addr == NULL || entry->ifa_netmask == NULL || (entry->ifa_flags & IFF_UP) == 0) {
        return false;
    }
    if (entry->ifa_addr->sa_family == AF_INET) {
        const struct in_addr *address = &((const struct sockaddr_in *)(const void *)entry->ifa_addr)->sin_addr;
        const struct in_addr *mask = &((const struct sockaddr_in *)(const void *)entry->ifa_netmask)->sin_addr;

        out->family = 4;
        memcpy(out->bytes, address, 4);
        out->prefix_size = prefix_of((const uint8_t *)mask, 4);
        return true;
    }
    if (entry->ifa_addr->sa_family == AF_INET6) {
        const struct in6_addr *address = &((const struct sockaddr_in6 *)(const void *)entry->ifa_addr)->sin6_addr;
        const struct in6_addr *mask = &((const struct sockaddr_in6 *)(const void *)entry->ifa_netmask)->sin6_addr;

        out->family = 6;
        memcpy(out->bytes, address, 16);
        out->prefix_size = prefix_of((const uint8_t *)mask, 16);
        return !IN6_IS_ADDR_LINKLOCAL(address);
    }
    return false;
}

/* `name_out`: NULL, or room for the name of the first match. */
static size_t list(const char *interface, struct weft_netif_address *out, size_t capacity, char *name_out, size_t size)
{
    struct weft_netif_address wanted, found;
    bool is_cidr = interface != NULL && parse_cidr(interface, &wanted);
    struct ifaddrs *entries;
    size_t count = 0;

    if (getifaddrs(&entries) != 0) {
        return 0;
    }
    for (int is_loopback = 0; is_loopback <= 1; is_loopback++) {
        for (const struct ifaddrs *entry = entries; entry != NULL && count < capacity; entry = entry->ifa_next) {
            if (!convert(entry, &found) || found.is_loopback != is_loopback) {
                continue;
            }
            if (interface == NULL ||
                (is_cidr ? weft_netif_is_same_subnet(&wanted, &found) : strcmp(entry->ifa_name, interface) == 0)) {
                if (count == 0 && name_out != NULL) {
                    snprintf(name_out, size, "%s", entry->ifa_name);
                }
                out[count++] = found;
            }
        }
    }
    freeifaddrs(entries);
    return count;
}

size_t weft_netif_list(const char *interface, struct weft_netif_address *out, size_t capacity)
{
    return list(interface, out, capacity, NULL, 0);
}

bool weft_netif_name(const char *interface, char *name_out, size_t size)
{
    struct weft_netif_address first;

    return list(interface, &first, 1, name_out, size) == 1;
}

socklen_t weft_netif_sockaddr(const struct weft_netif_address *address, uint16_t port, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(*out));
    if (address->family == 4) {
        struct sockaddr_in *in = (struct sockaddr_in *)out;

        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, address->bytes, 4);
        return sizeof(*in);
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;

    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    memcpy(&in6->sin6_addr, address->bytes, 16);
    return sizeof(*in6);
}

const char *weft_netif_text(const struct weft_netif_address *address, uint16_t port, char *text, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "?";

    (void)inet_ntop(address->family == 4 ? AF_INET : AF_INET6, address->bytes, host, sizeof(host));
    snprintf(text, size, address->family == 4 ? "%s:%u" : "[%s]:%u", host, port);
    return text;
}
