"""Sealed, reproducible Parquet lakes of the candles around trading alerts."""
