"""Pages on SSD: the port, the books that every layout shares, and a file for each page."""
