"""A bank that takes files, and a channel to it: keys, certificates and settings of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh

from cells.channels.model import ChannelSettings
from control.mesh import ca
from router.client.tls import TlsFiles

BATCH = "files"


def ssh_key(path: Path) -> str:
    """Writes a private key; its public line."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(path)
    path.chmod(0o600)
    return key.export_public_key().decode().strip()


class FileBank:
    """What both sides need, in one folder."""

    def __init__(self, folder: Path, *, fixed: bool = False) -> None:
        self.folder = folder
        self.fixed = fixed
        self.host_key = ssh_key(folder / "host")
        self.our_key = ssh_key(folder / "cellpay")
        self.tls: TlsFiles = ca.issue(folder / "tls", "bank", "spiffe://cellpay.test/bank")
        (folder / "token").write_text("t0ken\n", encoding="ascii")

    @classmethod
    def found(cls, folder: Path, *, fixed: bool) -> FileBank:
        """The one whose keys lie there already."""
        files = cls.__new__(cls)
        files.folder, files.fixed = folder, fixed
        public = asyncssh.read_private_key(folder / "host").export_public_key()
        files.host_key = public.decode().strip()
        files.our_key = ""
        files.tls = ca.issue(folder / "tls", "bank", "spiffe://cellpay.test/bank")
        return files

    @property
    def sftp_options(self) -> dict[str, Any]:
        return {
            "host_key_file": str(self.folder / "host"),
            "users": {"cellpay": self.our_key},
        }

    @property
    def https_options(self) -> dict[str, Any]:
        return {
            "tls": {"certificate": self.tls.certificate, "key": self.tls.key},
            "token": "t0ken",
        }

    def bank(self, **behaviour: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"https": self.https_options, "sftp": self.sftp_options}
        if self.fixed:
            options["fixed"] = {}
        return {"name": BATCH, "kind": "batch", "behaviour": behaviour, "options": options}

    def channel(
        self, ports: Mapping[str, int], *, transport: str = "https", **options: Any
    ) -> ChannelSettings:
        mailboxes: dict[str, dict[str, Any]] = {
            "https": {
                "transport": "https",
                "url": f"https://localhost:{ports['https']}",
                "ca": self.tls.ca,
                "token_file": str(self.folder / "token"),
            },
            "sftp": {
                "transport": "sftp",
                "host": "127.0.0.1",
                "port": ports["sftp"],
                "user": "cellpay",
                "host_key": self.host_key,
                "client_key": str(self.folder / "cellpay"),
            },
        }
        return ChannelSettings(
            BATCH,
            "batch",
            {
                "mailbox": mailboxes[transport],
                "layout": {"format": "fixed" if self.fixed else "pain.001"},
                "debtor": {"name": "Cellpay", "account": "1234567890", "bank": "CPAYCNSHXXX"},
                "sender": "cella",
                "window_s": 0.05,
                "poll_s": 0.05,
                "backoff_first_s": 0.05,
                **options,
            },
        )
