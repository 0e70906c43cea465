"""MovieLens-1M: the exact counts of the published protocol on the real archive, and bad archives."""

from __future__ import annotations

import json
import math
import tomllib
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.movielens import GENRES, write_log
from pipelines.prepare import prepare
from pipelines.schema import Schema

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHIVE = REPOSITORY.parent / "shared" / "data" / "ml-1m" / "ml-1m.zip"
USERS = "1::F::1::10::48067\n2::M::56::16::70072-12\n"
MOVIES = '10::L\xe9on: The "Professional" (1994)::Crime|Drama\n20::Toy Story (1995)::Animation|Children\'s\n'
RATINGS = "2::20::4::978300760\n1::10::3::978300761\n1::20::5::978300760\n"


def write_archive(path: Path, **tables: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in ({"users": USERS, "movies": MOVIES, "ratings": RATINGS} | tables).items():
            archive.writestr(f"ml-1m/{name}.dat", text.encode("latin-1"))
    return path


def test_a_rating_is_an_event_with_the_fields_of_its_user_and_movie(tmp_path: Path) -> None:
    report = write_log(write_archive(tmp_path / "tiny.zip"), tmp_path / "log")
    rows = pq.read_table(tmp_path / "log" / "ratings.parquet").to_pylist()
    told = {name: rows[1].pop(name) for name in ("genres", "user_count", "user_mean", "user_offset")}
    assert [GENRES[i] for i, value in enumerate(told["genres"]) if value == 1.0] == ["Crime", "Drama"]
    assert told["user_count"] == pytest.approx(math.log(2) / 5)  # user 1 has rated one movie before
    assert rows[1] == {
        "user_id": 1, "gender": "F", "age": 1, "occupation": 10, "zip": "48067", "movie_id": 10,
        "title": 'L\xe9on: The "Professional" (1994)', "genre": "Crime|Drama", "year": 1994, "rating": 3, "label": 0,
        "timestamp": 978300761,
    }  # fmt: skip
    assert [(row["user_id"], row["movie_id"], row["label"]) for row in rows] == [(2, 20, 1), (1, 10, 0), (1, 20, 1)]
    assert (report.events, report.users, report.movies) == (3, 2, 2)
    assert not report.md5_published
    assert "not the archive" in report.lines()[1]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"ratings": RATINGS + "9::10::3::978300761\n"}, "user_id that users.dat lacks"),
        ({"ratings": "1::10::three::978300761\n"}, "lines are user_id::movie_id::rating::timestamp"),
        ({"movies": ""}, "is empty"),
    ],
)
def test_a_bad_table_is_told_in_one_line(tables: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        write_log(write_archive(tmp_path / "bad.zip", **tables), tmp_path / "log")
    assert words in str(error.value)
    assert all(problem.count("→") == 2 and "\n" not in problem for problem in error.value.problems)
    assert not (tmp_path / "log").exists()


def test_what_is_no_archive_is_told_in_one_line(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("ml-1m/users.dat", USERS)
    for name, words in (("none.zip", "does not exist"), ("cut.zip", "no whole zip"), ("other.zip", "lacks movies.dat")):
        with pytest.raises(DataError, match=words) as error:
            write_log(tmp_path / name, tmp_path / "log")
        assert all(problem.count("→") == 2 for problem in error.value.problems)


@pytest.mark.skipif(not ARCHIVE.exists(), reason="needs the original ml-1m.zip in ../shared/data/ml-1m")
@pytest.mark.timeout(180)
def test_the_shipped_run_file_reproduces_the_published_counts(tmp_path: Path) -> None:
    """ReLLa's protocol (arXiv 2308.11131): another count would void every comparison."""
    written = write_log(ARCHIVE, tmp_path / "log")
    assert (written.events, written.users, written.movies, written.md5_published) == (1_000_209, 6_040, 3_706, True)
    run_file = tomllib.loads((REPOSITORY / "trainer" / "configs" / "movielens.toml").read_text())
    run_file["data"]["prepare"]["log"] = str(tmp_path / "log")
    schema = Schema.model_validate_json(json.dumps(run_file["schema"]))
    report = prepare(schema, Data.model_validate_json(json.dumps(run_file["data"])), tmp_path / "rows")
    assert report.supervised == 970_009
    assert [(s.name, s.supervised) for s in report.segments] == [
        ("1-train", 776_007),
        ("2-valid", 97_000),
        ("3-test", 97_002),
    ]
    rates = [positives / observed for observed, positives in (s.labels["label"] for s in report.segments)]
    assert [f"{rate:.4f}" for rate in rates] == ["0.5798", "0.5783", "0.5437"]
    assert "97,002 examples" in report.lines()[-1]
    ratings = pq.read_table(tmp_path / "rows" / "segment=3-test", columns=["movie_id", "label", "timestamp"])
    settings = run_file["data"]["prepare"]
    longest = settings["context_events"] + settings["supervised_events"]
    assert max(len(row) for row in ratings["movie_id"].to_pylist()) == longest
    assert all(row == sorted(row) for row in ratings["timestamp"].to_pylist())
