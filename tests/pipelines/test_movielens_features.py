"""What the MovieLens log says of a user before a rating: held against a loop, and against the future."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import DataError
from pipelines.movielens import GENRES
from pipelines.movielens_features import (
    MOVIE_PRIOR,
    PRIOR_RATING,
    USER_PRIOR,
    Array,
    genre_vectors,
    running_features,
)

SIZE = 300


def ratings(seed: int) -> tuple[Array, Array, Array, Array]:
    """Few seconds, so that many share one; (user, movie) pairs are distinct, as in the archive."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(20 * 40)[:SIZE]
    return rng.integers(0, 50, SIZE), pairs // 40, pairs % 40, rng.integers(1, 6, SIZE)


def by_loop(time_E: Array, user_E: Array, movie_E: Array, rating_E: Array) -> dict[str, Array]:
    found = {name: np.zeros(SIZE) for name in ("user_count", "user_mean", "user_offset")}
    of_user: dict[int, list[tuple[float, float]]] = {}
    of_movie: dict[int, list[float]] = {}
    for e in sorted(range(SIZE), key=lambda e: (time_E[e], user_E[e], movie_E[e])):
        mine, others = of_user.setdefault(user_E[e], []), of_movie.setdefault(movie_E[e], [])
        mean = (sum(others) + PRIOR_RATING * MOVIE_PRIOR) / (len(others) + MOVIE_PRIOR)
        weight = len(mine) + USER_PRIOR
        found["user_count"][e] = np.log1p(len(mine)) / 5
        found["user_mean"][e] = (sum(r for r, _ in mine) + PRIOR_RATING * USER_PRIOR) / weight - PRIOR_RATING
        found["user_offset"][e] = sum(r - m for r, m in mine) / weight
        mine.append((float(rating_E[e]), mean))
        others.append(float(rating_E[e]))
    return found


def test_running_features_are_those_of_a_loop_over_the_ratings_in_the_protocols_order() -> None:
    columns = ratings(1)
    fast, slow = running_features(*columns), by_loop(*columns)
    for name, expected in slow.items():
        np.testing.assert_allclose(fast[name], expected, rtol=1e-5, atol=1e-6)


def test_no_feature_knows_its_own_rating_or_a_later_one() -> None:
    time_E, user_E, movie_E, rating_E = ratings(2)
    order = np.lexsort((movie_E, user_E, time_E))
    half = order[: SIZE // 2 + 1]
    changed = rating_E.copy()
    changed[order[SIZE // 2 :]] = 6 - changed[order[SIZE // 2 :]]
    before, after = (running_features(time_E, user_E, movie_E, rating) for rating in (rating_E, changed))
    for name in before:
        assert np.array_equal(before[name][half], after[name][half])
    assert not np.array_equal(before["user_mean"], after["user_mean"])


def test_genres_are_a_vector_and_unknown_ones_are_told() -> None:
    vectors = genre_vectors(pa.chunked_array([["Crime|Drama", "Action"], ["Drama"]]), GENRES)
    assert [[GENRES[i] for i in np.flatnonzero(v)] for v in vectors.to_pylist()] == [
        ["Crime", "Drama"],
        ["Action"],
        ["Drama"],
    ]
    with pytest.raises(DataError, match="Opera") as error:
        genre_vectors(pa.chunked_array([["Drama|Opera"]]), GENRES)
    assert str(error.value).count("→") == 2
