"""From the topic to the object store, each message exactly once."""
