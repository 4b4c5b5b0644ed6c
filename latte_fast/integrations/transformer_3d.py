"""diffusers' LatteTransformer3DModel on the fused blocks: its bases, constructor, files and module tree."""

import functools
import importlib
import itertools
from typing import Any

import diffusers
from torch import nn

from latte_fast.integrations.called_block import CalledBlockT2V
from latte_fast.integrations.diffusers_model import PatchedT2V, finish, why_not
from latte_fast.integrations.swap import become
from latte_fast.integrations.unfused import calls_alone
from latte_fast.models.checks import check_keyword
from latte_fast.models.latte_t2v.checks import EXTEND
from latte_fast.modules.recompute import POLICIES

_Theirs: Any = diffusers.LatteTransformer3DModel


def _base(module: str, name: str) -> Any:
    """Returns a base of diffusers' newer models; an empty one where the release has none, or its Latte has it."""
    found = getattr(importlib.import_module(module), name, None)
    return type(name, (), {}) if found is None or issubclass(_Theirs, found) else found


_Processors: Any = _base("diffusers.models.attention", "AttentionMixin")
_Adapters: Any = _base("diffusers.loaders.peft", "PeftAdapterMixin")
# older releases look a class up here before they set the scales of adapters; all but UNets leave them as they are
_SCALES = getattr(importlib.import_module("diffusers.loaders.peft"), "_SET_ADAPTER_SCALE_FN_MAPPING", {})
_SCALES.setdefault("LatteTransformer3DModel", lambda model, weights: weights)


class LatteTransformer3DModel(PatchedT2V, _Processors, _Adapters, _Theirs):
    """x (B, C, F, H, W), t (B,), text (B, T, caption_channels) -> (B, 2C, F, H, W).

    It is a LatteTransformer3DModel of the installed diffusers with that class's constructor, files and API, and writes
    folders that load without latte_fast. Attention processors, adapters with LoRA, and all caches of diffusers work.

    Args:
        recompute: what the backward computes again instead of keeping, as in LatteT2V.
        extend_time: positions where F is neither 1 nor video_length, as in LatteT2V.
    """

    # model_index.json then names a class that every installation of diffusers has
    __module__ = _Theirs.__module__
    patched, owned = True, True

    def __init__(self, *args: Any, recompute: str = "none", extend_time: str = "error", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.choose(recompute, extend_time)
        reason = why_not(self)
        if reason is not None:
            raise ValueError(f"LatteTransformer3DModel: {reason}")
        lists: Any = (self.transformer_blocks, self.temporal_transformer_blocks)
        for block in itertools.chain(*lists):
            become(block, CalledBlockT2V)
        finish(self)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # by the class itself, whose name leads to diffusers'
        return _remade, (None if type(self) is _ours else type(self),), self.__dict__.copy()

    @classmethod
    def from_pretrained(cls, *args: Any, recompute: str = "none", extend_time: str = "error", **kwargs: Any) -> Any:
        """Loads a model by all options of diffusers' class; `recompute` and `extend_time` as in the constructor."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.choose(recompute, extend_time)
        # weights were set one by one: the projections of an attention share a storage again
        model.share_projections()
        return loaded

    def choose(self, recompute: str, extend_time: str) -> None:
        check_keyword("recompute", recompute, POLICIES, "LatteTransformer3DModel")
        check_keyword("extend_time", extend_time, EXTEND, "LatteTransformer3DModel")
        self.recompute, self.extend_time = recompute, extend_time

    def fuse_qkv_projections(self) -> None:
        """Makes sure that queries, keys and values of each attention are one product, as they are by default."""
        left = self.share_projections() + list(calls_alone(self))
        if left:
            rule = "plain linear layers without hooks under the default processor"
            raise ValueError(f"fuse_qkv_projections: projections of {left[0]} must be {rule} ({len(left)} are not)")

    def unfuse_qkv_projections(self) -> None:
        """Does nothing, as no parameter was changed."""

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        self.forget_text()  # weights are written through .data, which leaves no trace
        super().fuse_lora(*args, **kwargs)

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        self.forget_text()
        super().unfuse_lora(*args, **kwargs)


_ours = LatteTransformer3DModel
# the signature is diffusers', by which it reads a config
functools.update_wrapper(_ours.__init__, _Theirs.__init__)


def _remade(cls: type[nn.Module] | None) -> nn.Module:
    """Recreates an instance for pickle and copy, before its state is set."""
    cls = cls or _ours
    return cls.__new__(cls)
