"""Tests of dubbing/."""
