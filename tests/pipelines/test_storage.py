"""Where data may live: local paths, patterns, S3 by its real protocol, GCS by its URI; and errors that pass."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipelines import retries, storage
from pipelines.batch import Batch
from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.footers import check_files
from pipelines.inspect import inspect
from pipelines.prepare_log import find_log
from pipelines.read import read_window
from pipelines.retries import counting_retries, is_transient, retrying
from pipelines.segments import find_segments, list_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_rows, make_schema, to_table, write_rows, write_segments
from tests.pipelines.s3_server import Proxy, s3_server, upload, write_object
from tests.pipelines.test_stream import canonical

pytestmark = pytest.mark.timeout(120)
ROWS = {"1": [23, 9], "2": [4], "3": [31]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("rows"), ROWS)


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[tuple[str, Proxy]]:
    """(URI of the rows, the proxy between)."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as address:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        upload(folder, "logs", address)
        upload(folder / "dt=2", "late", address)
        proxy = Proxy(address)
        yield f"s3://logs?endpoint_override={proxy.address}&scheme=http&region=us-east-1", proxy
        proxy.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.001)


def below(uri: str, relative: str) -> str:
    return storage.join(uri, relative)


def all_batches(rows: str, **data: Any) -> list[Batch]:
    settings = make_data(rows, segments="..", **data)
    pass_ = Pass(make_schema(), settings, find_segments(settings).train, seed=3)
    return list(batches(pass_, 1, 0, None, ThreadExecutor()))


def test_rows_on_s3_give_the_batches_of_the_same_rows_on_disk(folder: Path, s3: tuple[str, Proxy]) -> None:
    uri, _ = s3
    assert [canonical(b) for b in all_batches(uri)] == [canonical(b) for b in all_batches(str(folder))]
    assert inspect(uri).rows == inspect(str(folder)).rows == 67
    assert check_files(make_schema(), list_segments(uri)) == []


def test_footers_on_s3_are_one_ranged_read_each_after_one_listing(s3: tuple[str, Proxy]) -> None:
    uri, proxy = s3
    segments = list_segments(uri)
    proxy.requests.clear()
    assert check_files(make_schema(), segments, FooterCache(None)) == []
    assert sorted(unquote(line).split("/")[2] for line in proxy.requests) == ["dt=1", "dt=1", "dt=2", "dt=3"]
    assert all(line.startswith("GET") for line in proxy.requests), "no HEAD asks for a size that the listing told"


@pytest.mark.parametrize(
    ("pattern", "names", "files"),
    [
        ("", ["1", "2", "3"], 4),
        ("dt=[13]", ["1", "3"], 3),
        ("dt=*/part-0.*", ["1", "2", "3"], 3),
        ("dt=1", ["all"], 2),
        ("dt=1/part-1.parquet", ["all"], 1),
    ],
)
def test_patterns_are_the_same_on_s3_and_on_disk(
    folder: Path, s3: tuple[str, Proxy], pattern: str, names: list[str], files: int
) -> None:
    for rows in (f"{folder}/{pattern}", below(s3[0], pattern), f"file://{folder}/{pattern}"):
        found = list_segments(rows)
        assert [segment.name for segment in found] == names
        assert sum(len(segment.files) for segment in found) == files
        assert [len(segment.sizes) for segment in found] == [len(segment.files) for segment in found]


def test_a_prepare_s_log_may_lie_on_s3(s3: tuple[str, Proxy]) -> None:
    assert len(find_log(below(s3[0], "dt=1"))) == 2


def test_what_is_not_there_on_s3_is_said(s3: tuple[str, Proxy]) -> None:
    for rows in (below(s3[0], "none"), below(s3[0], "dt=[89]"), s3[0].replace("logs", "nobucket")):
        with pytest.raises(DataError, match=r"no Parquet file|cannot be listed"):
            list_segments(rows)
    with pytest.raises(DataError, match="of a bucket is no pattern"):
        list_segments("s3://lo*/x?region=us-east-1")


def test_an_object_replaced_by_one_of_equal_size_is_found_by_its_time(folder: Path, s3: tuple[str, Proxy]) -> None:
    content = (folder / "dt=2" / "part-0.parquet").read_bytes()
    rows = s3[0].replace("//logs", "//late")
    data = make_data(rows, segments="..")
    pass_ = Pass(make_schema(), data, find_segments(data).train)
    time.sleep(1.1)  # S3 tells whole seconds
    write_object(below(rows, "part-0.parquet"), content)
    with pytest.raises(DataError, match="was written again at"):
        next(pass_.windows_from())


def test_dropped_connections_are_tried_again_and_counted(
    folder: Path,
    s3: tuple[str, Proxy],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    soon: None,
) -> None:
    """Every connection for a file is dropped until the client gives up, once."""
    uri, proxy = s3
    expected = [batch.row.tobytes() for batch in all_batches(str(folder))]
    settings = make_data(uri, segments="..", windows_ahead=1)
    pass_ = Pass(make_schema(), settings, find_segments(settings).train, seed=3)
    list(pass_.windows_from())  # the plan is made: what is dropped now are rows
    note = retries._note

    def end_of_trouble(*arguments: Any) -> None:
        proxy.drop = 0
        note(*arguments)

    monkeypatch.setattr(retries, "_note", end_of_trouble)
    proxy.drop = 10**6
    found = list(batches(pass_, 1, 0, None, ThreadExecutor(1, 1)))
    assert [batch.row.tobytes() for batch in found] == expected
    assert sum(batch.retries for batch in found) >= 1
    assert "retry 1 of at most 5" in caplog.text


def test_gs_uris_resolve_to_the_gcs_client() -> None:
    """No server speaks its protocol here: that it resolves is all that is tested."""
    file_system, inner = storage.resolve("gs://bucket/rows/dt=1/a#b.parquet")
    assert (file_system.type_name, inner) == ("gcs", "bucket/rows/dt=1/a#b.parquet")


def test_paths_that_look_like_patterns_but_exist_are_paths(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows[1]" / "part*.parquet", make_rows(3, 0))
    write_rows(tmp_path / "rows1" / "part-0.parquet", make_rows(3, 0))
    for rows in (path, path.parent):
        [segment] = list_segments(str(rows))
        assert segment.files == (str(path),)


def test_sizes_and_times_come_with_the_listing(folder: Path) -> None:
    for segment in list_segments(str(folder)):
        stats = [Path(file).stat() for file in segment.files]
        assert segment.sizes == tuple(stat.st_size for stat in stats)
        assert segment.changed == tuple(stat.st_mtime_ns for stat in stats)
    files = [file for segment in list_segments(str(folder)) for file in segment.files]
    assert storage.stat_files([*files, "none"]) == [storage.stat_files([file])[0] for file in files] + [None]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate."), True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during GetObject operation"), True),
        (OSError("google::cloud::Status(UNAVAILABLE: try later)"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), False),
        (OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError("Corrupt snappy compressed data."), False),
        (OSError("Unexpected end of stream"), False),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), False),
        (ValueError("unknown scheme"), False),
    ],
)
def test_which_errors_pass(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes


def test_retries_are_bounded_and_counted_and_other_errors_are_not_retried(soon: None) -> None:
    for failures, allowed, calls, counted in ((0, 5, 1, 0), (2, 5, 3, 2), (5, 5, 6, 5), (6, 5, 6, 5), (1, 0, 1, 0)):
        made = 0

        def call(failures: int = failures) -> int:
            nonlocal made
            made += 1
            if made <= failures:
                raise ConnectionResetError("gone")
            return made

        with counting_retries() as counter:
            if failures > allowed:
                with pytest.raises(ConnectionResetError):
                    retrying(call, "it", allowed)
            else:
                assert retrying(call, "it", allowed) == failures + 1
        assert (made, counter.count) == (calls, counted)
    with counting_retries() as counter, pytest.raises(FileNotFoundError):
        retrying(lambda: Path("nowhere").read_bytes(), "it", 5)
    assert counter.count == 0


class Flaky(fs.FileSystemHandler):
    """A local folder whose reads fail n times, each with a reset connection."""

    def __init__(self, root: Path) -> None:
        self.inner = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())
        self.failures = 0

    def fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self.fail()
        return list(self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self.fail()
        return list(self.inner.get_file_info(selector))

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.fail()
        return self.inner.open_input_file(path)

    open_input_stream = open_input_file

    def _refuse(self, *args: Any) -> Any:
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


@pytest.mark.parametrize("failures", [1, 4])
def test_every_kind_of_request_survives_errors_that_pass(folder: Path, failures: int, soon: None) -> None:
    store = Flaky(folder)
    storage.mount("flaky", fs.PyFileSystem(store))
    before = retries.OUTSIDE_WINDOWS.count
    store.failures = failures
    settings = make_data("flaky://.", segments="..")
    segments = find_segments(settings).train
    store.failures = failures
    assert check_files(make_schema(), segments) == []
    pass_ = Pass(make_schema(), settings, segments, seed=3)
    windows = list(pass_.windows_from())
    assert retries.OUTSIDE_WINDOWS.count - before == 2 * failures
    store.failures = failures
    with counting_retries() as counter:
        assert sum(len(row) for *_, row in read_window(windows[0], make_schema())) == windows[0].rows
    assert counter.count == failures
    store.failures = 100
    with pytest.raises(DataError, match=r"Connection reset by peer → the store answers, .* data.read_retries"):
        list(read_window(windows[0], make_schema(), 2))


def test_a_bad_page_is_named_by_file_row_group_and_column(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    pq.write_table(to_table(make_rows(20, 0)), path, row_group_size=7, compression="zstd")
    metadata = pq.read_metadata(path)
    names = [metadata.row_group(1).column(i).path_in_schema for i in range(metadata.num_columns)]
    chunk = metadata.row_group(1).column(names.index("score"))
    content = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content[begin : begin + 40] = bytes(40)
    path.write_bytes(content)
    data = make_data(tmp_path, segments="..")
    [first, *_] = Pass(make_schema(), data, list_segments(str(tmp_path))).windows_from()
    with pytest.raises(DataError) as caught:
        list(read_window(first, make_schema()))
    [line] = caught.value.problems
    assert line.startswith(f"'{path}', row group 1, column 'score' cannot be read: ")


def test_a_file_cut_while_its_segment_trains_is_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "part-0.parquet", make_rows(20, 0))
    data = make_data(tmp_path, segments="..")
    windows = list(Pass(make_schema(), data, list_segments(str(tmp_path))).windows_from())
    write_rows(path, make_rows(16, 0))
    with pytest.raises(DataError, match=r"has 2 rows in row group 2, and had 6 or more when it was planned"):
        list(read_window(windows[1], make_schema()))
