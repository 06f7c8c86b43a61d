"""A durable job service for plugins: HTTP in, rows in between, SQL out."""

__version__ = "0.1.0"
