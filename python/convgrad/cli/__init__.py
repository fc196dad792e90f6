"""The command ``convgrad``."""
