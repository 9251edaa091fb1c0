-- Where a call was handled, as a value: how its request came to the machine, and which backend it got.
-- Only adds: a program that knows 0004 alone goes on writing the same as text into `detail`.

ALTER TABLE events ADD COLUMN evidence TEXT;  -- JSON object (app/call/evidence.py); NULL: the event is no evidence
