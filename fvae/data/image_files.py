"""Image files in a folder, a .zip or a .tar: which there are, and how to read one.

Members of an archive are read in place and never extracted, so their names cannot name a place.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from fvae.data.reading import reading
from fvae.errors import UserError, warn

ARCHIVES = (".zip", ".tar")

_LARGEST = 1 << 28  # bytes of a packed file: a few kilobytes may claim to unpack to any size

Image.init()
# Pictures that pillow knows by their first bytes and decodes by itself: no documents, no helper
# programs. AVIF is not in every build.
FORMATS = tuple(
    kind
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
    if kind in Image.OPEN
)
_SUFFIXES = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a source.

    Attributes:
        names: their paths inside the source, sorted.
        open: opens the one of that name; several threads may call it.
    """

    names: list[str]
    open: Callable[[str], BinaryIO]


def folder_listing(path: Path) -> dict[str, tuple[int, int]]:
    """The image files below a folder: size in bytes and time of change in ns, by relative path.

    Links are followed where they stay below the folder: others would make a folder from elsewhere
    reach into somebody's files. What is hidden is left out.

    Raises:
        UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make the folder readable")

    listing, seen, inside, outside = {}, set(), path.resolve(), 0
    for folder, subfolders, files in os.walk(path, onerror=refuse, followlinks=True):
        stat = os.stat(folder)
        within = Path(folder).resolve().is_relative_to(inside)
        outside += not within
        if not within or (stat.st_dev, stat.st_ino) in seen:  # or linked to where we are, or were
            subfolders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        # Sorted, so that of two ways to one folder it is always the same that is taken.
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        for name in filter(_is_image, files):
            file = Path(folder, name)
            if file.is_symlink() and not file.resolve().is_relative_to(inside):
                outside += file.exists()
            elif file.is_file():
                stat = file.stat()
                listing[file.relative_to(path).as_posix()] = (stat.st_size, stat.st_mtime_ns)
    if outside:
        warn(f"{path}: left out {outside:,} links that lead out of it; copy what they lead to")
    return dict(sorted(listing.items()))


@contextmanager
def opened(path: Path, listing: dict | None) -> Iterator[ImageFiles]:
    """The image files of a folder or an archive.

    Args:
        path: the folder, or a .zip or .tar file.
        listing: of the folder, by :func:`folder_listing`; None for an archive.

    Raises:
        UserError: the archive is damaged, compressed as a whole or encrypted, or there is no
            image file.
    """
    if listing is not None:
        yield _some(path, ImageFiles(list(listing), lambda name: open(path / name, "rb")))
    elif path.suffix.lower() == ".zip":
        with reading(path, "a .zip of images"):
            archive = zipfile.ZipFile(path)
        with archive:
            yield _some(path, _zip_files(path, archive))
    else:
        with reading(path, "a .tar of images"):
            file = open(path, "rb")
        with file:
            yield _some(path, _tar_files(path, file))


def _zip_files(path: Path, archive: zipfile.ZipFile) -> ImageFiles:
    members = {info.filename: info for info in archive.infolist() if _is_image(info.filename)}
    if any(info.flag_bits & 1 for info in members.values()):
        raise UserError(f"{path}: is encrypted; unpack it and give the folder")

    def read(name: str) -> BinaryIO:
        if members[name].file_size > _LARGEST:
            raise ValueError(f"unpacks to more than {_LARGEST} bytes")
        return io.BytesIO(archive.read(members[name]))

    return ImageFiles(sorted(members), read)


def _tar_files(path: Path, file: BinaryIO) -> ImageFiles:
    with reading(path, "an uncompressed .tar of images; unpack any other and give the folder"):
        with tarfile.open(fileobj=file, mode="r:") as archive:
            places = {
                member.name: (member.offset_data, member.size)
                for member in archive
                if member.isreg() and not member.issparse() and _is_image(member.name)
            }

    def read(name: str) -> BinaryIO:
        offset, size = places[name]
        if size > _LARGEST:
            raise ValueError(f"is {size:,} bytes, more than {_LARGEST:,}")
        return io.BytesIO(os.pread(file.fileno(), size, offset))

    return ImageFiles(sorted(places), read)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _SUFFIXES and not any(map(_is_hidden, path.parts))


def _is_hidden(part: str) -> bool:
    """Whether a part of a path is hidden, or from the copies that macOS puts into archives."""
    return (part.startswith(".") and part != "..") or part == "__MACOSX"


def _some(path: Path, files: ImageFiles) -> ImageFiles:
    if not files.names:
        raise UserError(
            f"{path}: no image in it; expected .png, .jpg, .webp or .bmp files, at any depth"
        )
    return files
