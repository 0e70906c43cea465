"""What is tried on MovieLens-1M, in tables: rows, rankers and their sizes, the knobs that are tuned, ablations.

Everything is settings over trainer/configs/movielens-best.toml, by the dotted names that the command line has. A run is
known by its settings and its seed, so a changed setting is another run. Which runs there are, in which order:
accuracy_matrix.py.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]

RUN_FILE = Path(__file__).resolve().parents[2] / "trainer" / "configs" / "movielens-best.toml"
TASK = "like"
TRAIN, VALID, TEST = 776_007, 97_000, 97_002  # examples by the protocol: any other count makes a comparison void
TASKS = 3  # of each rating; the trainer counts an example for each
WARMUP = 40_000 * TASKS
PUBLISHED_DIN = 0.7962

# What the run file says beside the model: shared by all rankers, and the point where tuning of each begins.
BASE: Settings = {
    "data.segments": "1-train",
    "data.eval_segments": "2-valid",
    "data.epochs": 1,
    "embeddings.width": 16,
    "embeddings.lr": 0.05,
    "model.dim": 64,
    "model.num_layers": 4,
    "model.num_heads": 2,
    "model.dropout": 0.2,  # of what is looked up as well
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.01,
    "optim.warmup_examples": WARMUP,
    "optim.clip_norm": 1.0,
}

OF_ALL_BEFORE = ["user_count", "user_mean", "user_offset"]  # they tell of more than the last 30
LAST_30: Settings = {
    "data.global_batch": 288,
    "data.prepare.context_events": 20,
    "data.prepare.supervised_events": 11,
    "schema.histories.ratings.max_length": 31,
    "without": OF_ALL_BEFORE,
}
BY_REQUEST: Settings = {"data.global_batch": 2048, "data.prepare.request": "movie_id"}  # nobody rates a movie twice
LAST_30_BY_REQUEST = BY_REQUEST | {"schema.histories.ratings.max_length": 30, "without": OF_ALL_BEFORE}
IN_DAYS: Settings = {
    "data.prepare.split": "time",
    "data.segments": "..2000-12-02",
    "data.eval_segments": "2000-12-03..",
}

# How a log becomes rows: who sees how much. "rows" names the rows and "without" the
# columns that are left out; they are no keys of the run file.
ROWS: Mapping[str, Settings] = {
    # A row holds up to 200 supervised ratings after up to 200 others: a rating sees 5 to 399 earlier ones.
    "long": {"data.global_batch": 16, "data.prepare.context_events": 200, "data.prepare.supervised_events": 200},
    "half": {"data.global_batch": 32, "data.prepare.context_events": 100, "data.prepare.supervised_events": 100},
    # A rating sees at most 30 earlier ones, in training, validation and test alike (20 to 30 where there are so many).
    "last30": LAST_30,
    # A request row for each rating, for the ranker that has no `history` supervision.
    "requests": BY_REQUEST | {"schema.histories.ratings.max_length": 50},
    "half_requests": BY_REQUEST | {"schema.histories.ratings.max_length": 25},
    "last30_requests": LAST_30_BY_REQUEST,
    # Days in their order, as a model lives. The test split begins in the afternoon of 2000-12-02.
    "last30_days": LAST_30 | IN_DAYS,
    "last30_request_days": LAST_30_BY_REQUEST | IN_DAYS,
}
REQUESTS_OF = {
    "long": "requests",
    "half": "half_requests",
    "last30": "last30_requests",
    "last30_days": "last30_request_days",
}

# Same embeddings, comparable dense parameters: within a tenth of TokenFormer's (a test counts them).
RANKERS: Mapping[str, Settings] = {
    "tokenformer": {"model.full_layers": 2, "model.windows": [32, 16]},
    "transformer": {},
    "dcnv2": {"model.dcnv2.cross_layers": 3, "model.dcnv2.rank": 64, "model.dcnv2.hidden": [256, 128]},
    "din": {"model.din.attention_hidden": [80, 40], "model.din.hidden": [480, 160]},
    "hstu": {"model.dim": 112},
    "onetrans": {"model.tokens.max_field_tokens": 1, "model.ffn_dim": 96},
    "hyformer": {"model.num_layers": 2, "model.tokens.max_field_tokens": 1, "model.ffn_dim": 128},
}
SUPERVISED_BY_REQUEST = ("hyformer",)

# Tuning, the same for every ranker: the knobs in turn; at each, what stands beside the best so far; the better on the
# validation split is kept. A factor is of the best so far.
KNOBS: Mapping[str, tuple[Any, ...]] = {
    "optim.lr": ("× 0.5", "× 2"),
    "embeddings.lr": ("× 0.5",),
    "rows": ("half",),
    "data.epochs": (3,),  # after what can be told from one epoch
    "model.dropout": (0.1,),
}
TRIALS = 1 + sum(map(len, KNOBS.values()))

# Beside it, for the last 30 of the history: would another rate change the order of the rankers?
RATES = (1e-3, 4e-3)

# TokenFormer without a part or with another, over the settings that tuning begins with: {table: {row: settings}}.
STATIC = ["gender", "age", "occupation", "zip"]
ABLATIONS: Mapping[str, Mapping[str, Settings]] = {
    "parts": {
        "NLIR off": {"model.gate": False},
        "BFTS off (4F)": {"model.full_layers": 4},
        "both off": {"model.kind": "transformer"},
    },
    "fields": {"no static field, both off": {"model.kind": "transformer", "without": STATIC}},
    "patterns": {
        "3F1S": {"model.full_layers": 3, "model.windows": [32]},
        "1F3S": {"model.full_layers": 1, "model.windows": [64, 32, 16]},
        "4S": {"model.full_layers": 0, "model.windows": [128, 64, 32, 16]},
    },
    "windows": {
        "64, 32": {"model.windows": [64, 32]},
        "16, 8": {"model.windows": [16, 8]},
        "8, 4": {"model.windows": [8, 4]},
    },
    "switches": {
        "gate_input raw": {"model.gate_input": "raw"},
        "gate_place before": {"model.gate_place": "before"},
        "gate_bias": {"model.gate_bias": True},
        "field_attention bidirectional": {"model.field_attention": "bidirectional"},
        "no time gaps": {"model.time_gaps": False},
        "ffn_dim 128": {"model.ffn_dim": 128},
        "ffn_dim 512": {"model.ffn_dim": 512},
    },
}


def settings_of(ranker: str, rows: str = "", over: Settings | None = None) -> dict[str, Any]:
    """All settings of a run. rows: "" = the long ones, by request where the ranker needs it. over: laid on top."""
    over = dict(over or {})
    asked = over.pop("rows", "") or rows
    name = asked or "long"
    if ranker in SUPERVISED_BY_REQUEST:
        name = REQUESTS_OF.get(name, name)
    found = {**BASE, **ROWS[name], "rows": name, "model.kind": ranker, **RANKERS[ranker], **over}
    found["model.embedding_dropout"] = found["model.dropout"]
    if "optim.decay_examples" not in over:
        found["optim.decay_examples"] = TASKS * TRAIN * found["data.epochs"] - found["optim.warmup_examples"]
    return found


def run_file(settings: Settings, seed: int = 1) -> dict[str, Any]:
    """The run file as a user would write it, without paths: movielens-best.toml with the settings laid over it."""
    content = tomllib.loads(_base())
    for name in settings.get("without", ()):
        del content["schema"]["columns"][name]
        content["embeddings"]["tables"].pop(name, None)
    if settings["rows"] in REQUESTS_OF.values():
        content["schema"] = by_request(content["schema"])
    for name, value in settings.items():
        if name in ("rows", "without"):
            continue
        *sections, key = name.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    content["train"] |= {"seed": seed}
    return content


def by_request(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with a candidate a row instead of supervised events. The time of the request is a column of its own,
    filled from the same one."""
    columns: dict[str, Any] = {}
    for name, column in schema["columns"].items():
        if not column.get("group"):
            columns[name] = column
            continue
        if column["role"] == "item":
            columns[name] = column | {"group": "candidates"}
        if column["role"] == "label":
            columns[name] = column | {"group": "candidates"}
        elif column["role"] == "time":
            columns[name] = {key: value for key, value in column.items() if key != "group"}
        if column["role"] in ("item", "time", "action"):
            shared = {"shares": name} if column["role"] == "item" else {"table": column.get("table") or name}
            shared = {} if column["role"] == "time" else shared
            columns[f"past_{name}"] = column | {"source": column.get("source", name)} | shared
    histories = {name: history | {"time": f"past_{history['time']}"} for name, history in schema["histories"].items()}
    return {
        **{key: value for key, value in schema.items() if key != "supervised_history"},
        "supervision": "candidates",
        "columns": columns,
        "histories": histories,
    }


def settings_hash(settings: Settings) -> str:
    """Of all that a run's outcome depends on, beside its seed and the code."""
    return _settings_hash(json.dumps(settings, sort_keys=True))


def rows_hash(settings: Settings) -> str:
    """Of all that its rows depend on."""
    content = run_file(settings)
    prepare = {key: value for key, value in content["data"]["prepare"].items() if key != "log"}
    return _short_hash([content["schema"], prepare])


@cache
def _settings_hash(settings: str) -> str:
    """The matrix asks for it thousands of times."""
    content = run_file(json.loads(settings))
    for section in ("checkpoint", "telemetry", "launch"):
        content.pop(section, None)
    without_effect = ((content["train"], "log_every"), (content["train"], "seed"), (content["data"], "rows"))
    for place, key in (*without_effect, (content["data"]["prepare"], "log")):
        place.pop(key, None)
    return _short_hash(content)


@cache
def _base() -> str:
    return RUN_FILE.read_text(encoding="utf-8")


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
