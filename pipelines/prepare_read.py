"""A unit of the event log as one table: the columns that are needed, each of one type, without events that have no
place in any row."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.prepare_job import Job, Unit, source_of
from pipelines.storage import open_file


def read_unit(job: Job, unit: Unit) -> tuple[pa.Table, Counter[str]]:
    """Events in the order of the log, of `job.log_schema`; and {why: events} of those left out.

    Raises DataError where the unit cannot be read.
    """
    table = _read(job, unit)
    dropped: Counter[str] = Counter()
    for name in job.required:
        lost = table[name].null_count
        if lost:
            dropped[f"events without '{name}'"] += lost
            table = table.filter(pc.is_valid(table[name]))
    return table, dropped


def _read(job: Job, unit: Unit) -> pa.Table:
    try:
        with open_file(unit.path) as file:
            parquet = pq.ParquetFile(file)
            here = [name for name in job.log_schema.names if parquet.schema_arrow.get_field_index(name) >= 0]
            table = parquet.read_row_groups(range(unit.first, unit.end), columns=here, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"'{unit.path}' cannot be read: {why} → files are complete Parquet → restore it") from error
    defaults = {source_of(job.schema, n): c.default for n, c in job.schema.columns.items() if c.default is not None}
    columns = []
    for field in job.log_schema:
        if field.name in here:
            columns.append(table[field.name].cast(field.type))
        else:
            columns.append(pa.chunked_array([pa.repeat(pa.scalar(defaults[field.name], field.type), len(table))]))
    return pa.table(columns, schema=job.log_schema)
