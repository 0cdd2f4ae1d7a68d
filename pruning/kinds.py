"""The kinds of units that can be cut, as `pruning.structures` names them."""

from __future__ import annotations

from enum import Enum


class UnitKind(Enum):
    """Kinds of units."""

    kv_group = "kv_group"
    """A KV head with the query heads that read it."""

    query_head = "query_head"
    """A query head inside its KV group; every KV group of a layer keeps the same number."""

    mlp_channel = "mlp_channel"
    """A row of gate and up and a column of down; in a mixture, of one expert, and every expert keeps the same number."""

    expert = "expert"
    """A whole expert of a mixture, with its row of the router."""

    hidden = "hidden"
    """A channel of the residual stream, in every layer at once."""

    attention_layer = "attention_layer"
    """The attention of one layer."""

    mlp_layer = "mlp_layer"
    """The MLP (or the mixture of experts) of one layer."""

    layer = "layer"
    """A whole decoder layer."""

    @property
    def is_depth(self) -> bool:
        """Whether the group is one unit, which leaves as a whole."""
        return self in (UnitKind.attention_layer, UnitKind.mlp_layer, UnitKind.layer)


ATTENTION_KINDS = (UnitKind.kv_group, UnitKind.query_head, UnitKind.attention_layer)
MLP_KINDS = (UnitKind.mlp_channel, UnitKind.expert, UnitKind.mlp_layer)
