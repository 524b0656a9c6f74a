"""Pages on SSD, many to a file."""
