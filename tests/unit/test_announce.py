from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flts_ray.jobs.announce import announce, announced

API = {"api": "http://127.0.0.1:8000"}


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "run"))


def test_addresses_are_known_while_the_block_runs(tmp_path: Path) -> None:
    assert announced(tmp_path, "demo") == {}
    with announce(tmp_path, "demo", API):
        assert announced(tmp_path, "demo") == API
        assert json.loads((tmp_path / "run" / "demo.json").read_text())["pid"] == os.getpid()
        assert files(tmp_path) == ["demo.json"]
    assert announced(tmp_path, "demo") == {}
    assert files(tmp_path) == []


def test_they_are_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), announce(tmp_path, "demo", API):
        raise KeyboardInterrupt
    assert files(tmp_path) == []


def test_two_models_of_one_root_do_not_mix(tmp_path: Path) -> None:
    with announce(tmp_path, "demo", API):
        assert announced(tmp_path, "other") == {}
        with announce(tmp_path, "other", {"api": "http://127.0.0.1:8001"}):
            assert announced(tmp_path, "demo") == API
        assert announced(tmp_path, "demo") == API


def test_what_a_killed_process_left_is_ignored_though_its_number_lives(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from flts_ray.jobs.announce import announce\n"
        "with announce(Path(sys.argv[1]), 'demo', {'api': 'x'}):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    left = tmp_path / "run" / "demo.json"
    left.write_text(left.read_text().replace('"pid": ', f'"pid": {os.getpid()}, "was": '))
    assert announced(tmp_path, "demo") == {}
    with announce(tmp_path, "demo", API):
        assert announced(tmp_path, "demo") == API


def test_who_was_replaced_does_not_remove_the_other(tmp_path: Path) -> None:
    newer = {"api": "http://127.0.0.1:9"}
    first = announce(tmp_path, "demo", API)
    second = announce(tmp_path, "demo", newer)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert announced(tmp_path, "demo") == newer
    second.__exit__(None, None, None)
    assert files(tmp_path) == []
