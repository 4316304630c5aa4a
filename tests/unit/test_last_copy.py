from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flts_ray.champion import ChampionRef
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.last_copy import Memory, WithLastCopy, memory_of
from flts_ray.serve.source import RegistrySource
from tests.served import TASK, known_set, plain_contract, served, transparent

AWAY = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Named:
    version: str
    digest: str


class Registry:
    """A source that is there or away."""

    def __init__(self, ref: Named | None, away: bool = False) -> None:
        self.ref = ref
        self.away = away

    def challenger(self) -> Named | None:
        return None

    def current(self) -> Named | None:
        if self.away:
            raise Unavailable("MLflow is away")
        return self.ref

    def load(self, ref: Named) -> ServedModel:
        if ref.digest == "bad":
            raise ArtifactError("a byte changed")
        return served(transparent(plain_contract()), ref.version, digest=ref.digest)


def memory(folder: Path) -> Memory:
    return Memory(memory_of(folder / "last", "demo", "http://mlflow", "s3://bucket"), Named)


def test_a_new_process_starts_with_the_last_champion_while_the_registry_is_away(
    tmp_path: Path,
) -> None:
    one = Named("1", "d1")
    first = WithLastCopy(Registry(one), memory(tmp_path))
    first.load(first.current())
    with capture_logs() as logs:
        second = WithLastCopy(Registry(None, away=True), memory(tmp_path))
        found = second.current()
    assert found == one
    assert second.load(found).version == "1"
    assert [entry["event"] for entry in logs] == ["champion_from_last_copy"]


def test_a_process_that_has_a_champion_hears_that_the_registry_is_away(tmp_path: Path) -> None:
    registry = Registry(Named("1", "d1"))
    source = WithLastCopy(registry, memory(tmp_path))
    source.load(source.current())
    registry.away = True
    with pytest.raises(Unavailable):
        source.current()


def test_a_registry_that_answers_is_believed(tmp_path: Path) -> None:
    source = WithLastCopy(Registry(Named("1", "d1")), memory(tmp_path))
    source.load(source.current())
    assert WithLastCopy(Registry(None), memory(tmp_path)).current() is None


@pytest.mark.parametrize("left", [None, b"", b"[]", b'{"version": "1"}', b"\xff"])
def test_without_a_readable_memory_the_registry_is_needed(
    tmp_path: Path, left: bytes | None
) -> None:
    kept = memory(tmp_path)
    if left is not None:
        kept.path.parent.mkdir()
        kept.path.write_bytes(left)
    with pytest.raises(Unavailable):
        WithLastCopy(Registry(None, away=True), kept).current()


def test_a_champion_that_cannot_be_loaded_is_not_remembered(tmp_path: Path) -> None:
    source = WithLastCopy(Registry(Named("2", "bad")), memory(tmp_path))
    with pytest.raises(ArtifactError):
        source.load(source.current())
    assert memory(tmp_path).read() is None


def test_registries_do_not_share_a_memory(tmp_path: Path) -> None:
    names = {memory_of(tmp_path, "demo", f"http://{i}", "s3://b") for i in range(5)}
    assert len(names) == 5


def test_the_files_come_from_the_cache_and_are_checked(tmp_path: Path) -> None:
    fitted = fit_fully("seasonal_naive", known_set(), TASK)
    store = tmp_path / "store" / "models" / "3"
    digest = artifact.save(fitted, store)
    ref = ChampionRef(3, digest, "seasonal_naive", "0" * 64, "models/3", "run")

    def source() -> WithLastCopy:
        registry = RegistrySource(AWAY, str(tmp_path / "store"), "demo", tmp_path / "cache")
        return WithLastCopy(registry, Memory(tmp_path / "last.json", ChampionRef))

    source().load(ref)
    (tmp_path / "store").rename(tmp_path / "gone")
    again = source()
    found = again.current()
    assert found == ref
    assert again.load(found).digest == digest
    arrays = tmp_path / "cache" / digest / artifact.ARRAYS
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(ArtifactError):
        source().load(ref)
