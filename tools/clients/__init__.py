"""People's own programs against this server: ``python -m tools.clients`` installs and runs the real clients."""
