"""The truth behind the synthetic log: who the users and items are, and what makes a click likely.

    logit P(click) = bias + country × category + device × hour + age × category + item quality     fields
                   + CHAIN_1 · [category follows that of the user's last click]                    order of the history
                   + CHAIN_2 · [category follows that of the click before it]

The two "follows" are different fixed permutations of the categories: who sees only *which* categories were clicked, not
in which order, cannot tell them apart. A purchase is observed after a click only, and then for 60 % of clicks.
Shape suffixes: U users · I items · G categories · Q requests · K events of a request · N users of one round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import Synth

PER_REQUEST = 4
CATEGORIES = 5
COUNTRIES = ("BR", "DE", "IN", "JP", "NG", "US")
DEVICES = ("phone", "tablet", "television")
AGE_EDGES = (25, 35, 50)
CHAIN_1, CHAIN_2 = 2.4, 1.2
FIELDS_CLICK_RATE = 0.16  # by the fields alone; the chain lifts it to about 0.25
PURCHASE_BIAS = -1.1
UNOBSERVED_PURCHASES = 0.4
DAY_SECONDS = 86_400
Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What does not change from request to request. `item_popularity` is cumulative; user_age is 0 where never told."""

    user_country: Int
    user_device: Int
    user_age: Int
    item_category: Int
    item_author: Int
    item_quality: Float
    item_popularity: Float
    country_category: Float
    device_hour: Float
    age_category: Float
    purchase_device_category: Float
    after_last: Int  # the category that the last click makes likely
    after_second_last: Int


def make_world(config: Synth, rng: np.random.Generator) -> World:
    age_U = rng.integers(16, 80, config.users)
    age_U[rng.random(config.users) < 0.05] = 0
    authors = max(config.items // 10, 1)
    popularity_I = np.cumsum(1.0 / (np.arange(config.items) + 10.0))
    # A cycle over all categories and its cube differ everywhere and fix no category.
    cycle = rng.permutation(CATEGORIES)
    after_last_G = np.empty(CATEGORIES, np.int64)
    after_last_G[cycle] = np.roll(cycle, -1)
    after_second_last_G = after_last_G[after_last_G[after_last_G]]
    return World(
        user_country=rng.choice(len(COUNTRIES), config.users, p=[0.2, 0.1, 0.3, 0.1, 0.1, 0.2]),
        user_device=rng.choice(len(DEVICES), config.users, p=[0.7, 0.2, 0.1]),
        user_age=age_U,
        item_category=rng.integers(0, CATEGORIES, config.items),
        item_author=rng.integers(0, authors, config.items),
        item_quality=rng.normal(0, 0.4, config.items),
        item_popularity=popularity_I / popularity_I[-1],
        country_category=rng.normal(0, 0.8, (len(COUNTRIES), CATEGORIES)),
        device_hour=rng.normal(0, 0.3, (len(DEVICES), 24)),
        age_category=rng.normal(0, 0.4, (len(AGE_EDGES) + 1, CATEGORIES)),
        purchase_device_category=rng.normal(0, 0.8, (len(DEVICES), CATEGORIES)),
        after_last=after_last_G,
        after_second_last=after_second_last_G,
    )


def request_times(config: Synth, rng: np.random.Generator) -> tuple[Int, Int, Int]:
    """Per request, ordered by (user, time): its user, seconds since the first day, and its number within the user."""
    requests = max(config.events // PER_REQUEST, 1)
    activity_U = rng.lognormal(0, 0.7, config.users)
    count_U = rng.multinomial(requests, activity_U / activity_U.sum())
    user_Q = np.repeat(np.arange(config.users), count_U)
    # About four requests a session; a session starts near its user's favourite hour of some day.
    sessions_U = np.maximum(count_U // 4, 1)
    first_session_U = np.cumsum(sessions_U) - sessions_U
    peak_U = rng.normal(19.0, 4.0, config.users)
    hour_V = rng.normal(np.repeat(peak_U, sessions_U), 2.5) % 24
    start_V = rng.integers(0, config.days, len(hour_V)) * DAY_SECONDS + hour_V * 3600
    session_Q = first_session_U[user_Q] + (rng.random(requests) * sessions_U[user_Q]).astype(np.int64)
    time_Q = np.minimum(start_V[session_Q] + rng.exponential(240, requests), config.days * DAY_SECONDS - 1).astype(
        np.int64
    )
    time_Q = time_Q[np.lexsort((time_Q, user_Q))]
    round_Q = np.arange(requests) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    return user_Q, time_Q, round_Q


def simulate(
    world: World, user_Q: Int, time_Q: Int, round_Q: Int, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Plays the requests round by round, all users at once. Arrays of [requests] and [requests, PER_REQUEST]."""
    requests, users = len(user_Q), len(world.user_country)
    item_QK = np.searchsorted(world.item_popularity, rng.random((requests, PER_REQUEST)))
    category_QK = world.item_category[item_QK]
    hour_Q = time_Q % DAY_SECONDS // 3600
    age_Q = np.searchsorted(AGE_EDGES, world.user_age[user_Q], side="right")
    device_Q = world.user_device[user_Q]
    fields_QK = (
        world.country_category[world.user_country[user_Q][:, None], category_QK]
        + world.device_hour[device_Q, hour_Q][:, None]
        + world.age_category[age_Q[:, None], category_QK]
        + world.item_quality[item_QK]
    )
    fields_QK += _bias(fields_QK, FIELDS_CLICK_RATE)
    luck_QK = rng.random((requests, PER_REQUEST))
    probability_QK = np.empty((requests, PER_REQUEST))
    last_U = np.full(users, -1)
    second_last_U = np.full(users, -1)
    by_round = np.argsort(round_Q, kind="stable")
    for chosen in np.split(by_round, np.cumsum(np.bincount(round_Q))[:-1]):
        user_N, category_NK = user_Q[chosen], category_QK[chosen]
        chain_NK = CHAIN_1 * _follows(world.after_last, last_U[user_N], category_NK)
        chain_NK += CHAIN_2 * _follows(world.after_second_last, second_last_U[user_N], category_NK)
        probability_QK[chosen] = 1 / (1 + np.exp(-(fields_QK[chosen] + chain_NK)))
        clicked_NK = luck_QK[chosen] < probability_QK[chosen]
        for place in range(PER_REQUEST):
            clicker = user_N[clicked_NK[:, place]]
            second_last_U[clicker] = last_U[clicker]
            last_U[clicker] = category_NK[clicked_NK[:, place], place]
    click_QK = luck_QK < probability_QK
    purchase_QK = _purchases(world, device_Q, category_QK, click_QK, rng)
    return {
        "user": user_Q, "time": time_Q, "hour": hour_Q, "item": item_QK, "category": category_QK,
        "click": click_QK, "purchase": purchase_QK, "probability": probability_QK, "fields_logit": fields_QK,
    }  # fmt: skip


def _bias(logit_QK: Float, rate: float) -> float:
    """The constant that brings the mean probability to `rate`, by bisection: every seed has about one base rate."""
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        too_high = np.mean(1 / (1 + np.exp(-(logit_QK + middle)))) > rate
        low, high = (low, middle) if too_high else (middle, high)
    return low


def _follows(after_G: Int, previous_N: Int, category_NK: Int) -> Float:
    """1 where the category is what `previous` makes likely; 0 before any click."""
    follows_NK: Float = ((after_G[previous_N][:, None] == category_NK) & (previous_N >= 0)[:, None]).astype(np.float64)
    return follows_NK


def _purchases(
    world: World, device_Q: Int, category_QK: Int, click_QK: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Int:
    """0, 1, or -1 where nobody can know: no click, or one whose outcome was lost."""
    logit_QK = PURCHASE_BIAS + world.purchase_device_category[device_Q[:, None], category_QK]
    bought_QK = rng.random(click_QK.shape) < 1 / (1 + np.exp(-logit_QK))
    lost_QK = rng.random(click_QK.shape) < UNOBSERVED_PURCHASES
    return np.where(click_QK & ~lost_QK, bought_QK.astype(np.int64), -1)
