"""How candidates are judged: backtest, metrics, scoreboard, leakage audit, bootstrap, gate."""
