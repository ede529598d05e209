"""Which axis is grouped, and the parts or scales that follow."""

from __future__ import annotations

import dataclasses

import torch

from dexport.passes.quantization.grouping import channel_groups, token_groups
from dexport.passes.quantization.recipe import ActivationSpec
from tests.passes.quantization.layers import seen_of

BASE = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
WIDE_CHANNELS = seen_of(BASE * torch.tensor([1.0] * 12 + [30.0] * 4))
WIDE_TOKENS = seen_of(BASE * torch.tensor([1.0] * 6 + [30.0] * 2)[:, None])
TABLE = ActivationSpec(format="int8", mode="table")


def _asked(kind: str, mode: str = "table") -> ActivationSpec:
    return ActivationSpec(format="int8", mode=mode, granularity=f"{kind}groups-2")


def test_the_axis_that_spreads_more_is_grouped() -> None:
    assert channel_groups(WIDE_CHANNELS, _asked("")) == [tuple(range(12)), tuple(range(12, 16))]
    assert token_groups(WIDE_CHANNELS, _asked("")) is None
    assert channel_groups(WIDE_TOKENS, _asked("")) == []
    assert token_groups(WIDE_TOKENS, _asked("")) is not None


def test_without_tokens_channels_are_grouped() -> None:
    seen = dataclasses.replace(WIDE_TOKENS, token_minimum=None, token_maximum=None)
    assert channel_groups(seen, _asked("")) and token_groups(seen, _asked("")) is None


def test_the_axis_may_be_said() -> None:
    assert len(channel_groups(WIDE_TOKENS, _asked("channel-"))) == 2 and token_groups(WIDE_TOKENS, _asked("channel-")) is None
    assert channel_groups(WIDE_CHANNELS, _asked("token-")) == [] and token_groups(WIDE_CHANNELS, _asked("token-")) is not None
    for granularity in ("tensor", "token"):
        spec = dataclasses.replace(TABLE, granularity=granularity)
        assert channel_groups(WIDE_CHANNELS, spec) == [] and token_groups(WIDE_TOKENS, spec) is None


def test_tokens_of_a_group_share_a_scale() -> None:
    seen = WIDE_TOKENS
    assert seen.token_minimum is not None and seen.token_maximum is not None
    absmax = torch.maximum(seen.token_maximum, -seen.token_minimum)
    table, static = (token_groups(seen, _asked("token-", mode)) for mode in ("table", "static"))
    assert table is not None and table.scale is not None and table.scale.shape == (3, 8) and table.mode == "table"
    assert static is not None and static.scale is not None and static.scale.shape == (8, 1) and static.mode == "static"
    for tokens in (slice(0, 6), slice(6, 8)):
        each = absmax[:, tokens].amax(1, keepdim=True) / 127
        assert torch.allclose(table.scale[:, tokens], each.expand(-1, tokens.stop - tokens.start))
        assert torch.allclose(static.scale[tokens], each.amax().expand(tokens.stop - tokens.start, 1))
