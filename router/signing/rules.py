"""The canonical form, the header, and the rules of keys and time. Pure.

    CELLPAY1
    <algorithm>
    <key id>
    <timestamp>
    <nonce>
    <method>
    <host>
    <target>
    <content type>
    <user id>
    <digest of the body, hexadecimal in lower case>

Lines end with LF, the last one too; the host is in lower case. No value may hold a control
character, so no value can pretend to be two; every line is always there, so nothing can be left out
of a signature by leaving it out of a list. A response has lines of its own.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from functools import lru_cache

from router.signing.model import Algorithm, Claims, Key, Reason, Refused, SignedMessage, Window

SCHEME = "CELLPAY1"
_HEADER_MAX = 4096
_VALUE_MAX = 8192
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_METHOD = re.compile(r"[A-Z]{1,16}")
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}")
_KEY_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Without leading zeros: one number has one text.
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")
_PARAMETER = re.compile(r"([a-z]+)=\"([^\"\\]*)\"")
# A whole header, its parameters in our order.
_USUAL = re.compile(
    SCHEME
    + r' key="([A-Za-z0-9_.-]{1,64})",algorithm="([a-z0-9_-]+)",timestamp="([1-9][0-9]{0,11})"'
    r',nonce="([A-Za-z0-9_-]{16,64})",signature="([A-Za-z0-9+/]+={0,2})"'
)
_ALGORITHMS = {item.value: item for item in Algorithm}
_LONGEST = Window()
_NAMES = ("key", "algorithm", "timestamp", "nonce", "signature")


class Malformed(ValueError):
    """It has no canonical form, or the header is not one of ours. Never quotes what it is of."""


def canonical(message: SignedMessage, claims: Claims, digest: bytes) -> bytes:
    """What is signed. `digest`: of the body, by the algorithm's hash. Raises Malformed."""
    _check_claims(claims)
    return canonical_of_checked(message, claims, digest)


def canonical_of_checked(message: SignedMessage, claims: Claims, digest: bytes) -> bytes:
    """As `canonical`, of claims that `read_header` has read: it has checked them."""
    if not message.user_id.isprintable() or len(message.user_id) > _VALUE_MAX:
        raise Malformed("the user ID has no canonical form")
    addressed = _addressed(message.method, message.host, message.target, message.content_type)
    return (
        f"{SCHEME}\n{claims.algorithm.value}\n{claims.key_id}\n{claims.timestamp}\n{claims.nonce}\n"
        f"{addressed}{message.user_id}\n{digest.hex()}\n"
    ).encode()


# gRPC's are as many as there are methods; of HTTP's targets some come again.
@lru_cache(maxsize=256)
def _addressed(method: str, host: str, target: str, content_type: str) -> str:
    """The four lines of where a request goes. Raises Malformed."""
    _require(_METHOD, method, "the method")
    _require(_TARGET, target, "the target")
    for what, value in (("the host", host), ("the content type", content_type)):
        _require(_PRINTABLE, value, what)
    return f"{method}\n{host.lower()}\n{target}\n{content_type}\n"


def canonical_response(
    claims: Claims, request: bytes, status: int, content_type: str, digest: bytes
) -> bytes:
    """What we sign of an answer: it answers this request and no other, of another key least of all.
    `request`: digest of its `authorization`; `digest`: of the body; both by the algorithm's hash.
    """
    _require(_PRINTABLE, content_type, "the content type")
    _check_claims(claims)
    return (
        f"{SCHEME}-RESPONSE\n{claims.algorithm.value}\n{claims.key_id}\n{claims.timestamp}\n"
        f"{claims.nonce}\n{request.hex()}\n{status}\n{content_type}\n{digest.hex()}\n"
    ).encode()


def canonical_proof(algorithm: str, merchant_id: str, digest: bytes) -> bytes:
    """What a new key signs to be registered: `digest` is of the public key, by its own hash."""
    if not merchant_id.isprintable():
        raise Malformed("the merchant's ID has no canonical form")
    return _lines(f"{SCHEME}-KEY", algorithm, merchant_id, digest.hex())


def _lines(*values: str) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()


def _require(pattern: re.Pattern[str], value: str, what: str) -> None:
    if len(value) > _VALUE_MAX or not pattern.fullmatch(value):
        raise Malformed(f"{what} has no canonical form")


def _check_claims(claims: Claims) -> None:
    _require(_KEY_ID, claims.key_id, "the key's ID")
    _require(_NONCE, claims.nonce, "the nonce")
    _require(_TIMESTAMP, str(claims.timestamp), "the timestamp")


def header(claims: Claims) -> str:
    """The value of `authorization`."""
    _check_claims(claims)
    return header_of_checked(claims)


def header_of_checked(claims: Claims) -> str:
    """As `header`, of claims whose lines have been written."""
    signature = binascii.b2a_base64(claims.signature, newline=False).decode("ascii")
    return (
        f'{SCHEME} key="{claims.key_id}",algorithm="{claims.algorithm.value}",'
        f'timestamp="{claims.timestamp}",nonce="{claims.nonce}",signature="{signature}"'
    )


def read_header(text: str) -> Claims:
    """Raises Malformed. One request has one text: what another reader might take for something
    else is refused."""
    if len(text) > _HEADER_MAX:
        raise Malformed(f"the header is none of {SCHEME}")
    # As we write it and nearly everybody does: one look checks all.
    usual = _USUAL.fullmatch(text)
    if usual is None:
        return _read_parameters(text)
    key_id, name, timestamp, nonce, signature = usual.groups()
    algorithm = _ALGORITHMS.get(name)
    if algorithm is None:
        raise Malformed("the algorithm is none that is known here")
    return Claims(key_id, algorithm, int(timestamp), nonce, _signature(signature))


def _read_parameters(text: str) -> Claims:
    """In any order; says what is wrong."""
    scheme, _, rest = text.partition(" ")
    if scheme != SCHEME:
        raise Malformed(f"the header is none of {SCHEME}")
    found: dict[str, str] = {}
    for part in rest.split(","):
        match = _PARAMETER.fullmatch(part)
        if match is None or match[1] in found or match[1] not in _NAMES:
            raise Malformed("the header's parameters are not what they must be")
        found[match[1]] = match[2]
    if len(found) != len(_NAMES):
        raise Malformed("the header lacks a parameter")
    _require(_TIMESTAMP, found["timestamp"], "the timestamp")
    algorithm = _ALGORITHMS.get(found["algorithm"])
    if algorithm is None:
        raise Malformed("the algorithm is none that is known here")
    claims = Claims(
        found["key"],
        algorithm,
        int(found["timestamp"]),
        found["nonce"],
        _signature(found["signature"]),
    )
    _check_claims(claims)
    return claims


def _signature(text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Malformed("the signature is not in base 64") from None
    if not data or binascii.b2a_base64(data, newline=False) != text.encode("ascii"):
        raise Malformed("the signature is not in base 64 as it must be")
    return data


def judge(claims: Claims, keys: Mapping[str, Key], now: int, window: Window) -> Key | Refused:
    """The key whose signature it must be, or why none can be right. `now`: the verifier's clock."""
    key = keys.get(claims.key_id)
    if key is None:
        return Refused(Reason.KEY_UNKNOWN, "there is no such key")
    if key.revoked:
        return Refused(Reason.KEY_REVOKED, "the key was revoked")
    if now < key.not_before:
        return Refused(Reason.KEY_NOT_YET_VALID, "the key is not valid yet")
    if key.not_after and now >= key.not_after:
        return Refused(Reason.KEY_EXPIRED, "the key has expired")
    if claims.algorithm != key.algorithm:
        return Refused(Reason.ALGORITHM_MISMATCH, "the key is for another algorithm")
    if claims.timestamp >= now + window.ahead_max_s:
        return Refused(Reason.TIMESTAMP_AHEAD, "the timestamp lies in the future")
    if claims.timestamp <= now - window.old_max_s:
        return Refused(Reason.TIMESTAMP_STALE, "the timestamp is too old")
    return key


def remember_until(claims: Claims) -> int:
    """The moment from which `judge` refuses the timestamp by itself, whatever policies say then:
    they shorten the window, and may cease to."""
    return claims.timestamp + _LONGEST.old_max_s
