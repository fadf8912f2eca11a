"""Errors, command lines, files, limits, devices and third-party weights."""
