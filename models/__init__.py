"""The networks of DINet and the one place that saves and loads them."""
