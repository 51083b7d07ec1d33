"""The outside world: candle engines, alert inputs, stores, Parquet files.

No Dagster and no rules of the format: those are in `core`, and this package calls them.
"""
