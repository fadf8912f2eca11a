"""Dubbing of videos: DubbingPipeline and its parts."""
