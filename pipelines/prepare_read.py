"""A unit of the event log as one table: filtered, with derived columns, without events that no row has a place for."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.expressions import engine, evaluate
from pipelines.prepare_job import SEGMENT, Job, Unit
from pipelines.prepare_log import default_value, source_of
from pipelines.storage import open_file


def read_unit(job: Job, unit: Unit) -> tuple[pa.Table, Counter[str]]:
    """Events in the order of the log, of `job.log_schema`; and {why: events} of those left out.

    Raises DataError where the unit cannot be read, or an expression fails for a value in it.
    """
    table, dropped = _with_expressions(job, unit, _read(job, unit))
    if job.segments:
        code = pa.repeat(pa.scalar(unit.segment, pa.int32()), len(table))
        table = table.append_column(SEGMENT, code)
    table = table.select(job.log_schema.names)
    for name in job.required:
        lost = table[name].null_count
        if lost:
            dropped[f"events without '{name}'"] += lost
            table = table.filter(pc.is_valid(table[name]))
    return table, dropped


def _read(job: Job, unit: Unit) -> pa.Table:
    """The columns that are read, each of its one type; where the file lacks one, its default."""
    wanted = job.columns.read
    try:
        with open_file(unit.path) as file:
            parquet = pq.ParquetFile(file)
            here = [name for name in wanted.names if parquet.schema_arrow.get_field_index(name) >= 0]
            table = parquet.read_row_groups(range(unit.first, unit.end), columns=here, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"'{unit.path}' cannot be read: {why} → files are complete Parquet → restore it") from error
    specs = {source_of(job.schema, n): c for n, c in job.schema.columns.items() if c.default is not None}
    columns = []
    for field in wanted:
        if field.name in here:
            columns.append(table[field.name].cast(field.type))
        else:
            default = default_value(specs[field.name], field.type, job.schema.time_unit)
            columns.append(pa.chunked_array([pa.repeat(default, len(table))], field.type))
    return pa.table(columns, schema=wanted)


def _with_expressions(job: Job, unit: Unit, table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Filtered first: what a derived column cannot be made of may be filtered out."""
    dropped: Counter[str] = Counter()
    if job.columns.filter is None and not job.columns.derived:
        return table, dropped
    with engine() as connection:
        if job.columns.filter is not None:
            expression, takes = job.columns.filter
            passes = evaluate(connection, expression, table.select(takes), f"'{unit.path}'")
            before = len(table)
            table = table.filter(passes, null_selection_behavior="drop")
            if len(table) < before:
                dropped["events that data.prepare.filter does not let pass"] = before - len(table)
        for name, (expression, takes) in job.columns.derived.items():
            field = job.columns.kinds.field(name)
            made = evaluate(connection, expression, table.select(takes), f"'{unit.path}'").cast(field.type)
            table = table.append_column(field, made)
    return table, dropped
