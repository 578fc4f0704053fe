/*
 * Connections to the leader that have not proved anything yet: each with its own deadline and a fixed small buffer, a
 * bounded number of them. What an answer is worth is bootstrap_accept.c's to say. Private to these two files.
 */
#ifndef WEFT_BOOTSTRAP_GUEST_H
#define WEFT_BOOTSTRAP_GUEST_H

#include "bootstrap_tcp.h"

enum { TCP_GUEST_MAX = 64, TCP_ADDRESS_TEXT = 80 };

struct tcp_guest {
    int fd; /* owned; -1: free place */
    int64_t deadline;
    struct tcp_challenge challenge;
    struct tcp_answer answer;
    size_t answer_have;
    char address[TCP_ADDRESS_TEXT];
};

/*
 * guests [TCP_GUEST_MAX]. Takes in who is at the door, and sends the challenge; when there is no place left the guest
 * that has been silent longest goes. Returns false when nobody else is at the door.
 */
bool weft_tcp_guest_admit(struct tcp_guest *guests, const struct tcp_invite *invite, uint32_t rank_count);

/* Reads on; true once there is a complete answer, of our own version. Who says something else is dismissed. */
bool weft_tcp_guest_hear(struct tcp_guest *guest);

/* Closes the connection; logged with the reason, unless that is NULL. */
void weft_tcp_guest_dismiss(struct tcp_guest *guest, const char *reason);

#endif
