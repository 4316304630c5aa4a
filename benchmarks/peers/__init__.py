"""Runners of other forecasting libraries, in an environment of their own."""
