"""``mmkd encode``: tries an encoder on a few texts, pictures or ids, and shows what it gives."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from mmkd.cli.arguments import AsJson
from mmkd.errors import EncoderError, outside
from mmkd.terminal import PlainTable, console

if TYPE_CHECKING:
    from mmkd.encoders import EncoderCard

_VALUES = 5  # of each vector, to show
_LABEL = 32  # characters of an input in a table


def encode(
    card: Annotated[str, typer.Argument(help="A card's name or path (mmkd ls encoders).")],
    inputs: Annotated[list[str], typer.Argument(help="Texts, or paths of pictures.")],
    device: Annotated[str, typer.Option(help="Such as cpu or cuda.")] = "cpu",
    json: AsJson = False,
) -> None:
    """Try an encoder on texts or pictures: width, norm, first values, cosines."""
    from mmkd.cli import show

    found = encoded(card, inputs, device=device)
    if json:
        show.dump(found)
    else:
        _show(found)


def encoded(card_name: str, inputs: Sequence[str], *, device: str) -> dict[str, Any]:
    """Encodes inputs with a card.

    Args:
        card_name: A card's name or path.
        inputs: Texts, or paths of pictures, or for a card of stored vectors what it looks up.
        device: Where the model runs.

    Returns:
        ``card``, ``modality``, ``dim``, ``load_s`` and ``encode_s`` (seconds to load the model
        and to encode all inputs), ``inputs`` (of each its ``input``, ``norm`` and first
        ``values``; None where there is no vector), and ``cosine`` ([n, n]; of two inputs or more).

    Raises:
        EncoderError: The card, its model or an input is missing or unfit.
    """
    from mmkd.encoders import load_card
    from mmkd.encoders.offline import check_at_hand

    card = load_card(card_name)
    if card.fitted:
        raise EncoderError(
            f"card {card.name} is fitted on a whole catalogue, so a vector of single texts says "
            "nothing; use `mmkd embed` and `mmkd neighbours`"
        )
    check_at_hand(card)
    content = _read(card, inputs)
    start = time.perf_counter()
    encoder = card.build(device=device)
    loaded = time.perf_counter()
    vectors = encoder.encode(content)  # [n, dim]
    done = time.perf_counter()
    found = {
        "card": card.name,
        "modality": card.modality,
        "dim": encoder.dim,
        "load_s": round(loaded - start, 3),
        "encode_s": round(done - loaded, 3),
        "inputs": [_described(one, vector) for one, vector in zip(inputs, vectors, strict=True)],
    }
    if len(inputs) > 1:
        found["cosine"] = [[_number(value) for value in row] for row in _cosine(vectors)]
    return found


def _show(found: dict[str, Any]) -> None:
    """Prints what `encode` found."""
    terminal = console(width=None if console().is_terminal else 120)
    terminal.print(
        f"{found['card']}: {found['modality']}, dim {found['dim']}; loaded in "
        f"{found['load_s']:.2f} s, encoded {len(found['inputs'])} in {found['encode_s']:.2f} s"
    )
    table = PlainTable("", "input", "norm", "first values")
    for number, one in enumerate(found["inputs"], 1):
        values = " ".join(f"{value:+.4f}" for value in one["values"] or ()) or "no vector"
        norm = "" if one["norm"] is None else f"{one['norm']:.4f}"
        table.add_row(str(number), _shortened(one["input"]), norm, values)
    terminal.print(table)
    if "cosine" in found:
        cosine = PlainTable("cosine", *(str(n) for n in range(1, len(found["inputs"]) + 1)))
        for number, row in enumerate(found["cosine"], 1):
            cosine.add_row(str(number), *("" if v is None else f"{v:.4f}" for v in row))
        terminal.print(cosine)


def _read(card: "EncoderCard", inputs: Sequence[str]) -> list[Any]:
    """What the card's encoder takes, from what was typed."""
    from mmkd.embeddings.pictures import ImageProblem, decode_image

    if card.modality == "text" or card.reads != "content":
        return list(inputs)
    images = []
    for place in inputs:
        path = Path(place).expanduser()
        if not path.is_file():
            raise EncoderError(
                f"{place}: no such file; card {card.name} encodes pictures, give their paths"
            )
        with outside(
            EncoderError,
            place,
            "cannot be read as a picture",
            remedy="give another",
            also=(ImageProblem,),
        ):
            images.append(decode_image(path.read_bytes()))  # as the cache does
    return images


def _described(given: str, vector: NDArray[np.float32]) -> dict[str, Any]:
    if not np.isfinite(vector).all():
        return {"input": given, "norm": None, "values": None}
    return {
        "input": given,
        "norm": _number(np.linalg.norm(vector.astype(np.float64))),
        "values": [_number(value) for value in vector[:_VALUES]],
    }


def _cosine(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[n, n]``; NaN for a vector that is zero or is not there."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms > 0, norms, np.nan)
    return np.asarray(unit @ unit.T)


def _number(value: Any) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LABEL else line[: _LABEL - 1] + "…"
