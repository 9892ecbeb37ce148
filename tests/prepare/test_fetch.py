"""Fetch: each image's bytes, or what is wrong with it; storages that fail, and some that are away."""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest

from llava_batch.job import Job
from llava_batch.patience import Patience
from llava_batch.prepare import fetch as fetch_module
from llava_batch.prepare.fetch import Fetch, Fetched
from llava_batch.prepare.in_flight import Flight, Held
from llava_batch.prepare.pixels import BadImage
from llava_batch.prepare.stores import Stores
from tests.away import Clock, Store
from tests.faulty_s3 import FaultyServer, drawn
from tests.s3_server import KEY, SECRET, needs_a_server, s3
from tests.shards import picture, put

__all__ = ["s3"]
"""A fixture is found where its name stands."""

NOW = Patience(0.0, sleep=lambda seconds: None)


@pytest.fixture(autouse=True)
def _keyless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def fetched(*uris: str, patience: Patience = NOW, most: int = 10**6, **job: Any) -> list[Fetched]:
    """The images of rows of one URI each."""
    return fetched_by(Stores.of(Job(**job)), *uris, patience=patience, most=most)


def fetched_by(stores: Stores, *uris: str, patience: Patience, most: int = 10**6) -> list[Fetched]:
    fetch = Fetch(stores, max_image_bytes=most, patience=patience)
    try:
        got = [image for (image,) in fetch.rows([[uri] for uri in uris])]
        assert fetch.held.used == 0
        return got
    finally:
        fetch.close()


def told(got: Fetched) -> tuple[str, str]:
    assert isinstance(got, BadImage), got
    return got.code.value, str(got)


def codes(got: list[Fetched]) -> list[str]:
    return ["ok" if isinstance(g, bytes) else g.code.value for g in got]


def test_local_images_come_by_path_and_by_file_uri(tmp_path):
    put(tmp_path / "a b%.png", picture())
    at = str(tmp_path)
    uris = [f"{at}/a b%.png", f"file://{at}/a%20b%25.png", f"file:{at}/a b%25.png",
            f"file://localhost{at}/a%20b%25.png"]  # fmt: skip
    assert fetched(*uris) == [picture()] * 4


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("data:image/png;base64,aGlkZGVu", "data: is not fetched"),
        ("javascript:alert(1)", "javascript: is not fetched"),
        ("nowhere://x/y.png", "fetched only where"),
        ("ftp://h/y.png", "fetched only where"),
        ("simplecache::http://h/y.png", "is not fetched"),
        ("zip://y.png::http://169.254.169.254/", "fetched only where"),
        ("s3://", "names no object"),
        ("s3://bucket", "names no object"),
        ("s3://me:hidden@bucket/y.png", "credentials in a table's URIs are not used"),
        ("abfs://evil.example/c/y.png", "not an address of Azure's"),
        ("abfss://c:hidden@a.dfs.core.windows.net/y.png", "not an address of Azure's"),
        ("file://elsewhere/y.png", "another machine"),
        ("file:y.png", "another machine"),
        ("{}/a\0b.png", "NUL"),
        ("file://{}/a%00b.png", "NUL"),
        ("{}", "not a file"),
        ("{}/none.png", "no such file"),
        ("{}/pipe", "not a file"),
        ("{}/empty.png", "empty"),
        ("{}/secret.png", "ermission"),
        ("/dev/zero", "not a file"),
        ("{}/a.png/b.png", "Not a directory"),
        ("{}/" + "n" * 300, "name too long"),
        ("http://h/y.png?key=hidden", "without --allow-http"),
        ("http://[h/y.png", "without --allow-http"),
    ],
)
def test_what_is_not_there_or_not_fetched_is_image_missing_and_says_why(tmp_path, uri, said):
    for name in ("a.png", "secret.png"):
        put(tmp_path / name, picture())
    put(tmp_path / "empty.png", b"")
    (tmp_path / "secret.png").chmod(0)
    os.mkfifo(tmp_path / "pipe")
    if "secret" in uri and os.access(tmp_path / "secret.png", os.R_OK):
        pytest.skip("this user may read everything")
    good, bad = fetched(str(tmp_path / "a.png"), uri.format(tmp_path))
    assert good == picture()
    code, what = told(bad)
    assert code == "image_missing" and said in what and "hidden" not in what and len(what) < 700


def test_an_image_over_the_limit_is_too_large_and_none_of_it_is_read(tmp_path):
    put(tmp_path / "a", b"x" * 11)
    put(tmp_path / "b", b"x" * 10)
    large, fits = fetched(str(tmp_path / "a"), str(tmp_path / "b"), most=10)
    assert told(large)[0] == "image_too_large" and "--max-image-bytes" in told(large)[1]
    assert fits == b"x" * 10


def test_images_of_a_row_and_rows_come_in_order_and_empty_rows_too(tmp_path):
    paths = [str(put(tmp_path / f"{n}", picture(n))) for n in range(50)]
    rows = [paths[:3], [], paths[3:4], [str(tmp_path / "none"), paths[4]], paths[5:]]
    fetch = Fetch(Stores.of(Job()), max_image_bytes=10**6, patience=NOW)
    got = list(fetch.rows(rows))
    assert [len(images) for images in got] == [3, 0, 1, 2, 45]
    assert got[4] == [picture(n) for n in range(5, 50)]
    assert codes(got[3]) == ["image_missing", "ok"]
    fetch.close()


# A store in memory, behind `away://bucket/…`


def in_memory(store: Store) -> Stores:
    return Stores({("away", "b"): (store.fs, "b")}, None, False)


@dataclass
class Failing(Store):
    """One whose first `fails` opens of each path fail."""

    fails: dict[str, int] = field(default_factory=dict)
    opens: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        super().__init__()

    def open_input_file(self, path: str) -> Any:
        with self.lock:
            self.opens.append(path)
            left = self.fails.get(path, 0)
            self.fails[path] = left - 1
        if left > 0:
            raise OSError("AWS Error SLOW_DOWN (HTTP status 503) during HeadObject operation")
        return self.open_input_stream(path)


def test_what_may_pass_is_tried_again_and_given_up_in_seconds(tmp_path):
    store = Failing(fails={"b/1": 2, "b/2": 10**6})
    store.objects = {f"b/{n}": picture(n) for n in range(3)}
    clock = Clock()
    uris = [f"away://b/{n}" for n in range(4)]
    got = fetched_by(in_memory(store), *uris, patience=clock.patience())
    assert codes(got) == ["ok", "ok", "image_unreachable", "image_missing"]
    _, what = told(got[2])
    assert "away://b/2" in what and "503" in what
    assert store.opens.count("b/2") == fetch_module.TRIES and store.opens.count("b/3") == 1
    assert 0 < clock.now < 20


def test_a_storage_that_is_away_for_minutes_is_waited_for_by_all_of_its_images():
    clock = Clock()
    store = Store(lambda: clock.now < 300)
    store.objects = {f"b/{n}": picture(n) for n in range(40)}
    uris = [f"away://b/{n}" for n in range(40)]
    got = fetched_by(in_memory(store), *uris, patience=clock.patience())
    assert got == [picture(n) for n in range(40)]


def test_a_storage_that_is_away_for_ever_is_waited_for_once_and_costs_rows_no_more(tmp_path):
    clock = Clock()
    store = Store(lambda: True)
    fetch = Fetch(in_memory(store), max_image_bytes=10**6, patience=clock.patience(600))
    good = str(put(tmp_path / "a.png", picture()))
    for batch in range(5):
        rows = [[f"away://b/{batch}-{n}"] for n in range(20)] + [[good]]
        got = [image for (image,) in fetch.rows(rows)]
        assert codes(got) == ["image_unreachable"] * 20 + ["ok"]
        if batch == 0:
            waited, calls = clock.now, len(store.calls)
    assert 600 <= waited < 1200 and clock.now == waited
    assert len(store.calls) - calls == 4 * 20  # one try each
    store.down = lambda: False
    store.objects = {"b/back": picture()}
    assert [*fetch.rows([["away://b/back"]])] == [[picture()]]
    fetch.close()


def test_a_batch_that_is_left_early_holds_nothing(tmp_path):
    paths = [str(put(tmp_path / f"{n}", b"x" * 1000)) for n in range(64)]
    fetch = Fetch(Stores.of(Job()), max_image_bytes=10**6, patience=NOW)
    rows = fetch.rows([[path] for path in paths])
    next(rows)
    rows.close()
    deadline = time.monotonic() + 20
    while fetch.held.used and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fetch.held.used == 0
    fetch.close()


def test_a_read_that_never_returns_costs_its_row_and_none_behind_it(tmp_path, monkeypatch):
    # 32 of them would be all threads there are.
    monkeypatch.setattr(fetch_module, "HUNG_S", 0.5)
    monkeypatch.setattr(fetch_module, "AT_ONCE", 2)
    forever = threading.Event()

    class Hangs(Store):
        def open_input_file(self, path: str) -> Any:
            if "hangs" in path:
                forever.wait()
            return self.open_input_stream(path)

    store = Hangs()
    store.objects = {"b/a": picture()}
    uris = ["away://b/hangs1", "away://b/hangs2", "away://b/a", "away://b/hangs3", "away://b/a"]
    fetch = Fetch(in_memory(store), max_image_bytes=10**6, patience=NOW)
    try:
        got = [image for (image,) in fetch.rows([[uri] for uri in uris])]
        assert codes(got) == ["image_unreachable"] * 2 + ["ok", "image_unreachable", "ok"]
        monkeypatch.setattr(fetch_module, "_MOST_HUNG", 3)
        ((no_more,),) = fetch.rows([["away://b/hangs4"]])
        assert "3 reads there did not end" in told(no_more)[1]
    finally:
        forever.set()
        fetch.close()


def test_what_was_decoded_is_kept_nowhere(tmp_path):
    paths = [str(put(tmp_path / f"{n}", b"x" * 1000)) for n in range(3)]
    fetch = Fetch(Stores.of(Job()), max_image_bytes=10**6, patience=NOW)
    rows = fetch.rows([[path] for path in paths])
    (first,) = next(rows)
    next(rows)
    assert sys.getrefcount(first) == 2  # this name, and the call's
    rows.close()
    fetch.close()


def test_bytes_that_wait_to_be_decoded_are_bounded_but_for_the_row_whose_turn_it_is():
    held = Held(100)
    first, second, large = Flight("a", 0), Flight("b", 1), Flight("c", 2)
    assert held.try_take(60, second) and not held.try_take(60, large)
    assert held.try_take(500, first) and held.used == 560
    held.give_back(first)
    assert not held.try_take(60, large)
    held.turn(2)
    assert held.try_take(60, large)
    held.give_back(second)
    held.give_back(second)
    assert held.used == 60


def test_few_images_that_are_larger_than_what_may_be_held_all_come(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "HELD_BYTES", 1500)
    paths = [str(put(tmp_path / f"{n}", bytes([n]) * 1000)) for n in range(40)]
    fetch = Fetch(Stores.of(Job()), max_image_bytes=10**6, patience=NOW)
    most = 0
    for number, (image,) in enumerate(fetch.rows([[path] for path in paths])):
        assert image == bytes([number]) * 1000
        most = max(most, fetch.held.used)
    assert most <= 2500 and fetch.held.used == 0
    fetch.close()


def test_any_other_scheme_of_fsspec_is_served_where_an_input_lies_on_it():
    fsspec.filesystem("memory").pipe("/there/x/1.png", picture())
    uris = ["memory://there/x/1.png", "memory://elsewhere/1.png"]
    assert codes(fetched(*uris)) == ["image_missing"] * 2
    assert codes(fetched(*uris, input=("memory://there/tables",))) == ["ok", "image_missing"]
    assert codes(fetched(*uris, image_root="memory://there")) == ["ok", "image_missing"]


# S3


def of_s3(gateway: str, bucket: str = "lake") -> str:
    port = gateway.rpartition(":")[2]
    return (
        f"s3://{KEY}:{SECRET}@{bucket}/in?endpoint_override=127.0.0.1:{port}&scheme=http&region=x"
    )


@needs_a_server
def test_an_input_with_credentials_serves_its_bucket_and_no_other(s3):
    s3.fs.create_dir("other")
    for path in ("lake/img/a b%20?#.png", "other/1.png"):
        put_s3(s3, path, picture())
    uris = ["s3://lake/img/a b%20?#.png", "s3a://lake/img/a b%20?#.png", "s3://lake/img/none.png"]
    stores = Stores.of(Job(input=(of_s3(s3.gateway),)))
    for there in (stores, pickle.loads(pickle.dumps(stores))):
        got = fetched_by(there, *uris, patience=NOW)
        assert codes(got) == ["ok", "ok", "image_missing"]
    rooted = fetched(*uris, image_root=of_s3(s3.gateway))
    assert codes(rooted) == ["ok", "ok", "image_missing"]
    _, what = told(got[2])
    assert KEY not in what and SECRET not in what


@needs_a_server
def test_keys_of_the_drivers_environment_go_along_to_workers_that_have_none(s3, monkeypatch):
    put_s3(s3, "lake/img/1.png", picture())
    set_keys(monkeypatch, s3.gateway)
    sent = pickle.dumps(Stores.of(Job()))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    stores = pickle.loads(sent)
    assert fetched_by(stores, "s3://lake/img/1.png", patience=NOW) == [picture()]
    first, second = stores.place("s3://lake/1.png"), stores.place("s3://other/2.png")
    assert first.fs is second.fs is stores.s3  # one for all


@needs_a_server
def test_a_bucket_that_is_not_there_and_a_wrong_key_are_missing_at_once(s3):
    good = of_s3(s3.gateway)
    job = Job(input=(good.replace(SECRET, "wrong"), good.replace("@lake", "@nobucket")))
    got = fetched_by(Stores.of(job), "s3://lake/1.png", "s3://nobucket/1.png", patience=NOW)
    assert codes(got) == ["image_missing"] * 2


SEED = 20


def fate(path: str) -> tuple[str, int]:
    """What requests for a path meet, and how many of them: 1 % always, 20 % a few times at first."""
    name = path.partition("?")[0]
    kind = "503" if drawn(SEED + 1, name) < 0.5 else "cut"
    if drawn(SEED, name) < 0.01:
        return kind, 10**9
    return kind, 1 + int(drawn(SEED + 2, name) * 5) if drawn(SEED, name) < 0.21 else 0


def fault(path: str, number: int) -> str | None:
    kind, count = fate(path)
    return kind if "/img-" in path and number < count else None


def set_keys(monkeypatch: pytest.MonkeyPatch, gateway: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway)


def fetch_behind_faults(
    s3: Any, stores_of: Callable[[str], Stores], count: int, at_once: int
) -> None:
    names = [f"lake/img-{count}/{n}.png" for n in range(count)]
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda n: put_s3(s3, names[n], picture(n % 50)), range(count))]
    server = FaultyServer(s3.gateway, fault)
    fetch = Fetch(stores_of(server.address), max_image_bytes=10**6, patience=Patience(600.0))
    got: list[Fetched] = []
    for start in range(0, count, at_once):
        rows = [[f"s3://{name}"] for name in names[start : start + at_once]]
        got += [image for (image,) in fetch.rows(rows)]
    fetch.close()
    server.shutdown()
    for_ever = [fate(f"/{name}")[1] == 10**9 for name in names]
    assert len(got) == count and any(for_ever)
    assert [isinstance(g, BadImage) for g in got] == for_ever
    assert {told(g)[0] for g in got if isinstance(g, BadImage)} == {"image_unreachable"}
    good = [n for n, bad in enumerate(for_ever) if not bad]
    assert all(got[n] == picture(n % 50) for n in good)
    failed_at_first = sum(0 < fate(f"/{name}")[1] < 10**9 for name in names)
    assert failed_at_first > 0.15 * count
    assert server.faults["503"] and server.faults["cut"]


def put_s3(s3: Any, path: str, data: bytes) -> None:
    with s3.fs.open_output_stream(path) as stream:
        stream.write(data)


@needs_a_server
def test_three_hundred_uris_of_a_store_that_fails_are_all_accounted_for(s3, monkeypatch):
    def stores(gateway: str) -> Stores:
        set_keys(monkeypatch, gateway)
        return Stores.of(Job())

    fetch_behind_faults(s3, stores, 300, 300)


@needs_a_server
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_uris_of_a_store_that_fails_are_all_accounted_for(s3):
    def stores(gateway: str) -> Stores:
        return Stores.of(Job(input=(of_s3(gateway),)))

    fetch_behind_faults(s3, stores, 10_000, 1000)
