#!/usr/bin/env python3
"""Derives every value in spipe-1.txt and spiped.txt again, as docs/PROTOCOL.md and docs/SPIPED.md specify, without any of spipe's code.

AEGIS-256X4 is written out here, and checked with the published vectors in aegis-256x4.txt.

    pip install -r tests/protocol/vectors/requirements.txt && python3 tests/protocol/vectors/check.py

A reference to read with the specification. Not for production: kyber-py and AEGIS here are slow and do not run in constant time.
"""

import functools
import hashlib
import hmac
import operator
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from kyber_py.ml_kem import ML_KEM_768

PROTOCOL_NAME = b"Noise_NNpsk0+hfs_25519+MLKEM768_ChaChaPoly_SHA256"
REKEY_AFTER = 65_536
PAYLOAD = 16


def sha256(data):
    return hashlib.sha256(data).digest()


def hmac256(key, data):
    return hmac.digest(key, data, "sha256")


def hkdf_expand(prk, info, length):
    """RFC 5869, section 2.3."""
    out, block = b"", b""
    while len(out) < length:
        block = hmac256(prk, block + info + bytes([len(out) // 32 + 1]))
        out += block
    return out[:length]


def xor(*blocks):
    return bytes(functools.reduce(operator.xor, column) for column in zip(*blocks))


def aes_round():
    """AESRound of RFC 10032: the round of FIPS 197 that has SubBytes, ShiftRows, MixColumns and AddRoundKey."""

    def double(x):
        return x << 1 ^ (0x11B if x & 0x80 else 0)

    # Powers of the generator 3, and with them the inverses of which the S-box is an affine map (FIPS 197, section 5.1.1).
    powers = [1]
    for _ in range(254):
        powers.append(double(powers[-1]) ^ powers[-1])
    inverse = {0: 0, **{power: powers[-n % 255] for n, power in enumerate(powers)}}

    def rotate(x, n):
        return (x << n | x >> (8 - n)) & 0xFF

    sbox = [functools.reduce(operator.xor, [rotate(inverse[x], n) for n in range(5)], 0x63) for x in range(256)]
    doubled = [double(x) for x in range(256)]

    def round_of(block, key):
        out = bytearray(16)
        for column in range(0, 16, 4):
            a = [sbox[block[(column + 5 * row) % 16]] for row in range(4)]
            for row in range(4):
                b = a[row:] + a[:row]
                out[column + row] = doubled[b[0]] ^ doubled[b[1]] ^ b[1] ^ b[2] ^ b[3]
        return xor(out, key)

    return round_of


AES_ROUND = aes_round()


class Aegis256X4:
    """AEGIS-256X of RFC 10032 with D = 4: four states of AEGIS-256 side by side. `states[i][j]` is its V[j,i]."""

    # The Fibonacci numbers modulo 256.
    C0 = bytes.fromhex("000101020305080d1522375990e97962")
    C1 = bytes.fromhex("db3d18556dc22ff12011314273b528dd")

    def __init__(self, key):
        self.key = key

    @staticmethod
    def split(data, length):
        return [data[i : i + length].ljust(length, b"\0") for i in range(0, len(data), length)]

    def update(self, blocks):
        for s, m in zip(self.states, blocks):
            s[:] = [AES_ROUND(s[j - 1], s[j]) for j in range(6)]
            s[0] = xor(s[0], m)

    def start(self, nonce):
        (k0, k1), (n0, n1) = self.split(self.key, 16), self.split(nonce, 16)
        first = [xor(k0, n0), xor(k1, n1), self.C1, self.C0, xor(k0, self.C0), xor(k1, self.C1)]
        self.states = [first[:] for _ in range(4)]
        for block in [k0, k1, xor(k0, n0), xor(k1, n1)] * 4:
            for i, s in enumerate(self.states):
                context = bytes([i, 3]).ljust(16, b"\0")
                s[3], s[5] = xor(s[3], context), xor(s[5], context)
            self.update([block] * 4)

    def encrypt_with_tag(self, nonce, text, associated, tag_length):
        self.start(nonce)
        for block in self.split(associated, 64):
            self.update(self.split(block, 16))
        out = b""
        for block in self.split(text, 64):
            for s, x in zip(self.states, self.split(block, 16)):
                out += xor(x, s[1], s[4], s[5], bytes(a & b for a, b in zip(s[2], s[3])))
            self.update(self.split(block, 16))
        sizes = (8 * len(associated)).to_bytes(8, "little") + (8 * len(text)).to_bytes(8, "little")
        last = [xor(s[3], sizes) for s in self.states]
        for _ in range(7):
            self.update(last)
        halves = [xor(*(xor(*s[j : j + 3]) for s in self.states)) for j in (0, 3)]
        return out[: len(text)], xor(*halves) if tag_length == 16 else b"".join(halves)

    def encrypt(self, nonce, text, associated):
        return b"".join(self.encrypt_with_tag(nonce, text, associated, 16))


# By code point: the name in the derivation of keys, the AEAD, and the length of its nonce.
CIPHERS = {
    1: (b"chacha20poly1305", ChaCha20Poly1305, 12),
    2: (b"aes256gcm", AESGCM, 12),
    3: (b"aegis256x4", Aegis256X4, 32),
}


class Noise:
    """Noise revision 34, section 5.2, with one method per token (PROTOCOL.md, section 3)."""

    def __init__(self, prologue):
        self.ck = self.h = sha256(PROTOCOL_NAME)
        self.mix_hash(prologue)

    def mix_hash(self, data):
        self.h = sha256(self.h + data)

    def hkdf(self, data, outputs):
        out = hkdf_expand(hmac256(self.ck, data), b"", 32 * outputs)
        return [out[i : i + 32] for i in range(0, len(out), 32)]

    def mix_key(self, data):
        self.ck, self.k = self.hkdf(data, 2)
        self.n = 0

    def psk(self, psk):
        self.ck, for_hash, self.k = self.hkdf(psk, 3)
        self.mix_hash(for_hash)
        self.n = 0

    def e(self, public):
        self.mix_hash(public)
        self.mix_key(public)

    def seal(self, text):
        nonce = bytes(4) + self.n.to_bytes(8, "little")
        sealed = ChaCha20Poly1305(self.k).encrypt(nonce, text, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed


def x25519(secret):
    key = X25519PrivateKey.from_private_bytes(secret)
    return key, key.public_key().public_bytes_raw()


def handshake(v):
    """Both messages and both secrets. Yields pairs of field name and value."""
    prk = hmac256(b"spipe/1 key file", v["key_file"])
    psk = hkdf_expand(prk, b"spipe/1 psk", 32)
    yield "psk", psk
    yield "fingerprint", hkdf_expand(prk, b"spipe/1 fingerprint", 4)

    initiator, initiator_public = x25519(v["initiator_x25519"])
    kem_public, kem_secret = ML_KEM_768._keygen_internal(v["initiator_kem"][:32], v["initiator_kem"][32:])
    noise = Noise(b"spipe/1\0" + v["label"])
    noise.psk(psk)
    noise.e(initiator_public)
    yield "message_1", initiator_public + noise.seal(kem_public) + noise.seal(v["offer"].ljust(PAYLOAD, b"\0"))

    responder, responder_public = x25519(v["responder_x25519"])
    shared, ciphertext = ML_KEM_768._encaps_internal(kem_public, v["responder_kem"])
    assert ML_KEM_768.decaps(kem_secret, ciphertext) == shared
    noise.e(responder_public)
    noise.mix_key(responder.exchange(X25519PublicKey.from_public_bytes(initiator_public)))
    sealed_ciphertext = noise.seal(ciphertext)
    noise.mix_key(shared)
    yield "message_2", responder_public + sealed_ciphertext + noise.seal(v["choice"].ljust(PAYLOAD, b"\0"))

    if v["choice"] != b"\0":
        to_responder, to_initiator = noise.hkdf(b"", 2)
        yield "secret_to_responder", to_responder
        yield "secret_to_initiator", to_initiator


def frame(cipher, secret, number, text, connections_before=0):
    """The frame number `number` of the direction whose first secret is `secret` (PROTOCOL.md, section 5)."""
    for _ in range(number // REKEY_AFTER):
        secret = hkdf_expand(secret, b"spipe/1 rekey", 32)
    for _ in range(connections_before):
        secret = hkdf_expand(secret, b"spipe/1 next connection", 32)
    name, aead, nonce_length = cipher
    key = hkdf_expand(secret, b"spipe/1 key " + name, 32)
    header = (len(text) + 16).to_bytes(2, "big")
    return header + aead(key).encrypt(number.to_bytes(nonce_length, "big"), text, header)


def sections(path):
    fields = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            if fields:
                yield name, fields
            name, fields = line.strip("[]"), {}
        elif line and not line.startswith("#"):
            field, _, value = line.partition(" =")
            fields[field] = bytes.fromhex(value)
    yield name, fields


def group_14():
    """The prime of RFC 3526, section 3: 2^2048 - 2^1984 - 1 + 2^64 * ([2^1918 pi] + 124476)."""
    one = 1 << (1918 + 64)

    def arctan_of_inverse(x):
        term = total = one // x
        for n in range(1, 2000):
            term //= x * x
            total += (term // (2 * n + 1)) * (-1) ** n
        return total

    pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> 64
    return 2**2048 - 2**1984 - 1 + 2**64 * (pi + 124476)


def pbkdf2_once(secret, salt, length):
    return hashlib.pbkdf2_hmac("sha256", secret, salt, 1, length)


def spiped_handshake(v):
    """Both proofs, and the keys of both directions: of the cipher, then of the HMAC."""
    key, nonces, prime = sha256(v["key_file"]), v["initiator_nonce"] + v["responder_nonce"], group_14()
    macs = pbkdf2_once(key, nonces, 64)

    def exponent(secret):
        return 2**258 + int.from_bytes(secret, "big") if secret else 0

    ours, theirs = exponent(v["initiator_secret"]), exponent(v["responder_secret"])
    for end, secret, mac in ("initiator", ours, macs[:32]), ("responder", theirs, macs[32:]):
        value = pow(2, secret, prime).to_bytes(256, "big")
        yield end + "_proof", value + hmac256(mac, value)
    shared = pow(2, ours * theirs, prime).to_bytes(256, "big")
    keys = pbkdf2_once(key, nonces + shared, 128)
    yield "keys_to_responder", keys[:64]
    yield "keys_to_initiator", keys[64:]


def packet(keys, number, payload):
    text = payload.ljust(1024, b"\0") + len(payload).to_bytes(4, "big")
    number = number.to_bytes(8, "big")
    cipher = Cipher(algorithms.AES(keys[:32]), modes.CTR(number + bytes(8))).encryptor()
    sealed = cipher.update(text) + cipher.finalize()
    return sealed + hmac256(keys[32:], sealed + number)


def derived_of_spipe(v):
    derived = dict(handshake(v))
    for field, text in v.items():
        if field.endswith(".text"):
            direction, number, _ = field.split(".")
            # "next_to_responder" is of the connection that follows over the same handshake.
            connections_before = int(direction.startswith("next_"))
            secret = derived["secret_" + direction.removeprefix("next_")]
            cipher = CIPHERS[v["choice"][0]]
            derived[f"{direction}.{number}.frame"] = frame(cipher, secret, int(number), text, connections_before)
    return derived


def derived_of_spiped(v):
    derived = dict(spiped_handshake(v))
    for field, payload in v.items():
        if field.endswith(".payload"):
            direction, number, _ = field.split(".")
            sealed = packet(derived["keys_" + direction], int(number), payload)
            derived[f"{direction}.{number}.packet"] = sealed
    return {field: value for field, value in derived.items() if not field.startswith("keys_")}


def derived_of_aegis(v):
    aead = Aegis256X4(v["key"])
    sealed = [aead.encrypt_with_tag(v["nonce"], v["msg"], v["ad"], length) for length in (16, 32)]
    return {"ct": sealed[0][0], "tag128": sealed[0][1], "tag256": sealed[1][1]}


failed = 0
here = pathlib.Path(__file__).parent
all_sections = [(derived_of_spipe, *section) for section in sections(here / "spipe-1.txt")]
all_sections += [(derived_of_spiped, *section) for section in sections(here / "spiped.txt")]
all_sections += [(derived_of_aegis, *section) for section in sections(here / "aegis-256x4.txt")]
for derive, name, v in all_sections:
    derived = derive(v)
    wrong = [field for field, value in derived.items() if v[field] != value]
    print(f"[{name}] {len(derived)} derived values, {len(wrong)} wrong: {', '.join(wrong) or 'none'}")
    failed += len(wrong)
sys.exit(failed != 0)
