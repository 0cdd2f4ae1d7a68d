"""Sums of a parameter's numbers over everything but the dimensions that units are counted along."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def channel_sums(values: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return the sums of `values` over all dimensions but `dims`, counted through `dims`, the first slowest: (positions,).

    The order is that of `pruning.units.positions`, without a copy of the whole tensor.
    """
    others = _others(values, dims)
    return _in_order(values.sum(dim=others) if others else values, dims)


def power_sums(values: torch.Tensor, dims: Sequence[int], power: int) -> torch.Tensor:
    """Return the sums of |value|^power over all dimensions but `dims`, in at least 32 bits: (positions,).

    The sums are taken as norms, which widen 16-bit numbers one at a time: no wider copy is made.
    """
    others = _others(values, dims)
    wide = wider(values)
    norms = torch.linalg.vector_norm(values, power, dim=others, dtype=wide) if others else values.abs().to(wide)
    return _in_order(norms, dims) ** power


def wider(values: torch.Tensor) -> torch.dtype:
    """Return the type to calculate in: float32, or float64 where the numbers are."""
    return torch.promote_types(values.dtype, torch.float32)


def _others(values: torch.Tensor, dims: Sequence[int]) -> list[int]:
    return [dim for dim in range(values.ndim) if dim not in dims]


def _in_order(reduced: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    ascending = sorted(dims)
    return reduced.permute([ascending.index(dim) for dim in dims]).flatten()
