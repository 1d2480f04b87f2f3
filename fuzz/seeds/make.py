#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: python3 fuzz/seeds/make.py

The real messages come from the recorded connection, whose inputs fuzz/src/lib.rs uses too.
"""

import pathlib

SEEDS = pathlib.Path(__file__).parent
VECTORS = SEEDS.parent.parent / "tests/protocol/vectors/spipe-1.txt"

first_section = VECTORS.read_text().split("\n[")[1]
lines = (line.partition(" =") for line in first_section.splitlines()[1:] if line)
recorded = {name: bytes.fromhex(value) for name, _, value in lines}
to_responder = [recorded[f"to_responder.{number}.frame"] for number in (0, 1)]


def texts(*plaintexts):
    """Plaintexts as the target `frame` cuts them: a byte of length in front of each."""
    return b"".join(bytes([len(text)]) + text for text in plaintexts)


CLIENT_4 = bytes([1, 0, 6, 192, 0, 2, 7, 195, 203])
CLIENT_6 = bytes([1, 0, 18]) + bytes.fromhex("20010db8000000000000000000000007") + bytes([1, 187])
V2 = b"\r\n\r\n\0\r\nQUIT\n"
PROBE = bytes([2, 0, 0])
PING = bytes([6, 0, 0])
LATER = bytes([99, 0, 3, 1, 2, 3])

seeds = {
    "message_1": {
        "valid": recorded["message_1"],
        "one_bit": bytes([31, 0, 0x80]),  # the bit that X25519 ignores
        "offer_later_versions": bytes([200, 2, 201, 1, 0, 7, 7, 7, 1, 2, 3, 4, 5, 6, 7, 8]),
        "kem_key_above_q": b"\xff" * 1184,
    },
    "message_2": {
        "valid": recorded["message_2"],
        "one_bit": bytes([31, 0, 0x80]),
        "choice": bytes([1] + [9] * 15),
        "choice_not_offered": bytes([2]),
    },
    "frame": {
        "cut_short": b"".join(to_responder),
        "swapped": b"".join(reversed(to_responder)),
        "lawful": texts(CLIENT_4 + b"\1", b"PING\r\n\2", b"x\0\2\0\0", b"\3"),
        "abort": texts(b"\1", b"\4\4"),
        "second_open": texts(b"\1", b"\1"),
        "behind_end": texts(b"\1", b"\3", b"x\2"),
        "zeros": texts(b"\1", bytes(9)),
    },
    "spiped_proof": {
        "one": bytes(255) + b"\1",
        "above_the_prime": b"\xff" * 256,
        "one_bit": bytes([31, 0, 0x80]),
    },
    "spiped_packet": {
        "lawful": b"\0\5hello".ljust(64, b"\0") + b"\4\0".ljust(64, b"\0"),
        "too_long": b"\4\1".ljust(64, b"\0"),
        "far_too_long": b"\xff\xff\xff\xff".ljust(64, b"\0"),
        "empty": bytes(64),
        "one_bit": bytes([31, 0, 0x80]),
    },
    "connection_info": {
        "ipv4": CLIENT_4,
        "ipv6": CLIENT_6,
        "later_version": LATER + CLIENT_4 + LATER,
        "twice": CLIENT_4 + CLIENT_6,
        "cut_short": CLIENT_6[:-1],
        "probe": CLIENT_4 + PROBE,
        "ping": CLIENT_4 + PING,
        "probe_and_ping": PROBE + PING,
    },
    "proxy_header": {
        "v1": b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\nHELO",
        "v1_unknown": b"PROXY UNKNOWN\r\n",
        "v2": V2 + bytes([0x21, 0x11, 0, 12, 192, 0, 2, 7, 192, 0, 2, 1, 48, 57, 1, 187]) + b"HELO",
        "v2_fields": V2 + bytes([0x21, 0, 0, 16, 1, 0, 2]) + b"h2" + bytes([3, 0, 4, 0, 0, 0, 0, 4, 0, 1, 0]),
        "v2_local": V2 + bytes([0x20, 0, 0, 0]),
    },
    "address": {
        "ipv4": b"192.0.2.7:80",
        "ipv6": b"[2001:db8::7]:443",
        "scoped": b"[fe80::1%eth0]:22",
        "scope_with_brackets": b"2.0.1.7%5[]:0",
        "name": b"[db-1.example.org]:6379",
        "every": b"[]:80",
        "star": b"*:80",
        "no_port": b"[::1]",
        "unix": b"/run/redis/redis.sock",
        "abstract": b"@redis",
    },
}

for target, files in seeds.items():
    (SEEDS / target).mkdir(exist_ok=True)
    for name, content in files.items():
        (SEEDS / target / name).write_bytes(content)
