"""Image vectors from a timm model.

From: PIL RGB images. To: ``[n, dim]`` float32, the model's features before its classifier. Source:
Wightman, *PyTorch Image Models*, through the timm library and its own preprocessing for the model.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, encode_in_batches, unit_rows
from mmkd.encoders.images import ImageTransform
from mmkd.encoders.loading import loading_error, local_path
from mmkd.errors import EncoderError

_POOLINGS = {"cls": "token", "mean": "avg", "max": "max"}  # a card's names to timm's


class TimmEncoder:
    """A pretrained timm backbone without its classifier.

    Another batch size moves float32 vectors by about 1e-6.

    Args:
        model: A name that timm knows, best with its tag (``resnet50.a1_in1k``),
            ``hf-hub:ORG/NAME``, or the local path of a folder as timm's ``save_for_hf`` writes it.
        pretrained: Local path of the weights in safetensors, as timm names them, classifier
            included; None takes those that timm has for ``model``.
        pooling: ``"cls"``, ``"mean"`` or ``"max"``; None keeps the model's own.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        device: Where the model runs.

    Raises:
        EncoderError: timm does not know the model, a weight of it is missing, or it has no such
            pooling.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        model: str | None = None,
        pretrained: str | None = None,
        pooling: str | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        device: str = "cpu",
    ) -> None:
        import torch

        if model is None:
            raise EncoderError("kind timm needs a model; name one in the card")
        if pooling is not None and pooling not in _POOLINGS:
            raise EncoderError(f"pooling {pooling!r} is not for images; use cls, mean or max")
        loaded = _load(model, pretrained)
        try:
            if pooling is None:
                loaded.reset_classifier(0)
            else:
                loaded.reset_classifier(0, _POOLINGS[pooling])
        except (AssertionError, TypeError, ValueError) as error:
            raise EncoderError(
                f"model {model} has no pooling {pooling!r}; leave it out for the model's own"
            ) from error
        self._model: Any = loaded.to(device, getattr(torch, dtype)).eval()
        self._device, self._dtype = device, getattr(torch, dtype)
        self._normalize = normalize
        self.prepare = ImageTransform(_transform(loaded))
        self.modality = "image"
        # one image tells the width, and that preprocessing and pooling fit the model
        self.dim = int(self._forward([self.prepare(Image.new("RGB", (32, 32)))]).shape[1])

    def encode(self, inputs: Sequence[Image.Image], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Encodes n images into ``[n, dim]`` float32; see `Encoder`."""
        images = checked_images(inputs, batch_size=batch_size)
        return encode_in_batches(
            images,
            lambda part: self._forward([self.prepare(image) for image in part]),
            dim=self.dim,
            batch_size=batch_size,
        )

    def encode_prepared(
        self, prepared: Sequence[NDArray[np.float32]], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n images that went through ``prepare``; see `PreparingEncoder`."""
        return encode_in_batches(prepared, self._forward, dim=self.dim, batch_size=batch_size)

    def _forward(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(np.stack(prepared))  # [b, 3, height, width]
        with torch.inference_mode():
            found = self._model(pixels.to(self._device, self._dtype))
        vectors: NDArray[np.float32] = found.float().cpu().numpy()  # [b, dim]
        return unit_rows(vectors) if self._normalize else vectors


def _load(model: str, pretrained: str | None) -> Any:
    """The model with all its weights, classifier included, on the CPU."""
    import timm

    overlay = None if pretrained is None else {"file": str(_weights_file(pretrained))}
    name = _model_name(model, pretrained)
    try:
        # with its classifier: without one timm does not check that the file holds every weight
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    # timm, torch, the hub client and its transport each raise their own kind
    except Exception as error:
        raise loading_error(pretrained or model, error) from error


def _transform(loaded: Any) -> Any:
    """The preprocessing that the model's weights were evaluated with."""
    import timm.data

    data: Any = timm.data
    return data.create_transform(**data.resolve_model_data_config(loaded), is_training=False)


def _model_name(model: str, pretrained: str | None) -> str:
    """The name under which timm finds a card's ``model``."""
    import timm

    path = local_path(model)
    if path is not None or model.startswith("hf-hub:"):
        if pretrained is not None:
            raise EncoderError(
                f"model {model} carries its own weights, so pretrained {pretrained!r} would have "
                "no effect; remove it from the card"
            )
        if path is None:
            return model
        if not (path / "model.safetensors").is_file():
            raise EncoderError(
                f"model {model}: {path} holds no model.safetensors; give a folder as timm saves "
                "it, or a name that timm knows"
            )
        return f"local-dir:{path}"
    architecture = model.split(".", 1)[0]
    if not timm.is_model(architecture):
        raise EncoderError(
            f"model {model!r} is unknown to timm; see timm.list_models(), or give hf-hub:ORG/NAME "
            "or the path of a folder (starting with / or ./)"
        )
    return model


def _weights_file(pretrained: str) -> Any:
    path = local_path(pretrained)
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        raise EncoderError(
            f"pretrained {pretrained}: not the path of a .safetensors file; give one that starts "
            "with / or ./, or leave it out for timm's own weights"
        )
    return path
