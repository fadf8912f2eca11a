"""From video files to training batches: media, faces, audio features, prepared datasets."""
