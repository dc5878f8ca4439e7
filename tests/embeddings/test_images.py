"""Pictures as they are found: each kind decodes to what one sees, or gives a reason."""

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd.embeddings.inputs import FileKeys, Work
from mmkd.embeddings.pictures import FORMATS, ImageProblem, PictureLoader, decode_image
from mmkd.encoders.images import MAX_PIXELS, ImageProcessor, check_resized, image_transform
from mmkd.errors import EncoderError

RED = (200, 20, 30)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1) + b"IDAT" + b"\0" * 5


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_plain_pictures(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixel(encoded(Image.new("RGB", (8, 8), RED), kind, **options))
    assert np.abs(np.subtract(found, RED)).max() <= (3 if kind in ("JPEG", "GIF") else 0)


def test_cmyk() -> None:
    found = pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert found[0] > 240 and found[1] < 30 and found[2] < 30


def test_palette() -> None:
    assert pixel(encoded(Image.new("RGB", (8, 8), RED).quantize(4))) == RED


def test_one_bit_and_grey() -> None:
    assert pixel(encoded(Image.new("1", (8, 8), 1))) == (255, 255, 255)
    assert pixel(encoded(Image.new("L", (8, 8), 77))) == (77, 77, 77)


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_alpha_is_laid_on_white(alpha: int) -> None:
    found = pixel(encoded(Image.new("RGBA", (8, 8), (*RED, alpha))))
    blended = [255 + (channel - 255) * alpha / 255 for channel in RED]
    np.testing.assert_allclose(found, blended, atol=1)
    grey = pixel(encoded(Image.new("LA", (8, 8), (100, alpha))))
    np.testing.assert_allclose(grey, 255 + (100 - 255) * alpha / 255, atol=1)


def test_transparent_palette_and_colour_key_are_laid_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    assert pixel(encoded(image)) == RED
    assert pixel(encoded(image, transparency=1)) == (255, 255, 255)
    keyed = Image.new("RGB", (8, 8), RED)
    assert pixel(encoded(keyed, transparency=RED)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(BytesIO(data)) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    assert np.abs(np.subtract(pixel(data), RED)).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (7, 3)), (6, (3, 0)), (8, (0, 7))]
)
def test_exif_orientation(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(image, exif=exif))
    assert upright.size == ((8, 4) if orientation in (1, 3) else (4, 8))
    assert upright.getpixel(corner) == RED


def test_damaged_exif_data_does_not_lose_the_picture() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05garbage")
    assert pixel(data) == RED


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decode_image(encoded(Image.fromarray(values), kind))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 255]


def test_wide_integers_and_floats_are_scaled() -> None:
    wide = Image.fromarray(np.array([[-1000, 0, 1000]], np.int32))
    assert np.asarray(decode_image(encoded(wide, "TIFF")))[0, :, 1].tolist() == [0, 128, 255]
    unit = Image.fromarray(np.array([[0.0, 0.2, 0.4]], np.float32))
    assert np.asarray(decode_image(encoded(unit, "TIFF")))[0, :, 1].tolist() == [0, 51, 102]
    flat = Image.fromarray(np.array([[7.0, 7.0]], np.float32))
    assert np.asarray(decode_image(encoded(flat, "TIFF")))[0, :, 1].tolist() == [0, 0]
    broken = Image.fromarray(np.array([[np.nan, 1.0]], np.float32))
    with pytest.raises(ImageProblem, match="not finite"):
        decode_image(encoded(broken, "TIFF"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged"),
        (encoded(Image.effect_noise((64, 64), 50))[:-900], "damaged.*truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-900], "damaged.*truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "GIF")[:-900], "damaged"),
        (png_header(40_000, 40_000), "too large"),
        (png_header(10_000, 10_000), "too large: 10000 x 10000"),
    ],
)
def test_what_is_no_picture_has_a_reason(data: bytes, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageProblem, match=reason):
            decode_image(data)


def test_the_largest_picture_is_not_refused() -> None:
    data = encoded(Image.new("L", (40, 25), 7))
    assert decode_image(data, max_pixels=1000).size == (40, 25)
    with pytest.raises(ImageProblem, match="at most 999"):
        decode_image(data, max_pixels=999)
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_no_picture_goes_to_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("os.system", start)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n"
    with pytest.raises(ImageProblem, match=r"not a picture in a format that is read: .*PNG"):
        decode_image(postscript)
    assert not {"EPS", "WMF", "FPX", "HDF5", "GRIB", "BUFR"} & {*FORMATS}


@pytest.mark.parametrize("length", [100, 3 << 20])
def test_what_an_editor_noted_in_a_png_is_no_damage(length: int) -> None:
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "x" * length, zip=True)
    notes.add_text("Comment", "y" * length, zip=True)
    picture = Image.effect_noise((32, 20), 60).convert("RGB")
    found = decode_image(encoded(picture, pnginfo=notes))
    assert np.array_equal(np.asarray(found), np.asarray(picture))


@pytest.mark.parametrize("count", [1, 40])  # one is too long, or all of them together
def test_notes_behind_the_pixels_of_a_png_are_no_damage_either(count: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    picture = Image.effect_noise((32, 20), 60).convert("RGB")
    note = zlib.compress(b"x" * ((80 << 20) // 40 if count > 1 else 3 << 20))
    notes = [
        chunk(b"zTXt", b"Comment%d\0\0" % n + note)
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + note)
        for n in range(count)
    ]
    sound = encoded(picture)
    end = sound.rindex(b"IEND") - 4
    found = decode_image(sound[:end] + b"".join(notes) + sound[end:])
    assert np.array_equal(np.asarray(found), np.asarray(picture))


def test_a_damaged_png_stays_damaged_without_its_notes() -> None:
    sound = encoded(Image.effect_noise((64, 64), 50))
    broken = bytearray(sound)
    broken[len(sound) // 2] ^= 0xFF
    with pytest.raises(ImageProblem, match="damaged"):
        decode_image(bytes(broken))


def test_a_picture_too_narrow_to_be_resized_is_refused_before_it_is() -> None:
    check_resized(Image.new("RGB", (1700, 1)), 224)  # 380,800 x 224
    with pytest.raises(EncoderError, match=r"8000 x 1 .* to 1792000 x 224, at most 89478485"):
        check_resized(Image.new("RGB", (8000, 1)), 224)
    check_resized(Image.new("RGB", (8000, 1)), None)


def test_the_shorter_side_is_asked_of_transforms_and_processors() -> None:
    from torchvision import transforms  # type: ignore[import-untyped]

    narrow = Image.new("RGB", (1, 30_000))
    keeps = image_transform(
        transforms.Compose(
            [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
        )
    )
    with pytest.raises(EncoderError, match="too narrow"):
        keeps(narrow)
    squashes = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    assert image_transform(squashes)(narrow).shape == (3, 64, 64)

    def processed(images: Any, **options: Any) -> Any:
        raise AssertionError("it was resized")

    for size, refused in (({"shortest_edge": 64}, True), ({"height": 64, "width": 64}, False)):
        processor = type("Processor", (), {"size": size, "__call__": staticmethod(processed)})()
        with pytest.raises(EncoderError if refused else AssertionError):
            ImageProcessor(processor)(narrow)
    given = SimpleNamespace(size={"height": 64, "width": 64})
    changed = ImageProcessor(given, image_size=64, image_resize_mode="shortest")
    with pytest.raises(EncoderError, match="too narrow"):
        changed(narrow)


def test_a_pipe_is_no_picture_and_nobody_waits_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    keys = FileKeys(tmp_path / "files.parquet").keys([pipe, Path("/dev/zero")])
    assert all(key[0] == "failed" and "not a plain file" in key[1] for key in keys.values())
    with PictureLoader(None, workers=0, ahead=2, count=1) as loader:
        assert list(loader.load([Work("k", "i", pipe)])) == []
