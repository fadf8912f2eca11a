"""Audio features, their alignment with video frames, and silence."""
