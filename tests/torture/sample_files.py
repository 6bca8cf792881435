"""Samples of damaged files of runs and studies, and of files from elsewhere."""

import io
import json
import os
import signal
import tarfile
import zipfile

import h5py
import numpy as np
from data import test_elsewhere as elsewhere
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fvae import data
from fvae.training import checkpoint
from torture import in_child
from torture.sample_costs import Deflated, header
from torture.samples import (
    FEW,
    both,
    ended,
    faults,
    fvae,
    kept,
    line_of,
    refused,
    sample,
    untouched,
)

# --- files of a run ------------------------------------------------------------------------------


def _put(name, content):
    """Something in the place of a file: bytes, or what makes them of what was there."""

    def change(run):
        path = run / name
        was = path.read_bytes()
        path.write_bytes(content(was) if callable(content) else content)

    return change


def _lines(*more):
    return _put("log.jsonl", lambda was: b"".join((*more, was)))


for _about, _change in (
    ("garbage in it", _lines(b"\x00garbage\xff\n")),
    ("a line `5`", _lines(b"5\n")),
    ('a line without "seconds"', _lines(b'{"step": 1, "recon": 2.0}\n')),
):
    for _words in (["report"], ["train", "--steps", 20, "--resume"]):

        @sample("files", f"log.jsonl with {_about}: {_words[0]}",
                "works; the line is left out, and said so")  # fmt: skip
        def _(place, change=_change, words=_words):
            run = place.run()
            change(run)
            return ended(fvae(*words, run), 0, "log.jsonl: line 1 is damaged and left out")


@sample("files", "log.jsonl missing: report, train --resume", "both work")
def _(place):
    run = place.run()
    (run / "log.jsonl").unlink()
    again = fvae("train", "--resume", run, "--steps", 20)
    return both(ended(fvae("report", run), 0), ended(again, 0))


for _about, _content in (
    ("torn", b'{"protocol": "exhaus'),
    ("not ours", b'{"scores": [1, 2]}'),
    ("no text", b"\xff\xfe\x00"),
):

    @sample("files", f"eval-exhaustive.json {_about}: report",
            "a page without it; says that eval makes it again")  # fmt: skip
    def _(place, content=_content):
        run = place.run()
        _put("eval-exhaustive.json", content)(run)
        return ended(fvae("report", run), 0, "not scores that can be read", "`fvae eval` makes")


def _setting(**values):
    def change(was):
        return json.dumps(json.loads(was) | values).encode()

    return _put("config.json", change)


def _without(name):
    def change(was):
        return json.dumps({k: v for k, v in json.loads(was).items() if k != name}).encode()

    return _put("config.json", change)


for _about, _change, _said in (
    ("data: 5", _setting(data=5), "data: got 5"),
    ("steps: true", _setting(steps=True), "steps: got True"),
    ("log_every: 2.5", _setting(log_every=2.5), "log_every: got 2.5"),
    ("an unknown key", _setting(later=1), "made by a newer fvae"),
    ("a missing key", _without("gamma"), "'gamma' is missing"),
    ("5", _put("config.json", b"5"), "got 5, expected settings"),
    ("a part of it", _put("config.json", lambda was: was[:100]), "not a readable configuration"),
):

    @sample("files", f"config.json with {_about}: eval, report, traverse, train --resume",
            "one line that names it, each; nothing overwritten")  # fmt: skip
    def _(place, change=_change, said=_said):
        run = place.run()
        change(run)
        before = kept(run)
        commands = (["eval"], ["report"], ["traverse"], ["train", "--resume"])
        found = [refused(fvae(*words, run), "config.json", said) for words in commands]
        return both(found[0])[0], all(f[1] for f in [*found, untouched(run, before)])


for _about, _metadata in (
    ("no JSON", {"format": "1", "config": "{"}),
    ("of another kind", {"format": "1", "config": "5"}),
    ("of a newer format", {"format": "2"}),
):

    @sample("files", f"a checkpoint whose metadata are {_about}: eval, train --resume",
            "one line that names it; nothing overwritten")  # fmt: skip
    def _(place, metadata=_metadata):
        run = place.run()
        (run / checkpoint.PREVIOUS).unlink()
        save_file(load_file(run / checkpoint.NAME), run / checkpoint.NAME, metadata)
        before = kept(run)
        found = [refused(fvae(*words, run), checkpoint.NAME, "not a checkpoint of this version")
                 for words in (["eval"], ["train", "--resume"])]  # fmt: skip
        return both(found[0])[0], all(f[1] for f in [*found, untouched(run, before)])


@sample("files", "a cache entry with a newer field", "said, and made again")
def _(place):
    source = place.folder / "own.npy"
    np.save(source, elsewhere.IMAGES)
    made = fvae("data", source)
    (entry,) = [e.path for e in data.cache_entries() if e.name == "own"]
    with safe_open(entry, "pt") as file:
        metadata = file.metadata()
    fields = json.loads(metadata["store"]) | {"later": 5}
    whole = load_file(entry)["data"].numpy()
    from fvae.data.cache import file_header

    shape = fields.pop("shape")
    text = file_header(fields, shape, lambda digest: digest.update(whole.data))
    entry.write_bytes(text + whole.tobytes())
    got, again = fvae("data", source), fvae("data", source)
    right = not faults(made) and not again.err
    return both(ended(got, 0, "another version of fvae", "building it again"), ("", right))


# --- files of a study ----------------------------------------------------------------------------


def _study(place):
    out = place.folder / "study"
    words = ["study", "--out", out, "--data", place.source, "--steps", 2, *FEW, "--objectives",
             "vae", "--seeds", 1, "--protocol", "exhaustive"]  # fmt: skip
    assert fvae(*words).status == 0
    return out, words


for _name, _said in (
    ("runs/vae-seed0/failed.json", "damaged, and left out"),
    ("runs/vae-seed0/eval-exhaustive.json", "not scores that can be read"),
    ("runs/vae-seed0/log.jsonl", ""),
    ("runs/vae-seed0/config.json", "made again"),
    ("results.csv", ""),
    ("study.html", ""),
):

    @sample("files", f"a study whose {_name.rpartition('/')[2]} is torn, once more",
            "goes on; the run counts as done, and what can be is made again")  # fmt: skip
    def _(place, name=_name, said=_said):
        out, words = _study(place)
        whole = kept(out)
        (out / name).write_bytes((whole.get(name) or b'{"message": "x"}')[:10])
        got = fvae(*words)
        now = kept(out)
        same = now.keys() - {name} == whole.keys() - {name} and now["results.csv"].startswith(
            b"run,"
        )
        same = (
            same
            and now[f"runs/vae-seed0/{checkpoint.NAME}"]
            == (whole[f"runs/vae-seed0/{checkpoint.NAME}"])
        )
        same = same and b",done," in now["results.csv"]
        # What is lost of a log is lost; what is no failure stands beside a run that is done.
        kept_so = name.endswith(("log.jsonl", "failed.json"))
        same = same and (kept_so or len(now[name]) > 10)
        return both(ended(got, 0, said), ("" if same else "not made again", same))


for _about, _change in (
    ("torn", lambda was: was[:100]),
    ("5", lambda was: b"5"),
    ("of a newer fvae", lambda was: was.replace(b'"settings": {', b'"settings": {"later": 1,')),
):

    @sample("files", f"a study whose study.json is {_about}",
            "one line that names it; nothing overwritten")  # fmt: skip
    def _(place, change=_change):
        out, words = _study(place)
        _put("study.json", change)(out)
        before = kept(out)
        got = fvae(*words)
        return both(refused(got, "study.json", "not a readable study"), untouched(out, before))


# --- files from elsewhere ------------------------------------------------------------------------

for _about, _make in (
    ("an external link", elsewhere._external_link),
    ("an external link in a group", elsewhere._nested_link),
    ("a virtual data set", elsewhere._virtual),
    ("external storage", elsewhere._external_storage),
):

    @sample("elsewhere", f"an .h5 with {_about} into another file",
            "one line; nothing of the other file is read or kept")  # fmt: skip
    def _(place, make=_make):
        secret = place.folder / "secret.h5"
        with h5py.File(secret, "w") as file:
            file["images"] = elsewhere.IMAGES
        with h5py.File(place.folder / "a.h5", "w") as file:
            make(file, secret)
        got = refused(fvae("data", place.folder / "a.h5"), "other files are not read")
        nothing = not [e for e in data.cache_entries() if e.name == "a"]
        return both(got, ("" if nothing else "something is in the cache", nothing))


def _bomb(path, **members):
    """A .npz of members (shape, pieces of zeros), deflated."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, piece, times) in members.items():
            with Deflated(archive, f"{name}.npy") as member:
                member.write(header(shape))
                for _ in range(times):
                    member.write(piece)


def _claim_447(folder):
    elsewhere._npz(folder / "a.npz", images=header((117_000_000, 64, 64)) + bytes(100))
    return folder / "a.npz"


def _claim_of_h5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        shape = (117_000_000, 64, 64)
        file.create_dataset("images", shape, "u1", chunks=(1, 64, 64), compression="gzip")
    return folder / "a.h5"


def _bomb_of_labels(folder):
    zeros = bytes(48_000_000)
    _bomb(folder / "a.npz", images=((8, 16, 16), bytes(range(256)) * 8, 1),
          labels=((8, 600_000_000), zeros, 100))  # fmt: skip
    return folder / "a.npz"


def _bomb_of_one_image(folder):
    _bomb(folder / "a.npz", images=((1, 48_000, 100_000), bytes(48_000_000), 100))
    return folder / "a.npz"


def _pictures_13000(folder):
    content = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(content, "PNG")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", content.getvalue())
    return folder / "a.zip"


def _sparse_tar(folder):
    with open(folder / "a.tar", "wb") as file:
        member = tarfile.TarInfo("a.png")
        member.size = 60 * 10**9
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(member.size + 10240)
    return folder / "a.tar"


def _bomb_of_a_picture(folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with Deflated(archive, "a.png") as member:
            for _ in range(100):
                member.write(bytes(48_000_000))
    return folder / "a.zip"


for _about, _make in (
    ("an .npz whose header claims 447 GiB", _claim_447),
    ("an .h5 that claims 447 GiB and holds nothing", _claim_of_h5),
    ("an .npz with 4.8 GB of zeros as labels, 5 MB deflated", _bomb_of_labels),
    ("an .npz with 4.8 GB of zeros as one image", _bomb_of_one_image),
    ("a .zip of four pictures of 13,000 x 13,000", _pictures_13000),
    ("a .zip with a picture of 4.8 GB of zeros", _bomb_of_a_picture),
    ("a sparse .tar of 60 GB", _sparse_tar),
):

    @sample("elsewhere", _about, "one line, and less than 300 MB")
    def _(place, make=_make):
        got = fvae("data", make(place.folder))
        line, right = refused(got)
        return f"{got.memory / 1e6:.0f} MB, {got.work:.0f} s; {line}", right


@sample("elsewhere", "links in a folder of pictures that lead out of it",
        "left out, and said; those inside are followed")  # fmt: skip
def _(place):
    folder, secret = place.folder / "a", place.folder / "secret"
    for path in (folder / "1.png", secret / "s.png"):
        path.parent.mkdir()
        Image.fromarray(elsewhere.IMAGES[0]).save(path)
    for name, target in (("again.png", "1.png"), ("s.png", secret / "s.png"), ("dir", secret)):
        (folder / name).symlink_to(target)
    got = fvae("data", folder)
    return both(
        ended(got, 0, "left out 2 links"), ("", "2 of 3 x" in got.out or "2 of 1" in got.out)
    )


def _dying(words, calls):
    """The command, killed with SIGKILL where it lets the disk keep something for the nth time."""

    def work():
        from fvae import cli

        real, count = os.fsync, iter(range(calls - 1))

        def fsync(handle):
            real(handle)
            if next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fsync
        cli.main([str(w) for w in words])
        return 0

    return in_child(work)


def _left():
    return sorted(p.name for p in data.cache_folder().iterdir() if p.suffix != ".safetensors")


for _about, _calls in (("its first rows", 1), ("its last row", 2)):

    @sample("elsewhere", f"a conversion killed after {_about}, and done again",
            "what it left is taken up, and nothing is left")  # fmt: skip
    def _(place, calls=_calls):
        np.save(
            place.folder / "own.npy", np.arange(12_000 * 4096, dtype=np.uint8).reshape(-1, 64, 64)
        )
        killed = _dying(["data", place.folder / "own.npy"], calls)
        between, again = _left(), fvae("data", place.folder / "own.npy")
        right = killed.status == -signal.SIGKILL and len(between) == 1 and not _left()
        same = np.array_equal(data.load(place.folder / "own.npy").data[-1], np.arange(4096) % 256)
        return f"left {between}, then {_left() or 'nothing'}; {line_of(again)}", right and same


@sample("elsewhere", "a write into the cache killed in the middle, and done again",
        "what it left is cleared, and nothing is left")  # fmt: skip
def _(place):
    from small import write_npz

    source = write_npz(place.folder / "sprites.npz")
    killed = _dying(["data", source], 1)
    between, again = [p for p in _left() if "sprites" in p], fvae("data", source)
    right = killed.status == -signal.SIGKILL and len(between) == 1 and not again.status
    return f"left {between}, then {_left() or 'nothing'}", right and not _left()
