"""Texts through a language model: token batches of about one length, and pooled states.

From: n texts. To: ``[n, dim]`` float32, in their order: `tokenise`, `token_batches` by length, each
through the model and `pool`, and `encode_batches` puts the rows back. The mask alone says which
tokens count, so padding may be on either side and a batch changes no vector. ``weighted_mean`` is
SGPT's (Muennighoff, arXiv:2202.08904): later tokens of a causal model have seen more, so token i of
a text weighs i.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmkd.errors import EncoderError

if TYPE_CHECKING:
    import torch

POOLINGS = ("mean", "weighted_mean", "last", "eos", "cls", "max")
# a fast tokenizer's encodings are many times larger than the ids that are kept of them
_TEXTS_PER_CALL = 4096
_KNOWN = 32  # words that find out where a prompt ends and its text begins


@dataclass(frozen=True)
class TokenBatch:
    """Some texts as the model takes them.

    Attributes:
        rows: ``[n]`` positions of the texts in the input.
        ids: ``[n, l]`` token ids, padded.
        mask: ``[n, l]`` 1 on a text's own tokens and 0 on padding.
    """

    rows: "torch.Tensor"
    ids: "torch.Tensor"
    mask: "torch.Tensor"


def tokenise(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    max_length_tokens: int | None,
    append: int | None = None,
    before: str = "",
    after: str = "",
) -> tuple[list[NDArray[np.int32]], int]:
    """Token ids of each text, with the tokenizer's own special tokens.

    Args:
        texts: n strings.
        tokenizer: A transformers tokenizer.
        max_length_tokens: Longer texts are cut to this many tokens, special ones and those of
            ``before`` and ``after`` included; at the side that the tokenizer cuts.
        append: A token put behind every text that does not end with it already.
        before: A prompt put before every text. A tokenizer that cuts on the left begins with it, as
            the library does, unless the prompt has an end too.
        after: What a template has behind every text; it is never cut, the text before it is.

    Returns:
        n arrays of at least one id, and how many of the texts were cut. A text without tokens (some
        tokenizers add none of their own) gets the token that begins texts, or else the one that
        ends them, or else the padding.

    Raises:
        EncoderError: ``after`` alone takes ``max_length_tokens``.
    """
    room = max_length_tokens
    if room is not None and append is not None and not _ends_with(tokenizer, append):
        room -= 1
    found: list[NDArray[np.int32]] = []
    from_left = getattr(tokenizer, "truncation_side", "right") == "left"
    head, tail = _around(tokenizer, before if after or not from_left else "", after)
    if room is not None and len(tail) >= room:
        raise EncoderError(
            f"max_length_tokens {max_length_tokens} leaves no room for the text: the prompt's end "
            f"{after!r} takes {len(tail)}; raise it"
        )
    cut = 0
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part = [f"{before}{text}{after}" for text in texts[start : start + _TEXTS_PER_CALL]]
        for one in map(_as_ids, _ids(tokenizer, part)):
            if room is not None and len(one) > room:
                first = room - len(tail)
                first = min(first, len(head)) if from_left else first
                one = np.concatenate([one[:first], one[len(one) - (room - first) :]])
                cut += 1
            found.append(one)
    if append is not None:
        end = np.asarray([append], np.int32)
        found = [
            one if len(one) and one[-1] == append else np.concatenate([one, end]) for one in found
        ]
    nothing = np.asarray([_token_for_nothing(tokenizer)], np.int32)
    return [one if len(one) else nothing for one in found], cut


def token_batches(
    tokens: Sequence[NDArray[np.int32]],
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    pad: int = 0,
    padding_side: Literal["left", "right"] = "right",
) -> Iterator[TokenBatch]:
    """Texts that go through the model together, each batch padded to its own longest text.

    Args:
        tokens: Ids of each text, as `tokenise` gives them.
        batch_size: Most texts of a batch.
        batch_tokens: Most tokens of a batch, padding included: its count times its longest text. A
            single longer text is a batch by itself.
        pad: Id on padding; the mask hides it.
        padding_side: Where the padding goes.

    Yields:
        Batches on the CPU that cover every text once, longest first and equal ones in their order,
        so the most memory is asked for first. A function of the lengths alone.

    Raises:
        EncoderError: ``batch_tokens`` is not positive.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise EncoderError(f"batch_tokens {batch_tokens} is not positive; use 1 or more, or none")
    lengths = [len(one) for one in tokens]
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        count = batch_size
        if batch_tokens is not None:
            count = min(count, max(1, batch_tokens // max(1, longest)))
        rows = order[start : start + count]
        start += count
        yield padded(tokens, rows, pad=pad, padding_side=padding_side)


def padded(
    tokens: Sequence[NDArray[np.int32]],
    rows: Sequence[int],
    *,
    pad: int = 0,
    padding_side: Literal["left", "right"] = "right",
) -> TokenBatch:
    """Some texts as one batch, in the order of ``rows``; arguments as for `token_batches`."""
    import torch

    longest = max(len(tokens[row]) for row in rows)
    ids = np.full((len(rows), longest), pad, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        length = len(tokens[row])
        first = 0 if padding_side == "right" else longest - length
        own = slice(first, first + length)
        ids[place, own], mask[place, own] = tokens[row], 1
    return TokenBatch(torch.tensor(rows), torch.from_numpy(ids), torch.from_numpy(mask))


def pool(states: "torch.Tensor", mask: "torch.Tensor", pooling: str) -> "torch.Tensor":
    """One vector per text.

    Args:
        states: ``[n, l, d]``, any floating type; what stands on padding is never read.
        mask: ``[n, l]``, 1 on a text's own tokens; each text has at least one.
        pooling: A name in `POOLINGS`: ``mean``; ``weighted_mean``, by position; ``last`` token;
            ``eos``, the last token too, once the caller has put the end-of-sequence token there;
            ``cls``, the first token; ``max`` of each feature.

    Returns:
        ``[n, d]`` float32, summed in float32.

    Raises:
        ValueError: ``pooling`` is unknown.
    """
    import torch

    real = mask.bool()
    if pooling in ("mean", "weighted_mean"):
        weights = real.float()  # [n, l]
        if pooling == "weighted_mean":
            weights = real.cumsum(dim=1) * weights
        # a zero weight would not hide the NaN that attention may leave on a padded token
        own = states.float().masked_fill(~real[..., None], 0)
        sums = (own * weights[..., None]).sum(dim=1)  # [n, d]
        return sums / weights.sum(dim=1, keepdim=True)
    if pooling == "max":
        return states.float().masked_fill(~real[..., None], float("-inf")).amax(dim=1)
    if pooling in ("last", "eos"):
        place = real.shape[1] - 1 - real.flip(1).int().argmax(dim=1)  # [n]
    elif pooling == "cls":
        place = real.int().argmax(dim=1)
    else:
        raise ValueError(f"pooling {pooling!r} is unknown; use one of {', '.join(POOLINGS)}")
    return states[torch.arange(len(states), device=states.device), place].float()


def encode_batches(
    batches: Iterator[TokenBatch],
    vectors_of: Callable[[TokenBatch], "torch.Tensor"],
    *,
    count: int,
    dim: int,
) -> NDArray[np.float32]:
    """Puts the vectors of all batches into the order of the texts.

    Args:
        batches: What `token_batches` gives.
        vectors_of: From a batch on the CPU to its ``[n, dim]`` vectors, on any device.
        count: Number of texts, N.
        dim: Width of a vector.

    Returns:
        ``[N, dim]`` float32 on the CPU.
    """
    import torch

    found: torch.Tensor | None = None
    with torch.inference_mode():
        for batch in batches:
            vectors = vectors_of(batch)  # [n, dim]
            # on the model's device until the end: copying each batch would make the device wait
            if found is None:
                found = torch.zeros((count, dim), dtype=torch.float32, device=vectors.device)
            found[batch.rows.to(found.device)] = vectors.float()
    if found is None:
        return np.zeros((count, dim), np.float32)
    return found.cpu().numpy()


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(
        texts,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return found


def _as_ids(ids: list[int]) -> NDArray[np.int32]:
    return np.asarray(ids, np.int32)


def _around(tokenizer: Any, before: str, after: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The ids that begin and end every text, whatever it is: the prompt's and special ones."""

    def whole(words: Sequence[str]) -> list[list[int]]:
        return _ids(tokenizer, [f"{before}{word}{after}" for word in words])

    found = whole(("red", "blue"))
    unknown = tokenizer.unk_token_id
    if found[0] == found[1] or any(unknown in one for one in found):
        found += whole(_known_words(tokenizer))  # those two may be one to this tokenizer
    head = _same_start(found)
    tail = _same_start([one[head:][::-1] for one in found])
    return _as_ids(found[0][:head]), _as_ids(found[0][len(found[0]) - tail :])


def _known_words(tokenizer: Any) -> list[str]:
    """Some of the tokenizer's own vocabulary, special tokens left out."""
    size = len(tokenizer)
    ids = sorted({size * n // _KNOWN for n in range(_KNOWN)} - {*tokenizer.all_special_ids})
    words = (tokenizer.convert_tokens_to_string([token]) for token in _tokens_of(tokenizer, ids))
    return [word.strip() for word in words if word.strip()]


def _tokens_of(tokenizer: Any, ids: list[int]) -> list[str]:
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token is not None]


def _same_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many first ids are the same in all."""
    columns = zip(*sequences, strict=False)
    return next(
        (place for place, column in enumerate(columns) if len(set(column)) > 1),
        min(map(len, sequences)),
    )


def _ends_with(tokenizer: Any, token: int) -> bool:
    """Whether the tokenizer puts this token behind texts by itself."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[-1:] == [token]


def _token_for_nothing(tokenizer: Any) -> int:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    return 0
