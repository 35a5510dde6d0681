"""Stand-ins for machines we do not own, as real processes."""
