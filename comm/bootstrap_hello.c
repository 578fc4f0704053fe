/* The hello of the TCP rendezvous: what is said and how it is proved; and small helpers for its sockets. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "bootstrap_tcp.h"
#include "weft/log.h"

static const char hello_magic[8] = {'W', 'E', 'F', 'T', 'B', 'S', 'T', '1'};

const char *weft_tcp_code_text(uint32_t code)
{
    static const char *const texts[TCP_CODE_COUNT] = {
        [TCP_ACCEPTED] = "accepted",
        [TCP_NOT_WEFT] = "does not speak Weft",
        [TCP_WRONG_VERSION] = "is another version of Weft",
        [TCP_WRONG_SECRET] = "the secret differs",
        [TCP_WRONG_RANK_COUNT] = "the rank count differs",
        [TCP_WRONG_RANK] = "no such rank",
        [TCP_DUPLICATE_RANK] = "this rank is there already",
    };

    return code < TCP_CODE_COUNT ? texts[code] : "unknown reason";
}

void weft_tcp_trouble_text(const char *trouble, char reason_out[STAR_REASON_SIZE])
{
    (void)snprintf(reason_out, STAR_REASON_SIZE, "cannot take part: %s", trouble);
}

enum weft_status weft_tcp_random(void *out, size_t size)
{
    if (getrandom(out, size, 0) != (ssize_t)size) { /* up to 256 bytes come in one piece */
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "getrandom: %s", strerror(errno));
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

void weft_tcp_preamble(const char *program, struct tcp_preamble *out)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->magic, hello_magic, sizeof(out->magic));
    out->version = TCP_HELLO_VERSION;
    (void)snprintf(out->program, sizeof(out->program), "%s", program != NULL ? program : "");
}

enum tcp_verdict_code weft_tcp_compare(const struct tcp_preamble *own, const struct tcp_preamble *other)
{
    if (memcmp(own->magic, other->magic, sizeof(own->magic)) != 0) {
        return TCP_NOT_WEFT;
    }
    return memcmp(own, other, sizeof(*own)) == 0 ? TCP_ACCEPTED : TCP_WRONG_VERSION;
}

void weft_tcp_text_clean(char *text, size_t size)
{
    text[size - 1] = '\0';
    for (; *text != '\0'; text++) {
        if (*text < ' ' || *text > '~') {
            *text = '?';
        }
    }
}

const char *weft_tcp_program_text(const struct tcp_preamble *preamble, char text[TCP_WHY_SIZE])
{
    char program[sizeof(preamble->program)];

    memcpy(program, preamble->program, sizeof(program));
    weft_tcp_text_clean(program, sizeof(program));
    (void)snprintf(text, TCP_WHY_SIZE, "%s (protocol %u)", program[0] != '\0' ? program : "Weft", preamble->version);
    return text;
}

/* mac_out[32] <- HMAC-SHA256(secret, role + challenge + answer[answer_size] + verdict without its mac) */
static bool sign(const struct tcp_secret *secret, const char *role, const struct tcp_challenge *challenge,
                 const struct tcp_answer *answer, size_t answer_size, const struct tcp_verdict *verdict,
                 uint8_t *mac_out)
{
    uint8_t text[16 + sizeof(*challenge) + sizeof(*answer) + sizeof(*verdict)] = {0};
    unsigned int mac_size = 0;

    (void)snprintf((char *)text, 16, "%s", role);
    memcpy(text + 16, challenge, sizeof(*challenge));
    memcpy(text + 16 + sizeof(*challenge), answer, answer_size);
    if (verdict != NULL) {
        memcpy(text + sizeof(text) - sizeof(*verdict), verdict, offsetof(struct tcp_verdict, mac));
    }
    return HMAC(EVP_sha256(), secret->size > 0 ? secret->data : "", (int)secret->size, text, sizeof(text), mac_out,
                &mac_size) != NULL;
}

static bool is_signed(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                      const struct tcp_answer *answer)
{
    uint8_t mac[EVP_MAX_MD_SIZE];

    return sign(secret, "weft worker", challenge, answer, offsetof(struct tcp_answer, mac), NULL, mac) &&
           CRYPTO_memcmp(mac, answer->mac, sizeof(answer->mac)) == 0;
}

enum weft_status weft_tcp_challenge(const char *program, uint32_t rank_count, struct tcp_challenge *out)
{
    weft_tcp_preamble(program, &out->preamble);
    out->rank_count = rank_count;
    return weft_tcp_random(out->nonce, sizeof(out->nonce));
}

enum weft_status weft_tcp_answer(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                                 struct tcp_answer *answer)
{
    uint8_t mac[EVP_MAX_MD_SIZE];

    answer->preamble = challenge->preamble; /* found equal to our own */
    WEFT_TRY(weft_tcp_random(answer->nonce, sizeof(answer->nonce)));
    if (!sign(secret, "weft worker", challenge, answer, offsetof(struct tcp_answer, mac), NULL, mac)) {
        weft_log(WEFT_LOG_ERROR, TCP_LOG, "HMAC-SHA256 failed");
        return WEFT_ERR_MEMORY;
    }
    memcpy(answer->mac, mac, sizeof(answer->mac));
    return WEFT_OK;
}

static bool is_rank_fine(const struct tcp_challenge *challenge, const struct tcp_answer *answer)
{
    if (answer->channel >= STAR_CHANNEL_COUNT || answer->local_count == 0 ||
        answer->local_rank >= answer->local_count || challenge->rank_count % answer->local_count != 0) {
        return answer->rank != WEFT_BOOTSTRAP_RANK_ANY && answer->channel < STAR_CHANNEL_COUNT && answer->rank > 0 &&
               answer->rank < challenge->rank_count;
    }
    return answer->rank == WEFT_BOOTSTRAP_RANK_ANY || (answer->rank > 0 && answer->rank < challenge->rank_count);
}

enum tcp_verdict_code weft_tcp_judge(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                                     const struct tcp_answer *answer, char why_out[TCP_WHY_SIZE])
{
    why_out[0] = '\0';
    if (!is_signed(secret, challenge, answer)) {
        (void)snprintf(why_out, TCP_WHY_SIZE, "the secret differs: expected the same on every rank");
        return TCP_WRONG_SECRET;
    }
    if (answer->rank_count != challenge->rank_count) {
        (void)snprintf(why_out, TCP_WHY_SIZE, "the rank count differs: the leader has %u, this rank was told %u",
                       challenge->rank_count, answer->rank_count);
        return TCP_WRONG_RANK_COUNT;
    }
    if (!is_rank_fine(challenge, answer)) {
        (void)snprintf(why_out, TCP_WHY_SIZE, "no such rank: expected 1 to %u", challenge->rank_count - 1);
        return TCP_WRONG_RANK;
    }
    return TCP_ACCEPTED;
}

void weft_tcp_verdict(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                      const struct tcp_answer *answer, struct tcp_verdict *verdict)
{
    uint8_t mac[EVP_MAX_MD_SIZE] = {0};

    verdict->preamble = challenge->preamble;
    memset(verdict->mac, 0, sizeof(verdict->mac));
    /* Only who proved to know the secret gets anything signed with it. */
    if (verdict->code != TCP_NOT_WEFT && verdict->code != TCP_WRONG_VERSION && verdict->code != TCP_WRONG_SECRET &&
        sign(secret, "weft leader", challenge, answer, sizeof(*answer), verdict, mac)) {
        memcpy(verdict->mac, mac, sizeof(verdict->mac));
    }
}

bool weft_tcp_is_authentic(const struct tcp_secret *secret, const struct tcp_challenge *challenge,
                           const struct tcp_answer *answer, const struct tcp_verdict *verdict)
{
    uint8_t mac[EVP_MAX_MD_SIZE];

    return weft_tcp_compare(&challenge->preamble, &verdict->preamble) == TCP_ACCEPTED &&
           sign(secret, "weft leader", challenge, answer, sizeof(*answer), verdict, mac) &&
           CRYPTO_memcmp(mac, verdict->mac, sizeof(verdict->mac)) == 0;
}

void weft_tcp_tune(int fd, enum star_channel channel)
{
    int on = 1;
    int idle_s = 2;
    int interval_s = 1;
    int probe_count = 3;
    unsigned int user_timeout_ms = 5000;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probe_count, sizeof(probe_count));
    /* Not for data: there it would also end a connection to a rank that lives but computes and does not read. */
    if (channel == STAR_CONTROL) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof(user_timeout_ms));
    }
}

void weft_tcp_address_text(const struct sockaddr *address, socklen_t size, char *out, size_t out_size)
{
    char host[NI_MAXHOST];
    char port[NI_MAXSERV];

    if (getnameinfo(address, size, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        (void)snprintf(out, out_size, "unknown address");
    } else {
        (void)snprintf(out, out_size, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
    }
}

void weft_tcp_limit_segments(int fd)
{
    int size = 1200; /* fits the smallest MTU of IPv6, 1280 */

    (void)setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof(size));
}

int weft_tcp_listen(const struct sockaddr *address, socklen_t size)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;

    if (fd < 0) {
        return -1;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    weft_tcp_limit_segments(fd);
    if (bind(fd, address, size) < 0 || listen(fd, SOMAXCONN) < 0) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int weft_tcp_listen_everywhere(uint16_t port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = weft_tcp_listen((struct sockaddr *)&any, sizeof(any));

    return fd >= 0 ? fd : weft_tcp_listen((struct sockaddr *)&any4, sizeof(any4));
}
