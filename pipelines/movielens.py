"""MovieLens-1M: the original GroupLens archive → an event log.

The data may be used for research, may not be passed on, and GroupLens is to be acknowledged (F. M. Harper and
J. A. Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015): this reads the archive that the user has.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.folders import fresh_folder
from pipelines.movielens_features import genre_vectors, running_features

log = logging.getLogger(__name__)

PUBLISHED_MD5 = "c4d9eecfca2ab87c1945afe126590906"
TABLES: dict[str, dict[str, pa.DataType]] = {
    "users": {
        "user_id": pa.int32(),
        "gender": pa.string(),
        "age": pa.int32(),
        "occupation": pa.int32(),
        "zip": pa.string(),
    },
    "movies": {"movie_id": pa.int32(), "title": pa.string(), "genre": pa.string()},
    "ratings": {"user_id": pa.int32(), "movie_id": pa.int32(), "rating": pa.int8(), "timestamp": pa.int64()},
}
GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
LIKED = 3  # a rating above it is a positive label (ReLLa, arXiv 2308.11131)


@dataclass(frozen=True)
class MovielensReport:
    """What was written. md5_published: whether the archive is byte for byte the one GroupLens publishes."""

    events: int
    users: int
    movies: int
    positive_rate: float
    first_day: str
    last_day: str
    md5: str
    md5_published: bool
    seconds: float

    def lines(self) -> list[str]:
        """For a person."""
        original = "the published archive" if self.md5_published else "not the archive that GroupLens publishes"
        return [
            f"{self.events:,} ratings by {self.users:,} users of {self.movies:,} movies, "
            f"{self.first_day}..{self.last_day} ({self.seconds:.1f} s)",
            f"label rating > {LIKED}: {self.positive_rate:.4f} positive · md5 {self.md5}: {original}",
        ]


def write_log(zip_path: Path, out: Path) -> MovielensReport:
    """Writes `out/ratings.parquet`, one event a rating, in the archive's order, with the fields of its user and movie.

    Columns: user_id, gender, age, occupation, zip, movie_id, title, genre (the whole genre string), genres (a vector of
    0 and 1 per GENRES), year (of the title), rating, label (rating > 3), timestamp (seconds), and what
    movielens_features knows of the user before the rating. Raises DataError where the archive is not one, or `out` is
    not empty.
    """
    started = time.perf_counter()
    tables, md5 = _read_archive(zip_path)
    events = _join(tables, zip_path)
    with fresh_folder(out) as folder:
        pq.write_table(events, folder / "ratings.parquet", compression="zstd", row_group_size=131_072)
    if md5 != PUBLISHED_MD5:
        log.warning("%s has md5 %s, GroupLens publishes %s: counts may differ", zip_path, md5, PUBLISHED_MD5)
    time_E = events["timestamp"].to_numpy()
    return MovielensReport(
        events=len(events),
        users=pc.count_distinct(events["user_id"]).as_py(),
        movies=pc.count_distinct(events["movie_id"]).as_py(),
        positive_rate=pc.mean(events["label"]).as_py(),
        first_day=str(time_E.min().astype("datetime64[s]").astype("datetime64[D]")),
        last_day=str(time_E.max().astype("datetime64[s]").astype("datetime64[D]")),
        md5=md5,
        md5_published=md5 == PUBLISHED_MD5,
        seconds=time.perf_counter() - started,
    )


def _read_archive(zip_path: Path) -> tuple[dict[str, pa.Table], str]:
    """The three tables, read without unpacking to disk, and the archive's md5."""
    try:
        with zip_path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            with zipfile.ZipFile(file) as archive:
                members = {Path(name).name: name for name in archive.namelist()}
                missing = [f"{table}.dat" for table in TABLES if f"{table}.dat" not in members]
                if missing:
                    raise DataError(
                        f"'{zip_path}' lacks {', '.join(missing)} → MovieLens-1M has all three tables → get ml-1m.zip"
                    )
                return {name: _parse(archive, members[f"{name}.dat"], name) for name in TABLES}, md5
    except FileNotFoundError as error:
        raise DataError(f"'{zip_path}' does not exist → --zip names the original ml-1m.zip → correct it") from error
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(
            f"'{zip_path}' is no whole zip archive ({error}) → the original is read as it is → fetch it again"
        ) from error


def _parse(archive: zipfile.ZipFile, member: str, table: str) -> pa.Table:
    """`a::b::c` lines in latin-1. "::" becomes a byte that CSV knows and the files do not hold; a single ":" stays."""
    with archive.open(member) as file:
        content = _content(file)
    columns = TABLES[table]
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(content.replace(b"::", b"\x1f")),
            read_options=pyarrow.csv.ReadOptions(column_names=list(columns), encoding="latin1"),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=columns, strings_can_be_null=False, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{member}: {str(error).splitlines()[0]} → lines are {'::'.join(columns)} → fetch it again"
        ) from error


def _content(file: IO[bytes]) -> bytes:
    content = file.read()
    if not content.strip():
        raise DataError(f"{file.name} is empty → the archive's three tables hold rows → fetch ml-1m.zip again")
    return content


def _join(tables: dict[str, pa.Table], zip_path: Path) -> pa.Table:
    """Ratings with the fields of their user and movie, in the order of the ratings."""
    ratings = tables["ratings"]
    events = {name: ratings[name] for name in ("user_id", "rating", "timestamp", "movie_id")}
    problems = []
    for side, key in (("users", "user_id"), ("movies", "movie_id")):
        place = pc.index_in(ratings[key], tables[side][key].combine_chunks())
        if place.null_count:
            problems.append(
                f"'{zip_path}': {place.null_count} ratings have a {key} that {side}.dat lacks → each has its user and "
                "movie → fetch ml-1m.zip again"
            )
            continue
        events |= {name: tables[side][name].take(place) for name in TABLES[side] if name != key}
    if problems:
        raise DataError(problems)
    year = pc.struct_field(pc.extract_regex(events["title"], r"\((?P<year>\d{4})\)$"), "year")
    events["year"] = year.cast(pa.int32())
    events["label"] = pc.greater(ratings["rating"], np.int8(LIKED)).cast(pa.int8())
    time_E, user_E, movie_E, rating_E = (
        ratings[name].to_numpy() for name in ("timestamp", "user_id", "movie_id", "rating")
    )
    events["genres"] = genre_vectors(events["genre"], GENRES)
    known = running_features(time_E, user_E, movie_E, rating_E)
    fields = [name for name in (*TABLES["users"], *TABLES["movies"], "genres", "year") if name in events]
    order = (*fields, "rating", "label", "timestamp")
    return pa.table({name: events[name] for name in order} | known)
