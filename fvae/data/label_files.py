"""Labels in a CSV: of pictures by their file names, or of the rows of an array by their order."""

import csv
import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fvae.data.factors import NO_FACTORS, KnownFactors, Table, factors_of
from fvae.data.reading import reading
from fvae.errors import UserError, warn

#: What ``--factors`` takes for "no labels, whatever lies there".
NO = "no"
_NAMES = ("labels.csv", "factors.csv")
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
_LARGEST = 1 << 28  # bytes


class Csv(NamedTuple):
    """A CSV: its header, and the cells and line numbers of the rows below it."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


class LabelFile(NamedTuple):
    """Where the labels of pictures are.

    Attributes:
        where: the file, for messages.
        content: its bytes.
        asked: whether somebody asked for it, or it lies with the pictures: then each picture has a
            row. One that lies beside their folder may be about something else.
    """

    where: str
    content: bytes
    asked: bool


def stamp(path: Path, factors: str | None) -> str:
    """What changes with the labels of a folder or archive of pictures; empty where it has none.

    Of a file inside an archive the archive's own stamp tells.
    """
    if factors == NO:
        return f"|{NO}"
    files = [Path(factors).expanduser()] if factors else [*_inside(path), *_beside(path)]
    stats = [(file.resolve(), file.stat()) for file in files if file.is_file()]
    return "".join(f"|{file}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats)


def find(path: Path, factors: str | None) -> LabelFile | None:
    """The CSV of labels of a folder or archive of pictures.

    Args:
        path: the folder, .zip or .tar.
        factors: the CSV's path; "no" for none; None looks for labels.csv or factors.csv in the
            folder or archive, then beside it, and for a .csv of its name beside it.

    Raises:
        UserError: there is no such file, or more than one could be meant.
    """
    if factors == NO:
        return None
    if factors is not None:
        return _from_disk(csv_path(factors), True)
    if path.is_dir():
        found = [_from_disk(file, True) for file in _inside(path)]
    else:
        found = _in_archive(path)
    found = found or [_from_disk(file, False) for file in _beside(path)]
    if len(found) > 1:
        raise UserError(
            f"{path}: labels may be in {' or '.join(f.where for f in found)}; choose by --factors"
        )
    return found[0] if found else None


def csv_path(factors: str) -> Path:
    """The CSV that somebody asks for.

    Raises:
        UserError: there is none.
    """
    file = Path(factors).expanduser()
    if file.suffix.lower() != ".csv":
        raise UserError(
            f"--factors {factors}: labels of pictures are a .csv file, its first column the"
            " pictures' names"
        )
    if not file.is_file():
        raise UserError(f"--factors {factors}: no such file; give the path of a .csv of labels")
    return file


def _inside(path: Path) -> list[Path]:
    return [path / name for name in _NAMES if (path / name).is_file()]


def _beside(path: Path) -> list[Path]:
    own = path.parent / f"{path.name if path.is_dir() else path.stem}.csv"
    files = [own, *(path.parent / name for name in _NAMES)]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def _from_disk(file: Path, asked: bool) -> LabelFile:
    if file.stat().st_size > _LARGEST:
        raise UserError(f"{file}: too large for labels; expected at most 256 MB")
    return LabelFile(str(file), file.read_bytes(), asked)


def _in_archive(path: Path) -> list[LabelFile]:
    """The CSVs of labels in an archive; the archive's own stamp tells of their changes."""
    found: list[LabelFile] = []

    def is_one(name: str, size: int) -> bool:
        return PurePosixPath(name).name in _NAMES and "__MACOSX" not in name and size <= _LARGEST

    with reading(path, "a .zip, or an uncompressed .tar, of images; unpack any other"):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if is_one(info.filename, info.file_size):
                        where = f"{path}:{info.filename}"
                        found.append(LabelFile(where, archive.read(info), True))
            return found
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and is_one(member.name, member.size):
                    file = tar.extractfile(member)
                    assert file is not None  # it is a regular file
                    found.append(LabelFile(f"{path}:{member.name}", file.read(), True))
    return found


def read_csv(where: str, content: bytes) -> Csv:
    """Parse a CSV with a header row; commas, semicolons or tabs between the cells.

    Raises:
        UserError: it is no UTF-8 text, is empty, has rows of another length than the header's, or
            two columns of one name.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8 text; save it as UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
    found = Csv([], [], [])
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not found.header:
                found = Csv(cells, [], [])
                continue
            if len(cells) != len(found.header):
                raise UserError(
                    f"{where}: line {reader.line_num} has {len(cells)} cells, the header"
                    f" {len(found.header)}"
                )
            found.rows.append(cells)
            found.lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{where}: line {reader.line_num} is no CSV ({error})") from None
    if not found.rows:
        raise UserError(f"{where}: has no rows; expected a header row and a row for each image")
    twice = {name for name in found.header if found.header.count(name) > 1}
    if twice:
        raise UserError(f"{where}: two columns are called {min(twice)!r}; rename one")
    return found


def table_of(where: str, file: Csv, first: int = 0) -> Table:
    """The columns of a CSV, from the ``first`` on: whole numbers, real numbers or text.

    Raises:
        UserError: a cell is empty, or stands for a missing number.
    """
    columns = [
        _column(where, name, [row[k] for row in file.rows], file.lines)
        for k, name in enumerate(file.header)
        if k >= first
    ]
    names = tuple(name or f"column_{k}" for k, name in enumerate(file.header) if k >= first)
    return Table(names, columns)


def _column(where: str, name: str, cells: list[str], lines: list[int]) -> np.ndarray:
    text = np.array(cells, np.str_)
    for kind in (np.int64, np.float64):
        try:
            return text.astype(kind)
        except (ValueError, OverflowError):
            continue
    missing = [line for cell, line in zip(cells, lines, strict=True) if cell.lower() in _MISSING]
    if "" in cells or (missing and any(_is_number(cell) for cell in cells)):
        raise UserError(
            f"{where}: line {missing[0]} has no {name} ({len(missing)} in all); fill it in, or"
            f" leave the labels out by --factors {NO}"
        )
    return text


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.lower() not in _MISSING


def picture_factors(file: LabelFile, names: Sequence[str]) -> KnownFactors:
    """The factors of pictures, from a CSV whose first column names them.

    A cell names the one picture whose path it is, or ends with, with or without the suffix.

    Args:
        file: of :func:`find`.
        names: paths of the pictures.

    Raises:
        UserError: a row has no picture, a picture no row or two, or :func:`read_csv` and
            :func:`fvae.data.factors.factors_of` find fault.
    """
    parsed = read_csv(file.where, file.content)
    if len(parsed.header) < 2:
        raise UserError(
            f"{file.where}: has one column; expected the pictures' names and a column a factor"
        )
    endings = _endings(names)
    pictures = [_find(row[0], endings, names) for row in parsed.rows]
    if not file.asked and all(picture is None for picture in pictures):
        warn(f"{file.where}: names none of the pictures, and is not used")
        return NO_FACTORS
    first = parsed.header[0]
    if PurePosixPath(first).suffix and _find(first, endings, names) is not None:
        raise UserError(f"{file.where}: has no header row; its first line names a picture")
    row_of: dict[int, int] = {}
    for row, picture in enumerate(pictures):
        cell, line = parsed.rows[row][0], parsed.lines[row]
        if picture is None:
            lost = sum(p is None for p in pictures)
            raise UserError(
                f"{file.where}: line {line} names {cell!r}, which is no picture here, or several"
                f" ({lost} such lines)"
            )
        if picture in row_of:
            other = parsed.lines[row_of[picture]]
            raise UserError(f"{file.where}: lines {other} and {line} are of one picture, {cell!r}")
        row_of[picture] = row
    without = [name for i, name in enumerate(names) if i not in row_of]
    if without:
        raise UserError(
            f"{file.where}: {len(without)} pictures have no row, such as {without[0]!r}; add rows,"
            " or remove the pictures"
        )
    order = [row_of[i] for i in range(len(names))]
    ordered = parsed._replace(
        rows=[parsed.rows[i] for i in order], lines=[parsed.lines[i] for i in order]
    )
    return factors_of(file.where, table_of(file.where, ordered, first=1), len(names))


def _endings(names: Sequence[str]) -> dict[str, int | None]:
    """Which picture each ending of a path means; None where it means several."""
    endings: dict[str, int | None] = {}
    for i, name in enumerate(names):
        for ending in dict.fromkeys(e for whole in _with_and_without(name) for e in _parts(whole)):
            endings[ending] = None if ending in endings else i
    # A whole path means its own picture, whatever else ends with it.
    return endings | {name: i for i, name in enumerate(names)}


def _with_and_without(name: str) -> tuple[str, str]:
    return name, str(PurePosixPath(name).with_suffix(""))


def _parts(path: str) -> list[str]:
    """A path and its endings, the longest first."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[k:]) for k in range(len(parts))]


def _find(cell: str, endings: dict[str, int | None], names: Sequence[str]) -> int | None:
    """The picture whose path ends with the cell, or is an ending of it."""
    cell = cell.replace("\\", "/")
    for ending in _parts(cell):
        found = endings.get(ending)
        if found is not None and (ending == cell or ending in _with_and_without(names[found])):
            return found
    return None
