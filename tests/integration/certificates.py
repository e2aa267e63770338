"""Certificates that a mesh must not listen to."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control.mesh import ca
from router.client.tls import TlsFiles
from router.identity import spiffe_id

OPERATOR = spiffe_id("operator", "operator")


def of_another_ca(mesh_tls: Path, folder: Path) -> TlsFiles:
    """The name of an operator, signed by a stranger. It trusts the mesh: only it is not trusted."""
    files = ca.issue(folder / "stranger", "operator", OPERATOR)
    return TlsFiles(str(mesh_tls / "ca.pem"), files.certificate, files.key)


def past_its_end(mesh_tls: Path, folder: Path) -> TlsFiles:
    """An operator's, signed by the mesh's own CA, that ended a day ago."""
    authority = x509.load_pem_x509_certificate((mesh_tls / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((mesh_tls / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(OPERATOR)])
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 3 * day)
        .not_valid_after(now - day)
        .add_extension(names, critical=False)
        .sign(signer, hashes.SHA256())
    )
    certificate, private = folder / "ended.pem", folder / "ended.key"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return TlsFiles(str(mesh_tls / "ca.pem"), str(certificate), str(private))
