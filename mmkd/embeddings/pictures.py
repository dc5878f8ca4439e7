"""Pictures read, decoded and prepared ahead of the encoder, by processes of their own.

From work whose sources are files to RGB images, to what an encoder's ``prepare`` makes of them, or
to the reason why there is none. Pillow converts some modes in ways that lose the picture (16-bit
grey clips to white, transparent pixels show whatever colour lies under them), so those are brought
to RGB here.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mmkd.embeddings.inputs import Loaded, Work, content_key, storable
from mmkd.encoders.images import MAX_PIXELS
from mmkd.errors import CacheError
from mmkd.files import open_plain
from mmkd.threads import usable_cores

Prepare = Callable[[Image.Image], NDArray[Any]]
# what catalogues hold, and nothing that Pillow hands to another program, as PostScript
FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)
_PNG, _PNG_NOTES = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MOST = 8  # threads or processes: more do not decode faster than an encoder reads
_WORTH_PROCESSES = 512  # below, starting them takes longer than they save
_AHEAD_WHOLE = 16  # whole pictures waiting for the encoder; one may be 256 MiB


class PictureLoader(AbstractContextManager["PictureLoader"]):
    """Reads, decodes and prepares pictures some way ahead of who takes them; a context manager.

    Args:
        prepare: The encoder's preprocessing, picklable; None gives whole RGB images.
        workers: Processes; None takes half of this process's share of the cores (at most 8) where
            there is much to do, 0 stays in this process.
        ahead: Prepared pictures held ready.
        count: Pictures in all, to judge whether processes pay.
    """

    def __init__(
        self, prepare: Prepare | None, *, workers: int | None, ahead: int, count: int
    ) -> None:
        if workers is None:
            beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of a launcher, on this machine
            share = max(1, usable_cores() // (2 * beside))
            workers = min(_MOST, share) if count >= _WORTH_PROCESSES else 0
        self._prepare = prepare
        self._workers = workers
        self._ahead = max(ahead, 2 * workers) if prepare else max(_AHEAD_WHOLE, 2 * workers)
        self._pool: Executor | None = None

    def __exit__(self, *error: object) -> None:
        """Ends the processes."""
        self._close()

    def load(self, work: Sequence[Work]) -> Iterator[Loaded]:
        """Pictures in order; a file that is gone since it was hashed is left out.

        Args:
            work: Pictures to read.

        Raises:
            CacheError: Worker processes cannot be started.
        """
        waiting: deque[tuple[Work, Future[Loaded | None]]] = deque()
        left = deque(work)
        while left or waiting:
            while left and len(waiting) < self._ahead:
                waiting.append((left[0], self._submit(left[0])))
                left.popleft()
            item, future = waiting.popleft()
            try:
                loaded = future.result()
            except BrokenProcessPool:
                # whoever was at work when the pool broke is under suspicion: each goes alone
                suspects = [item, *(other for other, _ in waiting)]
                waiting.clear()
                self._close()
                for suspect in suspects:
                    alone = self._alone(suspect)
                    if alone is not None:
                        yield alone
                continue
            if loaded is not None:
                yield loaded

    def _submit(self, item: Work) -> "Future[Loaded | None]":
        if self._pool is None:
            self._pool = self._started()
        try:
            return self._pool.submit(_load, item, self._prepare if self._workers == 0 else None)
        except BrokenProcessPool as error:
            broken: Future[Loaded | None] = Future()
            broken.set_exception(error)
            return broken

    def _alone(self, item: Work) -> Loaded | None:
        try:
            return self._submit(item).result()
        except BrokenProcessPool:
            self._close()
            reason = "the process that decoded it died; the picture may need too much memory"
            return Loaded(item.key, item.item_id, None, reason)

    def _started(self) -> Executor:
        if self._workers == 0:
            return ThreadPoolExecutor(min(_MOST, usable_cores()))
        # not fork: this process may hold a GPU, and threads that hold locks
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_set_up, initargs=(self._prepare,)
        )
        try:
            pool.submit(os.getpid).result()
        except (BrokenProcessPool, OSError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise CacheError(
                f"processes that decode pictures cannot be started ({error}); use workers 0 to "
                "decode in the main process (a script that is run needs its "
                "`if __name__ == '__main__':`)"
            ) from error
        return pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class ImageProblem(Exception):  # noqa: N818 - a finding about one file that is recorded, not a failure
    """Why a file gives no picture; becomes the item's reason in the manifest."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a picture.

    The first frame of an animation is taken, the EXIF orientation applied, transparency laid on
    white, and 16-bit or floating-point greys scaled to 8 bits.

    Args:
        data: The bytes of the file.
        max_pixels: Pictures with more pixels are refused before they are decoded.

    Returns:
        An image in mode RGB.

    Raises:
        ImageProblem: The bytes are no picture, damaged, or too large.
    """
    if not data:
        raise ImageProblem("the file is empty")
    Image.init()  # not every build of Pillow has all formats
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        try:
            return _decoded(data, known, max_pixels)
        except ValueError:
            if not data.startswith(_PNG):
                raise
        # Pillow refuses a sound PNG whose notes (an editor's history, say) are longer than it reads
        return _decoded(_without_notes(data), known, max_pixels)
    except ImageProblem:
        raise
    except UnidentifiedImageError:
        raise ImageProblem(f"not a picture in a format that is read: {', '.join(known)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem(f"too large: {error}") from None
    # plugins raise whatever their parsing meets (struct.error, KeyError, SyntaxError...): with a
    # damaged file each means the same
    except Exception as error:
        raise ImageProblem(f"damaged picture: {type(error).__name__}: {error}") from None


def _decoded(data: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    with Image.open(BytesIO(data), formats=formats) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise ImageProblem(f"too large: {size}, at most {max_pixels} are decoded")
        image.load()
        upright: Image.Image = image
        with suppress(Exception):  # damaged EXIF data is no reason to lose a sound picture
            upright = ImageOps.exif_transpose(image)
        return _rgb(upright)


def _without_notes(png: bytes) -> bytes:
    """A PNG without its chunks of text and of colour profiles, which change no pixel."""
    kept, start = [png[: len(_PNG)]], len(_PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])  # length, type, data, CRC
        if png[start + 4 : start + 8] not in _PNG_NOTES:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, straight)
    # a copy, so that the returned image is no file image and holds no buffer open
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits to 8: 16-bit values by their range, others by the picture's own."""
    grey = np.asarray(image, dtype=np.float64)
    if not np.isfinite(grey).all():
        raise ImageProblem("pixels are not finite numbers")
    low, high = float(grey.min()), float(grey.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (grey - low) * (255.0 / (high - low)) if high > low else np.zeros_like(grey)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


_prepare_here: Prepare | None = None  # a worker process's, set once when it starts


def _set_up(prepare: Prepare | None) -> None:
    global _prepare_here
    _prepare_here = prepare
    # Ctrl-C reaches the whole group of processes; the main one decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)  # the cores are the model's


def _end_with_parent() -> None:
    """Ends this process when the main one is killed, which closes no queue that would tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _load(work: Work, prepare: Prepare | None) -> Loaded | None:
    prepare = prepare or _prepare_here
    try:
        with open_plain(Path(work.source)) as file:
            data = file.read()
    except OSError:
        return None  # gone since it was hashed; its key says nothing about it any more
    key = content_key(data)
    try:
        image = decode_image(data)
    except ImageProblem as problem:
        return Loaded(key, work.item_id, None, storable(str(problem)))
    if prepare is None:
        return Loaded(key, work.item_id, image)
    try:
        return Loaded(key, work.item_id, prepare(image))
    except Exception as error:
        reason = f"the encoder cannot prepare it: {type(error).__name__}: {error}"
        return Loaded(key, work.item_id, None, storable(reason))
