-- What a turn cost and with which model; signs of life of the machines; calls that were erased.
-- Only adds: a program that knows 0001 alone goes on writing.

ALTER TABLE turns ADD COLUMN model TEXT NOT NULL DEFAULT '';  -- agent: spoke it; caller: transcribed it
ALTER TABLE turns ADD COLUMN cost_microusd INTEGER;           -- millionths of a US dollar; NULL: not known

-- One row for each machine, rewritten every few seconds: the newest one that a replica has tells how fresh it is.
CREATE TABLE heartbeats (
    machine TEXT NOT NULL PRIMARY KEY,
    region  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL               -- Unix ms, by that machine's clock
) STRICT, WITHOUT ROWID;

-- Calls whose records were erased on request. Another machine may still hold records of such a call, or send them
-- at this moment: they arrive, and are not stored. A call SID alone says nothing about anybody.
CREATE TABLE erased (
    call_sid  TEXT NOT NULL PRIMARY KEY,
    erased_ms INTEGER NOT NULL             -- Unix ms
) STRICT, WITHOUT ROWID;

CREATE TRIGGER legs_of_erased_calls BEFORE INSERT ON legs
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;

CREATE TRIGGER turns_of_erased_calls BEFORE INSERT ON turns
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;

CREATE TRIGGER events_of_erased_calls BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;

CREATE TRIGGER endings_of_erased_calls BEFORE INSERT ON endings
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;

CREATE TRIGGER refused_of_erased_calls BEFORE INSERT ON refused
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;
