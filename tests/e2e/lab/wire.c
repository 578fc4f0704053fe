/*
 * A wire for the lab: an Ethernet switch in user space, with a rate and a delay that this kernel's own queues cannot
 * give (it has no netem).
 *
 *   lab_wire RATE_MBIT DELAY_US MTU PID...    a TAP interface "wire" in the network namespace of each process
 *
 * Every port sends and receives at RATE_MBIT, a frame arrives DELAY_US after its last bit was sent. MTU: larger IP
 * packets vanish without a word, as behind a tunnel whose router is not allowed to say so; 0: none do. Says "ready" and
 * runs until it is killed.
 *
 * Segments that the kernel left together (TSO) stay together, so that one copy does for many: what they would take on
 * the wire one by one is counted. Runs before everything else (SCHED_FIFO), so that spinning ranks do not delay the
 * wire.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    PORT_MAX = 16,
    QUEUE_SIZE = 2048, /* frames; more are dropped, as by a switch */
    FRAME_MAX = 70000,
    BATCH = 16,         /* frames taken from one port before the others get their turn */
    FRAME_OVERHEAD = 24 /* bytes on the wire besides the frame: preamble, checksum, gap */
};

struct frame {
    uint64_t due_ns;  /* first bit at the receiving port; in its queue: last bit there */
    uint64_t time_ns; /* that it takes on the wire */
    size_t size;      /* bytes, virtio header included */
    unsigned char *bytes;
};

struct queue {
    unsigned first; /* wraps */
    unsigned last;
    struct frame frames[QUEUE_SIZE];
};

struct port {
    int fd;
    bool is_known; /* mac is */
    unsigned char mac[ETH_ALEN];
    uint64_t send_free_ns;    /* when its sending side is done with what it has */
    uint64_t receive_free_ns; /* likewise */
    struct queue sent;        /* by it, under way */
    struct queue received;    /* by the switch's port towards it */
};

struct wire {
    double ns_per_byte;
    uint64_t delay_ns;
    size_t mtu;
    size_t port_count;
    struct port ports[PORT_MAX];
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int open_tap(const char *pid)
{
    struct ifreq request = {.ifr_name = "wire", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    char path[64];
    int space, fd;

    snprintf(path, sizeof(path), "/proc/%s/ns/net", pid);
    space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) != 0) {
        perror(path);
        return -1;
    }
    close(space);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0 ||
        ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) {
        perror("/dev/net/tun");
        return -1;
    }
    return fd;
}

/* Ethernet, IP and TCP headers of a frame that is to be cut into segments. */
static size_t headers_size(const unsigned char *ethernet)
{
    const unsigned char *ip = ethernet + ETH_HLEN;
    size_t ip_size = ethernet[12] == 0x86 ? 40 : (size_t)(ip[0] & 15) * 4;

    return ETH_HLEN + ip_size + (size_t)(ip[ip_size + 12] >> 4) * 4;
}

/* What the frame is on the wire: bytes of all its segments, and the largest IP packet among them. */
static size_t wire_size(const unsigned char *bytes, size_t size, size_t *packet_out)
{
    const struct virtio_net_hdr *header = (const void *)bytes;
    size_t frame = size - sizeof(*header);
    size_t headers, segments;

    *packet_out = frame - ETH_HLEN;
    if (header->gso_type == VIRTIO_NET_HDR_GSO_NONE || header->gso_size == 0) {
        return frame + FRAME_OVERHEAD;
    }
    headers = headers_size(bytes + sizeof(*header));
    segments = (frame - headers + header->gso_size - 1) / header->gso_size;
    *packet_out = headers - ETH_HLEN + header->gso_size;
    return frame - headers + segments * (headers + FRAME_OVERHEAD);
}

/* NULL when empty. */
static struct frame *head(struct queue *queue)
{
    return queue->first == queue->last ? NULL : &queue->frames[queue->first % QUEUE_SIZE];
}

/* Takes over the bytes. */
static void put(struct queue *queue, struct frame frame)
{
    if (queue->last - queue->first == QUEUE_SIZE || frame.bytes == NULL) {
        free(frame.bytes);
    } else {
        queue->frames[queue->last++ % QUEUE_SIZE] = frame;
    }
}

static unsigned char *copy(const unsigned char *bytes, size_t size)
{
    unsigned char *to = malloc(size);

    return to == NULL ? NULL : memcpy(to, bytes, size);
}

static void send_frame(struct wire *wire, struct port *port, const unsigned char *bytes, size_t size)
{
    const unsigned char *ethernet = bytes + sizeof(struct virtio_net_hdr);
    uint64_t now = now_ns(), begin = port->send_free_ns > now ? port->send_free_ns : now;
    size_t packet;
    uint64_t time_ns = (uint64_t)((double)wire_size(bytes, size, &packet) * wire->ns_per_byte);

    memcpy(port->mac, ethernet + ETH_ALEN, ETH_ALEN);
    port->is_known = true;
    port->send_free_ns = begin + time_ns;
    if (wire->mtu == 0 || packet <= wire->mtu) {
        put(&port->sent, (struct frame){begin + wire->delay_ns, time_ns, size, copy(bytes, size)});
    }
}

/* The first bit of `frame` is at the port to `port`: when is its last. Frames come here in the order of their first. */
static void receive_frame(struct port *port, const struct frame *frame)
{
    uint64_t begin = port->receive_free_ns > frame->due_ns ? port->receive_free_ns : frame->due_ns;

    port->receive_free_ns = begin + frame->time_ns;
    put(&port->received,
        (struct frame){port->receive_free_ns, frame->time_ns, frame->size, copy(frame->bytes, frame->size)});
}

/* To the port that it is for, or to all when none is known. */
static void forward(struct wire *wire, size_t from, const struct frame *frame)
{
    const unsigned char *ethernet = frame->bytes + sizeof(struct virtio_net_hdr);
    size_t target = wire->port_count;

    for (size_t p = 0; p < wire->port_count; p++) {
        if (wire->ports[p].is_known && memcmp(wire->ports[p].mac, ethernet, ETH_ALEN) == 0) {
            target = p;
        }
    }
    for (size_t p = 0; p < wire->port_count; p++) {
        if (p != from && (target == wire->port_count || target == p)) {
            receive_frame(&wire->ports[p], frame);
        }
    }
}

/* Forwards what has crossed the wire. Returns when the next frame will have, UINT64_MAX when there is none. */
static uint64_t cross(struct wire *wire)
{
    for (;;) {
        size_t from = wire->port_count;
        struct frame *frame = NULL;

        for (size_t p = 0; p < wire->port_count; p++) {
            struct frame *other = head(&wire->ports[p].sent);

            if (other != NULL && (frame == NULL || other->due_ns < frame->due_ns)) {
                frame = other;
                from = p;
            }
        }
        if (frame == NULL || frame->due_ns > now_ns()) {
            return frame == NULL ? UINT64_MAX : frame->due_ns;
        }
        forward(wire, from, frame);
        free(frame->bytes);
        wire->ports[from].sent.first++;
    }
}

/* Hands out what has arrived. Returns when the next frame will have, `next` when that is sooner. */
static uint64_t deliver(struct wire *wire, uint64_t next)
{
    for (size_t p = 0; p < wire->port_count; p++) {
        struct port *port = &wire->ports[p];
        struct frame *frame = head(&port->received);

        for (; frame != NULL && frame->due_ns <= now_ns(); frame = head(&port->received)) {
            ssize_t written = write(port->fd, frame->bytes, frame->size);

            (void)written; /* an interface that is down takes nothing */
            free(frame->bytes);
            port->received.first++;
        }
        next = frame != NULL && frame->due_ns < next ? frame->due_ns : next;
    }
    return next;
}

static void collect(struct wire *wire, size_t port)
{
    static unsigned char bytes[FRAME_MAX] __attribute__((aligned(16)));

    for (int i = 0; i < BATCH; i++) {
        ssize_t size = read(wire->ports[port].fd, bytes, sizeof(bytes));

        if (size < (ssize_t)(sizeof(struct virtio_net_hdr) + ETH_HLEN + 20)) {
            return;
        }
        send_frame(wire, &wire->ports[port], bytes, (size_t)size);
    }
}

static void run(struct wire *wire)
{
    struct pollfd polls[PORT_MAX];

    for (size_t p = 0; p < wire->port_count; p++) {
        polls[p] = (struct pollfd){.fd = wire->ports[p].fd, .events = POLLIN};
    }
    for (;;) {
        uint64_t next = deliver(wire, cross(wire)), now = now_ns();
        uint64_t left = next == UINT64_MAX ? 1000000000u : next > now ? next - now : 0;
        const struct timespec timeout = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};

        (void)ppoll(polls, wire->port_count, &timeout, NULL);
        for (size_t p = 0; p < wire->port_count; p++) {
            if ((polls[p].revents & POLLIN) != 0) {
                collect(wire, p);
            }
        }
    }
}

int main(int argument_count, char **arguments)
{
    const struct sched_param first = {.sched_priority = 50};
    struct wire *wire = calloc(1, sizeof(*wire));

    if (argument_count < 5 || argument_count > 4 + PORT_MAX || wire == NULL || atof(arguments[1]) <= 0) {
        fprintf(stderr, "usage: lab_wire RATE_MBIT DELAY_US MTU PID...\n");
        return 2;
    }
    wire->ns_per_byte = 8e3 / atof(arguments[1]);
    wire->delay_ns = (uint64_t)(atof(arguments[2]) * 1e3);
    wire->mtu = (size_t)atol(arguments[3]);
    for (int i = 4; i < argument_count; i++) {
        struct port *port = &wire->ports[wire->port_count++];

        port->fd = open_tap(arguments[i]);
        if (port->fd < 0) {
            return 1;
        }
    }
    if (sched_setscheduler(0, SCHED_FIFO, &first) != 0) {
        fprintf(stderr, "lab_wire: no SCHED_FIFO (%s): its times will be worse\n", strerror(errno));
    }
    (void)mlockall(MCL_CURRENT);
    printf("ready\n");
    fflush(stdout);
    run(wire);
    return 0;
}
