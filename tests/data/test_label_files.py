import zipfile

import numpy as np
import pytest
from PIL import Image
from small import refusal

import fvae.data
from fvae.data import load

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ["a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png", "c.png"]
SHADES = [10, 40, 80, 120, 160, 200]
GRID = [(0, 5), (0, 7), (0, 9), (1, 5), (1, 7), (1, 9)]


@pytest.fixture
def pictures(tmp_path):
    """Six plain pictures; the shade tells which."""
    folder = tmp_path / "pictures"
    for name, shade in zip(NAMES, SHADES, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64), shade).save(folder / name)
    return folder


def csv(rows, header="file,pose,light", comma=","):
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    return "\n".join(lines).replace(",", comma) + "\n"


def rows_of(factors=GRID, names=NAMES):
    return [(name, *row) for name, row in zip(names, factors, strict=True)]


def shades(store):
    return store.images(range(len(store)))[:, 0, 0, 0].tolist()


def zip_of(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("where", ["inside", "beside", "its name", "asked"])
def test_a_full_grid_in_any_order_is_recognised(pictures, where, archive, tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    factors = [GRID[i] for i in order]
    place = {
        "inside": pictures / "labels.csv",
        "beside": tmp_path / "factors.csv",
        "its name": tmp_path / "pictures.csv",
        "asked": tmp_path / "elsewhere.csv",
    }[where]
    place.write_text(csv(rows_of(factors)[::-1]))
    options = {"factors": str(place)} if where == "asked" else {}
    source = zip_of(pictures) if archive else pictures
    store = load(source, **options)
    assert store.factor_names == ("pose", "light") and store.factor_sizes == (2, 3)
    assert shades(store) == [SHADES[order.index(i)] for i in range(6)]


def test_what_is_no_grid_has_labels_in_order_of_the_pictures(pictures):
    factors = [(0, 1.5), (0, 1.5), (3, -2.25), (7, 0), (7, 1e3), (7, 2)]
    (pictures / "labels.csv").write_text(csv(rows_of(factors)[::-1]))
    store = load(pictures)
    assert store.factor_sizes == () and store.labels.tolist() == [list(row) for row in factors]
    assert shades(store) == SHADES
    assert load(pictures, factors="no").factor_names == ()
    (pictures / "labels.csv").write_text(csv(rows_of(GRID)))  # a changed file is read anew
    assert load(pictures).factor_sizes == (2, 3)
    (pictures / "labels.csv").unlink()
    assert load(pictures).factor_names == ()


@pytest.mark.parametrize(
    "name",
    [
        lambda name: name,
        lambda name: "./" + name,
        lambda name: "pictures/" + name,
        lambda name: "/home/somebody/pictures/" + name,
        lambda name: "pictures\\" + name.replace("/", "\\"),
        lambda name: name.split("/")[-1],
        lambda name: name.removesuffix(".png"),
        lambda name: name.split("/")[-1].removesuffix(".png"),
    ],
)
def test_the_ways_to_name_a_picture(pictures, name):
    rows = [(name(row[0]), *row[1:]) for row in rows_of()]
    (pictures / "labels.csv").write_text(csv(rows))
    store = load(pictures)
    assert store.factor_sizes == (2, 3) and shades(store) == SHADES


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_the_ways_to_write_a_csv(pictures, comma):
    text = csv([('"' + r[0] + '"', *r[1:]) for r in rows_of()], comma=comma).replace("\n", "\r\n")
    (pictures / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert load(pictures).factor_names == ("pose", "light")


def test_text_becomes_classes(pictures):
    factors = [(who, mood) for who in ("ann", "bob") for mood in ("sad", "glad", "3rd")]
    (pictures / "labels.csv").write_text(csv(rows_of(factors)))
    store = load(pictures)
    assert store.factor_sizes == (2, 3)  # moods in sorted order: 3rd, glad, sad
    assert shades(store) == [SHADES[i] for i in (2, 1, 0, 5, 4, 3)]


@pytest.mark.parametrize("broken", [0, 3])
def test_a_broken_picture_leaves_with_its_labels(pictures, capsys, broken):
    (pictures / NAMES[broken]).write_bytes(b"?")
    (pictures / "labels.csv").write_text(csv(rows_of()))
    store = load(pictures)
    assert "left out 1 of 6" in capsys.readouterr().err
    kept = [i for i in range(6) if i != broken]
    assert store.factor_sizes == () and shades(store) == [SHADES[i] for i in kept]
    # Numbers of values where it was a grid: row i still belongs to image i.
    classes = [(a, {5: 0, 7: 1, 9: 2}[b]) for a, b in GRID]
    assert store.labels.tolist() == [list(classes[i]) for i in kept]


def test_a_broken_picture_is_known_after_a_kill(pictures, monkeypatch):
    (pictures / NAMES[1]).write_bytes(b"?")
    (pictures / "labels.csv").write_text(csv(rows_of()))
    monkeypatch.setattr(fvae.data.images, "_CHUNK", 2)
    append = fvae.data.partial.Partial.append

    def killed(self, rows, done):
        append(self, rows, done)
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fvae.data.partial.Partial, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            load(pictures)
    assert len(load(pictures).labels) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (csv(rows_of()[:-1]), "1 pictures have no row, such as 'c.png'"),
        (csv([*rows_of(), ("d.png", 1, 1)]), "line 8 names 'd.png', which is no picture"),
        (csv([*rows_of(), ("c.png", 1, 1)]), "lines 7 and 8 are of one picture, 'c.png'"),
        (csv(rows_of())[:-1] + ",3\n", "line 7 has 4 cells, the header 3"),
        (csv(rows_of()).replace("0,5", "0,"), "line 2 has no light (1 in all)"),
        (csv(rows_of()).replace("0,5", "0,NA"), "line 2 has no light (1 in all)"),
        (csv(rows_of()).replace("0,5", "0,nan"), "light of image 0 is nan"),
        (csv(rows_of()).replace("0,5", "0,inf"), "light of image 0 is inf"),
        (csv(rows_of(), header="c.png,0,5"), "has no header row"),
        (csv(rows_of(), header="file,pose,pose"), "two columns are called 'pose'"),
        ("file\n" + "".join(f"{name}\n" for name in NAMES), "has one column"),
        ("file,pose\n", "has no rows"),
        ("", "has no rows"),
        ('file,pose\n"a/1.png,3\n', "is no CSV"),
        (csv(rows_of()).replace("5", "\xe9").encode("latin-1"), "is not UTF-8"),
    ],
)
def test_labels_that_do_not_fit_are_refused(pictures, text, message):
    content = text if isinstance(text, bytes) else text.encode()
    (pictures / "labels.csv").write_bytes(content)
    assert message in refusal(pictures / "labels.csv", lambda _: load(pictures))
    assert load(pictures, factors="no").factor_names == ()


def test_a_name_that_could_be_several_pictures_is_refused(pictures):
    (pictures / "b" / "1.png").write_bytes((pictures / "a" / "1.png").read_bytes())
    (pictures / "labels.csv").write_text(csv([("1.png", 0, 0)]))
    assert "line 2 names '1.png', which is no picture here, or several" in refusal(
        pictures / "labels.csv", lambda _: load(pictures)
    )
    (pictures / "labels.csv").write_text(csv([("z/3.png", 0, 0)]))
    assert "names 'z/3.png'" in refusal(pictures / "labels.csv", lambda _: load(pictures))


def test_of_two_files_one_is_chosen(pictures, tmp_path, capsys):
    (pictures / "labels.csv").write_text(csv(rows_of()))
    (pictures / "factors.csv").write_text(csv(rows_of(), header="file,x,y"))
    assert "choose by --factors" in refusal(pictures)
    assert load(pictures, factors=str(pictures / "factors.csv")).factor_names == ("x", "y")
    (pictures / "factors.csv").unlink()
    (tmp_path / "labels.csv").write_text(csv([("other.png", 1, 2)]))  # what is inside counts
    assert load(pictures).factor_names == ("pose", "light")
    (pictures / "labels.csv").unlink()
    assert load(pictures).factor_names == ()
    assert "names none of the pictures, and is not used" in capsys.readouterr().err


def test_what_is_no_csv_is_refused(pictures, tmp_path):
    assert "--factors labels: labels of pictures are a .csv" in refusal_of(pictures, "labels")
    assert "nowhere.csv: no such file" in refusal_of(pictures, str(tmp_path / "nowhere.csv"))


def refusal_of(pictures, factors):
    return refusal(factors, lambda _: load(pictures, factors=factors))


def test_a_table_like_celebas(tmp_path):
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        Image.new("RGB", (178, 218), (20 * i, 0, 0)).save(folder / f"{i:06}.jpg")
        rows.append((f"{i:06}.jpg", *rng.choice([-1, 1], 40)))
    header = ",".join(["image_id", *(f"attribute_{k}" for k in range(40))])
    (tmp_path / "list_attr_celeba.csv").write_text(csv(rows, header))
    store = load(folder, factors=str(tmp_path / "list_attr_celeba.csv"))
    assert store.name == "celeba" and store.labels.shape[1] == len(store.factor_names) > 30
    assert set(store.labels.unique().tolist()) == {-1, 1}
