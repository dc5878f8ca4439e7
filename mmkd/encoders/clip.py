"""Image or text vectors from one tower of a CLIP-like model, through transformers.

From: images or texts, by the card's modality. To: ``[n, dim]`` float32, in the space that both
towers share. Sources: Radford et al., *CLIP*, arXiv:2103.00020; Zhai et al., *SigLIP*,
arXiv:2303.15343. Kind ``open_clip`` reads the same models in that library's format.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_texts, encode_in_batches
from mmkd.encoders.images import ImageEncoder, ImageProcessor
from mmkd.encoders.loading import check_length, check_weights, load_model, load_part, quietly
from mmkd.errors import EncoderError, refuse

# No token of such a vocabulary is longer. It bounds the tokenizer's work on an endless text; one of
# them is quadratic in the length of a word.
CHARACTERS_PER_TOKEN = 64


class TowerEncoder(ImageEncoder):
    """One tower of a model that puts images and texts into one space.

    Both towers of a model give vectors that compare: use one card per tower. A kind gives
    `_forward` for images and `_forward_texts` for texts.

    Args:
        prepare: Of an image tower, as `ImageEncoder` takes it; None is the text tower.
        prompt: Put before every text.
        model: As in `ImageEncoder`, as are the others.
        device: Where the model runs.
        dtype: Type of the pixels; None keeps float32.
        normalize: Whether vectors are scaled to length 1.
    """

    def __init__(
        self,
        prepare: Callable[[Image.Image], NDArray[np.float32]] | None,
        *,
        prompt: str | None,
        model: str,
        device: Any,
        dtype: Any,
        normalize: bool,
    ) -> None:
        if prepare is not None:
            super().__init__(prepare, model=model, device=device, dtype=dtype, normalize=normalize)
            return
        self.modality = "text"
        self._device, self._prompt, self._normalize = device, prompt or "", normalize
        self.dim = int(self._text_vectors([""]).shape[1])

    def encode(
        self, inputs: Sequence[str] | Sequence[Image.Image], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n images or texts into ``[n, dim]`` float32; see `Encoder`."""
        if self.modality == "image":
            images: Any = inputs
            return super().encode(images, batch_size=batch_size)
        texts = checked_texts(inputs, batch_size=batch_size)
        return encode_in_batches(texts, self._text_vectors, dim=self.dim, batch_size=batch_size)

    def _forward_texts(self, texts: list[str]) -> Any:
        """``[b, dim]`` of b texts with their prompt, in inference mode."""
        raise NotImplementedError

    def _text_vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self._rows(self._forward_texts([f"{self._prompt}{text}" for text in texts]))


class ClipEncoder(TowerEncoder):
    """One tower of a CLIP or SigLIP model, with its projection.

    Args:
        modality: ``"image"`` or ``"text"``.
        model: Hub id, local path or ``package:NAME``.
        revision: Commit, tag or branch on the hub; version of a package.
        prompt: Put before every text.
        max_length_tokens: Longer texts are cut; None keeps the model's own limit.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        image_mean: Mean per channel; None keeps the model's own, as for all of the following.
        image_std: Standard deviation per channel.
        image_interpolation: How images are resized.
        trust_remote_code: Whether the model's repository may run its own code here.
        device: Where the model runs.

    Raises:
        EncoderError: The model or a weight of it is missing, it has not two towers, or it takes
            fewer tokens than ``max_length_tokens``.
        ValueError: A field is for the other tower.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        of_texts = ("prompt", "max_length_tokens")
        of_images = ("image_mean", "image_std", "image_interpolation")
        given = {name for name, value in options.items() if value is not None}
        if options.get("modality") == "image" and given & set(of_texts):
            return ["the image tower takes no prompt and no max_length_tokens; remove them"]
        if options.get("modality") == "text" and given & set(of_images):
            return ["the text tower takes no image_ fields; remove them from the card"]
        return []

    def __init__(
        self,
        *,
        modality: str,
        model: str,
        revision: str | None = None,
        prompt: str | None = None,
        max_length_tokens: int | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        image_interpolation: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        pixels: dict[str, Any] = {
            "image_mean": image_mean,
            "image_std": image_std,
            "image_interpolation": image_interpolation,
        }
        texts = {"prompt": prompt, "max_length_tokens": max_length_tokens}
        refuse(self.check(modality=modality, **texts, **pixels))
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        auto = AutoImageProcessor if modality == "image" else AutoTokenizer
        self._part = part = load_part(auto, model, **source)
        self._model, missing = load_model(model, dtype=dtype, device=device, **source)
        if not hasattr(self._model, "get_image_features"):
            raise EncoderError(
                f"model {model} is a {type(self._model).__name__}, which has not an image and a "
                "text tower; use kind vision for images or language_model for texts"
            )
        check_weights(model, missing)
        if modality == "text":
            config = self._model.config
            positions = int(config.text_config.max_position_embeddings)
            check_length(model, max_length_tokens, positions)
            self._tokenizer = part
            self._tokens = max_length_tokens or positions
            # SigLIP was trained on padded texts and sees the padding; CLIP never does
            sees_padding = str(config.model_type).startswith("siglip")
            self._padding = "max_length" if sees_padding else "longest"
        super().__init__(
            ImageProcessor(part, **pixels) if modality == "image" else None,
            prompt=prompt,
            model=model,
            device=self._model.device,
            dtype=self._model.dtype,
            normalize=normalize,
        )

    @property
    def model(self) -> Any:
        """Both towers; only those learn that encode. See `TunableEncoder`."""
        return self._model

    def features(self, inputs: Sequence[str] | Sequence[Image.Image]) -> list[NDArray[Any]]:
        """Token ids of n texts, or pixels of n images; see `TunableEncoder`."""
        if self.modality == "image":
            images: Any = inputs
            return super().features(images)
        texts = checked_texts(inputs, batch_size=1)
        ids = [self._ids([f"{self._prompt}{text}"])["input_ids"][0] for text in texts]
        return [one.numpy() for one in ids]

    def differentiable(self, features: Sequence[NDArray[Any]]) -> Any:
        """``[n, dim]`` with gradients; see `TunableEncoder`."""
        if self.modality == "image":
            return super().differentiable(features)
        batch = self._tokenizer.pad(
            {"input_ids": [one.tolist() for one in features]}, return_tensors="pt"
        )
        return self._of_tokens(batch)

    def share_model(self, other: "ClipEncoder") -> None:
        """Take the copy of the same model that the other tower's encoder has, to learn together."""
        self._model = other._model

    def save(self, folder: Path) -> None:
        """Write both towers, and what makes this one's inputs; see `TunableEncoder`."""
        with quietly():
            self._model.save_pretrained(folder)
        self._part.save_pretrained(folder)

    def _forward(self, pixels: Any) -> Any:
        return _projected(self._model.get_image_features(pixel_values=pixels))

    def _forward_texts(self, texts: list[str]) -> Any:
        return self._of_tokens(self._ids(texts))

    def _ids(self, texts: list[str]) -> Any:
        longest = CHARACTERS_PER_TOKEN * self._tokens
        return self._tokenizer(
            [text[:longest] for text in texts],
            padding=self._padding,
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        )

    def _of_tokens(self, tokens: Any) -> Any:
        arguments = {"input_ids": tokens["input_ids"].to(self._device)}  # [b, tokens]
        if self._padding == "longest":
            arguments["attention_mask"] = tokens["attention_mask"].to(self._device)
        return _projected(self._model.get_text_features(**arguments))


def _projected(output: Any) -> Any:
    # the projected vector is in the output's place for the pooled one
    return getattr(output, "pooler_output", output)
