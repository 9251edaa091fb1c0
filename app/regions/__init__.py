"""Where a call may run and should run. Pure tables and decisions: no socket, no clock, no environment."""
