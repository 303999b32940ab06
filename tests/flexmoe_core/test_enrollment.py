from __future__ import annotations

import base64
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key, load_ssh_public_key
from pydantic import ValidationError

from flexmoe_core.enrollment import (
    LARGEST_FILE,
    Enrollment,
    Member,
    Roster,
    Welcome,
    fingerprint,
    flower_header,
    read_public_file,
)
from flexmoe_core.errors import InputError
from tests.flexmoe_core.hospital_keys import certificate_request, enrollment_of, public_half, public_line

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def some_certificate() -> str:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def written(tmp_path: Path, data: object) -> Path:
    file = tmp_path / "enrollment.json"
    file.write_text(json.dumps(data))
    return file


def member_of(site: str, revoked: datetime | None = None) -> Member:
    return Member(**enrollment_of(site).model_dump(exclude={"format"}), enrolled=NOW, revoked=revoked)


def changed_request(old: bytes, new: bytes) -> str:
    """A sound request, a few of whose bytes were changed; for no old bytes, its last one."""
    lines = certificate_request(ec.generate_private_key(ec.SECP256R1())).splitlines()
    body = base64.b64decode("".join(lines[1:-1]))
    body = body.replace(old, new, 1) if old else body[:-1] + bytes([body[-1] ^ 1])
    return pem_of("CERTIFICATE REQUEST", base64.b64encode(body).decode())


def pem_of(kind: str, body: str) -> str:
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    data = public_half("north-1_b")
    assert read_public_file(Enrollment, written(tmp_path, data)).model_dump() == data


def test_the_same_key_is_the_same_line_whatever_the_comment() -> None:
    data = public_half()
    noisy = {name: f"{data[name]} engineer@north\nmore" for name in ("node_key", "identity_key")}
    assert Enrollment.model_validate(data | noisy) == Enrollment.model_validate(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"node_key": public_line(ec.generate_private_key(ec.SECP256R1()))},
            "node_key: is not an elliptic-curve key on",
        ),
        ({"node_key": public_line(Ed25519PrivateKey.generate())}, "node_key: is not an elliptic-curve key on P-384"),
        ({"node_key": "ecdsa-sha2-nistp384 AAAA"}, "node_key: is not an OpenSSH public key"),
        ({"node_key": ""}, "node_key: is not an OpenSSH public key"),
        ({"node_key": "\ud800"}, "node_key: "),
        (
            {"identity_key": public_line(ec.generate_private_key(ec.SECP384R1()))},
            "identity_key: is not an Ed25519 key",
        ),
        ({"identity_key": public_line(rsa.generate_private_key(65537, 2048))}, "identity_key: is not an OpenSSH"),
        ({"identity_key": 3}, "identity_key: should be a valid string"),
        ({"certificate_request": "broken"}, "certificate_request: is not a certificate request"),
        ({"certificate_request": pem_of("CERTIFICATE REQUEST", "AAAA")}, "certificate_request: is not a cert"),
        (
            {"certificate_request": changed_request(b"\x02\x01\x00", b"\x02\x01\x05")},
            "certificate_request: is not a certificate request",
        ),
        ({"certificate_request": changed_request(b"", b"")}, "signed by its own"),
        ({"certificate_request": certificate_request(rsa.generate_private_key(65537, 2048))}, "own P-256 key"),
        ({"site": "../north"}, "site: is not a safe name"),
        ({"site": "north\n"}, "site: is not a safe name"),
        ({"format": 2}, "format: should be 1"),
        ({"sight": "north"}, "sight: is not a known key. Did you mean 'site'?"),
    ],
)
def test_what_keygen_would_not_write_is_refused_in_words(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    file = written(tmp_path, public_half() | change)
    with pytest.raises(InputError) as refused:
        read_public_file(Enrollment, file)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(file))


@pytest.mark.parametrize("name", list(public_half()))
def test_nothing_may_be_missing_but_the_format(tmp_path: Path, name: str) -> None:
    data = public_half()
    del data[name]
    file = written(tmp_path, data)
    if name == "format":
        assert read_public_file(Enrollment, file).format == 1
    else:
        with pytest.raises(InputError, match=f"{name}: is missing"):
            read_public_file(Enrollment, file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ssh-ed25519 AAAA", "is not a JSON file"),
        (b"\xff\xfe\x00", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"", "is not a JSON file"),
        (b"null", "should be a table"),
        (b"[]", "should be a table"),
        (b" " * (LARGEST_FILE + 1), "is larger than 1 MiB"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "enrollment.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_public_file(Enrollment, file)


@pytest.mark.parametrize(("path", "words"), [("/dev/zero", "is larger than 1 MiB"), ("/nowhere", "No such file")])
def test_a_file_without_end_is_not_read_to_its_end(path: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_public_file(Enrollment, Path(path))


def test_a_folder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_public_file(Enrollment, tmp_path)


def test_only_who_was_not_revoked_is_active() -> None:
    north, south, again = member_of("north", revoked=NOW), member_of("south"), member_of("north")
    assert Roster(members=(north, south)).active == {"south": south}
    assert Roster(members=(north, south, again)).active == {"south": south, "north": again}


@pytest.mark.parametrize(
    ("address", "sound"),
    [
        ("fl.example.org:443", True),
        ("203.0.113.5:443", True),
        ("[2001:db8::1]:443", True),
        ("2001:db8::1:443", False),
        ("fl.example.org", False),
        ("fl.example.org:443\n", False),
        ("https://fl.example.org:443", False),
        (":443", False),
    ],
)
def test_a_welcome_says_where_the_coordinator_is(address: str, sound: bool) -> None:
    data = {
        "site": "north",
        "study": "study",
        "address": address,
        "certificate_authority": some_certificate(),
        "client_certificate": None,
        "roster": {},
    }
    if sound:
        assert Welcome.model_validate(data).address == address
    else:
        with pytest.raises(ValidationError, match="address"):
            Welcome.model_validate(data)


@pytest.mark.parametrize("text", ["", "broken", pem_of("CERTIFICATE", "AAAA")])
def test_a_welcome_without_a_certificate_is_refused(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, {"certificate_authority": text})
    with pytest.raises(InputError, match="certificate_authority: is not a certificate"):
        read_public_file(Welcome, file)


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    line = enrollment_of().node_key
    (tmp_path / "key.pub").write_text(line + "\n")
    try:
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert shown.split()[1] == fingerprint(line)


def test_a_known_fingerprint() -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    assert fingerprint(line) == "SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA"


def test_the_header_holds_the_key_as_flower_sends_it() -> None:
    line = enrollment_of().node_key
    sent = load_pem_public_key(base64.b64decode(flower_header(line)))
    assert sent == load_ssh_public_key(line.encode())
