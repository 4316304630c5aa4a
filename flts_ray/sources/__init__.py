"""Raw files in, panel rows out: finding, reading, stamps and frequency."""
