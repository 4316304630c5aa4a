"""Clients of the stream: Kafka's protocol behind three small interfaces."""
