"""Multiplayer Nash Preference Optimization, reproducibly: from SFT reference to printed tables."""

__version__ = "0.2.0"
