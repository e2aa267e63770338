"""The development CA: what its certificates say, and that a second `up` changes nothing."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.mesh import ca
from router.client.tls import TlsFiles
from router.identity import parse_spiffe_id, spiffe_id

CELL_A = "spiffe://cellpay.local/cell/a"


def _read(path: str | Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def _bytes_of(files: TlsFiles) -> list[bytes]:
    return [Path(path).read_bytes() for path in (files.ca, files.certificate, files.key)]


def test_a_certificate_names_its_workload_and_the_local_host(tmp_path: Path) -> None:
    leaf = _read(ca.issue(tmp_path, "cell-a", CELL_A).certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [CELL_A]
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "cellpay"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("cell", "a", CELL_A),
        ("controller", "controller-1", "spiffe://cellpay.local/controller/controller-1"),
        ("edge", "edge", "spiffe://cellpay.local/edge/edge"),
        ("service", "client", "spiffe://cellpay.local/service/client"),
        ("operator", "laptop", "spiffe://cellpay.local/operator/laptop"),
    ],
)
def test_every_kind_of_workload_has_an_id_in_the_trust_domain(
    kind: str, name: str, expected: str
) -> None:
    assert spiffe_id(kind, name) == expected
    caller = parse_spiffe_id(expected)
    assert caller is not None
    assert caller[1:] == (kind, name)


def test_a_certificate_serves_as_client_and_server_and_issues_nothing(tmp_path: Path) -> None:
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    leaf, root = _read(files.certificate), _read(files.ca)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(root)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_only_the_owner_reads_the_keys(tmp_path: Path) -> None:
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    for key in (Path(files.key), tmp_path / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    first = _bytes_of(ca.issue(tmp_path, "cell-a", CELL_A))
    ca.ensure_ca(tmp_path)
    assert _bytes_of(ca.issue(tmp_path, "cell-a", CELL_A)) == first


def test_another_id_under_the_same_name_is_a_new_certificate(tmp_path: Path) -> None:
    first = ca.issue(tmp_path, "cell", CELL_A).certificate
    before = Path(first).read_bytes()
    after = _read(ca.issue(tmp_path, "cell", spiffe_id("cell", "b")).certificate)
    assert after.public_bytes(serialization.Encoding.PEM) != before


def test_a_key_without_its_certificate_is_healed(tmp_path: Path) -> None:
    """A crash between the two writes left a new key beside an old certificate."""
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    stranger = ca.issue(tmp_path, "cell-b", spiffe_id("cell", "b"))
    Path(files.key).write_bytes(Path(stranger.key).read_bytes())
    healed = ca.issue(tmp_path, "cell-a", CELL_A)
    key = serialization.load_pem_private_key(Path(healed.key).read_bytes(), password=None)
    assert key.public_key() == _read(healed.certificate).public_key()


def test_a_torn_file_is_healed(tmp_path: Path) -> None:
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    Path(files.certificate).write_bytes(b"-----BEGIN CERT")
    assert _read(ca.issue(tmp_path, "cell-a", CELL_A).certificate)


def test_a_certificate_of_a_lost_ca_is_replaced(tmp_path: Path) -> None:
    old = _read(ca.issue(tmp_path, "cell-a", CELL_A).certificate)
    (tmp_path / "ca.key").unlink()
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    _read(files.certificate).verify_directly_issued_by(_read(files.ca))
    assert _read(files.certificate) != old


def test_what_ends_soon_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "_VALID", datetime.timedelta(days=7))
    short = ca.issue(tmp_path, "cell-a", CELL_A)
    ends = _read(short.certificate).not_valid_after_utc
    assert ends <= _read(short.ca).not_valid_after_utc
    monkeypatch.undo()
    files = ca.issue(tmp_path, "cell-a", CELL_A)
    assert _read(files.certificate).not_valid_after_utc > ends
    _read(files.certificate).verify_directly_issued_by(_read(files.ca))
