"""What moves bytes and time: sockets, the one timer of a call, tasks. Decides nothing about a call."""
