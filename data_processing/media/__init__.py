"""Reading and writing of video and audio."""
