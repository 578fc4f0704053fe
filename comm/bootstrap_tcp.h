/*
 * Rendezvous over TCP, shared by the tcp and the mpi bootstrap. Private to bootstrap_*.c.
 *
 * Every worker opens a connection per channel of the star. On each the leader speaks first:
 *
 *   leader -> worker  challenge: version, nonce
 *   worker -> leader  answer: version, host, rank, channel, session, nonce, HMAC-SHA256(secret, challenge + answer)
 *   leader -> worker  verdict: code, rank, why, HMAC-SHA256(secret, challenge + answer + verdict)
 *
 * so both prove that they know the secret without sending it, and a recorded answer is worth nothing. What follows is
 * neither encrypted nor signed: networks where others can inject into connections need a tunnel.
 */
#ifndef WEFT_BOOTSTRAP_TCP_H
#define WEFT_BOOTSTRAP_TCP_H

#include <sys/socket.h>

#include "bootstrap_star.h"

#define TCP_LOG "comm/bootstrap_tcp"

/* A secret of any length; borrowed. */
struct tcp_secret {
    const void *data;
    size_t size;
};

/* Changes with every incompatible change of anything that ranks say to each other. */
#define TCP_HELLO_VERSION 6u

enum { TCP_TEXT_SIZE = 64, TCP_WHY_SIZE = 112, TCP_TROUBLE_SIZE = 216 };

/* How every message begins, in every version for ever: enough to say what the other side is. */
struct tcp_preamble {
    char magic[8];
    uint32_t version;
    char program[TCP_TEXT_SIZE]; /* "weft 0.1.0" */
};

struct tcp_challenge {
    struct tcp_preamble preamble;
    uint32_t rank_count;
    uint8_t nonce[32];
};

struct tcp_answer {
    struct tcp_preamble preamble;
    char host[TCP_TEXT_SIZE];
    uint32_t rank; /* WEFT_BOOTSTRAP_RANK_ANY: on the first channel only */
    uint32_t rank_count;
    uint32_t local_rank;
    uint32_t local_count;
    uint32_t channel;               /* enum star_channel */
    int32_t trouble_status;         /* enum weft_status */
    char trouble[TCP_TROUBLE_SIZE]; /* why this rank cannot take part, on the first channel and only there; else "" */
    uint8_t session[16];            /* of this process: its channels belong together */
    uint8_t nonce[32];
    uint8_t mac[32];
};

enum tcp_verdict_code {
    TCP_ACCEPTED = 0,
    TCP_NOT_WEFT,
    TCP_WRONG_VERSION,
    TCP_WRONG_SECRET,
    TCP_WRONG_RANK_COUNT,
    TCP_WRONG_RANK,
    TCP_DUPLICATE_RANK,
    TCP_CODE_COUNT
};

struct tcp_verdict {
    struct tcp_preamble preamble;
    uint32_t code;
    uint32_t rank;          /* that the worker has from now on */
    char why[TCP_WHY_SIZE]; /* "rank 2 is there already, from node1 (10.0.0.2:4711)"; "" when accepted */
    uint8_t mac[32];
};

/* "the secret differs", ... */
const char *weft_tcp_code_text(uint32_t code);

/* ---- both sides of the hello, no I/O (bootstrap_hello.c) ---- */

WEFT_MUST_CHECK enum weft_status weft_tcp_random(void *out, size_t size);
/* program: "" or NULL is fine. */
WEFT_MUST_CHECK enum weft_status weft_tcp_challenge(const char *program, uint32_t rank_count,
                                                    struct tcp_challenge *out);
void weft_tcp_preamble(const char *program, struct tcp_preamble *out);
/* NOT_WEFT, WRONG_VERSION (the protocol's or the program's) or ACCEPTED. */
enum tcp_verdict_code weft_tcp_compare(const struct tcp_preamble *own, const struct tcp_preamble *other);
/* "weft 0.1.0 (protocol 3)" of what came from outside: printable only. */
const char *weft_tcp_program_text(const struct tcp_preamble *preamble, char text[TCP_WHY_SIZE]);
/* Text of a message from outside: ends it, and replaces what does not print. */
void weft_tcp_text_clean(char *text, size_t size);
/* Fills preamble, nonce and mac of *answer. */
WEFT_MUST_CHECK enum weft_status weft_tcp_answer(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                                                 struct tcp_answer *answer);
/* The leader's opinion of an answer of its own version; places and duplicates are the caller's to find. Writes what was
 * expected and found. */
enum tcp_verdict_code weft_tcp_judge(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                                     const struct tcp_answer *answer, char why_out[TCP_WHY_SIZE]);
/* Signs verdict->code, rank and why, and fills its preamble. */
void weft_tcp_verdict(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                      const struct tcp_answer *answer, struct tcp_verdict *verdict);
/* The leader knows the secret too and meant this answer. */
bool weft_tcp_is_authentic(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                           const struct tcp_answer *answer, const struct tcp_verdict *verdict);

/* ---- the two sides (bootstrap_accept.c, bootstrap_connect.c) ---- */

struct tcp_invite {
    int listen_fd; /* borrowed, made non-blocking */
    struct tcp_secret secret;
    uint32_t timeout_ms;
    uint32_t local_count;     /* 0: 1 */
    const char *program;      /* NULL: "" */
    const char *const *hosts; /* [rank_count] or NULL */
    const char *trouble;      /* NULL, or why this rank cannot take part */
    int watch_fd;             /* see bootstrap.h; <= 0: none */
};

/* "cannot take part: TROUBLE" */
void weft_tcp_trouble_text(const char *trouble, char reason_out[STAR_REASON_SIZE]);

/*
 * Leader: takes in every other rank until the deadline, and says now and then who is missing. Strangers are refused and
 * logged; none can hold the rendezvous up. ERR_TIMEOUT: logged with the missing ranks, and those who came have been
 * told. A rank that cannot take part is logged at once, the others are told, for a moment also those that come later:
 * its status, or ERR_STATE (not logged) when it is the leader itself.
 */
WEFT_MUST_CHECK enum weft_status weft_tcp_accept_all(struct weft_bootstrap *bootstrap, const struct tcp_invite *invite);

#define TCP_TARGET_MAX 32

struct tcp_target {
    struct sockaddr_storage address;
    socklen_t size;
};

/*
 * Where the leader may be found, best first: asked anew before each round of attempts, because names appear late in
 * clusters. Returns how many of targets_out[TCP_TARGET_MAX] it filled, 0 with the reason in error_out.
 */
typedef size_t tcp_resolve_function(void *context, struct tcp_target *targets_out, char *error_out, size_t error_size);

struct tcp_join {
    const char *leader; /* for messages */
    tcp_resolve_function *resolve;
    void *context;
    struct tcp_secret secret;
    const char *program; /* NULL: "" */
    uint32_t local_rank;
    uint32_t local_count; /* 0: 1 */
    uint32_t timeout_ms;
    const char *trouble; /* NULL, or why this rank cannot take part */
    enum weft_status trouble_status;
};

/*
 * Worker: connects all channels, tries again until the deadline, and waits until everybody has come. Sets
 * bootstrap->rank where it was WEFT_BOOTSTRAP_RANK_ANY. With trouble: one channel, on which it waits for the leader's
 * end: ERR_STATE.
 */
WEFT_MUST_CHECK enum weft_status weft_tcp_join(struct weft_bootstrap *bootstrap, const struct tcp_join *join);

/* No delay, and a peer whose host or network is gone is noticed within about 5 s. */
void weft_tcp_tune(int fd, enum star_channel channel);
/*
 * Before connecting or listening: small segments, which get through where large packets vanish, so that the ranks meet
 * and weft doctor can say what is wrong.
 */
void weft_tcp_limit_segments(int fd);
/* A listening socket, or -1 with errno. */
int weft_tcp_listen(const struct sockaddr *address, socklen_t size);
/* On every interface, v4 and v6; port 0: any. */
int weft_tcp_listen_everywhere(uint16_t port);
/* "10.0.0.1:5000" */
void weft_tcp_address_text(const struct sockaddr *address, socklen_t size, char *out, size_t out_size);

#endif
