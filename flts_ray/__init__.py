"""flts-ray: forecasting of load time series as one Ray application."""

__version__ = "0.1.0"
