"""Tiny image models of random weights, saved as their libraries save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

TEXTS = ["a cowboy doll and a new spaceman toy", "two detectives hunt a killer in a rainy city"]
TIMM_MODEL = "test_vit"


def save_vision_models(folder: Path) -> dict[str, Path]:
    """Folders of a DINOv2, ViT, ResNet, Swin, CLIP and SigLIP model, by those names."""
    found = {}
    for name, make in _MODELS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model, processor = make()
            # the weights' own start is so small that all images would look alike
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        found[name] = folder / name
        model.save_pretrained(found[name])
        processor.save_pretrained(found[name])
        if name in ("clip", "siglip"):
            _tokenizer(16).save_pretrained(found[name])
    return found


def save_timm_model(folder: Path) -> Path:
    """A file with the weights of timm's own test model, classifier included."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: Any = timm.create_model(TIMM_MODEL, pretrained=False)
    save_file(model.state_dict(), folder / "timm.safetensors")
    return folder / "timm.safetensors"


def _dinov2() -> tuple[Any, Any]:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    return transformers.Dinov2Model(config), transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    )


def _vit() -> tuple[Any, Any]:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return transformers.ViTModel(config), _squashing()


def _resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875)
    return transformers.ResNetModel(config), processor


def _swin() -> tuple[Any, Any]:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinModel(config), _squashing()


def _clip() -> tuple[Any, Any]:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "vocab_size": len(_tokenizer(16))}
    text |= {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 3}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return transformers.CLIPModel(config), processor


def _siglip() -> tuple[Any, Any]:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "vocab_size": len(_tokenizer(16))}
    text |= {"max_position_embeddings": 16, "projection_size": 32}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return transformers.SiglipModel(config), processor


def _squashing() -> Any:
    return transformers.ViTImageProcessor(size={"height": 32, "width": 32})


def _tokenizer(length: int) -> Any:
    """Byte pairs, so any text has tokens; begin 1 and end 3 around every text, padding 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "<unk>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "dinov2": _dinov2,
    "vit": _vit,
    "resnet": _resnet,
    "swin": _swin,
    "clip": _clip,
    "siglip": _siglip,
}
