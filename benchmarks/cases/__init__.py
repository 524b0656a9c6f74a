"""What is compared. Each case is a function from a Scene to Rows."""
