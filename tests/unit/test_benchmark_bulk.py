"""What bulk benchmarks measure becomes rows that can be compared."""

from __future__ import annotations

import os

import pyarrow as pa

from benchmarks.bulk import markdown, wires
from benchmarks.bulk_offline import _row, _steady, own_cpu_s
from benchmarks.bulk_serve import Round, by_part
from tests.synthetic import seasonal_set


def took(clock_s: float, cpu_s: float) -> dict[str, float]:
    return {"clock_s": clock_s, "cpu_s": cpu_s, "store_cpu_s": 1.0, "peak_mb": 100.0}


def test_start_up_cancels_out_of_two_sizes() -> None:
    few = _row("ar", 1_000, took(20.0, 11.0), 5e4, 9.0)
    many = _row("ar", 5_000, took(22.0, 15.0), 6e4, 8.0)
    steady = _steady([few, few, many])
    assert (steady["series"], steady["clock_s"], steady["peak_mb"]) == (4_000, 2.0, 0.0)
    assert steady["forecasts_per_s"] == {"model": 60_000, "command": 2_000}
    assert steady["cpu_us_each"] == {"model": 8.0, "command": 1_000.0}
    held_up = _row("ar", 1_000, took(30.0, 11.0), 5e4, 9.0)
    assert _steady([held_up, many])["forecasts_per_s"]["command"] is None


def test_nested_values_become_columns() -> None:
    text = markdown([{"kind": "ar", "series": 10_000, "per_s": {"model": 5, "served": 2.5}}])
    assert text.splitlines()[0] == "| kind | series | per_s model | per_s served |"
    assert text.splitlines()[-1] == "| ar | 10,000 | 5 | 2.5 |"


def test_every_wire_holds_the_same_histories() -> None:
    y = seasonal_set(n_series=3, length=200).y.reshape(3, 200).astype("float32")
    forms = wires(["a", "b", "c"], y)
    assert set(forms) == {"json", "msgpack", "arrow"}
    table = pa.ipc.open_stream(forms["arrow"].body).read_all()
    assert table["unique_id"].to_pylist() == ["a", "b", "c"]
    assert table["y"].to_pylist() == y.tolist()


def test_cpu_is_told_by_part_and_a_process_that_is_gone_is_none() -> None:
    gone = 2**22 + 1
    assert by_part([os.getpid(), gone]) == {"replicas": [], "ingress": [], "ray": [os.getpid()]}
    assert own_cpu_s(gone) == 0.0
    assert own_cpu_s(os.getpid()) > 0.0
    assert Round(1.0, {"replicas": 2.0, "callers": 0.5}).all_cpu_s == 2.5
