"""What a run will cost: time, memory, and how cohorts fit a machine."""
