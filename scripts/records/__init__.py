"""The prediction log on the operator's side: from Redis streams to Parquet files, and what is read from them.

    DIR/predictions/date=2026-11-21/model=mcqa/version=2.0/FIRST-LAST.parquet    one row per answered question
    DIR/labels/date=2026-11-21/FIRST-LAST.parquet                                true labels, joined by prediction_id

handlers/redis/log.py writes the streams. FIRST and LAST are ids of stream entries; what begins with `_` is the
drain's own.
"""
