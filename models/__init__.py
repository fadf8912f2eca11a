"""Networks, their checkpoints, and the layout of the face crop."""
