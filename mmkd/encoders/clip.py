"""Image or text vectors from one tower of a CLIP-like model, through transformers.

From: images or texts, by the card's modality. To: ``[n, dim]`` float32, in the space that both
towers share. Sources: Radford et al., *CLIP*, arXiv:2103.00020; Zhai et al., *SigLIP*,
arXiv:2303.15343. Kind ``open_clip`` reads the same models in that library's format.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, checked_texts, encode_in_batches, unit_rows
from mmkd.encoders.images import ImageProcessor
from mmkd.encoders.loading import check_weights, load_model, load_part
from mmkd.errors import EncoderError

# no token of such a vocabulary is longer; it bounds the tokenizer's work on an endless text
_CHARACTERS_PER_TOKEN = 64


class ClipEncoder:
    """One tower of a CLIP or SigLIP model, with its projection.

    Both towers of a model give vectors that compare: use one card per tower. Another batch size
    moves float32 vectors by about 1e-6.

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
        EncoderError: The model or a weight of it is missing, it has not two towers, a field is for
            the other tower, or it takes fewer tokens than ``max_length_tokens``.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        modality: str,
        model: str | None = None,
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

        if model is None:
            raise EncoderError("kind clip needs a model; name one in the card")
        if modality == "image" and (prompt is not None or max_length_tokens is not None):
            raise EncoderError(
                "the image tower takes no prompt and no max_length_tokens; remove them"
            )
        pixels = (image_mean, image_std, image_interpolation)
        if modality == "text" and any(field is not None for field in pixels):
            raise EncoderError("the text tower takes no image_ fields; remove them from the card")
        part = load_part(
            AutoImageProcessor if modality == "image" else AutoTokenizer,
            model,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        self._model, missing = load_model(
            model,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            device=device,
        )
        if not hasattr(self._model, "get_image_features"):
            raise EncoderError(
                f"model {model} is a {type(self._model).__name__}, which has not an image and a "
                "text tower; use kind vision for images or language_model for texts"
            )
        check_weights(model, missing)
        self.modality = modality
        self._normalize = normalize
        self._prompt = prompt or ""
        if modality == "image":
            self.prepare = ImageProcessor(
                part,
                image_mean=image_mean,
                image_std=image_std,
                image_interpolation=image_interpolation,
            )
            # one image tells the width, which configs name in many ways, and that all fits
            self.dim = int(self._images([self.prepare(Image.new("RGB", (32, 32)))]).shape[1])
        else:
            self._tokenizer = part
            self._tokens = _token_limit(self._model.config, model, max_length_tokens)
            # SigLIP was trained on padded texts and sees the padding; CLIP never does
            sees_padding = str(self._model.config.model_type).startswith("siglip")
            self._padding = "max_length" if sees_padding else "longest"
            self.dim = int(self._texts([""]).shape[1])

    def encode(
        self, inputs: Sequence[str] | Sequence[Image.Image], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n images or texts into ``[n, dim]`` float32; see `Encoder`."""
        if self.modality == "text":
            texts = checked_texts(inputs, batch_size=batch_size)
            return encode_in_batches(texts, self._texts, dim=self.dim, batch_size=batch_size)
        images = checked_images(inputs, batch_size=batch_size)
        return encode_in_batches(
            images,
            lambda part: self._images([self.prepare(image) for image in part]),
            dim=self.dim,
            batch_size=batch_size,
        )

    def encode_prepared(
        self, prepared: Sequence[NDArray[np.float32]], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n images that went through ``prepare``; see `PreparingEncoder`."""
        return encode_in_batches(prepared, self._images, dim=self.dim, batch_size=batch_size)

    def _images(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(np.stack(prepared))  # [b, 3, height, width]
        with torch.inference_mode():
            found = self._model.get_image_features(
                pixel_values=pixels.to(self._model.device, self._model.dtype)
            )
        return self._rows(found)

    def _texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        longest = _CHARACTERS_PER_TOKEN * self._tokens
        tokens = self._tokenizer(
            [f"{self._prompt}{text}"[:longest] for text in texts],
            padding=self._padding,
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        )
        arguments = {"input_ids": tokens["input_ids"].to(self._model.device)}  # [b, tokens]
        if self._padding == "longest":
            arguments["attention_mask"] = tokens["attention_mask"].to(self._model.device)
        with torch.inference_mode():
            found = self._model.get_text_features(**arguments)
        return self._rows(found)

    def _rows(self, found: Any) -> NDArray[np.float32]:
        # the projected vector is in the output's place for the pooled one
        found = getattr(found, "pooler_output", found)
        vectors: NDArray[np.float32] = found.float().cpu().numpy()  # [b, dim]
        return unit_rows(vectors) if self._normalize else vectors


def _token_limit(config: Any, model: str, max_length_tokens: int | None) -> int:
    """How many tokens a text may have."""
    positions = int(config.text_config.max_position_embeddings)
    if max_length_tokens is not None and max_length_tokens > positions:
        raise EncoderError(
            f"max_length_tokens {max_length_tokens} is more than the {positions} that {model} "
            "takes; lower it in the card"
        )
    return max_length_tokens or positions
