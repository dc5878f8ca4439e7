"""Image vectors from a timm model.

From: PIL RGB images. To: ``[n, dim]`` float32, the model's features before its classifier. Source:
Wightman, *PyTorch Image Models*, through the timm library and its own preprocessing for the model.
"""

from pathlib import Path
from typing import Any, ClassVar

from mmkd.encoders.images import ImageEncoder, image_transform
from mmkd.encoders.loading import loading, local_path
from mmkd.errors import EncoderError, refuse

_POOLINGS = {"cls": "token", "mean": "avg", "max": "max"}  # a card's names to timm's


class TimmEncoder(ImageEncoder):
    """A pretrained timm backbone without its classifier.

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
        ValueError: ``pooling`` is unknown.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        pooling = options.get("pooling")
        if pooling is None or pooling in _POOLINGS:
            return []
        return [f"pooling: got {pooling!r}, which is not for images; use cls, mean or max"]

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None = None,
        pooling: str | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        device: str = "cpu",
    ) -> None:
        import timm.data
        import torch

        refuse(self.check(pooling=pooling))
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
        precision = getattr(torch, dtype)
        self._model: Any = loaded.to(device, precision).eval()
        # the preprocessing that the model's weights were evaluated with
        data: Any = timm.data
        config = data.resolve_model_data_config(loaded)
        super().__init__(
            image_transform(data.create_transform(**config, is_training=False)),
            model=model,
            device=device,
            dtype=precision,
            normalize=normalize,
        )

    def _forward(self, pixels: Any) -> Any:
        return self._model(pixels)


def _load(model: str, pretrained: str | None) -> Any:
    """The model with all its weights, classifier included, on the CPU."""
    import timm

    overlay = None if pretrained is None else {"file": str(_weights_file(pretrained))}
    name = _model_name(model, pretrained)
    with loading(pretrained or model):
        # with its classifier: without one timm does not check that the file holds every weight
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)


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


def _weights_file(pretrained: str) -> Path:
    path = local_path(pretrained)
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        raise EncoderError(
            f"pretrained {pretrained}: not the path of a .safetensors file; give one that starts "
            "with / or ./, or leave it out for timm's own weights"
        )
    return path
