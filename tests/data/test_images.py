"""A person's images: every kind of bad file, labels by folder and by table, arrays, sizes."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from striate.data import picture
from striate.data.images import open_picture, prepare, read_images
from striate.data.labels import labels_by_folder, labels_from_csv
from striate.engine.model import Preprocessing, imagenet_classes
from striate.errors import DataError, ImageError, InputError, SkippedWarning

SMALL = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, crop=1.0)
GREY = Preprocessing((1, 8, 8), (0.5,), (0.5,), crop=1.0)


def picture_of(colour: tuple[int, ...] | int = (200, 100, 50), size: tuple[int, int] = (16, 12), mode: str = "RGB"):
    return Image.new(mode, size, colour)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a decompression bomb's first bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def jpeg_bytes(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


# --- files that are refused, each by name


def test_bad_files_are_left_out_by_name_and_the_rest_goes_on(tmp_path: Path) -> None:
    picture_of().save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.png").write_text("not a picture at all")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    (tmp_path / "truncated.jpg").write_bytes(jpeg_bytes(noise)[:4000])
    (tmp_path / "bomb.png").write_bytes(png_header(12_000, 12_000))
    (tmp_path / "huge_bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    Image.fromarray(np.full((9, 9), 70_000, np.int32)).save(tmp_path / "int32.tiff")
    Image.fromarray(np.full((9, 9), 7.5, np.float32)).save(tmp_path / "float.tiff")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "dangling.png")
    with pytest.warns(SkippedWarning, match="10 files"):
        found = read_images(tmp_path, SMALL)
    assert found.names == ("good.png",)
    reasons = {item.name: item.reason for item in found.skipped}
    expected = {
        "bomb.png": "12000 x 12000 pixels are more than the 89,478,485",
        "dangling.png": "a link that leads nowhere",
        "drawing.eps": "not an image of a known kind",
        "empty.jpg": "0 bytes",
        "fake.png": "not an image of a known kind",
        "float.tiff": "float pixels run from 7.5 to 7.5",
        "huge_bomb.png": "more than the 89,478,485 pixels",
        "int32.tiff": "32-bit integer pixels",
        "notes.txt": "not an image of a known kind",
        "truncated.jpg": "damaged or truncated",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name], (name, reasons[name])


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(12_000, 12_000))

    def never(self: object) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="89,478,485"):
            open_picture(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    picture_of().save(tmp_path / "locked.png")
    (tmp_path / "locked.png").chmod(0)
    with pytest.raises(ImageError, match="Permission"):
        open_picture(tmp_path / "locked.png")


def test_an_operating_system_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_of().save(tmp_path / "locked.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(picture.Image, "open", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        open_picture(tmp_path / "locked.png")


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0"]))
@settings(max_examples=80, deadline=None)
def test_no_bytes_whatever_raise_anything_but_image_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.png"
    path.write_bytes(magic + content)
    try:
        plain, _ = open_picture(path)
        assert plain.mode in {"RGB", "L"}
    except ImageError:
        pass


@given(st.integers(0, 2000), st.integers(0, 255), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
@settings(max_examples=80, deadline=None)
def test_damaged_pictures_open_or_raise_image_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, kind: str
) -> None:
    buffer = io.BytesIO()
    picture_of(size=(24, 24)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(bytes(content))
    with contextlib.suppress(ImageError):
        open_picture(path)


# --- files that are handled


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    picture_of((200, 100, 50)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    plain, notes = open_picture(tmp_path / "print.jpg")
    assert plain.mode == "RGB"
    assert np.abs(np.asarray(plain)[4, 4].astype(int) - (200, 100, 50)).max() <= 6
    assert notes == ("CMYK converted to RGB without a colour profile",)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "deep.tiff")
    for name in ("deep.png", "deep.tiff"):
        plain, notes = open_picture(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(plain).ravel(), np.arange(256), err_msg=name)
        assert "16-bit" in notes[0]


def test_float_grey_in_the_unit_range_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "unit.tiff")
    assert open_picture(tmp_path / "unit.tiff")[0].getpixel((0, 0)) == 128


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    colour = (100, 50, 0, 0) if mode == "RGBA" else (100, 0)
    image = picture_of(colour, mode=mode)
    image.putpixel((0, 0), (*colour[:-1], 255))
    image.save(tmp_path / "clear.png")
    plain, notes = open_picture(tmp_path / "clear.png")
    assert plain.getpixel((5, 5)) == (255, 255, 255)
    assert plain.getpixel((0, 0)) == ((100, 50, 0) if mode == "RGBA" else (100, 100, 100))
    assert notes == ("transparency laid on white",)


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    picture_of((100, 50, 0, 255), mode="RGBA").save(tmp_path / "opaque.png")
    plain, notes = open_picture(tmp_path / "opaque.png")
    assert plain.getpixel((5, 5)) == (100, 50, 0)
    assert notes == ()


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    image = picture_of((200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "p.png")
    image.save(tmp_path / "t.png", transparency=image.getpixel((0, 0)))
    assert open_picture(tmp_path / "p.png")[0].getpixel((3, 3)) == (200, 100, 50)
    assert open_picture(tmp_path / "t.png")[0].getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels_and_colour_becomes_luma(tmp_path: Path, mode: str) -> None:
    picture_of(255 if mode == "1" else 90, mode=mode).save(tmp_path / "grey.png")
    plain, _ = open_picture(tmp_path / "grey.png")
    three = prepare(plain, SMALL)
    assert three.shape == (3, 8, 8)
    assert (three == three[:1]).all()
    luma = prepare(picture_of((200, 100, 50)), GREY)
    assert luma.shape == (1, 8, 8)
    assert luma[0, 0, 0].item() == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, abs=1 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.zeros((16, 24, 3), np.uint8))
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # red corner at the top left of what the person saw
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpose codes that undo each orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    plain, notes = open_picture(tmp_path / "phone.png")
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(upright))
    assert bool(notes) == (orientation != 1)


def test_of_an_animation_and_of_pages_the_first_is_taken(tmp_path: Path) -> None:
    frames = [picture_of((250, 0, 0)), picture_of((0, 250, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.webp", "a.tiff"):
        plain, notes = open_picture(tmp_path / name)
        assert plain.getpixel((3, 3)) == (250, 0, 0), name
        assert notes == ("first of 2 frames",), name


def test_links_that_go_round_are_followed_once(tmp_path: Path) -> None:
    inner = tmp_path / "photos" / "inner"
    inner.mkdir(parents=True)
    picture_of().save(inner / "a.png")
    os.symlink(tmp_path / "photos", inner / "round")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture_of().save(elsewhere / "b.png")
    os.symlink(elsewhere, tmp_path / "photos" / "other")
    assert set(read_images(tmp_path / "photos", SMALL).names) == {"inner/a.png", "other/b.png"}


def test_hidden_files_are_none_of_our_business(tmp_path: Path) -> None:
    picture_of().save(tmp_path / "a.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".thumbs").mkdir()
    picture_of().save(tmp_path / ".thumbs" / "a.png")
    found = read_images(tmp_path, SMALL)
    assert found.names == ("a.png",)
    assert found.skipped == ()


# --- what cannot be read at all


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"holds no image that can be read\.$"):
        read_images(tmp_path, SMALL)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ImageError, match=r"First: a\.txt: it is not an image"):
        read_images(tmp_path, SMALL)


def test_a_missing_folder_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ImageError, match="Did you mean 'photos'"):
        read_images(tmp_path / "fotos", SMALL)


# --- resizing


@pytest.mark.parametrize("size", [(300, 451), (500, 224), (225, 225), (64, 1000), (31, 77)])
@pytest.mark.parametrize(
    ("target", "crop", "how"), [(224, 0.875, "bicubic"), (224, 0.875, "bilinear"), (33, 1.0, "bilinear")]
)
def test_prepare_is_torchvisions_evaluation_transform(
    size: tuple[int, int], target: int, crop: float, how: str
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    mode = T.InterpolationMode.BICUBIC if how == "bicubic" else T.InterpolationMode.BILINEAR
    peer = T.Compose([T.Resize(round(target / crop), mode), T.CenterCrop(target), T.ToTensor()])
    ours = prepare(image, Preprocessing((3, target, target), (0.5,) * 3, (0.5,) * 3, crop, how))
    torch.testing.assert_close(ours, peer(image), atol=0, rtol=0)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 1.0))
@settings(max_examples=80, deadline=None)
def test_prepare_gives_the_input_size_for_every_shape(w: int, h: int, height: int, width: int, crop: float) -> None:
    ready = prepare(picture_of(size=(w, h)), Preprocessing((3, height, width), (0.5,) * 3, (0.5,) * 3, crop))
    assert ready.shape == (3, height, width)
    torch.testing.assert_close(ready[:, 0, 0], torch.tensor([200, 100, 50]) / 255)  # no black border crept in
    torch.testing.assert_close(ready[:, -1, -1], torch.tensor([200, 100, 50]) / 255)


def test_a_picture_too_long_to_cover_the_input_is_left_out_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (40_000, 1)).save(tmp_path / "line.png")
    Image.new("RGB", (400, 1)).save(tmp_path / "short.png")
    wide = Preprocessing((3, 224, 224), (0.0,) * 3, (1.0,) * 3)
    with pytest.warns(SkippedWarning, match=r"line\.png: 40000 x 1 pixels are too long and narrow"):
        found = read_images(tmp_path, wide)
    assert found.names == ("short.png",)


def test_two_channels_are_refused() -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        prepare(picture_of(), Preprocessing((2, 8, 8), (0.5,) * 2, (0.5,) * 2))


# --- labels by folder


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture_of().save(root / name)
    return root


def test_class_folders_by_name_number_order_and_wnid(tmp_path: Path) -> None:
    found = read_images(
        tree(tmp_path / "a", "cat/1.png", "sea_Lion/x/2.png"), SMALL, class_names=["sea lion", "dog", "Cat"]
    )
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"cat/1.png": 2, "sea_Lion/x/2.png": 0}
    assert found.label_rule == "folders are names of the model's classes"

    found = read_images(tree(tmp_path / "b", "10/1.png", "2/2.png"), SMALL, class_names=[f"c{i}" for i in range(12)])
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"10/1.png": 10, "2/2.png": 2}
    assert found.label_rule == "folders are class numbers"

    found = read_images(tree(tmp_path / "c", "zebra/1.png", "ape/2.png"), SMALL)
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"ape/2.png": 0, "zebra/1.png": 1}
    assert found.class_names == ("ape", "zebra")
    assert "sorted order" in found.label_rule

    found = read_images(tree(tmp_path / "d", "yes/1.png", "no/2.png"), SMALL, class_names=["first", "second"])
    assert found.labels.tolist() == [0, 1]
    assert found.class_names == ("first", "second")

    wnids = tree(tmp_path / "e", "n02123045/1.png", "n01440764/2.png")
    found = read_images(wnids, SMALL, class_names=imagenet_classes())
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"n01440764/2.png": 0, "n02123045/1.png": 281}
    assert imagenet_classes()[281] == "tabby"
    assert found.label_rule == "folders are ImageNet wnids"


def test_all_wnids_are_in_sorted_order() -> None:
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo("imagenet-1k").label_names()
    labelling = labels_by_folder([f"{wnid}/x.jpg" for wnid in wnids], imagenet_classes())
    assert [labelling.labels[f"{wnid}/x.jpg"] for wnid in sorted(wnids)] == list(range(1000))


def test_a_persons_own_order_is_not_taken_for_classes(tmp_path: Path) -> None:
    found = read_images(tree(tmp_path, "holiday/1.png", "garden/2.png"), SMALL, class_names=imagenet_classes())
    assert found.labels is None
    assert "no names of the model's classes" in found.label_rule
    (tmp_path / "loose.png").write_bytes((tmp_path / "holiday" / "1.png").read_bytes())
    found = read_images(tmp_path, SMALL)
    assert found.labels is None
    assert "do not all stand in class folders" in found.label_rule


def test_folders_are_no_classes_of_a_model_that_has_more_of_them(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.png", "dog/2.png")
    found = read_images(root, SMALL, num_classes=10)
    assert found.labels is None
    assert "the 2 folders (first: cat) are not the model's 10 classes" in found.label_rule
    assert read_images(root, SMALL, num_classes=2).labels.tolist() == [0, 1]
    numbers = tree(tmp_path / "numbers", "1/a.png", "7/b.png")
    assert read_images(numbers, SMALL, num_classes=8).labels.tolist() == [1, 7]
    assert read_images(numbers, SMALL, num_classes=7).labels is None


def test_notes_beside_the_class_folders_do_not_cost_the_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.png", "dog/2.png", "dog/3.png")
    (root / "dog" / "3.png").rename(root / "dog" / "3")
    for name in ("README.txt", "labels.csv", "LICENCE", "docs/about.md", "dog/Thumbs.db"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no picture")
    (root / "owl").mkdir()
    (root / "owl" / "damaged.png").write_bytes(b"no picture")  # a class all the same
    with pytest.warns(SkippedWarning):
        found = read_images(root, SMALL, class_names=["dog", "cat", "owl"])
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"cat/1.png": 1, "dog/2.png": 0, "dog/3": 0}
    with pytest.warns(SkippedWarning):
        found = read_images(root, SMALL, num_classes=3)
    assert found.class_names == ("cat", "dog", "owl")


def test_a_name_that_two_classes_share_decides_nothing() -> None:
    names = ["crane", "tench", "Crane", "goldfish"]
    assert labels_by_folder(["crane/1.png", "tench/2.png"], names).labels is None
    assert labels_by_folder(["goldfish/1.png", "tench/2.png"], names).labels == {"goldfish/1.png": 3, "tench/2.png": 1}


# --- labels by table


@pytest.mark.parametrize("header", ["file,label\n", "", "\ufefffilename,class\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_with_and_without_header(tmp_path: Path, header: str, delimiter: str) -> None:
    folder = tree(tmp_path / "photos", "a.png", "deep/b.png", "c.png")
    rows = header + "a.png,dog\nb.png,Cat\nmissing.png,cat\n\n"
    (tmp_path / "labels.csv").write_text(rows.replace(",", delimiter), encoding="utf-8")
    with pytest.warns(SkippedWarning):
        found = read_images(folder, SMALL, tmp_path / "labels.csv", class_names=["cat", "dog"])
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"a.png": 1, "deep/b.png": 0}
    assert found.label_rule == "labels.csv: class names"
    reasons = {item.name: item.reason for item in found.skipped}
    assert reasons == {"missing.png": "listed in the labels, but not there", "c.png": "not listed in the labels"}


@pytest.mark.parametrize("classes", [None, ["ape", "dog"]])
def test_a_header_of_other_words_is_seen_and_quoted(tmp_path: Path, classes: list[str] | None) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image_path,species\na.png,dog\nb.png,ape\n")
    found = labels_from_csv(table, ["a.png", "b.png"], classes)
    assert (found.labels, found.class_names) == ({"a.png": 1, "b.png": 0}, ("ape", "dog"))
    assert (found.missing, "image_path and species" in found.rule) == ((), True)
    for first in ("gone.png,cat", "gone,dog", "gone,7"):  # a file; a class that comes again; a number
        table.write_text(f"{first}\na.png,dog\nb.png,dog\n")
        assert labels_from_csv(table, ["a.png", "b.png"]).missing == (first.split(",")[0],)


def test_of_more_columns_the_header_tells_the_label(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image_id,split,label\na.png,train,dog\nb.png,train,ape\n")
    assert labels_from_csv(table, ["a.png", "b.png"]).labels == {"a.png": 1, "b.png": 0}
    table.write_text("a.png,dog,\nb.png,ape,\n")  # nothing behind the last comma
    assert labels_from_csv(table, ["a.png", "b.png"]).labels == {"a.png": 1, "b.png": 0}


def test_numbers_and_names_without_a_models_names(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("a.png,3\nb.png,0\n")
    numbers = labels_from_csv(table, ["a.png", "b.png"])
    assert numbers.labels == {"a.png": 3, "b.png": 0}
    assert numbers.class_names is None
    table.write_text("a.png,dog\nb.png,ape\n")
    words = labels_from_csv(table, ["a.png", "b.png"])
    assert words.labels == {"a.png": 1, "b.png": 0}
    assert words.class_names == ("ape", "dog")


def test_numbers_that_are_no_class_numbers_are_not_sorted_as_words(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for wrong in ("2.0", "-1"):
        table.write_text(f"a.png,10\nb.png,{wrong}\n")
        with pytest.raises(DataError, match=f"line 2: '{wrong}' is no class number"):
            labels_from_csv(table, ["a.png", "b.png"])


def test_a_cell_may_have_a_line_end_in_it(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('a.png,"small\ndog"\nb.png,ape\u2028c\n', encoding="utf-8")
    assert labels_from_csv(table, ["a.png", "b.png"]).class_names == ("ape\u2028c", "small\ndog")
    table.write_text('a.png,"small\ndog"\nb.png\n')
    with pytest.raises(DataError, match="line 3: two columns"):
        labels_from_csv(table, ["a.png", "b.png"])


def test_classes_that_are_called_by_numbers_are_names_in_a_table_too(tmp_path: Path) -> None:
    table, names = tmp_path / "labels.csv", ["a.png", "b.png"]
    table.write_text("a.png,10\nb.png,0\n")
    assert labels_from_csv(table, names, ["0", "1", "10"]).labels == {"a.png": 2, "b.png": 0}
    table.write_text("a.png,2\nb.png,0\n")  # no class is called 2
    assert labels_from_csv(table, names, ["0", "1", "10"]).labels == {"a.png": 2, "b.png": 0}


def test_labels_that_a_model_of_so_many_classes_cannot_have_are_refused(tmp_path: Path) -> None:
    table, names = tmp_path / "labels.csv", ["a.png", "b.png"]
    table.write_text("a.png,3\nb.png,0\n")
    with pytest.raises(DataError, match="line 1: '3' is no class of the model's 3"):
        labels_from_csv(table, names, num_classes=3)
    table.write_text("a.png,dog\nb.png,ape\n")
    assert labels_from_csv(table, names, num_classes=2).labels == {"a.png": 1, "b.png": 0}
    with pytest.raises(DataError, match="2 label names and the network 3 classes"):
        labels_from_csv(table, names, num_classes=3)
    table.write_text(f"a.png,{10**30}\n")
    with pytest.raises(DataError, match="is no class"):
        labels_from_csv(table, names)
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(InputError, match="class indices from 0 to 2"):
            read_images(torch.rand(2, 3, 8, 8), SMALL, wrong, num_classes=3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a.png," + 150_000 * "x", "cannot be read as a table"),
        ("", "holds no labels"),
        ("file,label\n", "holds no labels"),
        ("a.png\n", "line 1: two columns"),
        ("a.png,train,dog\n", "line 1: two columns.*Leave the others out"),
        ("file,split,label\na.png,dog\n", "line 2: two columns"),
        ("a.png,7\n", "line 1: '7' is no class of the model's 2"),
        ("file,label\na.png,dgo\n", "line 2: 'dgo' is no class of the model's 2. Did you mean 'dog'"),
        ("a.png,dog\na.png,cat\n", "line 2: 'a.png' has two labels"),
        ("x.png,dog\n", "could be one/x.png or two/x.png"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        labels_from_csv(tmp_path / "labels.csv", ["a.png", "one/x.png", "two/x.png"], ["cat", "dog"])


def test_a_missing_or_binary_table_is_named(tmp_path: Path) -> None:
    for name, content in (("none.csv", None), ("photo.csv", b"\xff\xfe\x00\x81")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            labels_from_csv(tmp_path / name, ["a.png"])


# --- arrays, single images, lists, the embedded ones


def test_arrays_tensors_and_what_is_refused() -> None:
    bgr = np.zeros((2, 8, 8, 3), np.uint8)
    bgr[..., 0] = 255
    assert read_images(bgr[..., ::-1], SMALL).images.mean(dim=(0, 2, 3)).tolist() == [0, 0, 1]
    uint8 = np.full((2, 8, 8, 3), 255, np.uint8)
    found = read_images(uint8, SMALL, labels=[3, 4])
    assert found.images.shape == (2, 3, 8, 8)
    assert found.images.min() == 1
    assert found.labels.tolist() == [3, 4]
    tensor = torch.rand(3, 3, 8, 8)
    assert torch.equal(read_images(tensor, SMALL).images, tensor)
    assert read_images(torch.rand(1, 20, 30), SMALL).images.shape == (1, 3, 8, 8)
    assert read_images(torch.rand(2, 3, 8, 8), GREY).images.shape == (2, 1, 8, 8)
    assert read_images(tensor, SMALL, limit=2).names == read_images(tensor, SMALL, limit=2).names
    for wrong, match in (
        (torch.rand(2, 3, 8, 8) * 255, "Divide by 255"),
        (torch.randn(2, 3, 8, 8), "before normalisation"),
        (torch.full((1, 3, 8, 8), float("nan")), "in \\[0, 1\\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "uint8"),
        (torch.zeros(8, 8), "a tensor"),
        (torch.zeros(0, 3, 8, 8), "a tensor"),
        (np.zeros((3, 8, 8)), "a tensor"),
    ):
        with pytest.raises(InputError, match=match):
            read_images(wrong, SMALL)
    for labels in ([1], [0.5, 1.0], "labels.csv"):
        with pytest.raises(InputError, match="labels"):
            read_images(uint8, SMALL, labels=labels)


def test_one_file_one_picture_and_a_list(tmp_path: Path) -> None:
    picture_of().save(tmp_path / "a.png")
    assert read_images(str(tmp_path / "a.png"), SMALL).names == ("a.png",)
    assert len(read_images(picture_of(), SMALL)) == 1
    found = read_images([tmp_path / "a.png", picture_of((0, 0, 0))], SMALL, labels=[1, 0])
    assert found.names == (str(tmp_path / "a.png"), "image 1")
    assert found.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="files or PIL images"):
        read_images([3], SMALL)


def test_the_embedded_photographs() -> None:
    found = read_images("embedded", Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
    assert found.images.shape == (13, 3, 32, 32)
    assert found.names[:2] == ("astronaut", "chelsea")
    assert found.labels is None


def test_limit_takes_a_seeded_sample_and_fills_up_for_bad_files(tmp_path: Path) -> None:
    for i in range(20):
        picture_of().save(tmp_path / f"{i:02d}.png")
    for i in range(0, 20, 3):
        (tmp_path / f"{i:02d}.png").write_text("broken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedWarning)
        first, again, other = (read_images(tmp_path, SMALL, limit=8, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 8
    assert first.names == again.names == tuple(sorted(first.names))
    assert first.names != other.names
    with pytest.raises(InputError, match="limit"):
        read_images(tmp_path, SMALL, limit=0)


def test_notes_say_what_was_done(tmp_path: Path) -> None:
    picture_of((1, 2, 3, 0), mode="RGBA").save(tmp_path / "clear.png")
    picture_of().save(tmp_path / "plain.png")
    assert read_images(tmp_path, SMALL).notes == {"clear.png": ("transparency laid on white",)}
