"""Saves that are interrupted, killed, or out of space, and several at once: old or new, whole."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from interpreter import runs

from fastreg._base import files
from fastreg.layers import Dense, Sequential, storage, two_files

TWO_FILES = Path(__file__).parent / "two_files"
TRACED = {module.__file__ for module in (storage, two_files, files)}


def model_of(number):
    model = Sequential([Dense(2, input_dim=3, name="d"), Dense(1, name="e")], name="m")
    for weight in model.weights.values():
        weight[...] = number
    return model


def first_number(path):
    return float(Sequential.load(path).get_weights()[0].flat[0])


def interrupted_at(place, kind, call):
    """Run `call`, with a KeyboardInterrupt at one line or instruction; say whether it came.

    Python looks for signals at some instructions only, so each place of a Ctrl-C is among them.
    """
    left = place

    def tracer(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        frame.f_trace_opcodes = kind == "opcode"
        if event == kind:
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# every instruction takes minutes
STEP = 1 if os.environ.get("FASTREG_EVERY_INSTRUCTION") else 29


@pytest.mark.parametrize("there", ["nothing", "a model", "two files"])
@pytest.mark.parametrize(("kind", "step"), [("line", 1), ("opcode", STEP)])
# what an interrupted open() gave is closed where it is forgotten
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_interrupt_anywhere(tmp_path, monkeypatch, there, kind, step):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    new = model_of(2.0)
    olds = news = 0
    came = True
    while came:
        directory = tmp_path / str(olds + news)
        if there == "two files":
            shutil.copytree(TWO_FILES, directory)
        else:
            directory.mkdir()
        path = directory / "mixed.json"
        if there == "a model":
            model_of(1.0).save(path)
        before = sorted(directory.iterdir())
        came = interrupted_at((olds + news) * step, kind, lambda path=path: new.save(path))
        after = sorted(directory.iterdir())
        if not path.exists():
            assert there == "nothing"
            assert after == []
            olds += 1
        elif first_number(path) == 2.0:
            # the old weights may be there still, beside the model that no longer names them
            assert set(after) <= {*before, path}
            news += 1
        else:
            assert first_number(path) == {"a model": 1.0, "two files": -2.0}[there]
            assert after == before
            olds += 1
        shutil.rmtree(directory)
    print(f"{there}, {kind}s: {olds} interrupts left the old model, {news - 1} the new one")
    assert olds > 20
    assert news > 1


def test_old_weights_that_an_interrupt_left_are_no_trouble(tmp_path, monkeypatch):
    shutil.copytree(TWO_FILES, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "mixed.json"

    def interrupted(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model_of(2.0).save(path)
    monkeypatch.undo()
    assert first_number(path) == 2.0


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
def test_errors_of_the_system(tmp_path, monkeypatch, exists, error, function):
    path = tmp_path / "m.json"
    if exists:
        model_of(1.0).save(path)
    before = sorted(tmp_path.iterdir())

    def failing(*arguments, **others):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.os, function, failing)
    with pytest.raises(OSError, match="nothing has been replaced") as raised:
        model_of(2.0).save(path)
    monkeypatch.undo()
    assert (raised.value.errno, raised.value.filename) == (error, str(path))
    assert sorted(tmp_path.iterdir()) == before
    assert not exists or first_number(path) == 1.0


def test_a_directory_that_cannot_be_brought_to_the_disk(tmp_path, monkeypatch):
    """The new model is there; that it might not outlast a power cut is said where it is known."""
    path = tmp_path / "m.json"
    genuine, calls, error = os.fsync, [], errno.EINVAL

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) % 2 == 0:
            raise OSError(error, os.strerror(error))
        genuine(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    model_of(1.0).save(path)  # the file system has no such thing
    error = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        model_of(2.0).save(path)
    assert len(calls) == 4
    assert first_number(path) == 2.0


WITHOUT_ROOM = """
    import os, resource, sys
    import numpy as np
    from fastreg.layers import Dense, Sequential

    def model_of(number, size):
        model = Sequential([Dense(size, input_dim=size, name="d")], name="m")
        for weight in model.weights.values():
            weight[...] = number
        return model

    os.chdir(os.environ["DIRECTORY"])
    model_of(1.0, 8).save("m.json")
    before = os.listdir()
"""


def test_a_full_disk(tmp_path):
    """A limit of the size of files stands for it: a write takes some of the bytes, then none."""
    output = runs(
        WITHOUT_ROOM
        + """
    for limit in (0, 100, 5_000, 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            model_of(2.0, 300).save("m.json")
        except OSError as error:
            print(error)
        assert os.listdir() == before
        assert Sequential.load("m.json").get_weights()[0][0, 0] == 1.0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    model_of(2.0, 300).save("m.json")
    assert Sequential.load("m.json").get_weights()[0][0, 0] == 2.0
    """,
        DIRECTORY=str(tmp_path),
    )
    assert output.count("File too large; nothing has been replaced: 'm.json'") == 4


def test_a_directory_that_may_not_be_written(tmp_path):
    output = runs(
        WITHOUT_ROOM
        + """
    os.chmod(".", 0o555)
    if os.geteuid() == 0:  # who may write everywhere
        os.seteuid(65534)
    try:
        model_of(2.0, 8).save("m.json")
    except PermissionError as error:
        print(error)
    assert os.listdir() == before
    assert Sequential.load("m.json").get_weights()[0][0, 0] == 1.0
    """,
        DIRECTORY=str(tmp_path),
    )
    assert output == "[Errno 13] Permission denied; nothing has been replaced: 'm.json'\n"


def in_processes(call, directory):
    script = f"""
    import json, os, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import saving_processes
    print(json.dumps(saving_processes.{call}))
    """
    return json.loads(runs(script, FASTREG_NUM_THREADS="1", DIRECTORY=str(directory)))


PLACE = 'Path(os.environ["DIRECTORY"]) / "m.json"'


def test_processes_that_are_killed(tmp_path):
    counts = in_processes(f"kill({PLACE}, 25, savers=2)", tmp_path)
    assert counts["kills"] == 50
    assert counts["loads"] > 0
    assert counts["models seen"] > 1
    assert counts["temporary files left"] <= 50
    assert counts["after the next save"] == 0


def test_several_savers_of_one_path(tmp_path):
    counts = in_processes(f"together({PLACE}, 1.0, savers=3)", tmp_path)
    assert counts["saves"] > 3
    assert counts["loads"] > 0
    assert counts["temporary files left"] == 0


def test_threads_that_save_one_path(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "m.json"
    models = [model_of(float(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: models[place % 4].save(path), range(40)))
    weights = Sequential.load(path).get_weights()
    assert len({float(x) for weight in weights for x in np.unique(weight)}) == 1
    assert sorted(tmp_path.iterdir()) == [path]
