import concurrent.futures
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from gated_resnext import files
from gated_resnext.errors import UserError

PATH = os.pathsep.join(path for path in sys.path if path)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "stage1_module1/reduce/kernel": rng.normal(size=(4, 16, 4)).astype(np.float32),
        "step": np.array(7, np.int32),
        "images": rng.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8),
        "place": np.array('{"phase": 1}'),
        "nothing": np.zeros((0, 3)),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_replacing_puts_the_new_file_in_place_of_the_old(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    for text in ("first", "second"):
        with files.replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == path.suffix and temporary != path
            assert not path.exists() or path.read_text() == "first"
        assert contents(tmp_path) == {"deep/er/a.txt": text.encode()}
        assert os.listdir(path.parent) == ["a.txt"]


def test_replacing_takes_a_folder_that_is_not_there_yet(tmp_path):
    with files.replacing(tmp_path / "model") as temporary:
        (temporary / "variables").mkdir(parents=True)
        (temporary / "variables" / "a").write_bytes(b"1")
        (temporary / "b").write_bytes(b"2")
    assert contents(tmp_path) == {"model/variables/a": b"1", "model/b": b"2"}
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_replacing_leaves_nothing_behind_on_failure_and_keeps_the_old_file(tmp_path, error, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert contents(tmp_path) == ({} if old is None else {"a.txt": old})
    assert os.listdir(tmp_path) == ([] if old is None else ["a.txt"])


def test_replacing_fails_where_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "there, number",
    [((), 1), (("1", "2"), 3), (("2", "7"), 8), (("1", "x", ".9", "-4", "1.5", "9a", ""), 2), (("9" * 30, "4"), 5)],
)
def test_the_next_version_is_one_more_than_the_largest_number(tmp_path, there, number):
    for name in there:
        (tmp_path / name / "full").mkdir(parents=True)
    with files.next_version(tmp_path) as version:
        (version.folder / "a").write_bytes(b"1")
        # What TF Serving looks for: names that are numbers.
        assert {name for name in os.listdir(tmp_path) if name.isdigit()} == {name for name in there if name.isdigit()}
    assert version.path == tmp_path / str(number)
    assert contents(version.path) == {"a": b"1"}
    assert not list(tmp_path.glob("*.partial"))


def test_versions_that_end_together_keep_their_own_number(tmp_path):
    together = threading.Barrier(8)

    def export(number):
        with files.next_version(tmp_path / "model") as version:
            (version.folder / "a").write_text(str(number))
            together.wait(30)
        return version.path

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(export, range(8)))
    assert files.versions(tmp_path / "model") == list(range(1, 9))
    assert [(path / "a").read_text() for path in paths] == list("01234567")


def test_a_version_that_appears_at_the_last_moment_is_not_overwritten(tmp_path, monkeypatch):
    with files.next_version(tmp_path) as first:
        (first.folder / "a").write_text("first")
    stale = iter([[]])  # the folder as it was a moment ago
    monkeypatch.setattr(files, "versions", lambda parent, real=files.versions: next(stale, None) or real(parent))
    with files.next_version(tmp_path) as second:
        (second.folder / "a").write_text("second")
    assert contents(tmp_path) == {"1/a": b"first", "2/a": b"second"}


def test_a_version_that_fails_leaves_nothing_and_no_folder_for_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.next_version(tmp_path / "models" / "model") as version:
        (version.folder / "a").write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    (tmp_path / "models").mkdir()
    with pytest.raises(OSError, match="no"), files.next_version(tmp_path / "models" / "model"):
        raise OSError("no")
    assert os.listdir(tmp_path) == ["models"] and os.listdir(tmp_path / "models") == []


def test_a_version_whose_writer_was_killed_is_no_version(run_python, tmp_path):
    script = (
        "import os, sys; from gated_resnext import files\nwith files.next_version(sys.argv[1]) as version: os._exit(9)"
    )
    assert run_python("-c", script, tmp_path).returncode == 9
    assert len(os.listdir(tmp_path)) == 1 and files.versions(tmp_path) == []
    with files.next_version(tmp_path) as version:
        pass
    assert version.path == tmp_path / "1"


def test_what_a_killed_process_left_long_ago_goes(tmp_path):
    for name, age in ((".a.json.old.partial", 8), (".a.json.new.partial", 1), (".b.json.old.partial", 8)):
        (tmp_path / name).mkdir()
        then = time.time() - age * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    files.write_json(tmp_path / "a.json", 1)
    assert sorted(os.listdir(tmp_path)) == [".a.json.new.partial", ".b.json.old.partial", "a.json"]


FULL_DISK = """
import resource, sys
import numpy as np
from gated_resnext import files

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # Python ignores SIGXFSZ: the write fails with EFBIG
write = {
    "json": lambda path: files.write_json(path, list(range(100_000))),
    "arrays": lambda path: files.write_arrays(path, {"a": np.zeros(1_000), "b": np.zeros(100_000)}),
}[sys.argv[1]]
try:
    write(sys.argv[2])
except OSError as error:
    print(error.strerror, error.filename)
"""


@pytest.mark.parametrize("kind", ["json", "arrays"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_partial(run_python, tmp_path, kind):
    pytest.importorskip("resource", reason="needs the resource module, to limit the size of a file")
    path = tmp_path / "a.file"
    path.write_bytes(b"the old file")
    done = run_python("-c", FULL_DISK, kind, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"File too large {path}\n", "")
    assert contents(tmp_path) == {"a.file": b"the old file"}
    assert os.listdir(tmp_path) == ["a.file"]


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "real.json").write_text("1")
    (tmp_path / "link.json").symlink_to("kept/real.json")
    files.write_json(tmp_path / "link.json", {"a": 2})
    assert (tmp_path / "link.json").is_symlink() and files.read_json(tmp_path / "kept" / "real.json") == {"a": 2}
    assert sorted(os.listdir(tmp_path)) == ["kept", "link.json"] and os.listdir(tmp_path / "kept") == ["real.json"]


def test_a_pipe_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_json(tmp_path / "pipe", {"a": 2})
        assert json.loads(os.read(reader, 1000)) == {"a": 2}
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_what_was_printed_to_a_file_stays_in_it(tmp_path):
    script = "print('before')\nfrom gated_resnext import files\nfiles.write_json('/dev/stdout', 1)\nprint('after')"
    with open(tmp_path / "out.txt", "w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True, env={**os.environ, "PYTHONPATH": PATH})
    assert (tmp_path / "out.txt").read_text() == "before\n1\nafter\n"


@pytest.mark.parametrize(
    ("there", "newest"),
    [([], None), (["a", ".1", "1 "], None), (["1", "0012", "3"], "0012"), (["9", "9223372036854775808"], "9")],
)
def test_the_newest_version_is_that_of_the_largest_number(tmp_path, there, newest):
    for name in there:
        (tmp_path / name).mkdir()
    assert files.newest_version(tmp_path) == (None if newest is None else tmp_path / newest)
    assert files.newest_version(tmp_path / "missing") is None


def test_sha256_is_that_of_hashlib(tmp_path):
    content = np.random.default_rng(0).bytes(1_000_003)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert files.sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_json_comes_back_and_ends_in_one_newline(tmp_path):
    value = {"name": "größer", "numbers": [1, 2.5, None, True], "nested": {"a": {}}}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value == files.read_json(tmp_path / "a.json")
    assert text.endswith("}\n") and not text.endswith("\n\n") and text.count("\n") > 5


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1} x', b"\xff\xfe{}", b'{"a": 1'])
def test_damaged_json_is_a_user_error_that_names_the_file(tmp_path, content):
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(UserError, match="card.json is not a JSON file"):
        files.read_json(tmp_path / "card.json")


def test_missing_json_is_a_user_error_that_names_the_file(tmp_path):
    with pytest.raises(UserError, match="there is no .*card.json"):
        files.read_json(tmp_path / "card.json")
    with pytest.raises(UserError, match="folder.json is not a JSON file"):
        (tmp_path / "folder.json").mkdir()
        files.read_json(tmp_path / "folder.json")


def test_arrays_come_back_as_they_were(tmp_path, arrays):
    path = tmp_path / "a.npz"
    files.write_arrays(path, arrays)
    assert_same(files.read_arrays(path), arrays)
    assert_same(files.read_arrays(path, digest=hashlib.sha256(path.read_bytes()).hexdigest()), arrays)
    with np.load(path) as archive:
        assert_same(dict(archive), arrays)


def test_arrays_of_another_digest_are_refused(tmp_path, arrays):
    path = tmp_path / "a.npz"
    files.write_arrays(path, arrays)
    with pytest.raises(
        UserError, match=f"a.npz is damaged.*{'0' * 64}.*{hashlib.sha256(path.read_bytes()).hexdigest()}"
    ):
        files.read_arrays(path, digest="0" * 64)


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_is_found_or_harmless(tmp_path, arrays, seed):
    path = tmp_path / "a.npz"
    files.write_arrays(path, arrays)
    whole = path.read_bytes()
    rng = np.random.default_rng(seed)
    # Five times 50 places, and as many among the zip's own fields at the end.
    places = [*rng.integers(0, len(whole), 50), *rng.integers(len(whole) - 400, len(whole), 50)]
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read = files.read_arrays(path)
        except UserError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert_same(read, arrays)
    assert found > 40


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_arrays_are_refused(tmp_path, arrays, kept):
    path = tmp_path / "a.npz"
    files.write_arrays(path, arrays)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match="a.npz is damaged and cannot be read"):
        files.read_arrays(path)


def test_missing_arrays_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(UserError, match="there is no file .*"):
            files.read_arrays(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="a.npz is damaged and cannot be read"):
        files.read_arrays(tmp_path / "a.npz")


def test_folders_that_cannot_be_synced_can_be_written_to(tmp_path, monkeypatch):
    """As those that a virtual machine shares."""
    sync = os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    files.write_json(tmp_path / "a.json", [1])
    assert files.read_json(tmp_path / "a.json") == [1]
    with files.next_version(tmp_path / "models") as version:
        (version.folder / "b").touch()
    assert version.path == tmp_path / "models" / "1"


@pytest.mark.parametrize("method", [8, 14])  # deflate and LZMA, of which the bytes are none
def test_a_member_that_is_said_to_be_compressed_is_damage(tmp_path, method):
    files.write_arrays(tmp_path / "a.npz", {"a": np.arange(1000)})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    place = content.index(b"PK\x01\x02") + 10
    content[place] = method
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is damaged and cannot be read"):
        files.read_arrays(tmp_path / "a.npz")


def test_an_archive_of_another_checksum_is_damaged_however_it_will_be_read(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", 100 * b"weights")
    files.check_archive(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"weightsweights") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=r"^model\.weights\.h5 has another checksum$"):
        files.check_archive(path)
    path.write_bytes(b"no archive")
    files.check_archive(path)
