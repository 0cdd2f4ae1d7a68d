"""Which linear map is which, told from what moves what in one decoder layer.

Readers take the residual stream in, writers add to it. A writer that other tokens reach is the attention's output. A row
before it is a query where it moves only its own token, in the d columns of one head; a value where it moves one column in
each of the G heads that read it, and later tokens, too; a key where it moves all G x d columns of those heads.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

import torch

from pruning.discovery.clamped import AT, BATCH, FACTOR, STREAM, ClampedModel
from pruning.discovery.modules import Unproved
from pruning.discovery.perturbation import Influences
from pruning.layout import AttentionLayout, MlpLayout, is_linear

QUERY, KEY, VALUE = range(3)


@dataclass(frozen=True)
class Roles:
    """The linear maps of one layer, by their full names."""

    index: int
    attention: str | None = None
    """The output projection; None where the layer has no attention."""

    attention_sources: tuple[str, ...] = ()
    """What moves it."""

    mlp: str | None = None
    """The down projection; None where the layer has a mixture of experts, or nothing."""

    mlp_sources: tuple[str, ...] = ()


def find_roles(model: ClampedModel, index: int, influences: Influences) -> Roles:
    """Return which linear map does what in a layer.

    Args:
        model: see clamped.py.
        index: of the layer.
        influences: measured in it.

    Raises:
        Unproved: a map that neither reads nor writes the residual stream, or does both; or two attentions or MLPs.
    """
    maps = [name for name in model.maps(index) if is_linear(model.model.get_submodule(name))]
    readers = [name for name in maps if (STREAM, name) in influences]
    writers = [name for name in maps if (name, STREAM) in influences]
    for name in maps:
        if (name in readers) == (name in writers):
            what = "both reads and writes" if name in readers else "neither reads nor writes"
            raise Unproved(name, f"{what} the residual stream")
    sources = {writer: tuple(name for name in readers if (name, writer) in influences) for writer in writers}
    for name in readers:
        if sum(name in group for group in sources.values()) != 1:
            raise Unproved(name, "does not move exactly one of the maps that write the residual stream")
    attention = [name for name in writers if any(len(influences[source, name].later) for source in sources[name])]
    mlp = [name for name in writers if name not in attention]
    for name in (*attention[1:], *mlp[1:]):
        raise Unproved(name, "is the output of a second attention or MLP in one layer")
    return Roles(
        index,
        *((attention[0], sources[attention[0]]) if attention else (None, ())),
        *((mlp[0], sources[mlp[0]]) if mlp else (None, ())),
    )


def attention_layout(model: ClampedModel, roles: Roles, influences: Influences) -> AttentionLayout:
    """Return the layout of a layer's attention.

    Raises:
        Unproved: rows mix heads, or a projection holds them in an order that no layout describes.
    """
    output, sources = roles.attention, roles.attention_sources
    assert output is not None
    prefix = f"{model.layers}.{roles.index}."
    rows, head_dim, share = _row_roles(model, output, sources, influences)
    found = {}
    for source, kinds in rows.items():
        for kind in kinds.unique().tolist():
            if kind in found:
                raise Unproved(source, f"is a second projection of {('queries', 'keys', 'values')[kind]}")
            found[kind] = source
    fused = len(sources) == 1
    if sorted(found) != [QUERY, KEY, VALUE] or len(set(found.values())) not in (1, 3):
        raise Unproved(output, f"is not moved by queries, keys and values in one projection or three: {sources}")
    interleaved = fused and _is_interleaved(sources[0], rows[sources[0]], head_dim, share)
    query, key, value = (found[kind].removeprefix(prefix) for kind in (QUERY, KEY, VALUE))
    parents = [name.rpartition(".")[0].replace(".", "/") for name in (query, key, value, output.removeprefix(prefix))]
    module = posixpath.commonpath(parents).replace("/", ".")
    if not module:
        raise Unproved(output, "has no module in common with queries, keys and values but the layer itself")
    norms = [_wide_norm(model, kind, rows, head_dim, influences) for kind in (QUERY, KEY)]
    query_norm, key_norm = (norm and norm.removeprefix(prefix) for norm in norms)
    return AttentionLayout(
        module=module,
        query=query,
        key=key,
        value=value,
        output=output.removeprefix(prefix),
        interleaved=interleaved,
        query_norm=query_norm,
        key_norm=key_norm,
        head_dim=head_dim,
    )


def mlp_layout(model: ClampedModel, roles: Roles) -> MlpLayout:
    """Return the layout of a layer's MLP. Of two projections, up is the one that down's input is proportional to.

    Raises:
        Unproved: more than two projections, or sizes or modules that do not fit.
    """
    down, sources = roles.mlp, roles.mlp_sources
    assert down is not None
    prefix = f"{model.layers}.{roles.index}."
    columns = model.run_layer(roles.index, {})[down].shape[-1]
    if len(sources) == 2:
        linear = [name for name in sources if _is_proportional(model, roles.index, name, down)]
        if not linear:
            raise Unproved(down, f"is proportional to neither of {sources}: which one is the gate?")
        up = linear[-1]
        gate: str | None = next(name for name in sources if name != up)
    elif len(sources) == 1:
        up = sources[0]
        gate = {columns: None, 2 * columns: up}.get(model.widths[up], "")
    if len(sources) not in (1, 2) or gate == "":
        raise Unproved(down, f"has {columns} inputs, which are not one gated or plain product of {sources}")
    paths = [name and name.removeprefix(prefix) for name in (up, down, gate)]
    parents = {path.rpartition(".")[0] for path in paths if path is not None}
    if len(parents) > 1 or ("" in parents and gate is not None):
        raise Unproved(down, "has no module in common with what moves it")
    return MlpLayout(*paths)  # type: ignore[arg-type]


def _row_roles(
    model: ClampedModel, output: str, sources: tuple[str, ...], influences: Influences
) -> tuple[dict[str, torch.Tensor], int, int]:
    """Return the role of every row (R,) of each source, numbers per head d, and query heads to a KV head G."""
    here, later = {}, {}
    for source in sources:
        influence, width = influences[source, output], model.widths[source]
        here[source] = torch.bincount(influence.here[:, 0], minlength=width)
        later[source] = torch.bincount(influence.later[:, 0], minlength=width)
    columns = torch.cat([here[source][later[source] == 0] for source in sources])
    if not len(columns) or len(columns.unique()) > 1 or columns[0] < 2:
        raise Unproved(output, f"queries move {columns.unique().tolist()} of its inputs, not those of one head each")
    head_dim = int(columns[0])
    kv_rows = sum(map(len, here.values())) - len(columns)
    share = 2 * len(columns) // max(kv_rows, 1)
    rows = {}
    for source in sources:
        kinds = torch.full_like(later[source], -1)
        kinds[later[source] == 0] = QUERY
        kinds[later[source] == share * head_dim] = KEY
        kinds[later[source] == share] = VALUE
        if (kinds < 0).any():
            row = int((kinds < 0).nonzero()[0])
            raise Unproved(
                source,
                f"row {row} moves {int(later[source][row])} inputs of {output} at later tokens: neither a value nor a key "
                f"of {share} query heads with {head_dim} numbers each",
            )
        rows[source] = kinds
    return rows, head_dim, share


def _is_interleaved(source: str, kinds: torch.Tensor, head_dim: int, share: int) -> bool:
    """Say whether the rows of a fused projection go KV head after KV head; all queries come first otherwise."""
    kv_heads = len(kinds) // ((share + 2) * head_dim)
    one = torch.tensor([QUERY] * share + [KEY, VALUE]).repeat_interleave(head_dim)
    if torch.equal(kinds, kinds.sort().values):
        return False
    if torch.equal(kinds, one.repeat(kv_heads)):
        return True
    raise Unproved(source, "holds queries, keys and values in an order that no layout describes")


def _wide_norm(
    model: ClampedModel, kind: int, rows: dict[str, torch.Tensor], head_dim: int, influences: Influences
) -> str | None:
    """Return the norm that queries, or keys, pass all heads together; None where there is none."""
    for (source, sink), influence in influences.items():
        if source in rows and sink in model.norms:
            passing = rows[source][influence.here[:, 0]]
            if (passing == kind).all() and influence.here[:, 1].max() >= head_dim:
                return sink
    return None


def _is_proportional(model: ClampedModel, index: int, source: str, sink: str) -> bool:
    """Say whether the sink's inputs are a multiple of the source's outputs."""
    moved = torch.zeros(BATCH, model.widths[source], dtype=torch.bool)
    moved[1] = True
    before, after = model.run_layer(index, {source: moved})[sink][:2, AT]
    return torch.allclose(after, FACTOR * before)
