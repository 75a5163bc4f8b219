"""The published image processors of transformers, on Pillow's filters.

Their modules can't be imported without torchvision, so their source is executed as it is, all but what comes from
torchvision: a base class with the few operations that the processors ask for, resizing among them, stands in for that.
Pillow is the oracle for pixels; what is done with them is the published code.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FROM_TORCHVISION = ("torchvision.transforms.v2", "image_processing_backends")


class PillowBackend:
    """Instead of `TorchvisionBackend`; images are (n, 3, height, width) uint8."""

    rescale_factor = 1 / 255  # what processors have that do not say it

    def resize(self, image: Tensor, size: Any, resample: Any = None, **_: Any) -> Tensor:
        resized = [
            np.asarray(
                Image.fromarray(one.permute(1, 2, 0).numpy()).resize(
                    (size.width, size.height), Image.Resampling(resample)
                )
            )
            for one in image
        ]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)

    def normalize(self, images: Tensor, mean: list[float], std: list[float]) -> Tensor:
        mean, std = (torch.tensor(x, dtype=images.dtype).view(3, 1, 1) for x in (mean, std))
        return images.sub(mean).div(std)

    def rescale_and_normalize(
        self, images: Tensor, do_rescale: bool, factor: float, do_normalize: bool, mean: list[float], std: list[float]
    ) -> Tensor:
        assert do_rescale
        assert do_normalize
        return self.normalize(images.float(), [x / factor for x in mean], [x / factor for x in std])


def _pad(images: Tensor, padding: list[int], fill: list[int]) -> Tensor:
    left, top, right, bottom = padding
    assert not any(fill)
    return torch.nn.functional.pad(images, (left, right, top, bottom))


@lru_cache
def published_module(family: str) -> dict[str, Any]:
    """The names of the module that holds the family's processor: also its functions, such as `smart_resize`."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    name = "llama4" if family == "llama4" else "muse_glimmer"  # which muse_spark shares
    path = Path(package.origin).parent / "models" / name / f"image_processing_{name}.py"
    module = ast.parse(path.read_text(encoding="utf-8"))
    module.body = [
        node for node in module.body if not (isinstance(node, ast.ImportFrom) and node.module in FROM_TORCHVISION)
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = [d for d in node.decorator_list if ast.unparse(d) != "auto_docstring"]
    found: dict[str, Any] = {
        "__name__": f"published_{name}",
        "__package__": f"transformers.models.{name}",
        "TorchvisionBackend": PillowBackend,
        "tvF": SimpleNamespace(pad=_pad, InterpolationMode=object),
    }
    exec(compile(module, str(path), "exec"), found)  # noqa: S102
    return found


def published_pixels(family: str, image: Image.Image) -> dict[str, Tensor]:
    """What the published processor makes of one RGB picture: the image arguments of the family's model."""
    from transformers.image_utils import SizeDict

    (kind,) = (x for x in published_module(family).values() if isinstance(x, type) and PillowBackend in x.__bases__)
    processor = kind.__new__(kind)  # its settings are those of the class
    fields = {name: getattr(processor, name) for name in dir(processor) if not name.startswith("_")}
    settings = {name: value for name, value in fields.items() if not callable(value)}
    settings |= {"size": SizeDict(**processor.size) if processor.size else None, "return_tensors": "pt"}
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    pixels = processor._preprocess(images=[tensor], disable_grouping=False, **settings)
    if family == "llama4":
        return {"pixel_values": pixels["pixel_values"].float()}
    return {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
