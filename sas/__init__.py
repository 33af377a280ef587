"""sas: sequential amodal segmentation.

From one RGB image, layer by layer, the complete mask of every object, hidden parts included, front to back.

>>> from sas import SASPipeline
>>> result = SASPipeline.from_pretrained()("photo.jpg")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Composer": "sas.data.composer",
    "ConcatUNet": "sas.models.unet",
    "LayeredResult": "sas.result",
    "SASPipeline": "sas.pipeline",
    "Scene": "sas.scene",
    "SceneBatch": "sas.scene",
    "Trainer": "sas.training",
    "load_config": "sas.config",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from sas.config import load_config
    from sas.data.composer import Composer
    from sas.models.unet import ConcatUNet
    from sas.pipeline import SASPipeline
    from sas.result import LayeredResult
    from sas.scene import Scene, SceneBatch
    from sas.training import Trainer


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `sas --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sas' has no attribute {name!r}: public names are {', '.join(__all__)}")
    from sas.imports import quick_imports

    with quick_imports():
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
