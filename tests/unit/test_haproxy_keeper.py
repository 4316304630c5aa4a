from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flts_ray.local.haproxy_keeper import Watched, answers, listening, only_one, parent_of
from flts_ray.local.process import free_port


def test_a_process_is_watched_by_more_than_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watched = Watched(child.pid)
        assert watched.alive()
        assert parent_of(child.pid) == os.getpid()
        watched.kill()
        child.wait()
        assert not watched.alive()
        watched.kill()  # nobody else with that number is hurt
        watched.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_a_listening_socket_queues_callers_before_anybody_accepts(host: str) -> None:
    port = free_port()
    with listening(f"{host}:{port}") as made, socket.create_connection(("127.0.0.1", port)):
        assert made.getsockname()[0] == ("0.0.0.0" if host == "*" else host)
        with pytest.raises(OSError, match="in use"):
            listening(f"{host}:{port}")


def test_there_is_one_keeper_for_a_folder(tmp_path: Path) -> None:
    with only_one(tmp_path):
        assert answers(str(tmp_path / "keeper.sock"))
        with pytest.raises(SystemExit), only_one(tmp_path):
            pytest.fail("two keepers")
    assert not answers(str(tmp_path / "keeper.sock"))
    with only_one(tmp_path):  # what a killed one left is replaced
        assert answers(str(tmp_path / "keeper.sock"))
