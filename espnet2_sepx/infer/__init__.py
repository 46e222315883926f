"""Running trained separators outside of ESPnet's commands."""
