"""The prediction log on the operator's side: from Redis streams to Parquet files, and what is read from them.

    DIR/predictions/date=2026-11-21/model=mcqa/version=2.0/NAME.parquet    one row per question, of failures too
    DIR/labels/date=2026-11-21/model=mcqa/NAME.parquet                     true labels, by model and prediction id
    DIR/*/_quarantine/date=2026-11-21/NAME.jsonl                           entries that could not be decoded
    DIR/_figures.json, _limits.json, _declarations.json                    figures, limits, tasks' columns

handlers/redis/log.py writes the streams, and spill files while Redis is away. What begins with `_` is the drain's own.
"""
