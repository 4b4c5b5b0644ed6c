"""The `latte-fast` command."""
