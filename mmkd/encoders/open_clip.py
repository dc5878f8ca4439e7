"""Image or text vectors from one tower of an OpenCLIP model.

From: images or texts, by the card's modality. To: ``[n, dim]`` float32. Sources: Radford et al.,
*CLIP*, arXiv:2103.00020; Zhai et al., *SigLIP*, arXiv:2303.15343; through the open_clip library.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from mmkd.encoders.clip import CHARACTERS_PER_TOKEN, TowerEncoder
from mmkd.encoders.images import image_transform
from mmkd.encoders.loading import loading, local_path
from mmkd.errors import EncoderError, outside, refuse
from mmkd.files import read_json

_SEED = 0  # of an untrained model's weights
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class OpenClipEncoder(TowerEncoder):
    """One tower of a CLIP or SigLIP model, as open_clip knows it.

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
        if model is None or pretrained is not None or model.startswith("hf-hub:"):
            return False
        path = local_path(model)
        return path is None or path.is_file()  # a JSON config; a folder carries weights

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each."""
        if options.get("modality") == "image" and options.get("prompt") is not None:
            return ["the image tower takes no prompt; remove it from the card"]
        return []

    def __init__(
        self,
        *,
        modality: str,
        model: str,
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

        refuse(self.check(modality=modality, prompt=prompt))
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
        self._tokenizer: Any = None
        with loading(pretrained or model):
            loaded, transform = _create(name, checkpoint, arguments)
            if modality == "text":
                self._tokenizer = open_clip.get_tokenizer(name, context_length=max_length_tokens)
        self._model = loaded.to(device).eval()
        super().__init__(
            image_transform(transform) if modality == "image" else None,
            prompt=prompt,
            model=model,
            device=device,
            dtype=open_clip.get_input_dtype(_PRECISIONS[dtype]),
            normalize=normalize,
        )

    def _forward(self, pixels: Any) -> Any:
        return self._model.encode_image(pixels)

    def _forward_texts(self, texts: list[str]) -> Any:
        longest = CHARACTERS_PER_TOKEN * self._tokenizer.context_length
        # cut behind the tokenizer's own cleaning, so that blanks take no text's place
        tokens = self._tokenizer([" ".join(text.split())[:longest] for text in texts])
        return self._model.encode_text(tokens.to(self._device))  # of [b, context]


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

    remedy = "give a config as open_clip saves it"
    with outside(EncoderError, path, "cannot be read as JSON", remedy=remedy, also=(ValueError,)):
        config = read_json(path)
    config = config.get("model_cfg", config)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise EncoderError(f"model {path}: not an open_clip config, lacks {', '.join(missing)}")
    # by content, so a file called ViT-B-32.json never replaces the built-in of that name
    text = json.dumps(config)
    name = f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.json")
            file.write_text(text, encoding="utf-8")
            open_clip.add_model_config(file)
    return name
