"""The cluster's DNS: A records, looked up anew for each question, over UDP."""
import socket
import struct
import threading

NO_ERROR, NAME_ERROR, A, AAAA, TTL_S = 0, 3, 1, 28, 5


def question(packet):
    """(name, type, the question's bytes) of a query."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    kind = struct.unpack("!H", packet[at + 1:at + 3])[0]
    return ".".join(labels).lower(), kind, packet[12:at + 5]


def answer(packet, addresses):
    """addresses: None where the name does not exist, else its IPv4 addresses (perhaps none)."""
    name, kind, asked = question(packet)
    found = (addresses or []) if kind == A else []
    flags = 0x8580 | (NAME_ERROR if addresses is None else NO_ERROR)
    reply = packet[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + asked
    for address in found:
        reply += struct.pack("!HHHIH", 0xC00C, A, 1, TTL_S, 4) + socket.inet_aton(address)
    return reply


class Server:
    """Answers on address:53 with what resolve(name) gives, until the process ends."""

    def __init__(self, address, resolve):
        self.resolve = resolve
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            packet, sender = self.socket.recvfrom(4096)
            try:
                reply = answer(packet, self.resolve(question(packet)[0]))
            except (IndexError, struct.error, UnicodeDecodeError):
                continue
            self.socket.sendto(reply, sender)
