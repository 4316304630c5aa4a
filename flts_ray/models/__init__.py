"""Forecasting models behind one interface; `base.py` is the interface and the registry."""
