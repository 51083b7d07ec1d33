"""The backtest of a sealed run: price paths, path metrics, exits, callers, trades, and the results they are kept in."""
