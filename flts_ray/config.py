"""One typed configuration: every field of `configs/*.yaml`, its default and its unit.

Unknown keys are errors with a suggestion; every problem of a file is reported in one error.
Addresses (paths and URIs) may hold `${NAME}` or `${NAME:-default}`, taken from the environment;
nothing else comes from there. Sections are frozen: a run uses the configuration it printed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from flts_ray.config_blend import BlendConfig
from flts_ray.config_serve import ServeConfig
from flts_ray.config_stream import EventsConfig, IngestConfig, StreamConfig
from flts_ray.errors import ConfigError
from flts_ray.panel import Role
from flts_ray.schema import (
    Address,
    Choice,
    FrequencyText,
    IntRange,
    LogUniform,
    Moment,
    Section,
    Share,
    TimeZone,
    Uniform,
    read_space,
)

__all__ = ["Choice", "Config", "IntRange", "LogUniform", "Uniform", "load_config", "parse_config"]

DEFAULT_QUANTILES = (
    0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975,
)  # fmt: skip
Score = Literal["scaled_pinball", "composite", "mae", "rmse", "wape", "mase", "pinball"]


class DataConfig(Section):
    """Where the raw table is and what its columns mean."""

    path: Address | tuple[Address, ...] | None = None
    """File, folder or glob, local or `s3://`; or a list of them."""
    snapshot: Literal["latest"] | Annotated[int, Field(ge=1)] | None = None
    """In place of `path`: the table that was ingested from `stream`, newest or of this number."""
    test_path: Address | tuple[Address, ...] | None = None
    """Files whose rows are the test span; None: the last `split.test` share of each series."""
    format: Literal["auto", "csv", "parquet"] = "auto"
    layout: Literal["long", "wide"] = "long"
    time: str = "ds"
    id: str | None = None
    """Column that names the series; None: one series a file (or a target)."""
    id_from_path: str | None = None
    """Regular expression with one group that finds the series name in the file name."""
    target: str = "y"
    """Target column of the long layout."""
    targets: tuple[str, ...] = ()
    """Target columns of the wide layout; each becomes a series `<id>/<target>`."""
    covariates: dict[str, Role] = {}
    units: str = ""
    frequency: FrequencyText | None = None
    """Step of the grid, such as 30min; None: inferred from the stamps."""
    time_zone: TimeZone = "UTC"
    """Local zone of the load, for calendar features."""
    stamp_time_zone: TimeZone | None = None
    """Zone of stamps written without an offset; None: `time_zone`."""
    until: Moment | None = None
    """ISO 8601; rows at or after this moment are left out. Without an offset: `time_zone`."""

    @model_validator(mode="after")
    def _layout(self) -> DataConfig:
        if (self.path is None) == (self.snapshot is None):
            raise ValueError("give either `path` (files) or `snapshot` (the ingested table)")
        if self.layout == "wide" and not self.targets:
            raise ValueError("layout wide needs `targets`, the list of target columns")
        if self.layout == "long" and self.targets:
            raise ValueError("`targets` belongs to layout wide; layout long has one `target`")
        if self.id_from_path is not None:
            try:
                groups = re.compile(self.id_from_path).groups
            except re.error as error:
                raise ValueError(f"id_from_path is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"id_from_path needs exactly one group, it has {groups}")
        named = {self.time, self.id or "", self.target, *self.targets}
        clash = named & set(self.covariates)
        if clash:
            raise ValueError(f"covariates repeat another column: {', '.join(sorted(clash))}")
        return self


class PrepareConfig(Section):
    """How series are repaired, clipped and quarantined. Runs are counted in grid steps."""

    duplicates: Literal["last", "mean", "quarantine"] = "last"
    max_gap: int = Field(6, ge=0)
    """Most steps of a gap that are imputed, counted from its start; the rest stays missing."""
    max_missing: Share = 0.3
    """Series with a larger share of missing steps are quarantined."""
    clip: float | None = Field(3.0, gt=0)
    """Values beyond this many 1-99 % ranges outside the 1st or 99th percentile of the training
    span are clipped in what models see, never in what they are judged on; None: never."""
    constant: Literal["quarantine", "keep"] = "quarantine"
    """What to do with series that never change within the training span (all zero included)."""
    missing_future: Literal["quarantine", "carry"] = "quarantine"
    """A row without the value of a known-future covariate: quarantine the series, naming the
    column and the stamp, or carry the last value on."""
    holidays: str | None = None
    """Country or country-subdivision code of the `holidays` library, such as AU-VIC."""
    buckets: int | None = Field(None, ge=1)
    """Number of hash buckets; None: from the size of the input."""
    engine: Literal["auto", "ray", "local"] = "auto"
    """`local` runs the same steps in this process; `auto` does so for inputs under 256 MiB
    unless Ray already runs."""
    salt: str = ""
    """Changes the hash of the prepared set, to force a separate copy."""


class SplitConfig(Section):
    """Shares of each series, in time order: training, then validation, then test."""

    validation: Share = 0.15
    """Share of what is left after the test span."""
    test: Share = 0.15
    """Share of the series; ignored where `data.test_path` is given."""


class TaskConfig(Section):
    """What is forecast."""

    horizon: int = Field(24, ge=1, le=10_000)
    """Steps ahead."""
    season: int | None = Field(None, ge=1)
    """Steps in a season; None: a day below one day, else a week."""
    quantiles: tuple[float, ...] = DEFAULT_QUANTILES

    @model_validator(mode="after")
    def _levels(self) -> TaskConfig:
        levels = self.quantiles
        if any(not 0 < q < 1 for q in levels) or list(levels) != sorted(set(levels)):
            raise ValueError("quantiles must rise strictly and lie between 0 and 1")
        missing = [q for q in (0.025, 0.1, 0.5, 0.9, 0.975) if q not in levels]
        if missing:
            raise ValueError(
                f"quantiles must include {missing}: the median and the ends of the 80 % and "
                "95 % bands are judged"
            )
        return self


class ModelConfig(Section):
    """One model kind in the study: how many trials, and fixed values or search spaces."""

    trials: int = Field(1, ge=0)
    params: dict[str, Any] = {}
    """Name to a fixed value or a space: {choice: [...]}, {uniform: [lo, hi]},
    {loguniform: [lo, hi]} or {integer: [lo, hi]}."""

    @model_validator(mode="before")
    @classmethod
    def _spaces(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("params"), Mapping):
            return raw
        return {**raw, "params": {k: read_space(k, v) for k, v in raw["params"].items()}}


class TuneConfig(Section):
    budget_s: float = Field(600, gt=0)
    """Wall-clock seconds for the study; baselines and the first trial of each kind go first."""
    cpus_per_trial: float = Field(1, gt=0)
    gpus_per_trial: float = Field(0, ge=0)
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Where networks train; auto: on a GPU where a trial is given one and torch sees it."""
    seed: int = 0
    asha_grace_epochs: int = Field(2, ge=1)
    asha_reduction: float = Field(3, gt=1)
    validation_stride: int | None = Field(None, ge=1)
    """Steps between validation origins; None: chosen so that at most 200 a series are used, and of
    all series 262,144."""
    by_bucket_rows: int = Field(20_000_000, ge=0)
    """Of a prepared set with more rows, the linear model's refit sums the windows bucket by bucket
    on the cluster, and twenty times as many of them."""
    most_series: int = Field(20_000, ge=100)
    """Series that trials, blend and judge look at. Of a set with more they see a random sample of
    so many, which is all that is held in memory; the linear model learns from every series, and
    each model knows all of them afterwards. Kinds with a trial that fits every series by itself
    are left out of such a study. `flts update` reads all rows of a set, however many."""

    @property
    def where(self) -> str:
        """`device`; for auto without a GPU a trial the CPU, because Ray hides no GPU from it."""
        return "cpu" if self.device == "auto" and not self.gpus_per_trial else self.device


class JudgeConfig(Section):
    score: Score = "scaled_pinball"
    stride: int | None = Field(None, ge=1)
    """Steps between origins; None: the horizon, more where `max_origins` would be passed."""
    max_origins: int = Field(400, ge=1)
    """Most origins of one series."""
    update_every: int | None = Field(None, ge=0)
    """Steps between the updates of the backtest whose bands are kept up to date; None: a season, or
    the horizon where that is longer; 0: no such backtest."""


class GateConfig(Section):
    level: float = Field(0.05, gt=0, lt=0.5)
    """One-sided significance level of the paired bootstrap."""
    resamples: int = Field(2000, ge=100, le=100_000)
    baseline: str = "seasonal_naive"
    update_margin: float = Field(0.01, ge=0, le=1)
    """Most that an updated champion may be worse than it was, as a share of its score."""
    update_learns: Literal["all", "bands"] = "all"
    """What an update learns from newer rows: everything, or the bands alone, as the backtest does
    whose bands are kept up to date; that costs no training, and shows only where `judge.score`
    reads bands."""


class MlflowConfig(Section):
    uri: Address | None = None
    """Tracking server; None: one is started on the loopback interface for the command."""
    experiment: str | None = None
    """None: the configuration's name."""


class RayConfig(Section):
    address: Address | None = None
    """Running cluster to join; None: RAY_ADDRESS, else a local one for the command."""
    num_cpus: int | None = Field(None, ge=1)
    object_store_mb: int = Field(300, ge=80)
    dashboard_port: int = Field(8265, ge=0, le=65535)
    """The next free port is taken if it is busy; 0 takes any."""


class Config(Section):
    """The whole configuration. `name` is also the name of the model in the registry."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    root: Address = ".flts"
    """Where everything is kept: a folder, or `s3://bucket/prefix`."""
    data: DataConfig
    prepare: PrepareConfig = PrepareConfig()
    split: SplitConfig = SplitConfig()
    task: TaskConfig = TaskConfig()
    models: dict[str, ModelConfig] = {
        kind: ModelConfig() for kind in ("seasonal_naive", "ar", "gru", "lstm", "prophet")
    }
    tune: TuneConfig = TuneConfig()
    blend: BlendConfig = BlendConfig()
    judge: JudgeConfig = JudgeConfig()
    gate: GateConfig = GateConfig()
    serve: ServeConfig = ServeConfig()
    stream: StreamConfig = StreamConfig()
    ingest: IngestConfig = IngestConfig()
    events: EventsConfig = EventsConfig()
    mlflow: MlflowConfig = MlflowConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _baselines(self) -> Config:
        missing = {"seasonal_naive", "ar", self.gate.baseline} - {
            kind for kind, model in self.models.items() if model.trials > 0
        }
        if missing:
            raise ValueError(
                f"models must keep the baselines with at least one trial; missing: "
                f"{', '.join(sorted(missing))}"
            )
        return self

    def canonical(self, *sections: str) -> str:
        """Canonical JSON of the named sections (all of them without names)."""
        raw = self.model_dump(mode="json", include=set(sections) or None)
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    def digest(self, *sections: str) -> str:
        """SHA-256 (hex) of `canonical`."""
        return hashlib.sha256(self.canonical(*sections).encode()).hexdigest()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a YAML file; `overrides` are `section.key=value` in YAML notation.

    Raises ConfigError that lists every problem with its field, value and fix.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such configuration file; `flts init your.csv` writes one"
        ) from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections at the top, found {raw!r}")
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw, where=str(path))


def parse_config(raw: Mapping[str, Any], where: str = "configuration") -> Config:
    """Validate a plain mapping; `where` names its origin in errors. Raises ConfigError."""
    try:
        return Config.model_validate(dict(raw))
    except ValidationError as error:
        lines = [f"  - {_problem(dict(e))}" for e in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{where}: {len(lines)} problem(s)", *lines])) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {override!r}: write section.key=value, for example task.horizon=48"
        )
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is no YAML: {error}") from None


def _problem(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "top level"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key{_suggest(error['loc'])}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place}: required, but not given"
    value = error.get("input")
    shown = "" if isinstance(value, Mapping) else f" (value: {value!r})"
    return f"{place}: {message}{shown}"


def _suggest(loc: Sequence[Any]) -> str:
    section: Any = Config
    for part in loc[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            kind = section.model_fields[part].annotation
            section = (
                kind if isinstance(kind, type) and issubclass(kind, BaseModel) else ModelConfig
            )
    near = difflib.get_close_matches(str(loc[-1]), section.model_fields, 1)
    known = ", ".join(section.model_fields)
    return f"; did you mean {near[0]}?" if near else f"; known keys: {known}"
