"""What dubbed mouths are measured by, and on what."""
