"""HTTP/1.1 as a data port needs it: sockets, requests, answers made of bytes and of parts of page files."""
