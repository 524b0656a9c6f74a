"""Alluxio's clients and servers, as far as this project speaks with them."""
