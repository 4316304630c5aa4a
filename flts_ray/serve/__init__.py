"""Forecasts over HTTP: request models, prediction, micro-batching, the app, its deployment."""
