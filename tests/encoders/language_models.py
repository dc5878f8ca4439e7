"""Small random language models of each family, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "A cowboy doll is threatened by a new spaceman toy.",
    "Two detectives and one murder in the rainy city.",
    "In space, an alien hides in the ship; a crew meets it.",
    "long words and the word query: passage",
]
VOCABULARY = 300
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
DECODER = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2}
POSITIONS = 64

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # family: (model class, sort of tokenizer, config)
    "llama": ("LlamaModel", "bos", {**DECODER, "max_position_embeddings": POSITIONS}),
    "qwen3": (
        "Qwen3ForCausalLM",
        "bare",
        {**DECODER, "head_dim": 8, "max_position_embeddings": POSITIONS},
    ),
    "opt": (
        "OPTForCausalLM",
        "bos",
        {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": POSITIONS},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "bare",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "eos",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_heads": 4,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        },
    ),
    "bert": (
        "BertForMaskedLM",
        "bert",
        {**SIZE, "intermediate_size": 48, "max_position_embeddings": POSITIONS},
    ),
    "roberta": (
        "RobertaForMaskedLM",
        "bert",
        {
            **SIZE,
            "intermediate_size": 48,
            "max_position_embeddings": POSITIONS + 1,
            "pad_token_id": 0,
        },
    ),
}


def save(family: str, folder: Path) -> Path:
    """Saves a model of a family and its tokenizer; the same weights every time."""
    class_name, sort, config = FAMILIES[family]
    cls = getattr(transformers, class_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = cls(cls.config_class(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                # the usual start is so small that attention would hardly show
                parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.5, 1)
    model.save_pretrained(folder)
    tokenizer(sort).save_pretrained(folder)
    return folder


def save_clip_sentence_transformer(folder: Path) -> Path:
    """Saves a random CLIP as a sentence-transformers model of texts and images."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            **text,
            "num_attention_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={**tower, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        model = transformers.CLIPModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
    model.save_pretrained(folder / "clip")
    words = tokenizer("bert")
    words.model_max_length = 16
    processor: Any = transformers.CLIPProcessor
    pictures: Any = transformers.CLIPImageProcessor
    size = {"height": 32, "width": 32}
    processor(pictures(size={"shortest_edge": 32}, crop_size=size), words).save_pretrained(
        folder / "clip"
    )
    SentenceTransformer(modules=[Transformer(str(folder / "clip"))], device="cpu").save(
        str(folder / "sentence-transformer")
    )
    return folder / "sentence-transformer"


def tokenizer(sort: str) -> Any:
    """A byte-level tokenizer; only ``bert`` and ``eos`` know padding, ``bare`` adds no token."""
    special = ["<pad>", "<s>", "</s>"]
    bare = Tokenizer(models.BPE())
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(CORPUS, trainer)
    template = {"bos": "<s> $A", "eos": "$A </s>", "bert": "<s> $A </s>"}.get(sort)
    if template is not None:
        bare.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, special.index(name)) for name in special[1:]]
        )
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if sort in ("bert", "eos"):
        names["pad_token"] = "<pad>"
    if sort == "eos":
        # T5 has no positions to run out of, so its tokenizers carry the limit
        names["model_max_length"] = POSITIONS
    cls: Any = transformers.PreTrainedTokenizerFast
    return cls(tokenizer_object=bare, **names)
