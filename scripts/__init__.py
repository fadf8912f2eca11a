"""Further commands, run as modules: python -m scripts.NAME."""
