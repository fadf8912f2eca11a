"""Evaluation of generators, dubbed videos and SyncNet."""
