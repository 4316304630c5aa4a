from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flts_ray.config_serve import ServeConfig, TlsConfig
from flts_ray.errors import ConfigError
from flts_ray.local import ray_environment
from flts_ray.local.haproxy_keeper import only_one
from flts_ray.local.private import private_folder
from flts_ray.local.ray_environment import (
    clear_abandoned,
    haproxy_environment,
    haproxy_is_set,
    set_for_ray,
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An empty environment, and a private folder of the test's own."""
    made: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", made)
    monkeypatch.setattr(ray_environment, "private_folder", lambda prefix: tmp_path)
    return made


def test_a_cluster_of_ours_answers_through_haproxy(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_environment, "haproxy_binary", lambda: "/bin/true")
    set_for_ray(starts_cluster=True, serving=ServeConfig(timeout_s=12.5))
    assert haproxy_is_set()
    assert environment["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response"
    assert environment["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] == "43"
    assert "FLTS_HAPROXY_CERT" not in environment
    starter = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert os.access(starter, os.X_OK)
    assert subprocess.run([starter, "-v"], check=True, env={}).returncode == 0


@pytest.mark.parametrize("starts_cluster", [True, False])
def test_haproxy_is_left_out_where_it_is_not_wanted(
    environment: dict[str, str], starts_cluster: bool
) -> None:
    set_for_ray(starts_cluster=starts_cluster, serving=ServeConfig(proxy="python"))
    set_for_ray(starts_cluster=starts_cluster)
    assert not haproxy_is_set()
    assert not [name for name in environment if "HAPROXY" in name]


@pytest.mark.parametrize("error", [FileNotFoundError("none"), ImportError("none")])
def test_a_machine_that_cannot_run_it_says_so_and_serves_with_python(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def missing() -> str:
        raise error

    monkeypatch.setattr(ray_environment, "haproxy_binary", missing)
    with capture_logs() as logs:
        set_for_ray(starts_cluster=True, serving=ServeConfig())
    assert not haproxy_is_set()
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("python_proxy", "warning")
    assert "none" in entry["why"]


def test_a_certificate_that_is_not_there_is_an_error_before_anything_starts(
    environment: dict[str, str], tmp_path: Path
) -> None:
    tls = TlsConfig(cert_file=str(tmp_path / "no.pem"), key_file=str(tmp_path / "no.key"))
    with pytest.raises(ConfigError, match=r"serve.tls.cert_file: .*no.pem cannot be read"):
        set_for_ray(starts_cluster=True, serving=ServeConfig(tls=tls))


def test_certificates_are_named_by_their_full_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tls = TlsConfig(cert_file="c.pem", key_file="k.pem")
    made = haproxy_environment(ServeConfig(tls=tls), "/bin/true", tmp_path)
    assert made["FLTS_HAPROXY_CERT"] == str(tmp_path / "c.pem")
    assert made["FLTS_HAPROXY_KEY"] == str(tmp_path / "k.pem")


def test_what_clusters_of_the_past_left_is_removed(tmp_path: Path) -> None:
    for name in ("gone", "serving", "young"):
        (tmp_path / name).mkdir()
    with only_one(tmp_path / "serving"):
        for name in ("gone", "serving"):
            os.utime(tmp_path / name, (0, 0))
        clear_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["serving", "young"]


def test_the_private_folder_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_folder("x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder("x") == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="somebody else"):
        private_folder("x")
