"""What is known of a user before each of their ratings: columns of the MovieLens log that no table of the archive has.

Suffix E: ratings, in the archive's order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError

Array = np.ndarray[Any, Any]
# Means begin as if there had been so many ratings of the overall mean: a user's first few say little.
PRIOR_RATING, USER_PRIOR, MOVIE_PRIOR = 3.58, 5.0, 10.0


def protocol_order(time_E: Array, user_E: Array, movie_E: Array) -> Array:
    """[E] index: by (timestamp, user, movie), the order in which ratings become known (ReLLa, arXiv 2308.11131)."""
    return np.lexsort((movie_E, user_E, time_E))


def before(key_E: Array, value_E: Array) -> Array:
    """Σ value over the earlier elements of the same key, float64 [E]. O(E log E)."""
    order = np.argsort(key_E, kind="stable")
    sums = np.cumsum(value_E[order], dtype=np.float64) - value_E[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = key_E[order][1:] != key_E[order][:-1]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    found = np.empty(len(order))
    found[order] = sums - sums[first]
    return found


def running_features(time_E: Array, user_E: Array, movie_E: Array, rating_E: Array) -> dict[str, Array]:
    """float32 [E] each, of what comes earlier in the protocol's order and of nothing else:

    user_count:  log(1 + the user's ratings) / 5.
    user_mean:   of the user's ratings, less the prior.
    user_offset: mean of the user's ratings, each less the mean that its movie had then (of all users): how generous the
                 user is, whichever movies they saw.
    """
    order = protocol_order(time_E, user_E, movie_E)
    user, movie, rating = user_E[order], movie_E[order], rating_E[order].astype(np.float64)
    ones = np.ones(len(order))
    count = before(user, ones)
    movie_mean = (before(movie, rating) + PRIOR_RATING * MOVIE_PRIOR) / (before(movie, ones) + MOVIE_PRIOR)
    found = {
        "user_count": np.log1p(count) / 5,
        "user_mean": (before(user, rating) + PRIOR_RATING * USER_PRIOR) / (count + USER_PRIOR) - PRIOR_RATING,
        "user_offset": before(user, rating - movie_mean) / (count + USER_PRIOR),
    }
    features = {}
    for name, value in found.items():
        features[name] = np.empty(len(order), np.float32)
        features[name][order] = value
    return features


def genre_vectors(genre_E: pa.ChunkedArray, genres: tuple[str, ...]) -> pa.FixedSizeListArray:
    """1 for each genre of a "Crime|Drama", 0 for the others; float32 [E, genres]. DataError for an unknown genre."""
    encoded = genre_E.combine_chunks().dictionary_encode()
    place = {genre: i for i, genre in enumerate(genres)}
    kinds = encoded.dictionary.to_pylist()
    unknown = sorted({genre for kind in kinds for genre in kind.split("|")} - place.keys())
    if unknown:
        raise DataError(f"movies.dat has genre {unknown} → genres are {', '.join(genres)} → fetch ml-1m.zip again")
    table = np.zeros((len(kinds), len(genres)), np.float32)
    for row, kind in enumerate(kinds):
        table[row, [place[genre] for genre in kind.split("|")]] = 1
    values = table[encoded.indices.to_numpy()]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), len(genres))
