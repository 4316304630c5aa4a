"""Cleaning, features, splits and scaling statistics: raw panels in, prepared sets out."""
