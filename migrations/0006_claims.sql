-- Which leg carries a call. The legs of a call are numbered by epochs: the first stream has epoch 0, each resume the next
-- one. A leg claims its epoch with an INSERT; the primary key decides which of several claimants has it.
-- Only adds: a program that knows 0004 alone goes on working, and claims nothing.

CREATE TABLE claims (
    call_sid   TEXT NOT NULL,
    epoch      INTEGER NOT NULL CHECK (epoch >= 0),
    leg        TEXT NOT NULL,
    machine    TEXT NOT NULL,
    region     TEXT NOT NULL,
    claimed_ms INTEGER NOT NULL,           -- Unix ms, by that machine's clock
    PRIMARY KEY (call_sid, epoch)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER claims_of_erased_calls BEFORE INSERT ON claims
WHEN EXISTS (SELECT 1 FROM erased WHERE call_sid = NEW.call_sid)
BEGIN SELECT RAISE(IGNORE); END;
