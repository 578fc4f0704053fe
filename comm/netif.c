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

enum { ITEM_SIZE = 64 };

/* The item of a list at *at into item[ITEM_SIZE], *at to the next. False at the end. Too long a one comes out as "". */
static bool next_item(const char **at, char *item)
{
    size_t size = strcspn(*at, ",");

    if (**at == '\0') {
        return false;
    }
    snprintf(item, ITEM_SIZE, "%.*s", size < ITEM_SIZE ? (int)size : 0, *at);
    *at += size;
    *at += **at == ',';
    return true;
}

static bool is_same_address(const struct weft_netif_address *a, const struct weft_netif_address *b)
{
    return a->family == b->family && memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

static bool has_address(const struct weft_netif_address *list, size_t count, const struct weft_netif_address *address)
{
    for (size_t i = 0; i < count; i++) {
        if (is_same_address(&list[i], address)) {
            return true;
        }
    }
    return false;
}

/* Adds what matches `item` (NULL: everything) to out[*count]; returns whether anything does. */
static bool add_matches(const struct ifaddrs *entries, const char *item, struct weft_netif_address *out,
                        size_t capacity, size_t *count)
{
    struct weft_netif_address wanted = {0}, found;
    bool is_cidr = item != NULL && parse_cidr(item, &wanted);
    bool has_match = false;

    for (int is_loopback = 0; is_loopback <= 1; is_loopback++) {
        for (const struct ifaddrs *entry = entries; entry != NULL; entry = entry->ifa_next) {
            if (!convert(entry, &found) || found.is_loopback != is_loopback) {
                continue;
            }
            if (item == NULL ||
                (is_cidr ? weft_netif_is_same_subnet(&wanted, &found) : strcmp(entry->ifa_name, item) == 0)) {
                has_match = true;
                if (*count < capacity && !has_address(out, *count, &found)) {
                    out[(*count)++] = found;
                }
            }
        }
    }
    return has_match;
}

size_t weft_netif_list(const char *interfaces, struct weft_netif_address *out, size_t capacity)
{
    struct ifaddrs *entries;
    char item[ITEM_SIZE];
    size_t count = 0;

    if (getifaddrs(&entries) != 0) {
        return 0;
    }
    if (interfaces == NULL) {
        (void)add_matches(entries, NULL, out, capacity, &count);
    }
    while (interfaces != NULL && next_item(&interfaces, item)) {
        (void)add_matches(entries, item, out, capacity, &count);
    }
    freeifaddrs(entries);
    return count;
}

static void name_of(const struct ifaddrs *entries, const struct weft_netif_address *address, char *name_out,
                    size_t size)
{
    struct weft_netif_address found;

    snprintf(name_out, size, "?");
    for (const struct ifaddrs *entry = entries; entry != NULL; entry = entry->ifa_next) {
        if (convert(entry, &found) && is_same_address(&found, address)) {
            snprintf(name_out, size, "%s", entry->ifa_name);
            return;
        }
    }
}

void weft_netif_name_of(const struct weft_netif_address *address, char *name_out, size_t size)
{
    struct ifaddrs *entries = NULL;

    (void)getifaddrs(&entries);
    name_of(entries, address, name_out, size);
    if (entries != NULL) {
        freeifaddrs(entries);
    }
}

/* Adds `name` to the list in text unless it is there. */
static bool add_name(char *text, size_t size, const char *name)
{
    size_t used = strlen(text);
    const char *at = text;
    char item[ITEM_SIZE];

    while (next_item(&at, item)) {
        if (strcmp(item, name) == 0) {
            return true;
        }
    }
    return (size_t)snprintf(text + used, size - used, "%s%s", used > 0 ? "," : "", name) < size - used;
}

bool weft_netif_names(const char *interfaces, char *text, size_t size)
{
    struct weft_netif_address found[64];
    struct ifaddrs *entries;
    char item[ITEM_SIZE], name[IF_NAMESIZE];
    bool is_whole = true;

    text[0] = '\0';
    if (getifaddrs(&entries) != 0) {
        return false;
    }
    while (is_whole && next_item(&interfaces, item)) {
        size_t count = 0;

        if (!add_matches(entries, item, found, sizeof(found) / sizeof(found[0]), &count)) {
            is_whole = add_name(text, size, item);
        }
        for (size_t i = 0; is_whole && i < count; i++) {
            name_of(entries, &found[i], name, sizeof(name));
            is_whole = add_name(text, size, name);
        }
    }
    freeifaddrs(entries);
    return is_whole;
}

bool weft_netif_from_sockaddr(const struct sockaddr_storage *name, struct weft_netif_address *out)
{
    *out = (struct weft_netif_address){0};
    if (name->ss_family == AF_INET) {
        out->family = 4;
        memcpy(out->bytes, &((const struct sockaddr_in *)name)->sin_addr, 4);
    } else if (name->ss_family == AF_INET6) {
        const struct in6_addr *address = &((const struct sockaddr_in6 *)name)->sin6_addr;
        bool is_v4 = IN6_IS_ADDR_V4MAPPED(address);

        out->family = is_v4 ? 4 : 6;
        memcpy(out->bytes, is_v4 ? &address->s6_addr[12] : &address->s6_addr[0], is_v4 ? 4 : 16);
    }
    out->prefix_size = out->family == 4 ? 32 : 128;
    return out->family != 0;
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
