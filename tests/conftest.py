"""What the whole suite needs before it imports anything."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

# A Library's operators live as long as the object.
_KEPT: list[torch.library.Library] = []


def _make_torchvision_importable() -> None:
    """Declare two operators of torchvision where its compiled part does not load.

    The torchvision that goes with a CUDA build of torch cannot load its operators beside a CPU build, and
    then fails to import, and transformers with it. No test calls the operators.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_make_torchvision_importable()
