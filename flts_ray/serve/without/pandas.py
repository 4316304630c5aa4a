"""Found in place of pandas by a process that serves; see the package."""

raise ImportError("a process that serves forecasts does without pandas")
