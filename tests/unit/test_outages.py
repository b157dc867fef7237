"""Whether an instance is away, or refuses: by what its server, its disk and its hub answer."""

import socket
import struct
import threading

import httpx
import pytest
from django.db import InterfaceError, OperationalError

from lamincli.errors import InstanceError, UnreachableError
from lamincli.registry import outages


@pytest.fixture
def vendor(monkeypatch):
    """Say which database it is, and what its server answers."""

    def be(name, refuses=False):
        monkeypatch.setattr(outages, "connection", type("C", (), {"vendor": name}))
        monkeypatch.setattr(outages, "_refuses", lambda: refuses)

    return be


@pytest.mark.parametrize("error", [OperationalError("database is locked"), InterfaceError("gone")])
def test_disk_or_server_that_is_away(vendor, error):
    vendor("sqlite")
    why = "cannot be written.*See to its disk"
    with pytest.raises(UnreachableError, match=why), outages.reaching("me/here"):
        raise error
    vendor("postgresql")
    why = "cannot be reached.*Start its database"
    with pytest.raises(UnreachableError, match=why), outages.reaching("me/here"):
        raise error


def test_server_that_refuses(vendor):
    vendor("postgresql", refuses=True)
    why = "cannot be used"
    with pytest.raises(InstanceError, match=why) as caught, outages.reaching("me/here"):
        raise OperationalError("password authentication failed")
    assert not isinstance(caught.value, UnreachableError)


def test_hub_that_is_away(vendor):
    for error in (httpx.ConnectError("no route to host"), ConnectionRefusedError("refused")):
        with (
            pytest.raises(UnreachableError, match="LaminHub cannot be asked"),
            outages.reaching("me/here"),
        ):
            raise error


@pytest.mark.parametrize("error", [ValueError("a mistake"), FileNotFoundError(2, "No", "a.yaml")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as caught, outages.reaching("me/here"):
        raise error
    assert caught.value is error


def packet(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


@pytest.mark.parametrize(
    ("answer", "understood"),
    [
        (packet(b"E", b"SFATAL\0C28P01\0Mno\0\0"), "28P01"),
        (packet(b"E", b"SFATAL\0C3D000\0Mno\0\0"), "3D000"),
        (packet(b"E", b"SFATAL\0C57P03\0Mstarting up\0\0"), "57P03"),
        (packet(b"R", struct.pack("!i", 10)), "R"),
        (b"", ""),
    ],
)
def test_answer_of_postgres(answer, understood):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(8)
                client.sendall(b"N")  # no encryption
                client.recv(1024)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        settings = {"USER": "u", "NAME": "n", "HOST": "127.0.0.1", "PORT": port}
        assert outages._answer_of_postgres(settings) == understood
        thread.join()
