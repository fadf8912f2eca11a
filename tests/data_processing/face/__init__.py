"""Tests of data_processing/face/."""
