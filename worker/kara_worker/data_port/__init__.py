"""What clients ask of a worker: reads, many ranges, facts of files; and what they tell it."""
