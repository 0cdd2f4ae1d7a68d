"""Layouts of decoders that no family declares, found by perturbation and proved."""

from pruning.discovery.layout import discover_layout as discover_layout
