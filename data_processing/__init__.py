"""Everything between a video file and a training sample: media, landmarks, crops, features, datasets."""
