-- How many calls each machine has, by tenant, so that a tenant's limit can count all machines. Says nothing about callers.
-- Only adds: a program that knows 0006 alone goes on working, and reports nothing.

-- One row for each machine that has calls, rewritten with its heartbeat. A time of its own: a program that knows 0006
-- alone renews a heartbeat and leaves this row as it is.
CREATE TABLE machine_calls (
    machine TEXT NOT NULL PRIMARY KEY,
    at_ms   INTEGER NOT NULL,              -- Unix ms, by that machine's clock
    calls   TEXT NOT NULL CHECK (json_valid(calls))  -- JSON object: a tenant's name to its number of calls
) STRICT, WITHOUT ROWID;
