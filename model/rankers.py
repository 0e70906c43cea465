"""The rankers by name: kind NAME is `build_NAME` of model/NAME.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import nn

from model.config import Model
from model.hyformer import boosted_tokens
from model.inputs import InputSpec
from model.tokens import group_fields


def check_ranker(spec: InputSpec, config: Model) -> list[str]:
    """What does not fit between input and config: one line each, value → rule → remedy. Empty when all is well."""
    problems = _group_problems(spec, config) + _kind_problems(spec, config)
    names = [history.name for history in spec.histories]
    if not spec.event:
        problems.append("no event fields → behaviours and candidates need at least one → give an item column a group")
    if not spec.tasks:
        problems.append("no tasks → a ranker predicts at least one → add [schema.tasks.NAME]")
    if spec.supervision == "history" and spec.supervised_history not in names:
        known = ", ".join(names) or "none"
        problems.append(
            f"supervised_history {spec.supervised_history!r} → one of the histories ({known}) → name one of them"
        )
    if spec.supervision == "history" and config.action_tokens == "merged" and not config.by_example:
        problems.append(
            'action_tokens "merged" with history supervision → a behaviour would show the action it is to predict → '
            'set "separate" or "auto"'
        )
    if spec.supervision == "candidates" and not spec.candidate:
        problems.append(
            "no candidate fields → candidates supervision needs at least one → give an item column group = candidates"
        )
    return problems


def _kind_problems(spec: InputSpec, config: Model) -> list[str]:
    """Of single rankers."""
    problems = []
    off = [name for name, on in config.savings.model_dump().items() if not on]
    if config.kind not in ("tokenformer", "transformer"):
        problems += [
            f'savings.{name} false with kind "{config.kind}" → only tokenformer and transformer can do without it → '
            "leave it out"
            for name in off
        ]
    if "request_rows" in off and spec.supervision == "candidates" and config.candidates_see == "all":
        problems.append(
            'savings.request_rows false with candidates_see "all" → candidates that see each other share a row → '
            'leave it out, or set candidates_see = "history"'
        )
    if config.kind == "onetrans" and spec.supervision == "history" and config.onetrans.kept:
        problems.append(
            f"onetrans.kept {list(config.onetrans.kept)} with history supervision → every event is asked, so "
            "every layer keeps all behaviours → leave it out"
        )
    if config.kind == "hyformer":
        tokens = boosted_tokens(spec, config)
        if spec.supervision == "history":
            problems.append(
                'kind "hyformer" with history supervision → its encoders see a whole history, so an event would see '
                "those after it → use candidates supervision, or another kind"
            )
        if tokens > config.dim:
            problems.append(
                f"dim {config.dim} with hyformer's {tokens} tokens (queries of all histories, field tokens, candidate) "
                "→ a slice of every token goes to each → raise dim, or lower hyformer.queries or "
                "tokens.max_field_tokens"
            )
    return problems


def _group_problems(spec: InputSpec, config: Model) -> list[str]:
    fields = {field.name for field in spec.static}
    listed = {field.name for field in (*spec.event, *spec.action)}
    seen: dict[str, str] = {}
    problems = []
    tokens = group_fields([field.name for field in spec.static], config.tokens)
    if len(tokens) > config.tokens.max_field_tokens:
        problems.append(
            f"tokens.groups are {len(config.tokens.groups)}, and with the fields in none there are {len(tokens)} field "
            f"tokens → at most max_field_tokens, which is {config.tokens.max_field_tokens} → raise it, or join groups"
        )
    for token, group in config.tokens.groups.items():
        if not group:
            problems.append(
                f"tokens.groups.{token} is empty → a field token holds at least one static field → "
                "remove it or name fields"
            )
        for name in group:
            if name not in fields:
                why = "a field of events and candidates" if name in listed else "no field of this schema"
                problems.append(
                    f"tokens.groups.{token} names {name!r}, {why} → only static fields form field tokens → remove it"
                )
            elif name in seen:
                problems.append(
                    f"tokens.groups.{token} names {name!r} → it is in {seen[name]!r} already → keep it in one"
                )
            seen.setdefault(name, token)
    return problems


def build_ranker(spec: InputSpec, config: Model) -> nn.Module:
    """A ranker with forward(RankerInput) → logits [S, K] float32; tasks in the spec's order. ValueError, one line a
    problem, where `check_ranker` finds any."""
    problems = check_ranker(spec, config)
    if problems:
        raise ValueError("\n".join(problems))
    # One of the names that Model.kind allows, so that only files beside this one are imported.
    build: Callable[[InputSpec, Model], nn.Module] = getattr(
        import_module(f"model.{config.kind}"), f"build_{config.kind}"
    )
    return build(spec, config)
