"""From Parquet logs to batches of plain arrays: schema, prepare, windows, stream, collate. Imports nothing of ours."""
