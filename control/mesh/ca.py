"""The development CA: made at `up`, so that a laptop's mesh speaks mTLS like any other.

Production uses the platform's CA (SPIFFE, cert-manager); the IDs are the same.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from router.client.tls import TlsFiles

_VALID = datetime.timedelta(days=365)
# Clocks of containers may lag.
_BACKDATED = datetime.timedelta(hours=1)
# A leaf that ends sooner than this is made anew.
_RENEW_BEFORE = datetime.timedelta(days=30)


def ensure_ca(tls_dir: Path) -> Path:
    """The CA's certificate, made once a directory and again before it ends."""
    certificate, key = tls_dir / "ca.pem", tls_dir / "ca.key"
    if _belong_together(certificate, key) and not _ends_soon(_read(certificate)):
        return certificate
    tls_dir.mkdir(parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cellpay development CA")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + 3 * _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    _write_key(key, private)
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return certificate


def issue(tls_dir: Path, name: str, spiffe_id: str, hosts: Sequence[str] = ()) -> TlsFiles:
    """A certificate for one workload, client and server; reused while it is valid. `hosts`: names
    that it is reached by, beside this machine's."""
    ca_path = ensure_ca(tls_dir)
    files = TlsFiles(str(ca_path), str(tls_dir / f"{name}.pem"), str(tls_dir / f"{name}.key"))
    ca = _read(ca_path)
    if _still_good(files, ca, spiffe_id, hosts):
        return files
    ca_key = serialization.load_pem_private_key((tls_dir / "ca.key").read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    private = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(min(now + _VALID, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_names(spiffe_id, hosts), critical=False)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write_key(Path(files.key), private)
    Path(files.certificate).write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return files


def spiffe_id_of(certificate: Path) -> str:
    """Whose certificate this is."""
    names = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (found,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return str(found)


def _names(spiffe_id: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(spiffe_id),
            x509.DNSName("localhost"),
            x509.DNSName("cellpay"),
            *(x509.DNSName(host) for host in hosts),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=ca, crl_sign=ca,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _still_good(
    files: TlsFiles, ca: x509.Certificate, spiffe_id: str, hosts: Sequence[str]
) -> bool:
    if not _belong_together(Path(files.certificate), Path(files.key)):
        return False
    leaf = _read(Path(files.certificate))
    try:
        leaf.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ids = names.get_values_for_type(x509.UniformResourceIdentifier)
    named = set(names.get_values_for_type(x509.DNSName)) >= set(hosts)
    return ids == [spiffe_id] and named and not _ends_soon(leaf)


def _belong_together(certificate: Path, key: Path) -> bool:
    """False also after a crash between the two writes: a new key beside an old certificate."""
    if not certificate.exists() or not key.exists():
        return False
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        return private.public_key() == _read(certificate).public_key()
    except ValueError:
        return False


def _ends_soon(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC) + _RENEW_BEFORE


def _read(certificate: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
