"""How each kind of ranker is counted."""

from __future__ import annotations

from trainer.flops import Counter
from trainer.flops_stream import stream_work

KINDS: dict[str, Counter] = {"tokenformer": stream_work, "transformer": stream_work}
