"""Image or text vectors from one tower of an OpenCLIP model.

From: images or texts, by the card's modality. To: ``[n, dim]`` float32. Sources: Radford et al.,
*CLIP*, arXiv:2103.00020; Zhai et al., *SigLIP*, arXiv:2303.15343; through the open_clip library.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders.base import checked_images, checked_texts, encode_in_batches, unit_rows
from mmkd.encoders.images import ImageTransform
from mmkd.encoders.loading import loading_error, local_path
from mmkd.errors import EncoderError

_SEED = 0  # of an untrained model's weights
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# No token of a CLIP vocabulary is longer; cutting here spares its tokenizer, which is quadratic in
# the length of a word, from a text that is one word of 100,000 letters.
_CHARACTERS_PER_TOKEN = 64


class OpenClipEncoder:
    """One tower of a model that puts images and texts into one space.

    Both towers of a model give vectors that compare: use one card per tower. Another batch size
    moves float32 vectors by about 1e-6.

    Args:
        model: A name that open_clip knows, a local path of a JSON model config, a local folder as
            open_clip saves it, or ``hf-hub:ORG/NAME``. The last two carry their weights.
        modality: ``"image"`` or ``"text"``.
        pretrained: Tag that open_clip knows for the model, or local path of a checkpoint
            (safetensors, or a PyTorch file of plain tensors; a pickled object is refused). None is
            an untrained model, for tests: its weights are random but always the same.
        prompt: Put before every text.
        max_length_tokens: Context length of the text tower; None keeps the model's own.
        dtype: Precision the model computes in.
        normalize: Whether vectors are scaled to length 1.
        image_size: Side in pixels; None keeps the model's own, as for all of the following.
        image_mean: Mean per channel.
        image_std: Standard deviation per channel.
        image_interpolation: How images are resized.
        image_resize_mode: Which side is brought to ``image_size``.
        device: Where the model runs.
        allow_random_weights: Whether an untrained model may run at all.

    Raises:
        EncoderError: The model or its weights are missing, or the model is untrained and that was
            not allowed.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def untrained(*, model: str | None, pretrained: str | None) -> bool:
        """Whether a card with these fields asks for random weights; loads nothing."""
        return _is_untrained(model, pretrained)

    def __init__(
        self,
        *,
        modality: str,
        model: str | None = None,
        pretrained: str | None = None,
        prompt: str | None = None,
        max_length_tokens: int | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        image_size: int | None = None,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        image_interpolation: str | None = None,
        image_resize_mode: str | None = None,
        device: str = "cpu",
        allow_random_weights: bool = False,
    ) -> None:
        import open_clip

        if model is None:
            raise EncoderError("kind open_clip needs a model; name one in the card")
        if modality == "image" and prompt is not None:
            raise EncoderError("the image tower takes no prompt; remove it from the card")
        name = _model_name(model)
        _check_weights(model, name, pretrained, allow_random_weights)
        arguments = {
            "precision": _PRECISIONS[dtype],
            "force_image_size": image_size,
            "force_context_length": max_length_tokens,
            "image_mean": image_mean,
            "image_std": image_std,
            "image_interpolation": image_interpolation,
            "image_resize_mode": image_resize_mode,
        }
        checkpoint = None if pretrained is None else str(local_path(pretrained) or pretrained)
        try:
            loaded, transform = _create(name, checkpoint, arguments)
            tokenizer = (
                open_clip.get_tokenizer(name, context_length=max_length_tokens)
                if modality == "text"
                else None
            )
        # the library, torch, the hub client and its transport each raise their own kind
        except Exception as error:
            raise loading_error(pretrained or model, error) from error
        self.modality = modality
        self.dim = int(open_clip.get_model_config(name)["embed_dim"])
        self._model = loaded.to(device).eval()
        if modality == "image":
            self.prepare = ImageTransform(transform)
        self._tokenizer: Any = tokenizer
        self._input_dtype = open_clip.get_input_dtype(_PRECISIONS[dtype])
        self._device = device
        self._prompt = prompt or ""
        self._normalize = normalize

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

        pixels = torch.from_numpy(np.stack(prepared))  # [b, 3, size, size]
        with torch.inference_mode():
            found = self._model.encode_image(pixels.to(self._device, self._input_dtype))
        return self._rows(found)

    def _texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        longest = _CHARACTERS_PER_TOKEN * self._tokenizer.context_length
        cut = [" ".join(f"{self._prompt}{text}".split())[:longest] for text in texts]
        tokens = self._tokenizer(cut)  # [b, context]
        with torch.inference_mode():
            found = self._model.encode_text(tokens.to(self._device))
        return self._rows(found)

    def _rows(self, found: Any) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = found.float().cpu().numpy()  # [b, dim]
        return unit_rows(vectors) if self._normalize else vectors


def _create(name: str, checkpoint: str | None, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The model on the CPU and its image transform for inference."""
    import open_clip
    import torch

    trained = checkpoint is not None or _carries_weights(name)
    with torch.random.fork_rng(devices=[]):
        # an untrained model is the same in every process, and nobody else's generator moves
        torch.manual_seed(_SEED)
        model, _, transform = open_clip.create_model_and_transforms(
            name,
            checkpoint,
            weights_only=True,
            # never half a model: no base weights of a single tower, no silent random ones
            pretrained_text=False,
            require_pretrained=trained,
            **arguments,
        )
    return model, transform


def _is_untrained(model: str | None, pretrained: str | None) -> bool:
    """Whether a card without weights also names a model that carries none."""
    if model is None or pretrained is not None or model.startswith("hf-hub:"):
        return False
    path = local_path(model)
    return path is None or path.is_file()  # a JSON config; a folder carries weights


def _check_weights(model: str, name: str, pretrained: str | None, allow_random: bool) -> None:
    import open_clip

    if _carries_weights(name):
        if pretrained is not None:
            raise EncoderError(
                f"model {model} carries its own weights, so pretrained {pretrained!r} would have "
                "no effect; remove it from the card"
            )
    elif pretrained is None:
        if not allow_random:
            raise EncoderError(
                f"the card for model {model} has no `pretrained`, which is an untrained model: its "
                "vectors mean nothing. Name a tag or checkpoint in the card; for a test or dry "
                "run, pass allow_random_weights=True"
            )
    elif (path := local_path(pretrained)) is not None:
        if not path.is_file():
            raise EncoderError(
                f"pretrained {pretrained}: {path} is no file, and random weights never stand in "
                "for missing ones; correct the card's path"
            )
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            raise EncoderError(
                f"pretrained {pretrained!r} is no tag of model {model}, and random weights never "
                f"stand in for missing ones; tags: {', '.join(tags) or 'none'}; a checkpoint's "
                "path starts with / or ./"
            )


def _carries_weights(name: str) -> bool:
    return name.startswith(("hf-hub:", "local-dir:"))


def _model_name(model: str) -> str:
    """The name under which open_clip finds a card's ``model``."""
    import open_clip

    path = local_path(model)
    if path is not None:
        if path.is_dir():
            return f"local-dir:{path}"
        return _registered(path)
    # "./x.json" is a path, "hf-hub:..." a scheme; anything else must be a known architecture
    if not model.startswith("hf-hub:") and model not in open_clip.list_models():
        raise EncoderError(
            f"model {model!r} is unknown to open_clip; see open_clip.list_models(), or give the "
            "path of a JSON config (starting with / or ./) or hf-hub:ORG/NAME"
        )
    return model


def _registered(path: Path) -> str:
    """Registers a JSON model config with open_clip under a name of its own."""
    import open_clip

    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError) as error:
        raise EncoderError(f"model {path}: cannot be read as a JSON config: {error}") from error
    config = config.get("model_cfg", config) if isinstance(config, dict) else {}
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise EncoderError(f"model {path}: not an open_clip config, lacks {', '.join(missing)}")
    # by content, so a file called ViT-B-32.json never replaces the built-in of that name
    name = f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.json")
            file.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(file)
    return name
