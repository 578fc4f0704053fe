/* Opening the sockets of the tcp backend: addresses, listening, connecting to every member. Private to tcp. */
#ifndef WEFT_COMM_TCP_CONNECT_H
#define WEFT_COMM_TCP_CONNECT_H

#include "backend.h"
#include "door.h"
#include "netif.h"

#define TCP_ADDRESS_COUNT 24

/* Address blob. */
struct tcp_address {
    uint64_t host_id;
    uint16_t port;
    uint16_t count;
    struct weft_netif_address addresses[TCP_ADDRESS_COUNT];
};

/* Listens on all addresses that options->interface allows and writes the blob. Logs. */
enum weft_status weft_tcp_channel_listen(const struct weft_channel_options *options, struct weft_door *door,
                                         struct tcp_address *address_out);

/*
 * fds[member_count] <- a connected socket per member, -1 for oneself. Of a pair the higher rank connects, trying the
 * addresses of the lower one in turn: loopback on the same host, common subnets, the rest, loopback. Logs; on error
 * the caller closes what is in fds.
 *
 * is_optional: who is not connected within options.timeout_ms, or before the descriptors end, stays -1, which accuses
 * nobody.
 */
enum weft_status weft_tcp_channel_connect(struct weft_channel *channel, struct weft_door *door,
                                          const struct tcp_address *own, const void *addresses, int *fds,
                                          bool is_optional);

#endif
