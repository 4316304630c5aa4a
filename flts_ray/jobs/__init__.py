"""Entry points that own a process: sessions, the demo, and what `ray job submit` runs."""
