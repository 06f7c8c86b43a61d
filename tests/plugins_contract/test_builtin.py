"""The built-in plugins do what they say on real pictures, and refuse hostile ones before they cost anything."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
import zlib
from pathlib import Path
from subprocess import run as run_command
from typing import Any

import pytest
from PIL import Image

from service.codec import check_document
from service.errors import InputInvalidError, JobCancelledError
from service.plugins.context import Context
from service.plugins.discovery import installed_plugins
from service.plugins.loading import LoadedPlugin, load
from service.plugins.output import plain

from .conftest import PICTURES, Sent

SOURCES = installed_plugins()
EXPECTED = json.loads((PICTURES / "expected.json").read_text())
ON_PICTURES = ["barcode", "image_info", "ocr", "thumbnail"]


def call(plugin: LoadedPlugin, context: Context, payload: dict[str, Any]) -> dict[str, Any]:
    args, kwargs = plugin.bind(payload, context)
    return plain(plugin.run(*args, **kwargs))


def picture(name: str) -> dict[str, Any]:
    return {"image": (PICTURES / name).read_bytes(), "mime_type": "image/png"}


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"image": stream.getvalue(), "mime_type": f"image/{kind}"}


@pytest.fixture(scope="module")
def ocr() -> LoadedPlugin:
    plugin = load(SOURCES["ocr"])
    assert plugin.setup is not None
    plugin.setup()
    return plugin


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_built_in_plugin_describes_itself(name: str) -> None:
    manifest = load(SOURCES[name]).manifest

    check_document(manifest.input_schema)
    assert manifest.description.endswith(".")
    if name in ON_PICTURES:
        assert manifest.input_schema["required"] == ["image", "mime_type"]
        assert manifest.input_schema["properties"]["image"]["contentEncoding"] == "base64"
        assert manifest.memory_mb is not None
        assert manifest.timeout_s is not None


def test_describing_ocr_does_not_load_its_libraries() -> None:
    script = """
import sys
from service.plugins.discovery import installed_plugins
from service.plugins.loading import load
load(installed_plugins()["ocr"])
print(sorted({"numpy", "onnxruntime", "rapidocr", "cv2"} & sys.modules.keys()))
"""
    done = run_command([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("image_info", "PIL", "image"),
        ("thumbnail", "PIL", "image"),
        ("barcode", "zxingcpp", "barcode"),
        ("ocr", "onnxruntime", "ocr"),
        ("ocr", "rapidocr", "ocr"),
        ("ocr", "PIL", "image"),
        ("barcode", "PIL", "image"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(name: str, missing: str, extra: str) -> None:
    # A path finder that knows nothing of the library is what an environment without it looks like.
    script = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == {missing!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from service.plugins.discovery import installed_plugins
from service.plugins.loading import load
try:
    load(installed_plugins()[{name!r}])
except ModuleNotFoundError as error:
    print(error)
"""
    done = run_command([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == f"No module named {missing!r}: pip install 'jobservice[{extra}]'\n"


def test_echo_returns_its_payload(context: Context) -> None:
    payload = {"n": [1, {"x": None}], "image": b"x", "mime_type": "a/b"}

    assert call(load(SOURCES["echo"]), context, payload) == payload


def test_sleep_tells_its_progress_to_the_end(context: Context, sent: Sent) -> None:
    result = call(load(SOURCES["sleep"]), context, {"seconds": 0.25})

    fractions = [header["fraction"] for header, _ in sent.messages]
    assert result["slept_s"] >= 0.25
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) >= 3


def test_sleep_wakes_up_when_it_is_cancelled(context: Context, sent: Sent) -> None:
    sent.cancelled = True
    start = time.monotonic()

    with pytest.raises(JobCancelledError):
        call(load(SOURCES["sleep"]), context, {"seconds": 3600})
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("seconds", [-1, 86_401, "1", True, None])
def test_sleep_refuses_what_is_no_duration(seconds: Any, context: Context) -> None:
    with pytest.raises(InputInvalidError):
        load(SOURCES["sleep"]).bind({"seconds": seconds}, context)


def test_image_info_sees_a_photograph_upright(context: Context) -> None:
    info = call(load(SOURCES["image_info"]), context, picture("photo.jpg"))

    assert {name: info[name] for name in ("format", "mode", "frames", "has_alpha")} == {
        "format": "JPEG",
        "mode": "RGB",
        "frames": 1,
        "has_alpha": False,
    }
    assert (info["width"], info["height"]) == (EXPECTED["photo.jpg"]["width"], EXPECTED["photo.jpg"]["height"])


def test_image_info_counts_frames(context: Context) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    info = call(
        load(SOURCES["image_info"]), context, encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    )

    assert (info["format"], info["frames"], info["width"]) == ("GIF", 3, 8)


def opened(result: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(result["image"]))
    assert image.size == (result["width"], result["height"])
    assert Image.MIME[image.format or ""] == result["mime_type"]
    image.load()
    return image


@pytest.mark.parametrize(
    ("options", "size", "kind"),
    [
        ({}, (256, 192), "JPEG"),
        ({"width": 100}, (100, 75), "JPEG"),
        ({"width": 100.0, "height": 50}, (67, 50), "JPEG"),
        ({"width": 100, "height": 50, "fit": "cover"}, (100, 50), "JPEG"),
        ({"width": 4096, "height": 4096}, (1280, 960), "JPEG"),
        ({"format": "png", "width": 64}, (64, 48), "PNG"),
        ({"format": "webp", "width": 64, "quality": 40}, (64, 48), "WEBP"),
        ({"width": 1, "height": 1}, (1, 1), "JPEG"),
    ],
)
def test_thumbnail_scales_the_upright_picture(
    options: dict[str, Any], size: tuple[int, int], kind: str, context: Context
) -> None:
    thumb = opened(call(load(SOURCES["thumbnail"]), context, {**picture("photo.jpg"), **options}))

    assert thumb.size == size
    assert thumb.format == kind
    assert not thumb.getexif()


def test_thumbnail_shows_the_sky_above_the_water(context: Context) -> None:
    thumb = opened(call(load(SOURCES["thumbnail"]), context, picture("photo.jpg"))).convert("L")

    def brightness(box: tuple[int, int, int, int]) -> float:
        pixels = thumb.crop(box).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert isinstance(pixels, int)
        return pixels

    assert brightness((0, 0, 256, 60)) > brightness((0, 150, 256, 192)) + 20


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_thumbnail_takes_every_colour_mode(mode: str, context: Context) -> None:
    plugin = load(SOURCES["thumbnail"])
    kind = "tiff" if mode in ("CMYK", "I", "F") else "png"

    for format in ("auto", "jpeg", "png", "webp"):
        opened(call(plugin, context, {**encoded(Image.new(mode, (40, 20)), kind), "format": format, "width": 10}))


def test_thumbnail_keeps_transparency_where_the_format_can(context: Context) -> None:
    plugin = load(SOURCES["thumbnail"])
    clear = encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)))

    kept = opened(call(plugin, context, clear))
    flat = opened(call(plugin, context, {**clear, "format": "jpeg"}))

    assert (kept.format, kept.getpixel((0, 0))) == ("PNG", (255, 0, 0, 0))
    assert flat.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_16_bit_scan_is_scaled_not_clipped(context: Context) -> None:
    grey = Image.new("I;16", (40, 40), 32_768)

    thumb = opened(call(load(SOURCES["thumbnail"]), context, {**encoded(grey), "format": "png"}))

    assert thumb.getpixel((5, 5)) == 128


def test_barcode_reads_the_codes_of_the_label(context: Context) -> None:
    result = call(load(SOURCES["barcode"]), context, picture("label.png"))

    found = {(code["format"], code["text"]) for code in result["codes"]}
    assert found == {(code["format"], code["text"]) for code in EXPECTED["label.png"]["codes"]}
    assert result["count"] == 3
    for code in result["codes"]:
        assert len(code["position"]) == 4
        assert all(0 <= x <= result["width"] and 0 <= y <= result["height"] for x, y in code["position"])


def test_a_picture_without_codes_is_a_result_with_none(context: Context) -> None:
    result = call(load(SOURCES["barcode"]), context, picture("photo.jpg"))

    assert (result["codes"], result["count"]) == ([], 0)


def test_ocr_reads_the_page(ocr: LoadedPlugin, context: Context, sent: Sent, capfd: pytest.CaptureFixture[str]) -> None:
    result = call(ocr, context, picture("page.png"))

    for words in EXPECTED["page.png"]["words"]:
        assert words in result["text"]
    assert result["text"].splitlines() == [line["text"] for line in result["lines"]]
    assert result["confidence"] > 0.9
    for line in result["lines"]:
        assert 0.5 <= line["score"] <= 1
        assert all(0 <= x <= result["width"] and 0 <= y <= result["height"] for x, y in line["box"])
    assert sent.messages[-1][0]["message"] == f"{len(result['lines'])} lines read"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_ocr_of_an_empty_sheet_is_a_result_without_lines(mode: str, ocr: LoadedPlugin, context: Context) -> None:
    result = call(ocr, context, encoded(Image.new(mode, (300, 200), "white")))

    assert (result["text"], result["lines"], result["confidence"]) == ("", [], None)


def test_ocr_can_be_told_to_be_surer(ocr: LoadedPlugin, context: Context) -> None:
    strict = call(ocr, context, {**picture("page.png"), "min_score": 1})
    usual = call(ocr, context, picture("page.png"))

    assert len(strict["lines"]) < len(usual["lines"])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_ocr_survives_degenerate_pictures(size: tuple[int, int], ocr: LoadedPlugin, context: Context) -> None:
    assert call(ocr, context, encoded(Image.new("L", size)))["lines"] == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG that is `width` x `height` zero bits when decoded."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PAGE = (PICTURES / "page.png").read_bytes()
PHOTO = (PICTURES / "photo.jpg").read_bytes()
HOSTILE = {
    "a bomb of 169 megapixels": (png_bomb(13_000, 13_000), "has 13000 x 13000 pixels; at most 40 megapixels"),
    "a bomb beyond Pillow's own limit": (png_bomb(40_000, 40_000), "has 40000 x 40000 pixels"),
    "one pixel row too many": (png_bomb(40_000, 1_001), "has 40000 x 1001 pixels"),
    "a header without pixels": (png_bomb(13_000, 13_000)[:60], "13000 x 13000"),
    "half a PNG": (PAGE[: len(PAGE) // 2], "damaged or incomplete PNG"),
    "half a JPEG": (PHOTO[: len(PHOTO) // 2], "damaged or incomplete JPEG"),
    "a PNG with a flipped byte": (PAGE[:5000] + bytes([PAGE[5000] ^ 0xFF]) + PAGE[5001:], "damaged or incomplete PNG"),
    "a PNG's signature alone": (PAGE[:8], "not a picture"),
    "text": (b"not a picture", "not a picture"),
    "zero bytes": (b"\0" * 1000, "not a picture"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    "nothing": (b"", "must be bytes and not empty"),
}


@pytest.mark.parametrize("name", ON_PICTURES)
@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_picture_is_refused_as_bad_input(name: str, data: bytes, message: str, context: Context) -> None:
    plugin = load(SOURCES[name])

    with pytest.raises(InputInvalidError) as refusal:
        plugin.bind({"image": data, "mime_type": "image/png"}, context)

    [problem] = refusal.value.problems
    assert problem.pointer == "/image"
    assert message in problem.message


def test_a_picture_with_too_many_frames_is_refused(context: Context) -> None:
    frames = [Image.new("1", (1, 1), index % 2) for index in range(1_001)]
    animation = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])

    with pytest.raises(InputInvalidError, match=r"has 1001 frames; at most 1000"):
        load(SOURCES["image_info"]).bind(animation, context)


def test_a_bomb_is_refused_before_it_takes_memory(context: Context) -> None:
    plugin = load(SOURCES["thumbnail"])
    bomb = png_bomb(13_000, 13_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(InputInvalidError):
        plugin.bind({"image": bomb, "mime_type": "image/png"}, context)

    assert len(bomb) < 50_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_damaged_orientation_does_not_spoil_a_good_picture(context: Context) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(Image.new("RGB", (20, 10)), "jpeg", exif=exif)
    place = photo["image"].index(b"Exif\0\0") + 6
    photo["image"] = photo["image"][:place] + b"\xff" * 12 + photo["image"][place + 12 :]

    info = call(load(SOURCES["image_info"]), context, photo)

    assert (info["width"], info["height"]) == (20, 10)


def test_the_script_makes_the_example_pictures(tmp_path: Path) -> None:
    script = PICTURES.parent / "make_pictures.py"
    run_command([sys.executable, str(script), str(tmp_path)], check=True)

    for made in PICTURES.iterdir():
        again = tmp_path / made.name
        if made.suffix == ".json":
            assert json.loads(again.read_text()) == EXPECTED
        else:
            # The encoders may change with their libraries, the pictures must not.
            with Image.open(made) as kept, Image.open(again) as new:
                assert new.size == kept.size
                difference = bytes(
                    abs(a - b) for a, b in zip(kept.convert("L").tobytes(), new.convert("L").tobytes(), strict=True)
                )
                assert sum(difference) / len(difference) < 1
    assert sum(file.stat().st_size for file in PICTURES.iterdir()) < 300_000
