"""jax's coordination service in a process of its own; `test_distributed.py` has whole runs on it."""

import importlib
import os
import signal
import socket

import pytest

from experiments.bench.processes import free_port
from rlhf_jax.devices.processes import coordinator

library = importlib.import_module("jaxlib._jax")


def test_connections_to_a_port_are_counted():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        server.listen()
        port = server.getsockname()[1]
        assert coordinator.num_connected(port) == 0
        with socket.create_connection(("localhost", port)):
            assert coordinator.num_connected(port) == 1


def test_a_service_that_nobody_uses_ends_with_its_process():
    """Its input ends as that of a process that was killed does."""
    service = coordinator.Service(f"localhost:{free_port()}", 2, heartbeat_timeout=30)
    assert service.child.stdin is not None
    service.child.stdin.close()
    assert service.child.wait(5) == 0


def test_a_service_that_does_not_begin_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="did not begin at nowhere"):
        coordinator.Service("nowhere", 2)
    assert "nowhere" in capfd.readouterr().err


def test_a_killed_service_is_not_waited_for():
    service = coordinator.Service(f"localhost:{free_port()}", 1, shutdown_timeout=1)
    os.kill(service.child.pid, signal.SIGKILL)
    service.shutdown()
    assert service.child.returncode == -signal.SIGKILL


def test_a_jax_without_that_door_keeps_its_own_service(monkeypatch, capsys):
    begin = getattr(library, coordinator.FACTORY)
    with coordinator.outside():
        assert getattr(library, coordinator.FACTORY) is coordinator.Service
    assert getattr(library, coordinator.FACTORY) is begin
    assert not capsys.readouterr().err
    monkeypatch.delattr(library, coordinator.FACTORY)
    with coordinator.outside():
        assert not hasattr(library, coordinator.FACTORY)
    assert "keeps its coordination service" in capsys.readouterr().err
