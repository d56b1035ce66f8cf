//! libutcp.so: the preload library that gives an unmodified program utcp's sockets.
