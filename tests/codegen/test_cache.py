"""The cache of compiled code: what is damaged, in the way, or in the hands of others does no harm."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
from graphc.codegen import cache

NAME = "a" * 64


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(path))
    monkeypatch.delenv("GRAPHC_CACHE", raising=False)
    cache.forget()
    yield path
    cache.forget()


def fresh(name=NAME):
    """The entry as another process would find it."""
    cache.forget()
    return cache.get(name)


def file_of(place, name=NAME):
    return place / (name + cache.SUFFIX)


def test_what_is_put_is_found_in_memory_and_on_disk(place):
    assert cache.get(NAME) is None
    before = cache.statistics()
    cache.put(NAME, b"object")
    assert cache.get(NAME) == b"object"
    assert fresh() == b"object"
    after = cache.statistics()
    assert (after.memory_hits, after.disk_hits) == (before.memory_hits + 1, before.disk_hits + 1)
    assert after.bytes_read == before.bytes_read + 6
    assert place.stat().st_mode & 0o777 == 0o700
    assert file_of(place).stat().st_mode & 0o777 == 0o600
    assert cache.disk().contents() == (1, file_of(place).stat().st_size)


def test_keys_tell_everything_apart():
    keys = {
        cache.key("text", "target"),
        cache.key("text2", "target"),
        cache.key("text", "target2"),
        cache.key("texttarget", ""),
        cache.key("", "texttarget"),
    }
    assert len(keys) == 5
    assert cache.key("text", "target") == cache.key("text", "target")


def test_keys_depend_on_the_compiler(monkeypatch):
    before = cache.key("text", "target")
    monkeypatch.setattr(cache, "_compiler", lambda: b"another version")
    assert cache.key("text", "target") != before


@pytest.mark.parametrize("length", [0, 1, 47, 48, 49, 100])
def test_truncated_entries_are_deleted_and_compiled_again(place, length, caplog):
    cache.put(NAME, bytes(range(100)))
    data = file_of(place).read_bytes()
    assert len(data) == 148
    file_of(place).write_bytes(data[:length])
    with caplog.at_level(logging.DEBUG, "graphc.cache"):
        assert fresh() is None
    assert not file_of(place).exists()
    assert "is damaged" in caplog.text
    cache.put(NAME, b"again")
    assert fresh() == b"again"


def test_every_flipped_bit_is_noticed(place):
    cache.put(NAME, b"some object code")
    data = file_of(place).read_bytes()
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        file_of(place).write_bytes(flipped)
        assert fresh() is None
        assert not file_of(place).exists()


def test_a_longer_file_is_damaged_too(place):
    cache.put(NAME, b"object")
    with open(file_of(place), "ab") as f:
        f.write(b"x")
    assert fresh() is None


def test_a_directory_that_cannot_be_made_warns_once_and_goes_on(place):
    place.write_text("in the way")
    cache.forget()
    with pytest.warns(RuntimeWarning) as caught:
        cache.put(NAME, b"object")
        cache.put("b" * 64, b"object")
    assert len(caught) == 1
    assert str(caught[0].message) == (
        f"graphc does not keep compiled kernels in {place}: File exists. They will be compiled again in each "
        "process. To mend it, set GRAPHC_CACHE_DIR to a directory of your own that you can write to; "
        "GRAPHC_CACHE=0 turns the cache on disk off"
    )
    assert cache.get(NAME) == b"object"


def test_a_directory_that_cannot_be_written_warns_once_and_goes_on(place):
    """As a full or read-only disk would do it: the file cannot be put in place."""
    cache.put(NAME, b"object")
    file_of(place).unlink()
    file_of(place).mkdir()
    (file_of(place) / "x").touch()
    cache.forget()
    with pytest.warns(RuntimeWarning, match="does not keep compiled kernels") as caught:
        cache.put(NAME, b"object")
        cache.put("b" * 64, b"object")
    assert len(caught) == 1
    assert [p.name for p in place.iterdir()] == [NAME + cache.SUFFIX], "the temporary file is deleted"


def test_a_directory_that_others_may_write_to_is_refused(place):
    place.mkdir(mode=0o700)
    place.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"others may write to it \(mode 777\).*`chmod 700 "):
        cache.put(NAME, b"object")
    assert list(place.iterdir()) == []
    place.chmod(0o700)
    cache.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(NAME, b"object")
    assert fresh() == b"object"


def test_nothing_is_read_from_a_directory_that_others_may_write_to(place):
    cache.put(NAME, b"object")
    place.chmod(0o722)
    with pytest.warns(RuntimeWarning, match="others may write"):
        assert fresh() is None


def test_a_directory_of_another_user_is_refused(place, monkeypatch):
    cache.put(NAME, b"object")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert fresh() is None


def test_it_can_be_turned_off(place, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    cache.put(NAME, b"object")
    assert cache.get(NAME) == b"object"
    assert not place.exists()
    assert cache.disk() is None


def test_the_default_place_is_the_users(monkeypatch):
    import platformdirs

    monkeypatch.delenv("GRAPHC_CACHE_DIR")
    assert str(cache.disk().path) == platformdirs.user_cache_dir("graphc")


def test_reading_a_cache_that_does_not_exist_makes_nothing(place):
    assert cache.get(NAME) is None
    assert not place.exists()


def test_the_entries_used_longest_ago_go_first(place, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE_LIMIT_MIB", "1")
    cache.forget()
    names = [f"{i:064d}" for i in range(12)]
    now = time.time()
    for age, name in enumerate(names):
        cache.put(name, bytes(100_000))
        os.utime(file_of(place, name), (now - 100_000 + age, now - 100_000 + age))
    assert fresh(names[0]) is not None, "reading is using"
    cache.disk().evict()
    left = {p.name.removesuffix(cache.SUFFIX) for p in place.iterdir()}
    assert left == {names[0], *names[5:]}
    cache.disk().evict()
    assert len(list(place.iterdir())) == 8, "below the limit nothing goes"


def test_eviction_happens_by_itself(place, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE_LIMIT_MIB", "1")
    cache.forget()
    for i in range(300):
        cache.put(f"{i:064d}", bytes(20_000))
    count, size = cache.disk().contents()
    assert size < 1.05 * 2**20 + 128 * 20_100
    assert count < 300


def test_what_a_killed_writer_left_is_no_entry_and_goes_away(place):
    code = f"""
import os, sys
from graphc.codegen import cache
def stop(*paths):
    print("in the middle", flush=True)
    import time; time.sleep(60)
os.replace = stop
cache.put("{NAME}", b"object" * 10000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = place.iterdir()
    assert fresh() is None
    cache.put(NAME, b"object")
    assert fresh() == b"object"
    cache.disk().evict()
    assert left.exists(), "it might still be written to"
    os.utime(left, (1, 1))
    cache.disk().evict()
    assert not left.exists()
    assert fresh() == b"object"


def test_two_processes_may_write_one_entry(place):
    code = f"""
from graphc.codegen import cache
for i in range(300):
    cache.put("{NAME}", b"object" * 5000)
    cache.forget()
    assert cache.get("{NAME}") == b"object" * 5000
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [p.wait(60) for p in processes] == [0, 0]
    assert fresh() == b"object" * 5000
    assert len(list(place.iterdir())) == 1


def test_a_deleted_directory_is_made_again(place):
    import shutil

    cache.put(NAME, b"object")
    shutil.rmtree(place)
    cache.put("b" * 64, b"object")
    assert [p.name for p in place.iterdir()] == ["b" * 64 + cache.SUFFIX]
    assert place.stat().st_mode & 0o777 == 0o700


def test_memory_is_bounded_and_keeps_what_was_used_last(place, monkeypatch):
    monkeypatch.setattr(cache, "_memory", cache._Memory(limit=100))
    for i in range(5):
        cache.put(str(i), bytes([i]) * 30)
        assert cache.get("0") == bytes(30)
    assert list(cache._memory.held) == ["3", "4", "0"] and cache._memory.size == 90
    assert cache.get("1") == b"\1" * 30  # from disk
    cache.put("large", bytes(1000))
    assert list(cache._memory.held) == ["large"] and cache._memory.size == 1000
    cache.drop("large")
    assert cache._memory.size == 0 and cache.get("large") is None


@pytest.mark.parametrize("limit", ["x", "-1", "1.5", " 12", "1e3", "\u00b2"])
def test_a_limit_that_is_no_number_is_refused(limit, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE_LIMIT_MIB", limit)
    with pytest.raises(ValueError, match=f"GRAPHC_CACHE_LIMIT_MIB={limit}: it is the most MiB .* unset it for 1024"):
        cache.get(NAME)


@pytest.mark.parametrize("used", ["off", "2", "no"])
def test_whether_it_is_used_is_0_or_1(used, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", used)
    with pytest.raises(ValueError, match=f"GRAPHC_CACHE={used}: it is 0 .* or 1; unset it"):
        cache.get(NAME)


def test_the_environment_is_checked_before_anything_is_compiled(monkeypatch):
    """The user's own mistake is told as that, not as an internal error."""
    code = "import graphc as gc; gc.ones(3) + 1"
    for name, value in (("GRAPHC_CACHE_LIMIT_MIB", "much"), ("GRAPHC_COMPILE_PROCESSES", "all")):
        told = {**os.environ, name: value}
        done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        [told_error] = [line for line in done.stderr.splitlines() if "Error: " in line]
        assert told_error.startswith("ValueError: ") and f"{name}={value}: it is the " in told_error


def test_sources_are_read_once_and_again_when_they_change(place, tmp_path, monkeypatch):
    (tmp_path / "back").mkdir()
    file = tmp_path / "back" / "emit.py"
    file.write_text("one")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "back" / "cache.py"))

    def digest():
        cache._compiler.cache_clear()
        cache.forget()
        return cache._compiler()

    first = digest()
    read = []
    monkeypatch.setattr(cache.Path, "read_bytes", lambda p, own=cache.Path.read_bytes: read.append(p.name) or own(p))
    assert digest() == first and "emit.py" not in read
    file.write_text("other")
    assert digest() != first and "emit.py" in read
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    assert digest() == first
    cache._compiler.cache_clear()


PROGRAM = """
import hashlib, sys
import numpy as np, graphc as gc
from graphc.codegen import cache

@gc.compile
def step(x, w):
    h = gc.nn.functional.layer_norm(gc.tanh(x @ w), (24,))
    return gc.grad(lambda w: (gc.nn.functional.softmax(h @ w, 1) ** 2).sum())(w), gc.cumsum(h, 0)

x = gc.asarray(np.linspace(-1, 1, 24 * 24, dtype=np.float32).reshape(24, 24))
print("ready", flush=True)
sys.stdin.readline()
result = step(x, x)
print(hashlib.sha256(b"".join(r.numpy().tobytes() for r in result)).hexdigest(), cache.statistics().damaged, flush=True)
"""


def test_two_processes_compile_one_program_into_one_empty_cache(place):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2
    for p in processes:
        p.stdin.write("go\n")
        p.stdin.flush()
    results = [p.communicate(timeout=120)[0] for p in processes]
    assert results[0] == results[1] and results[0].endswith(" 0\n")
    files = list(place.iterdir())
    assert len(files) > 5 and all(f.name.endswith(cache.SUFFIX) for f in files)
    assert all(cache._payload(f.read_bytes()) is not None for f in files)
    # What they left serves a third one, which compiles nothing.
    third = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("cache.statistics().damaged", "step.compile_reports()[0].compiled")],
        input="go\n", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert third.stdout == "ready\n" + results[0]


def test_code_for_another_cpu_is_never_loaded(place, monkeypatch):
    """A cache that was filled where the CPU has more: the same program is compiled again for what this one has."""
    import dataclasses

    import numpy as np
    from graphc.codegen import kernels
    from graphc.codegen.llvm import target
    from graphc.codegen.program import compile_function
    from graphc.ir.function import Builder
    from graphc.ir.types import TensorType

    b = Builder("scale")
    f = b.build([b.tanh(b.param(TensorType.parse("f32[40]")))])
    own = target.host_target()
    more = dataclasses.replace(own, cpu="sapphirerapids", features="", vector_bits=512)

    def forget():
        cache.forget()
        for known in (kernels._memory, kernels._choices, kernels._linked):
            known.clear()

    # As that machine would: nothing of its code is linked here.
    monkeypatch.setattr(target, "host_target", lambda: more)
    monkeypatch.setattr(kernels, "_load", lambda key, data: loaded.append(key))
    loaded: list[str] = []
    forget()
    with pytest.raises(AttributeError):
        compile_function(f)
    foreign = set(loaded)
    assert foreign and {p.name.removesuffix(cache.SUFFIX) for p in place.iterdir()} >= foreign
    monkeypatch.undo()
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(place))
    forget()
    here: list[str] = []
    real = kernels._load
    monkeypatch.setattr(kernels, "_load", lambda key, data: here.append(key) or real(key, data))
    program = compile_function(f)
    assert here and foreign.isdisjoint(here)
    x, y = np.linspace(-2, 2, 40, dtype=np.float32), np.empty(40, np.float32)
    program.run([x.ctypes.data], [y.ctypes.data])
    np.testing.assert_allclose(y, np.tanh(x), rtol=1e-6)
    forget()
