"""What should happen in a call. Pure: no await, no I/O, no clock; see call.py."""
