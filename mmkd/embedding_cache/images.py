"""Decoding pictures found in the wild: the bytes of a file to an 8-bit RGB image, or a reason.

Pillow converts some modes in ways that lose the picture (16-bit grey clips to white, transparent
pixels show whatever colour lies under them), so those are brought to RGB here.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own threshold of suspicion: 256 MiB as RGB, more than any catalogue picture needs
MAX_PIXELS = 89_478_485


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
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise ImageProblem(_too_large(image.size, max_pixels))
            image.load()
            return _rgb(_upright(image))
    except ImageProblem:
        raise
    except UnidentifiedImageError:
        raise ImageProblem("not a picture in a format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem(f"too large: {error}") from None
    # plugins raise whatever their parsing meets (struct.error, KeyError, SyntaxError...): with a
    # damaged file each means the same
    except Exception as error:
        raise ImageProblem(f"damaged picture: {type(error).__name__}: {error}") from None


def _too_large(size: tuple[int, int], max_pixels: int) -> str:
    return f"too large: {size[0]} x {size[1]} pixels, at most {max_pixels} are decoded"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data is no reason to lose a sound picture
        return image


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
