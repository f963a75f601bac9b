"""Tierwise: a family of models out of one, and the cheapest member that will do for each call.

Only names live here, and each is imported when it is first used (PEP 562), so that
``import tierwise`` loads neither torch nor llama.cpp nor langchain.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tierwise.compression.adapter.adapter import ModelAdapter as ModelAdapter
    from tierwise.compression.adapter.adapter import adapt_model as adapt_model
    from tierwise.compression.adapter.adapter import run_optimization as run_optimization
    from tierwise.compression.adapter.config import AdapterConfig as AdapterConfig
    from tierwise.compression.adopt import adopt_tier as adopt_tier
    from tierwise.compression.build import build_family as build_family
    from tierwise.compression.recipe import BuildConfig as BuildConfig
    from tierwise.plugin.chat import ChatTierwise as ChatTierwise
    from tierwise.plugin.decision_model import TierwiseDecisionModel as TierwiseDecisionModel
    from tierwise.plugin.llm import TierwiseLLM as TierwiseLLM
    from tierwise.plugin.middleware import TierRoutingMiddleware as TierRoutingMiddleware
    from tierwise.routing.budget import Budget as Budget
    from tierwise.routing.candidates import OtherModel as OtherModel
    from tierwise.routing.decision import Decision as Decision
    from tierwise.routing.router import Router as Router
    from tierwise.runtime.errors import TierwiseError as TierwiseError
    from tierwise.runtime.family import Family as Family
    from tierwise.runtime.resources import Resources as Resources

_EXPORTS = {
    "AdapterConfig": "tierwise.compression.adapter.config",
    "Budget": "tierwise.routing.budget",
    "BuildConfig": "tierwise.compression.recipe",
    "ChatTierwise": "tierwise.plugin.chat",
    "Decision": "tierwise.routing.decision",
    "Family": "tierwise.runtime.family",
    "ModelAdapter": "tierwise.compression.adapter.adapter",
    "OtherModel": "tierwise.routing.candidates",
    "Resources": "tierwise.runtime.resources",
    "Router": "tierwise.routing.router",
    "TierRoutingMiddleware": "tierwise.plugin.middleware",
    "TierwiseDecisionModel": "tierwise.plugin.decision_model",
    "TierwiseError": "tierwise.runtime.errors",
    "TierwiseLLM": "tierwise.plugin.llm",
    "adapt_model": "tierwise.compression.adapter.adapter",
    "adopt_tier": "tierwise.compression.adopt",
    "build_family": "tierwise.compression.build",
    "run_optimization": "tierwise.compression.adapter.adapter",
}

__version__ = "0.1.0"
__all__ = [
    "AdapterConfig",
    "Budget",
    "BuildConfig",
    "ChatTierwise",
    "Decision",
    "Family",
    "ModelAdapter",
    "OtherModel",
    "Resources",
    "Router",
    "TierRoutingMiddleware",
    "TierwiseDecisionModel",
    "TierwiseError",
    "TierwiseLLM",
    "adapt_model",
    "adopt_tier",
    "build_family",
    "run_optimization",
]


_NEED_TORCH = ("ModelAdapter", "adapt_model", "run_optimization")

# `import *` and help() take what can be had.
if sys.modules.get("torch") is None and find_spec("torch") is None:
    for _name in _NEED_TORCH:
        __all__.remove(_name)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tierwise' has no attribute {name!r}")
    try:
        return getattr(import_module(_EXPORTS[name]), name)
    except ModuleNotFoundError as error:
        if name not in _NEED_TORCH or (error.name or "").partition(".")[0] == "tierwise":
            raise
        missing = import_module("tierwise.runtime.errors").MissingExtraError
        raise missing(
            f"{name} needs the package {error.name!r}: pip install 'tierwise[compress]'"
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
