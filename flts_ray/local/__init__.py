"""Services for tests and laptops, started and stopped by this process."""
