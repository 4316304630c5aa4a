"""Two versions side by side, and who serves a series."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from flts_ray.errors import DataError
from flts_ray.jobs import diff as jobs_diff
from flts_ray.jobs.diff import Side, compare, served, who_serves
from flts_ray.jobs.series_rollback import scores_with_series
from flts_ray.models.base import fit_fully
from flts_ray.models.blend_edit import as_blend, with_series_from
from flts_ray.registry import ModelVersion
from flts_ray.report_models import diff_view, members_text, served_table
from tests.synthetic import seasonal_set
from tests.unit.test_blend import DATA, TASK, blend, member

AT = datetime(2024, 7, 1, tzinfo=UTC)


def version(n: int, kind: str, prepared: str = "p") -> ModelVersion:
    return ModelVersion(n, kind, f"d{n}", f"r{n}", prepared, f"models/{n}", AT)


def plain(n: int = 1, lags: int = 24) -> Side:
    fitted = fit_fully("ar", DATA, TASK, {"lags": lags})
    scores = {"s0": 0.5, "s1": 0.6, "s2": 0.4}
    return Side(version(n, "ar"), as_blend(fitted, "ar"), scores, scores)


def blended(n: int = 2) -> Side:
    scores = {"s0": 0.4, "s1": 0.6, "s2": 0.8}
    return Side(version(n, "blend"), blend(), {}, scores)


def shown(renderable: object) -> str:
    screen = io.StringIO()
    Console(file=screen, width=160).print(renderable)
    return screen.getvalue()


def test_a_version_equals_itself() -> None:
    found = compare(blended(), blended(3))
    assert (found.changed, found.params, found.same_data) == ((), (), True)
    assert "0 of 3 series are served otherwise" in shown(diff_view(found, "mae"))


def test_members_weights_parameters_and_series_are_compared() -> None:
    found = compare(plain(lags=5), blended())
    assert found.versions == ((1, "ar"), (2, "blend"))
    assert found.weights == (
        {"ar": (1.0, 1.0)},
        {"ar": (0.25, 0.25), "seasonal_naive": (0.75, 0.75)},
    )
    assert ("ar", "lags", 5, 24) in found.params
    assert [one.series for one in found.changed] == ["s2", "s0"]  # s1 is served by ar alone
    assert found.changed[0].test == (0.4, 0.8)
    assert found.changed[0].validation == (0.4, None)
    assert found.changed[0].members[1] == {
        "ar": (0.5, 0.5), "seasonal_naive": (0.25, 0.25), "prophet": (0.25, 0.25),
    }  # fmt: skip
    text = shown(diff_view(found, "scaled_pinball"))
    assert "version 1 (ar) and version 2 (blend) were fitted on the same prepared set" in text
    assert "2 of 3 series are served otherwise" in text
    assert "ar 0.50 + prophet 0.25 + seasonal_naive 0.25" in text
    raw = json.loads(found.to_json())
    assert raw["changed"][0]["series"] == "s2"
    assert raw["weights"][1]["ar"] == [0.25, 0.25]


def test_series_of_one_version_alone_are_named_and_other_data_are_told() -> None:
    fewer = DATA.take([0, 2])
    one = Side(version(1, "ar", "q"), as_blend(fit_fully("ar", fewer, TASK), "ar"), {}, {})
    found = compare(one, plain(2))
    assert (found.only, found.series) == (((), ("s1",)), 2)
    text = shown(diff_view(found, "mae"))
    assert "only version 2 knows: s1" in text
    assert "so their scores are of different windows" in text


def test_long_lists_end_with_a_count() -> None:
    many = seasonal_set(n_series=24, length=200)
    ar, naive = (as_blend(fit_fully(kind, many, TASK), kind) for kind in ("ar", "seasonal_naive"))
    found = compare(Side(version(1, "ar"), ar, {}, {}), Side(version(2, "x"), naive, {}, {}))
    assert "and 4 more" in shown(diff_view(found, "mae"))


def test_members_of_one_kind_go_by_their_names() -> None:
    older = as_blend(fit_fully("ar", DATA, TASK, {"lags": 5}), "ar")
    patched = with_series_from(as_blend(member("ar"), "ar"), older, "s1", "@v1")
    side = Side(version(3, "blend"), patched, {}, {})
    assert side.labels == ("ar", "ar@v1")
    found = served(side, "s1")
    assert found is not None
    assert (found.members, found.own) == ({"ar@v1": (1.0, 1.0)}, True)


def test_who_serves_a_series_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {1: plain(), 2: blended()}

    class Registry:
        name = "load"

        def champion(self) -> ModelVersion:
            return sides[2].version

        def version(self, n: int) -> ModelVersion:
            return sides[n].version

    class Services:
        def registry(self) -> Registry:
            return Registry()

    services: object = Services()
    monkeypatch.setattr(jobs_diff, "open_side", lambda _, found: sides[found.version])
    (now,) = who_serves(services, "s2")  # type: ignore[arg-type]
    assert (now.version, now.own, now.validation, now.test) == (2, True, None, 0.8)
    both = who_serves(services, "s0", [1, 2])  # type: ignore[arg-type]
    assert [one.own for one in both] == [False, False]
    text = shown(served_table("s0", both, "mae"))
    assert "version 1 (ar)" in text
    assert "seasonal_naive 0.75 + ar 0.25" in text
    assert "of all series" in text
    with pytest.raises(DataError, match=r"series 'zz' is in none of the versions .*\(2\)"):
        who_serves(services, "zz")  # type: ignore[arg-type]


def test_a_weight_of_the_mean_is_shown_where_it_differs() -> None:
    assert members_text({"ar": (0.5, 0.25), "gru": (0.5, 0.75)}) == (
        "ar 0.50 (mean 0.25) + gru 0.50 (mean 0.75)"
    )


def scores(**values: float) -> pa.Table:
    return pa.table({"unique_id": list(values), "mae": np.array(list(values.values()))})


def test_scores_go_back_with_their_series() -> None:
    merged = scores_with_series(scores(a=1.0, b=2.0), scores(a=3.0, b=4.0), "b")
    assert merged is not None
    assert dict(zip(*merged.to_pydict().values(), strict=True)) == {"a": 1.0, "b": 4.0}
    alone = scores_with_series(scores(a=1.0, b=2.0), None, "b")
    assert alone is not None
    assert alone["unique_id"].to_pylist() == ["a"]
    assert scores_with_series(None, scores(a=1.0), "a") is None
