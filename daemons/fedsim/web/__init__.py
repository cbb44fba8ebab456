"""The web: pages and a JSON API through which people submit tasks, watch them, and take their models home."""
