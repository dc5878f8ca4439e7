"""What an encoder needs from the hub, and what to do where the hub is out of reach.

From a card to nothing, or to one EncoderError at once: which cards work here without a network, and
how weights are brought. Asked before any work starts; libraries left alone try for minutes.
"""

from collections.abc import Callable
from pathlib import Path

from mmkd.encoders.card import EncoderCard, list_cards
from mmkd.encoders.loading import PACKAGE_PREFIX, is_installed, local_path
from mmkd.errors import EncoderError
from mmkd.hub import hub_reachable

HubModel = tuple[str, str | None]  # a repository's id and revision
_HUB = "hf-hub:"


def check_at_hand(card: EncoderCard, *, key: str | None = None) -> None:
    """Raise EncoderError where a card's weights are neither here nor to be had.

    Args:
        card: The card.
        key: What a recipe calls it, such as ``encoders.text``; None where there is no recipe.

    Raises:
        EncoderError: The weights are not in the hub's cache, and the hub can't be reached or must
            not be asked.
    """
    from huggingface_hub import constants

    if not _may_need_hub(card) or (not constants.HF_HUB_OFFLINE and hub_reachable()):
        return
    for model, revision in hub_models(card):
        if _cached(model, revision):
            continue
        why = (
            "HF_HUB_OFFLINE is set, so nothing is downloaded"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} can't be reached"
        )
        size = f" ({card.size_mb:.0f} MB)" if card.size_mb else ""
        cards = [f"{key}={name}" if key else name for name in offline_cards(card.modality)]
        fetch = f"hf download {model}" + (f" --revision {revision}" if revision else "")
        raise EncoderError(
            f"{key or 'card'}: {card.name} needs {model}{size}, which isn't in the hub's cache "
            f"{constants.HF_HUB_CACHE}, and {why}.\n"
            f"Cards that work here without a network: {', '.join(cards) or 'none'}.\n"
            f"To bring the weights: where there is a network, `{fetch}`, then copy its "
            "~/.cache/huggingface here (HF_HOME names another place; HF_HUB_OFFLINE=1 saves the "
            f"asking). Or add `--local-dir {model.rpartition('/')[2]}`, copy that folder here, and "
            f"give its path as model: in a card of your own (`mmkd cp {card.name} encoders`), "
            "without revision or pretrained."
        )


def offline_cards(modality: str) -> list[str]:
    """Names of the cards of a modality whose weights are on this machine, or that have none."""
    return [card.name for card in list_cards() if card.modality == modality and _at_hand(card)]


def hub_models(card: EncoderCard) -> list[HubModel]:
    """The repositories that a card's weights come from; none for a kind of somebody's own.

    >>> from mmkd import load_card
    >>> from mmkd.encoders.offline import hub_models
    >>> hub_models(load_card("dinov2-base"))
    [('facebook/dinov2-base', None)]
    >>> hub_models(load_card("hashed-text"))
    []
    """
    return _SOURCES[card.kind](card) if _may_need_hub(card) else []


def _at_hand(card: EncoderCard) -> bool:
    if card.kind not in _SOURCES:
        # without weights; a file of vectors or somebody's own kind suits no other catalogue
        return card.kind in ("hashed_text", "color_image")
    if (model := card.model or "").startswith(PACKAGE_PREFIX):
        return is_installed(model.removeprefix(PACKAGE_PREFIX))
    for place in (card.model, card.pretrained):
        if place and (path := local_path(place)) is not None and not path.exists():
            return False
    return all(_cached(*source) for source in hub_models(card))


def _may_need_hub(card: EncoderCard) -> bool:
    """Whether a card names a model of the hub; loads no model library to say so."""
    if card.kind not in _SOURCES:
        return False
    adapter = card.options.get("adapter")
    if isinstance(adapter, str) and local_path(adapter) is None:
        return True
    model = card.model or ""
    if model.startswith(PACKAGE_PREFIX) or local_path(model) is not None:
        return card.kind == "open_clip" and _named(card.pretrained)
    if card.kind == "open_clip" and not model.startswith(_HUB):
        return _named(card.pretrained)
    return card.kind != "timm" or card.pretrained is None


def _named(pretrained: str | None) -> bool:
    return pretrained is not None and local_path(pretrained) is None


def _transformers(card: EncoderCard) -> list[HubModel]:
    model, adapter = card.model or "", card.options.get("adapter")
    found: list[HubModel] = []
    if not model.startswith(PACKAGE_PREFIX) and local_path(model) is None:
        found.append((model, card.revision))
    if isinstance(adapter, str) and local_path(adapter) is None:
        revision = card.options.get("adapter_revision")
        found.append((adapter, None if revision is None else str(revision)))
    return found


def _open_clip(card: EncoderCard) -> list[HubModel]:
    model = card.model or ""
    if model.startswith(_HUB):
        return [(model.removeprefix(_HUB), None)]
    from open_clip.pretrained import get_pretrained_cfg

    config = get_pretrained_cfg(model, card.pretrained or "")
    repository = str(config.get("hf_hub") or "").rstrip("/")
    return [(repository, None)] if repository else []


def _timm(card: EncoderCard) -> list[HubModel]:
    model = card.model or ""
    if model.startswith(_HUB):
        return [(model.removeprefix(_HUB), None)]
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model)
    return [(config.hf_hub_id, None)] if config is not None and config.hf_hub_id else []


_SOURCES: dict[str, Callable[[EncoderCard], list[HubModel]]] = {
    "clip": _transformers,
    "language_model": _transformers,
    "sentence_transformer": _transformers,
    "vision": _transformers,
    "open_clip": _open_clip,
    "timm": _timm,
}


def _cached(model: str, revision: str | None) -> bool:
    """Whether the hub's cache holds a repository's weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return False
    return any(next(folder.rglob(ending), None) for ending in ("*.safetensors", "*.bin"))
