"""Measurements, as ratios within one run against a named peer. `make bench` runs them all."""
