"""Image vectors from a vision backbone of transformers.

From: PIL RGB images. To: ``[n, dim]`` float32. Backbones such as DINOv2 (arXiv:2304.07193), ViT
(arXiv:2010.11929), Swin (arXiv:2103.14030), ResNet (arXiv:1512.03385) and the image tower of CLIP
and SigLIP, through ``AutoModel`` and ``AutoImageProcessor``.
"""

import inspect
from pathlib import Path
from typing import Any, ClassVar

from mmkd.encoders.images import ImageEncoder, ImageProcessor
from mmkd.encoders.loading import check_weights, load_model, load_part, quietly
from mmkd.errors import EncoderError, refuse

_POOLINGS = (None, "cls", "mean", "max")
_CLASS_TOKENS = ("cls_token", "class_embedding")


class VisionEncoder(ImageEncoder):
    """A pretrained vision backbone, pooled into one vector an image.

    Of a CLIP or SigLIP model it runs the image tower, before the projection into the common space
    (kind ``clip`` gives what comes after).

    Args:
        model: Hub id, local path or ``package:NAME``.
        revision: Commit, tag or branch on the hub; version of a package.
        pooling: None is the model's own pooled output. ``"cls"`` is the class token's last state;
            ``"mean"`` and ``"max"`` are over the patches' last states, without class and register
            tokens.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        image_size: Side in pixels; None keeps the model's own, as for all of the following. A
            model with learned positions has them interpolated.
        image_mean: Mean per channel.
        image_std: Standard deviation per channel.
        image_interpolation: How images are resized.
        image_resize_mode: ``"shortest"`` cuts out the middle, ``"squash"`` keeps all.
        trust_remote_code: Whether the model's repository may run its own code here.
        device: Where the model runs.

    Raises:
        EncoderError: The model or a weight of it is missing, or it does not have what ``pooling``
            asks for.
        ValueError: ``pooling`` or ``image_resize_mode`` is unknown.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        problems = ImageProcessor.check(**options)
        if (pooling := options.get("pooling")) not in _POOLINGS:
            problems.append(
                f"pooling: got {pooling!r}, which is not for images; use cls, mean or max, or "
                "leave it out for the model's own"
            )
        return problems

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        pooling: str | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        image_interpolation: str | None = None,
        image_resize_mode: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoImageProcessor

        changes: dict[str, Any] = {
            "image_size": image_size,
            "image_mean": image_mean,
            "image_std": image_std,
            "image_interpolation": image_interpolation,
            "image_resize_mode": image_resize_mode,
        }
        refuse(self.check(pooling=pooling, **changes))
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self._processor = processor = load_part(AutoImageProcessor, model, **source)
        loaded, missing = load_model(model, dtype=dtype, device=device, **source)
        # of a model with two towers, the image's
        self._model = getattr(loaded, "vision_model", loaded)
        _check_weights(model, missing, pooling)
        self._pooling = pooling
        self._special_tokens = _special_tokens(self._model)
        takes = inspect.signature(self._model.forward).parameters
        resized = image_size is not None and "interpolate_pos_encoding" in takes
        self._arguments = {"interpolate_pos_encoding": True} if resized else {}
        super().__init__(
            ImageProcessor(processor, **changes),
            model=model,
            device=self._model.device,
            dtype=self._model.dtype,
            normalize=normalize,
        )

    @property
    def model(self) -> Any:
        """See `TunableEncoder`."""
        return self._model

    def save(self, folder: Path) -> None:
        """Write backbone and image processor as transformers does; see `TunableEncoder`."""
        with quietly():
            self._model.save_pretrained(folder)
        self._processor.save_pretrained(folder)

    def _forward(self, pixels: Any) -> Any:
        output = self._model(pixel_values=pixels, **self._arguments)
        if self._pooling is None:
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise EncoderError("the model has no pooled output; set pooling to cls or mean")
            return pooled.flatten(1)  # [b, dim], of convolutions [b, dim, 1, 1]
        states = output.last_hidden_state
        if states.ndim == 4:  # a convolution's [b, dim, height, width]
            states = states.flatten(2).transpose(1, 2)
        if self._pooling == "cls":
            if self._special_tokens == 0:
                raise EncoderError("pooling cls: the model has no class token; use mean")
            return states[:, 0]
        patches = states[:, self._special_tokens :]  # [b, patches, dim]
        return patches.mean(1) if self._pooling == "mean" else patches.amax(1)


def _special_tokens(model: Any) -> int:
    """How many states stand before the patches': class, distillation and register tokens."""
    ends = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    ends |= {name.rsplit(".", 2)[-2] for name, _ in model.named_parameters() if "." in name}
    if not ends & set(_CLASS_TOKENS):
        return 0
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
    return 1 + ("distillation_token" in ends) + registers


def _check_weights(model: str, missing: list[str], pooling: str | None) -> None:
    """Missing weights are an error, but for a text tower's and an unused pooler's."""
    own = [name for name in missing if not name.startswith(("text_model.", "text_projection."))]
    poolers = [name for name in own if "pooler" in name.split(".")]
    if poolers and len(poolers) == len(own):
        if pooling is None:
            raise EncoderError(
                f"model {model}: its files lack the pooler ({poolers[0]}), so its own pooled "
                "output would be random; set pooling to cls or mean in the card"
            )
        return
    check_weights(model, own)
