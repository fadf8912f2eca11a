"""Tests of data_processing/media/."""
