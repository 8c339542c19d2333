"""Pictures of optional formats are read where a package is there, else one line says what to do."""

import builtins
import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mmtok.errors import UserError
from mmtok.sources.image_files import decode_image, open_image, picture_size
from mmtok.sources.images import ImageFolder


@pytest.fixture
def heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = (200, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    image.save(tmp_path / "a.HEIC", exif=exif.tobytes())
    return tmp_path / "a.HEIC"


def test_pictures_of_telephones_are_read_upright(heic):
    picture = open_image(heic)
    assert picture.pixels.shape == (30, 20, 3)
    assert picture_size(heic) == (30, 20)
    top = picture.pixels[3, 5].astype(int)
    assert np.abs(top - (200, 30, 30)).max() < 5
    assert decode_image(io.BytesIO(heic.read_bytes()), "a").pixels.shape == (30, 20, 3)
    heic.with_name("b.heic").write_bytes(heic.read_bytes())
    assert [file.name for file in ImageFolder(str(heic.parent)).files()] == ["a.HEIC", "b.heic"]
    heic.write_bytes(heic.read_bytes()[:400])
    with pytest.raises(UserError, match="a.HEIC: cannot be read as an image"):
        open_image(heic)


def test_without_the_package_one_line_says_so(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("pillow_heif"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"a.heic: reading HEIC .* pip install 'mmtok\[media\]'"):
        open_image(tmp_path / "a.heic")


def test_avif_is_read_or_named(tmp_path, monkeypatch):
    Image.fromarray(np.full((9, 7, 3), 90, np.uint8)).save(tmp_path / "a.avif")
    assert open_image(tmp_path / "a.avif").pixels.shape == (9, 7, 3)

    def refuse(file):
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match="a.avif: an AVIF picture, which this Pillow cannot read"):
        open_image(tmp_path / "a.avif")
