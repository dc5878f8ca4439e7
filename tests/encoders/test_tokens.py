"""Token batches cover every text once, within their budget; pooling against a loop over texts."""

from typing import Any

import numpy as np
import pytest
import torch
from encoders.language_models import tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmkd.encoders.tokens import (
    POOLINGS,
    TokenBatch,
    encode_batches,
    pool,
    token_batches,
    tokenise,
)
from mmkd.errors import EncoderError

LENGTHS = np.random.default_rng(3).integers(1, 60, 200).tolist()
POOLED = [5, 1, 3, 7]
WIDTH = 6
TOKENS = [np.arange(1, length + 1, dtype=np.int32) * 7 for length in LENGTHS]


@pytest.mark.parametrize(("size", "budget"), [(8, None), (8, 100), (1000, 64), (1000, 1), (1, 999)])
def test_every_text_is_in_one_batch_within_the_caps(size: int, budget: int | None) -> None:
    found = token_batches(TOKENS, batch_size=size, batch_tokens=budget)
    batches = [batch.rows.tolist() for batch in found]
    flat = [row for batch in batches for row in batch]
    assert sorted(flat) == list(range(len(LENGTHS)))
    # longest first; equal lengths in the order of the texts
    assert flat == sorted(range(len(LENGTHS)), key=lambda row: (-LENGTHS[row], row))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        tokens = len(batch) * max(LENGTHS[row] for row in batch)
        assert len(batch) <= size
        assert budget is None or tokens <= budget or len(batch) == 1
        if following is not None:  # one more text would have been too many
            more = (len(batch) + 1) * LENGTHS[batch[0]]
            assert len(batch) == size or (budget is not None and more > budget)


def test_budget_of_nothing_is_an_error() -> None:
    with pytest.raises(EncoderError, match="batch_tokens 0 is not positive"):
        next(token_batches(TOKENS, batch_size=1, batch_tokens=0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_hold_the_tokens_and_vectors_come_back_in_order(side: str) -> None:
    def first_last_and_sum(batch: TokenBatch) -> torch.Tensor:
        own = [ids[mask.bool()] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        assert (batch.ids[batch.mask == 0] == 99).all()
        edge = batch.mask[:, 0 if side == "right" else -1]
        assert edge.all()
        return torch.stack([torch.stack([one[0], one[-1], one.sum()]) for one in own])

    batches = token_batches(
        TOKENS,
        batch_size=9,
        batch_tokens=150,
        pad=99,
        padding_side=side,  # type: ignore[arg-type]
    )
    found = encode_batches(batches, first_last_and_sum, count=len(TOKENS), dim=3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[one[0], one[-1], one.sum()] for one in TOKENS])


@pytest.mark.parametrize("sort", ["bare", "bos", "eos", "bert"])
def test_texts_are_cut_with_their_special_tokens(sort: str) -> None:
    own = tokenizer(sort)
    texts = ["A cowboy doll", "", "query: " * 50]
    ids, cut = tokenise(texts, own, max_length_tokens=12)
    assert cut == sum(len(own(text)["input_ids"]) > 12 for text in texts)
    for found, text in zip(ids, texts, strict=True):
        expected = own(text, truncation=True, max_length=12)["input_ids"]
        # a tokenizer that adds nothing gives an empty text nothing; then it gets the first token
        assert found.tolist() == (expected or [own.bos_token_id])


@pytest.mark.parametrize("sort", ["bare", "bos", "eos", "bert"])
def test_a_templates_end_is_kept_and_the_text_is_cut(sort: str) -> None:
    own = tokenizer(sort)
    before, after = "query: ", " means one word :"
    texts = ["A cowboy doll", "cowboy " * 50]
    found, cut = tokenise(texts, own, max_length_tokens=16, before=before, after=after)
    whole = [own(f"{before}{text}{after}")["input_ids"] for text in texts]
    assert cut == sum(len(one) > 16 for one in whole)
    for one, full in zip(found, whole, strict=True):
        assert len(one) <= 16
        assert one.tolist()[-4:] == full[-4:]
        assert one.tolist()[:4] == full[:4]
    assert len(found[1]) == 16
    with pytest.raises(EncoderError, match="leaves no room for the text"):
        tokenise(texts, own, max_length_tokens=3, before=before, after=after * 3)


@pytest.mark.parametrize("sort", ["bare", "bos", "eos", "bert"])
def test_a_tokenizer_that_cuts_on_the_left_keeps_the_end_of_texts(sort: str) -> None:
    own = tokenizer(sort)
    own.truncation_side = "left"
    texts = ["A cowboy doll", "A crew meets an alien in the ship " * 9]
    found, cut = tokenise(texts, own, max_length_tokens=12)
    assert cut == 1
    for one, text in zip(found, texts, strict=True):
        assert one.tolist() == own(text, truncation=True, max_length=12)["input_ids"]
    found, _ = tokenise(texts, own, max_length_tokens=12, before="query: ")  # as release 0.1 did
    for one, text in zip(found, texts, strict=True):
        assert one.tolist() == own(f"query: {text}", truncation=True, max_length=12)["input_ids"]
    before, after = "query: ", " means one word :"
    found, _ = tokenise(texts, own, max_length_tokens=30, before=before, after=after)
    whole = own(f"{before}{texts[1]}{after}")["input_ids"]
    assert len(found[1]) == 30
    prompt = own(before, add_special_tokens=False)["input_ids"][:-1]  # without the blank's own
    start = found[1].tolist().index(prompt[0])
    assert found[1].tolist()[start : start + len(prompt)] == prompt
    assert found[1].tolist()[-20:] == whole[-20:]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("words", ["tea cup rug : a", "blue : one a", "a : word"])
def test_a_templates_end_is_kept_by_a_tokenizer_of_few_words(words: str, side: str) -> None:
    """To which the words of most texts are one and the same, the unknown one."""
    vocabulary = {word: n for n, word in enumerate(["<s>", "<unk>", *words.split()])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made: Any = PreTrainedTokenizerFast
    own = made(tokenizer_object=model, bos_token="<s>", unk_token="<unk>", truncation_side=side)
    text = " ".join(f"word{n}" for n in range(9)) + " a"
    found, cut = tokenise([text, "x"], own, max_length_tokens=8, before="a b ", after=" means :")
    start, unknown, a, colon = 0, 1, vocabulary["a"], vocabulary[":"]
    middle = [unknown, unknown, a] if side == "left" else [unknown] * 3
    assert cut == 1
    assert found[0].tolist() == [start, a, unknown, *middle, unknown, colon]
    assert found[1].tolist() == [start, a, unknown, unknown, unknown, colon]
    with pytest.raises(EncoderError, match=r"no room for the text: .* takes 2"):
        tokenise([text], own, max_length_tokens=2, before="a b ", after=" means :")


@pytest.mark.parametrize("sort", ["bare", "bos", "eos", "bert"])
def test_appended_token_is_there_once_and_within_the_length(sort: str) -> None:
    own = tokenizer(sort)
    end = own.eos_token_id
    texts = ["A cowboy doll", "", "query: " * 50]
    found, _ = tokenise(texts, own, max_length_tokens=12, append=end)
    for one in found:
        assert one[-1] == end
        assert (one == end).sum() == 1
    assert len(found[2]) == 12
    before = own(texts[2])["input_ids"]
    kept = [token for token in before if token != end][: 12 - 1]
    assert found[2][:-1].tolist() == kept


def pooled_by_a_loop(own: torch.Tensor, pooling: str) -> torch.Tensor:
    """One text's ``[l, d]`` states to ``[d]``, without any mask."""
    if pooling == "weighted_mean":
        total = sum((place + 1) * state for place, state in enumerate(own))
        return torch.as_tensor(total) / sum(range(1, len(own) + 1))
    if pooling == "mean":
        return torch.stack([own[:, feature].sum() / len(own) for feature in range(own.shape[1])])
    if pooling == "max":
        return torch.stack([max(own[:, feature]) for feature in range(own.shape[1])])
    return own[0] if pooling == "cls" else own[-1]


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_either_side_is_never_read(pooling: str, side: str, junk: float) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(length, WIDTH, generator=generator) for length in POOLED]
    states = torch.full((len(texts), max(POOLED), WIDTH), junk)
    mask = torch.zeros(len(texts), max(POOLED), dtype=torch.int64)
    for row, own in enumerate(texts):
        place = slice(0, len(own)) if side == "right" else slice(max(POOLED) - len(own), None)
        states[row, place] = own
        mask[row, place] = 1
    expected = torch.stack([pooled_by_a_loop(own, pooling) for own in texts])
    torch.testing.assert_close(pool(states, mask, pooling), expected, rtol=1e-6, atol=1e-6)


def test_bfloat16_states_are_summed_in_float32() -> None:
    states = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    states[0, 0] = 1.0078125  # one step above 1: lost in any sum in bfloat16
    found = pool(states, torch.ones(1, 1000, dtype=torch.int64), "mean")
    torch.testing.assert_close(found, torch.tensor([[1 + 0.0078125 / 1000]]))


def test_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(ValueError, match="use one of mean, weighted_mean"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "average")
