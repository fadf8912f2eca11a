"""Tests of data_processing/audio/."""
