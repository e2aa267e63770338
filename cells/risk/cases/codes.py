"""Codes of a second factor: TOTP (RFC 6238) with what every authenticator app does: SHA-1, six
digits, thirty seconds."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP
from cryptography.hazmat.primitives.twofactor.totp import TOTP

DIGITS = 6
STEP_S = 30
# As long as the hash, which RFC 4226 recommends.
SECRET_BYTES = 20
_ISSUER = "Cellpay"
# Phones' clocks are seconds off, and typing takes some: one step to either side (RFC 6238, 5.2).
_WINDOW = (0, -1, 1)


def is_code(text: str) -> bool:
    return len(text) == DIGITS and text.isascii() and text.isdigit()


def step_of(secret: bytes, code: str, unix_s: float) -> int:
    """The time step whose code it is; 0 when it is none of those that count now.

    All of the window is looked at, whatever matches: the time it takes tells nothing.
    """
    codes = HOTP(secret, DIGITS, SHA1())
    now = int(unix_s) // STEP_S
    found = 0
    for offset in _WINDOW:
        step = now + offset
        same = hmac.compare_digest(codes.generate(step), code.encode())
        found += step * (same and not found)
    return found


def provisioning_uri(secret: bytes, label: str) -> str:
    """For an app, as a QR code or a link."""
    return TOTP(secret, DIGITS, SHA1(), STEP_S).get_provisioning_uri(label, _ISSUER)
