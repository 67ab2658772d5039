"""Results on disk: layout, claims, reading."""
