"""How each library is set up for a task: the advice of its own documentation, and the task's size.

Design choices: plain numbers that follow from horizon and season, so that they can be printed,
hashed and read without the libraries; nothing is tuned on a test span. Peers were seen to fail with
covariates, so two things were made easier for them: validation may choose to go without, and flags
of days are not divided by their own deviation.

neuralforecast: GRU and LSTM in the sizes of the examples of their pages (two layers of 128, robust
scaling), NHITS with five horizons of input and pooling and frequencies from the space that its
`AutoNHITS` searches, trained with the multi-quantile loss until validation gets no better. darts:
`BlockRNNModel` with reversible normalisation, `QuantileRegression` and early stopping, as its user
guide advises. statsforecast: a day, and for MSTL the day and the week where eight weeks are
affordable at every origin. prophet: defaults.
"""

from __future__ import annotations

from typing import Any

PEERS: dict[str, tuple[str, ...]] = {
    "statsforecast": ("SeasonalNaive", "MSTL", "AutoETS"),
    "prophet": ("Prophet",),
    "neuralforecast": ("NHITS", "GRU", "LSTM"),
    "darts": ("BlockRNN",),
}
FEW_ONLY = ("MSTL", "AutoETS")
"""Fitted again for every window, so only the subsample of windows is affordable."""
RECURRENT_INPUT = 96
MOST_INPUT = 720
LONG_HORIZON = 48
ETS_MOST_SEASON = 24
"""AutoETS ignores longer seasons."""
MSTL_MOST_WEEKLY = 48
"""Steps of a day up to which eight weeks are decomposed at every origin; else four days."""


def settings_of(
    library: str, model: str, horizon: int, season: int, known: bool, past: bool
) -> dict[str, Any]:
    """Settings of one model, JSON values.

    known, past: the task has covariates that are known in advance, or only measured. Raises
    KeyError for a model that is not compared.
    """
    if model not in PEERS[library]:
        raise KeyError(f"{library} has no {model}")
    if library == "statsforecast":
        return _statistical(model, season)
    if library == "prophet":
        return {"uncertainty_samples": 1000}
    found = _network(library, model, horizon)
    return {**found, "variants": _variants(found, known, past)}


def _variants(settings: dict[str, Any], known: bool, past: bool) -> list[dict[str, Any]]:
    """Without covariates, and with them where there are any; validation chooses."""
    told: dict[str, Any] = {"covariates": True}
    if known and "scaler_type" in settings:
        # Robust scaling divides by the deviation of a window, which is zero for most flags of days.
        told["scaler_type"] = "identity"
    return [{"covariates": False}, *([told] if known or past else [])]


def _statistical(model: str, season: int) -> dict[str, Any]:
    week = 7 * season
    if model == "SeasonalNaive":
        return {"season_length": season, "history": 28 * season}
    if model == "AutoETS":
        usable = season if season <= ETS_MOST_SEASON else 1
        return {"season_length": usable, "history": 56 * min(season, 48)}
    seasons = [season, week] if season <= MSTL_MOST_WEEKLY else [season]
    return {
        "season_length": seasons,
        "history": 8 * week if season <= MSTL_MOST_WEEKLY else 4 * season,
    }


def _network(library: str, model: str, horizon: int) -> dict[str, Any]:
    if library == "darts":
        return {
            "cell": "GRU", "input_chunk_length": RECURRENT_INPUT, "hidden_dim": 64,
            "n_rnn_layers": 1, "batch_size": 128, "lr": 1e-3, "n_epochs": 100, "patience": 3,
            "use_reversible_instance_norm": True,
        }  # fmt: skip
    common = {"max_steps": 1000, "learning_rate": 1e-3, "patience": 3, "random_seed": 1}
    if model in ("GRU", "LSTM"):
        return {
            **common, "input_size": RECURRENT_INPUT, "encoder_n_layers": 2,
            "encoder_hidden_size": 128, "decoder_hidden_size": 128, "decoder_layers": 2,
            "windows_batch_size": 128, "scaler_type": "robust", "val_check_steps": 50,
        }  # fmt: skip
    long = horizon >= LONG_HORIZON
    return {
        **common,
        "input_size": max(RECURRENT_INPUT, horizon, min(5 * horizon, MOST_INPUT)),
        "n_pool_kernel_size": [2, 2, 2] if long else [2, 2, 1],
        "n_freq_downsample": [24, 12, 1] if long else [4, 2, 1],
        "windows_batch_size": 256,
        "scaler_type": "robust",
        "val_check_steps": 50,
    }
