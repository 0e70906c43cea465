"""Tables that begin with another run's: rows, optimizer states and id maps, read block by block into what this process
holds; what is new stays as it was initialised."""

from __future__ import annotations

from collections.abc import Mapping

from embeddings.held import Held, LocalChunk
from embeddings.specs import TableSpec
from trainer.checkpoint.reading import BLOCK_BYTES, SavedTensors
from trainer.checkpoint.row_states import read_row_state
from trainer.config_sections import Init
from trainer.init_account import FRESH, OFF, Account
from trainer.init_id_maps import carry_ids, deal_ids
from trainer.init_rows import Kept, RowMoves, kept_rows
from trainer.model_description import TableDescription


class TableCarrier:
    """Of one checkpoint; nothing here is collective.

    dealt: {table whose ids were dealt anew: (rows that this rank took over, ids that found no room in its buckets)}.
    """

    def __init__(
        self,
        saved: SavedTensors,
        tensors: Mapping[str, Held],
        init: Init,
        account: Account,
    ) -> None:
        self._saved, self._tensors, self._init, self._account = saved, tensors, init, account
        self.dealt: dict[str, tuple[int, int]] = {}
        self._names: dict[str, list[str]] = {}  # {"tables/TABLE" or "id_maps/TABLE": its tensors}
        for name in tensors:
            self._names.setdefault(name.rpartition("/")[0], []).append(name)

    def carry(self, before: TableDescription, boundaries: tuple[float, ...], spec: TableSpec) -> None:
        """One table that the checkpoint has as well."""
        moves = kept_rows(before, spec, boundaries)
        if isinstance(moves, str):
            self._account.note(f"table {spec.name}: {moves}: initialised")
            self.leave(spec, FRESH)
            return
        if spec.is_bucketed:
            moves = self._carry_ids(before, spec, moves)
        assert moves is not None
        if self._init.tables:
            self._say_size(before, spec, moves)
            self._carry_tensor(f"tables/{spec.name}/weight", before, spec, moves)
            self._account.carried("tables", 1, moves.carried)
        else:
            self._account.left("tables", OFF, 1, spec.rows)
        for name in self._states(spec):
            self._carry_state(name, before, spec, moves)

    def leave(self, spec: TableSpec, why: str) -> None:
        """A table that stays as it was initialised."""
        self._account.left("tables", why, 1, spec.rows)
        for _ in self._states(spec):
            self._account.left("tables' optimizer", why, 1, spec.rows)
        if ids := self._ids(spec):
            self._account.left("id maps", why, len(ids), spec.rows)

    def tell_dealt(self, of_ranks: list[dict[str, tuple[int, int]]]) -> None:
        """of_ranks: every rank's `dealt`, which the account so far has not counted."""
        for table in self.dealt:
            rows, lost = (sum(of_rank[table][k] for of_rank in of_ranks) for k in range(2))
            for part in ("tables", "tables' optimizer", "id maps"):
                if self._account.has_carried(part):
                    self._account.carried(part, 0, rows)
            self._account.note(f"table {table}: {rows:,} rows moved with their ids, {lost:,} ids found no room")

    def _carry_ids(self, before: TableDescription, spec: TableSpec, moves: RowMoves | None) -> RowMoves:
        """The map, and with it the rows that go along."""
        prefix, held = f"id_maps/{spec.name}/", self._ids(spec)
        if not self._init.id_maps:  # then its rows are not carried either (config_check)
            self._account.left("id maps", OFF, len(held), spec.rows)
            return moves or Kept(0)
        if moves is None:
            moves = deal_ids(self._saved, prefix, before, spec, held, self._tensors[f"tables/{spec.name}/weight"])
            self.dealt[spec.name] = (moves.moved, moves.lost)
            left_out = [key for key in held if key.startswith("candidate")]
            self._account.note(
                f"table {spec.name}: {before.buckets} buckets of {before.rows_per_bucket:,} rows are now "
                f"{spec.buckets} of {spec.rows_per_bucket:,}"
            )
        else:
            left_out = carry_ids(self._saved, prefix, held)
        self._account.carried("id maps", len(held) - len(left_out), moves.carried)
        if left_out:
            self._account.note(f"table {spec.name}: {', '.join(left_out)} of its id map: begun anew")
            self._account.left("id maps", FRESH, len(left_out), 0)
        return moves

    def _carry_state(self, name: str, before: TableDescription, spec: TableSpec, moves: RowMoves) -> None:
        part, record = "tables' optimizer", self._saved.tensors.get(name)
        if not self._init.tables_optimizer:
            self._account.left(part, OFF, 1, spec.rows)
            return
        reason = ""
        if before.optimizer != spec.optimizer:
            reason = f"its optimizer was {before.optimizer}"
        elif record is None:
            reason = "the checkpoint has none"
        elif not _is_of_rows(record.size, before.rows) and tuple(record.size) != self._tensors[name].size:
            reason = f"it was {list(record.size)}"
        if reason:
            self._account.note(f"optimizer state {name.removeprefix('tables/')}: {reason}: begun anew")
            self._account.left(part, FRESH, 1, spec.rows)
            return
        self._carry_tensor(name, before, spec, moves)
        self._account.carried(part, 1, moves.carried)

    def _carry_tensor(self, name: str, before: TableDescription, spec: TableSpec, moves: RowMoves) -> None:
        """[rows, width], [rows, column shards], or something that is of no row."""
        held, size = self._tensors[name], self._saved.tensors[name].size
        if not _is_of_rows(size, before.rows):
            self._saved.read_held(name, held)
            return
        by_columns = size[1] == before.width and held.size[1] == spec.width
        for chunk in held.chunks:
            row_bytes = chunk.tensor.element_size() * max(size[1], chunk.sizes[1])
            first, last = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
            for piece in moves.pieces(first, last, max(1, BLOCK_BYTES // row_bytes)):
                target = piece.target
                put = slice(target.start - first, target.stop - first) if isinstance(target, slice) else target - first
                if by_columns:
                    columns = min(chunk.sizes[1], size[1] - chunk.offsets[1])
                    if columns > 0:
                        values = self._saved.read(name, (piece.first, chunk.offsets[1]), (piece.count, columns))
                        chunk.tensor[put, :columns] = values[piece.source].to(chunk.tensor.dtype)
                else:
                    block = LocalChunk(
                        (piece.first, chunk.offsets[1]), chunk.tensor.new_empty(piece.count, chunk.sizes[1])
                    )
                    read_row_state(self._saved, name, block, held.size[1])
                    chunk.tensor[put] = block.tensor[piece.source]

    def _say_size(self, before: TableDescription, spec: TableSpec, moves: RowMoves) -> None:
        changes = []
        if before.rows != spec.rows and spec.name not in self.dealt:
            changes.append(f"{before.rows:,} rows are now {spec.rows:,}, {spec.rows - moves.carried:,} initialised")
        if before.width != spec.width:
            new = max(0, spec.width - before.width)
            changes.append(f"width {before.width} is now {spec.width}" + (f", {new} columns initialised" * bool(new)))
        saved, dtype = self._saved.tensors[f"tables/{spec.name}/weight"].dtype, str(spec.torch_dtype)[len("torch.") :]
        if saved != dtype:
            changes.append(f"{saved} converted to {dtype}")
        if changes:
            self._account.note(f"table {spec.name}: {'; '.join(changes)}")

    def _states(self, spec: TableSpec) -> list[str]:
        return [name for name in self._names[f"tables/{spec.name}"] if not name.endswith("/weight")]

    def _ids(self, spec: TableSpec) -> dict[str, Held]:
        return {name.rpartition("/")[2]: self._tensors[name] for name in self._names.get(f"id_maps/{spec.name}", ())}


def _is_of_rows(size: list[int], rows: int) -> bool:
    return len(size) == 2 and size[0] == rows
