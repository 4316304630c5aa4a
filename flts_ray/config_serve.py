"""Configuration of serving: `serve` and the sections below it.

Sizes are bounds: whatever is larger is refused before any work is done on it.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flts_ray.schema import Address, Section

KEEP_INTERVALS = 20_480
"""Counts of requests that are remembered: three days of a quarter of a minute, two weeks of one."""


class AuthConfig(Section):
    """Who may call. Tokens are in a file or secret, never in the configuration."""

    required: bool = True
    """False opens the API to every program of this machine; only with a loopback host."""
    tokens_file: Address | None = None
    """JSON lines of named tokens with their scope; `flts token` adds one. It is read again when
    it changes. None: `tokens.jsonl` beside the configuration's `root`."""
    requests_per_s: float | None = Field(None, gt=0)
    """Mean rate that one token may ask with, for each replica; None: unlimited."""
    burst: int = Field(100, ge=1)
    """Requests that one token may send at once."""


class TlsConfig(Section):
    """Certificates of the HTTP listener, PEM."""

    cert_file: Address
    key_file: Address


class ForecastLogConfig(Section):
    """Where answers are recorded: Parquet under `<root>/forecasts/<name>/`."""

    enabled: bool = True
    flush_s: float = Field(15.0, gt=0)
    """Most seconds that an answer waits in the buffer of its replica; a kill loses that much."""
    max_mb: float = Field(64.0, gt=0)
    """Size of that buffer; when it is full, because the store is away, the oldest are counted as
    lost."""


class CanaryConfig(Section):
    """How a challenger is tried on live requests. One of share and shadow at a time."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the series, by a hash of their ids, that the challenger answers."""
    shadow: bool = False
    """The challenger forecasts every request off the path; its forecasts are only recorded."""
    max_error_ratio: float = Field(1.2, gt=0)
    """Live error of the challenger against the champion at which it is dropped."""
    max_latency_ratio: float = Field(3.0, gt=0)
    min_windows: int = Field(50, ge=1)
    """Forecasts that must be known to be good or bad before anything is concluded."""

    @model_validator(mode="after")
    def _one_way(self) -> CanaryConfig:
        if self.shadow and self.share > 0:
            raise ValueError("choose either `share` (canary) or `shadow`, not both")
        return self


class AheadConfig(Section):
    """The clock of `scale_ahead`. Two seasons must be counted before one is foreseen."""

    interval_s: float = Field(15.0, gt=0)
    """Requests are counted by intervals of this length."""
    ahead_s: float = Field(60.0, gt=0)
    """How far to look: longer than a replica, or the node that it needs, takes to start."""
    season_s: float = Field(86_400.0, gt=0)
    """After which the load repeats itself."""

    @model_validator(mode="after")
    def _remembered(self) -> AheadConfig:
        if self.ahead_s < self.interval_s or self.season_s < self.interval_s:
            raise ValueError("`ahead_s` and `season_s` hold at least one `interval_s`")
        if 2 * self.season_s + self.ahead_s > KEEP_INTERVALS * self.interval_s:
            least = (2 * self.season_s + self.ahead_s) / KEEP_INTERVALS
            raise ValueError(
                f"two seasons of {self.season_s:g} s are more than {KEEP_INTERVALS} intervals; "
                f"raise interval_s to {least:.3g} or more"
            )
        return self


class ServeConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free port."""
    proxy: Literal["haproxy", "python"] = "haproxy"
    """What listens: Ray Serve's HAProxy, or its slower Python proxy where that cannot run."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    cpus_per_replica: float = Field(0.5, ge=0)
    target_ongoing_requests: float = Field(8, gt=0)
    target_latency_ms: float | None = Field(None, gt=0)
    """Adds replicas while the 95th percentile of answers is above; None: queue length alone."""
    upscale_delay_s: float = Field(2.0, ge=0)
    """Seconds of overload before a replica is added."""
    downscale_delay_s: float = Field(120.0, ge=0)
    """Seconds of quiet before one is taken away."""
    scale_ahead: bool = False
    """Forecast the request rate and add replicas before it rises; never fewer than needed now."""
    ahead: AheadConfig = AheadConfig()
    max_ongoing_requests: int = Field(64, ge=1)
    max_queued_requests: int = Field(256, ge=1)
    """Requests that wait at one replica; beyond them callers get 429 at once."""
    max_batch: int = Field(256, ge=1)
    """Most series in one micro-batch."""
    max_wait_ms: float = Field(2.0, ge=0)
    """Most time that a micro-batch waits for more requests; a lone request never waits."""
    timeout_s: float = Field(30.0, gt=0)
    """A request older than this is dropped; a caller's own deadline may be shorter."""
    poll_s: float = Field(1.0, gt=0)
    """Seconds between two looks at the champion alias."""
    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    max_bulk_bytes: int = Field(256 * 2**20, ge=1024)
    """The same for `/v1/forecast:batch`."""
    max_depth: int = Field(16, ge=4)
    """Most nested lists and objects of a JSON body."""
    max_series: int = Field(1000, ge=1)
    """Most series in one request."""
    max_bulk_series: int = Field(10_000, ge=1)
    """The same for `/v1/forecast:batch`."""
    max_points: int = Field(100_000, ge=1)
    """Most history points of one series."""
    auth: AuthConfig = AuthConfig()
    tls: TlsConfig | None = None
    log: ForecastLogConfig = ForecastLogConfig()
    canary: CanaryConfig = CanaryConfig()

    @property
    def max_in_work(self) -> int:
        """Most requests that a replica holds, those that wait for the model included."""
        return self.max_ongoing_requests + self.max_queued_requests

    @model_validator(mode="after")
    def _bounds(self) -> ServeConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        if not self.auth.required and not is_loopback(self.host):
            raise ValueError(
                f"auth.required false needs a loopback host such as 127.0.0.1, not {self.host!r}"
            )
        return self


def is_loopback(host: str) -> bool:
    """True for addresses that only programs of this machine reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
