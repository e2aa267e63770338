"""A clearing house and a channel to it: keys, certificates and settings of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from cells.channels.model import ChannelSettings
from control.mesh import ca
from router.client.tls import TlsFiles

CLEARING = "east"


def make_key(folder: Path, name: str, *, kind: str = "ed25519") -> tuple[Path, Path]:
    """A private and a public key's file."""
    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    if kind == "rsa":
        key = rsa.generate_private_key(65_537, 2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


class House:
    """What both sides need, in one folder."""

    def __init__(self, folder: Path, *, kind: str = "ed25519") -> None:
        self.folder = folder
        self.our_key, self.our_public = make_key(folder, "cellpay", kind=kind)
        self.bank_key, self.bank_public = make_key(folder, "bank", kind=kind)
        self.tls: TlsFiles = ca.issue(folder / "tls", "bank", "spiffe://cellpay.test/bank")

    @classmethod
    def found(cls, folder: Path) -> House:
        """The one whose keys lie there already."""
        house = cls.__new__(cls)
        house.folder = folder
        house.our_key, house.our_public = folder / "cellpay.pem", folder / "cellpay.pub"
        house.bank_key, house.bank_public = folder / "bank.pem", folder / "bank.pub"
        house.tls = ca.issue(folder / "tls", "bank", "spiffe://cellpay.test/bank")
        return house

    def bank(self, **behaviour: Any) -> dict[str, Any]:
        return {
            "name": CLEARING,
            "kind": "clearing",
            "behaviour": behaviour,
            "options": {
                "tls": {"certificate": self.tls.certificate, "key": self.tls.key},
                "key_id": "bank-1",
                "key_file": str(self.bank_key),
                "participants": {"cellpay-1": str(self.our_public)},
                "callback_ca": self.tls.ca,
            },
        }

    def channel(self, ports: Mapping[str, int], **options: Any) -> ChannelSettings:
        return ChannelSettings(
            CLEARING,
            "clearing",
            {
                "base_url": f"https://localhost:{ports['clearing']}",
                "participant": "cellpay",
                "key_id": "cellpay-1",
                "key_file": str(self.our_key),
                "bank_keys": {"bank-1": str(self.bank_public)},
                "ca": self.tls.ca,
                "repeat_s": 0.1,
                **options,
            },
        )

    def caller(self) -> dict[str, Any]:
        return {
            "channel": CLEARING,
            "bank_keys": {"bank-1": str(self.bank_public)},
            "key_id": "cellpay-1",
            "key_file": str(self.our_key),
        }
