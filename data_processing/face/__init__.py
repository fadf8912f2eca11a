"""Faces: landmark detection, face tracks, selection of one face, face crops, measures of the lips, identity."""
