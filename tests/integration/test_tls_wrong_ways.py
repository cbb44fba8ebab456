"""Twelve wrong ways in. Each ends with one clear line in the log and nothing on disk."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from tls_support import Log, Pki, ends_in, logged, now
from transfer_support import (
    HELLO,
    NODE,
    PATIENCE,
    WEB,
    Outcomes,
    files_in,
    header_of,
    hello_body,
    peer_of,
    receiving,
    server_config,
)

from fedsim.config import TlsConfig
from fedsim.receiver.service import Receiver
from fedsim.spool.files import Role
from fedsim.wire import Identity, Peer
from fedsim.wire.protocol.frames import FrameType, HelloHeader, encode
from fedsim.wire.sender import Sender
from fedsim_fleet.certificates import new_key, pem


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@contextmanager
def guarded(pki: Pki, folder: Path, **changes: Any) -> Iterator[tuple[Receiver, Log]]:
    """The server's receiver with TLS, that takes files from the web and eight nodes."""
    tls = pki.tls("server", Role.SERVER)
    pki.publish("server")
    with logged() as log, receiving(server_config(folder, tls=tls.model_dump(), **changes)) as receiver:
        yield receiver, log


def dialing(tls: TlsConfig | None) -> ssl.SSLContext:
    """A client that looks at nothing and shows what it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def first_words(identity: Identity = NODE) -> bytes:
    """A HELLO, and an offer that contains the whole file."""
    body = hello_body(identity.name)
    hello = HelloHeader(name=identity.name, role=identity.role, versions=(1,), max_header_bytes=4096)
    offer = encode(FrameType.OFFER, header_of(body, HELLO), transfer=1, body_size=len(body)) + body
    return encode(FrameType.HELLO, hello) + offer


def knock(port: int, context: ssl.SSLContext | None, words: bytes) -> None:
    """Connect, say it all, and listen until the other side has closed."""
    with suppress(ssl.SSLError, ConnectionError), ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
        if context is not None:
            sock = stack.enter_context(context.wrap_socket(sock))
        sock.sendall(words)
        while sock.recv(65536):
            pass


def the_line(log: Log) -> dict[str, Any]:
    """What the one line about the connection says."""
    (line,) = log.wait("connection_refused")
    return line


def assert_refused(receiver: Receiver, log: Log, code: str, told: str) -> None:
    line = the_line(log)
    assert line["code"] == code
    assert told in line["problem"]
    assert line["level"] == "warning"
    assert files_in(receiver.spool.root) == []


def with_usage(pki: Pki, folder: Path, *usages: x509.ObjectIdentifier) -> TlsConfig:
    """A certificate of node-1 that the authority signed, but with other usages."""
    good = pki.tls("node-1", Role.CLIENT)
    template = x509.load_pem_x509_certificate(good.certificate.read_bytes())
    key = new_key()
    builder = x509.CertificateBuilder(
        template.issuer,
        template.subject,
        key.public_key(),
        1,
        template.not_valid_before_utc,
        template.not_valid_after_utc,
    )
    for extension in template.extensions:
        if not isinstance(extension.value, x509.ExtendedKeyUsage | x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    (folder / "odd.crt").write_bytes(pem(builder.sign(pki.authority._key(), hashes.SHA256())))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "odd.key").write_bytes(private)
    return good.model_copy(update={"certificate": folder / "odd.crt", "key": folder / "odd.key"})


def none_at_all(_: Pki, __: Path) -> None:
    return None


def of_another_authority(_: Pki, folder: Path) -> TlsConfig:
    return Pki(folder / "foreign").tls("node-1", Role.CLIENT)


def expired(pki: Pki, _: Path) -> TlsConfig:
    return pki.tls("node-1", Role.CLIENT, clock=ends_in(-5), days=1)


def not_yet_valid(pki: Pki, _: Path) -> TlsConfig:
    return pki.tls("node-1", Role.CLIENT, clock=lambda: now() + timedelta(days=1))


def only_for_listening(pki: Pki, folder: Path) -> TlsConfig:
    return with_usage(pki, folder, ExtendedKeyUsageOID.SERVER_AUTH)


def for_nothing_that_is_said(pki: Pki, folder: Path) -> TlsConfig:
    return with_usage(pki, folder)


@pytest.mark.parametrize(
    ("certificate", "code", "told"),
    [
        (none_at_all, "tls", "it presents no certificate"),
        (of_another_authority, "tls", "its certificate is refused: unable to get local issuer certificate"),
        (expired, "tls", "its certificate is refused: certificate has expired"),
        (not_yet_valid, "tls", "its certificate is refused: certificate is not yet valid"),
        (only_for_listening, "tls", "its certificate is refused: unsuitable certificate purpose"),
        (for_nothing_that_is_said, "untrusted", "was not made by fedsim-ca"),
    ],
)
def test_an_invalid_certificate_is_rejected(
    pki: Pki,
    tmp_path: Path,
    certificate: Callable[[Pki, Path], TlsConfig | None],
    code: str,
    told: str,
) -> None:
    with guarded(pki, tmp_path) as (receiver, log):
        knock(receiver.port, dialing(certificate(pki, tmp_path)), first_words())
        assert_refused(receiver, log, code, told)
    pki.issue("node-1", Role.CLIENT)


def test_a_revoked_certificate_is_rejected(pki: Pki, tmp_path: Path) -> None:
    tls = pki.tls("node-8", Role.CLIENT)
    (gone,) = pki.authority.revoke("node-8")
    with guarded(pki, tmp_path) as (receiver, log):
        knock(receiver.port, dialing(tls), first_words(Identity("node-8", Role.CLIENT)))
        assert_refused(receiver, log, "revoked", f"the certificate {gone.serial} of client node-8 was revoked on ")
        assert the_line(log)["node"] == "node-8"


def test_a_removed_node_that_keeps_trying_hides_no_other_one(pki: Pki, tmp_path: Path) -> None:
    with guarded(pki, tmp_path, peers=[{"name": "node-3", "role": "client"}]) as (receiver, log):
        for name in ("node-1", "node-1", "node-2"):
            knock(receiver.port, dialing(pki.tls(name, Role.CLIENT)), first_words(Identity(name, Role.CLIENT)))
        assert [line["node"] for line in log.wait("connection_refused", 2)] == ["node-1", "node-2"]


@pytest.mark.parametrize("role", [Role.CLIENT, Role.WEB])
def test_a_node_cannot_speak_as_another_one_nor_as_something_else(pki: Pki, tmp_path: Path, role: Role) -> None:
    claimed = Identity("node-2" if role is Role.CLIENT else "node-1", role)
    with guarded(pki, tmp_path) as (receiver, log):
        knock(receiver.port, dialing(pki.tls("node-1", Role.CLIENT)), first_words(claimed))
        told = f"its HELLO names {claimed}, but its certificate is for client node-1"
        assert_refused(receiver, log, "wrong_name", told)


def test_an_older_tls_is_rejected(pki: Pki, tmp_path: Path) -> None:
    context = dialing(pki.tls("node-1", Role.CLIENT))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with guarded(pki, tmp_path) as (receiver, log):
        knock(receiver.port, context, first_words())
        assert_refused(receiver, log, "tls", "an older TLS than 1.3")


@pytest.mark.parametrize("words", [first_words(), b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n"])
def test_plain_tcp_is_rejected(pki: Pki, tmp_path: Path, words: bytes) -> None:
    with guarded(pki, tmp_path) as (receiver, log):
        knock(receiver.port, None, words)
        assert_refused(receiver, log, "tls", "it does not speak TLS")


def test_a_stolen_certificate_of_a_node_that_was_removed_is_rejected(pki: Pki, tmp_path: Path) -> None:
    with guarded(pki, tmp_path, peers=[{"name": "node-2", "role": "client"}]) as (receiver, log):
        knock(receiver.port, dialing(pki.tls("node-1", Role.CLIENT)), first_words())
        assert_refused(
            receiver, log, "unknown_peer", "client node-1 is not a peer of server; add it to its receiver.yml"
        )


class Recorder:
    """Carries one connection to a port, and keeps what the side that connected has sent."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = b""
        self._target = port
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(("127.0.0.1", self._target)) as far:
            back = threading.Thread(target=self._answers, args=(far, near))
            back.start()
            while data := near.recv(65536):
                self.sent += data
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)
            back.join()

    @staticmethod
    def _answers(far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)

    def close(self) -> bytes:
        self._thread.join(PATIENCE)
        self._listener.close()
        return self.sent


def test_the_first_bytes_of_a_good_connection_open_nothing_when_they_are_played_again(pki: Pki, tmp_path: Path) -> None:
    with guarded(pki, tmp_path / "first") as (receiver, _):
        recorder = Recorder(receiver.port)
        with Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender:
            peer = peer_of(receiver, recorder.port)
            assert sender.send_and_wait(peer, HELLO, hello_body("node-1"), give_up_after=PATIENCE).delivered
        recorded = recorder.close()
        assert files_in(receiver.spool.root) == ["hello/node-1.json"]
    with guarded(pki, tmp_path / "second") as (receiver, log):
        knock(receiver.port, None, recorded)
        assert_refused(receiver, log, "tls", "its TLS records do not belong to this connection")


# ---------------------------------------------------------------- the side that connects is as careful


@contextmanager
def pretending(pki: Pki, tls: TlsConfig, identity: Identity) -> Iterator[tuple[int, list[bytes]]]:
    """Something that listens with this certificate and says that it is `identity`; what it was told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(pki.authority.folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    told: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as sock:
                told.append(sock.recv(65536))
                hello = HelloHeader(name=identity.name, role=identity.role, versions=(1,), max_header_bytes=4096)
                sock.sendall(encode(FrameType.HELLO, hello))
                while data := sock.recv(65536):
                    told.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], told
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("certificate", "claimed", "told"),
    [
        (("node-1", Role.CLIENT), ("server", Role.SERVER), "but its certificate is for client node-1"),
        (("server", Role.CLIENT), ("server", Role.SERVER), "but its certificate is for client server"),
        (("server", Role.CLIENT), ("server", Role.CLIENT), "receives no files from here"),
        (("node-1", Role.CLIENT), ("node-1", Role.CLIENT), "says that it is node-1; check its name and address"),
    ],
)
def test_a_clients_certificate_does_not_make_a_server(
    tmp_path: Path, certificate: tuple[str, Role], claimed: tuple[str, Role], told: str
) -> None:
    pki = Pki(tmp_path)
    with (
        logged() as log,
        pretending(pki, pki.tls(*certificate), Identity(*claimed)) as (port, heard),
        Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender,
    ):
        sender.send(Peer("server", "127.0.0.1", port), HELLO, hello_body("node-1"), on_done=Outcomes())
        (line,) = log.wait("peer_unreachable")
    assert told in line["problem"]
    assert b"clients" not in b"".join(heard)


def test_a_certificate_that_may_not_listen_does_not_make_a_server(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    with (
        logged() as log,
        pretending(pki, pki.tls("web", Role.WEB), Identity("server", Role.SERVER)) as (port, heard),
        Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender,
    ):
        sender.send(Peer("server", "127.0.0.1", port), HELLO, hello_body("node-1"), on_done=Outcomes())
        (line,) = log.wait("peer_unreachable")
    assert "its certificate is refused: unsuitable certificate purpose" in line["problem"]
    assert heard == []


def test_a_revoked_server_receives_nothing(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    tls = pki.tls("server", Role.SERVER)
    pki.authority.revoke("server")  # before the web gets its list
    with (
        logged() as log,
        pretending(pki, tls, Identity("server", Role.SERVER)) as (port, heard),
        Sender(WEB, credentials=pki.credentials("web", Role.WEB)) as sender,
    ):
        sender.send(Peer("server", "127.0.0.1", port), HELLO, b"", on_done=Outcomes())
        (line,) = log.wait("peer_unreachable")
    assert "of server server was revoked" in line["problem"]
    assert b"web" not in b"".join(heard)
