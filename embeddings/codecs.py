"""How rows and their gradients travel between ranks: as they are, as 16 bits, or as 8 bits with a scale for each row.

fp16: 2 bytes a number, clamped at ±65,504. Gradients are multiplied by 2¹³ on the way, so that they stay exact down to
7·10⁻⁹ and do not vanish above 7·10⁻¹²: a mean over a batch makes them small. Those beyond ±8 are clamped.
bf16: 2 bytes, the range of float32; on CPU fp16 instead, which embeddings.device_rules says.
int8: 1 byte a number and 8 bytes a row, its scale and its least value. TorchRec's own cuts rows into pieces of 32
numbers, which the rows of narrow tables do not fill.

Nothing travels in one process, so no codec is applied there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from embeddings.config import Codec

TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "bf16": SparseType.BF16, "int8": SparseType.INT8}
GRADIENT_SCALE = 2.0**13
Registry = dict[str, QuantizedCommCodecs]


class RowCodec(QuantizedCommCodec):
    """FBGEMM's codec, with int8 scaled row by row. columns: of a row, or a divisor of it."""

    def __init__(self, codec: Codec, device: str, is_fwd: bool, columns: int = 4) -> None:
        self.made_of = (codec, device, is_fwd)
        self._columns = columns
        if codec == "bf16" and device == "cpu":
            codec = "fp16"
        scale = GRADIENT_SCALE if codec == "fp16" and not is_fwd else None
        super().__init__(TYPES[codec], loss_scale=scale, is_fwd=is_fwd)

    def create_context(self) -> QuantizationContext:
        """What encoding and decoding share."""
        return QuantizationContext(row_dim=self._columns)

    def for_columns(self, columns: int) -> RowCodec:
        """The same for rows of that many columns."""
        return RowCodec(*self.made_of, columns)


def codec_registry(forward: Codec, backward: Codec, device: str) -> Registry | None:
    """As TorchRec's sharders take it; None where everything travels as it is."""
    if forward == backward == "fp32":
        return None
    pair = QuantizedCommCodecs(
        forward=RowCodec(forward, device, is_fwd=True), backward=RowCodec(backward, device, is_fwd=False)
    )
    return {CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL.name: pair}


def fitted(registry: Registry | None, infos: Sequence[Any]) -> Registry | None:
    """The registry for the tables that TorchRec shards together: EmbeddingShardingInfo of each."""
    if registry is None:
        return None
    widths = [shard.shard_sizes[1] for info in infos for shard in info.param_sharding.sharding_spec.shards]
    columns = math.gcd(*widths)
    return {
        name: QuantizedCommCodecs(
            forward=pair.forward.for_columns(columns), backward=pair.backward.for_columns(columns)
        )
        for name, pair in registry.items()
    }
