-- What calls leave behind. Columns are named after the fields of app/call/records.py.
--
-- Every instant is Unix milliseconds (UTC), every duration is milliseconds.
-- Keys are made by the call, so that any write may be sent again (ON CONFLICT DO NOTHING).
-- No foreign keys: records are facts that arrive in any order, and a turn without its leg is still worth keeping.
-- WITHOUT ROWID, call_sid first: a call's rows lie together, so reading or erasing one call is one range of each table.

-- One row for each stream of a call; a call that was resumed has several.
CREATE TABLE legs (
    call_sid   TEXT NOT NULL,
    leg        TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    zone       TEXT NOT NULL,
    region     TEXT NOT NULL,
    backend    TEXT NOT NULL,
    model      TEXT NOT NULL,
    stream_sid TEXT NOT NULL,
    caller     TEXT NOT NULL,              -- E.164 as Twilio gave it, or a word such as anonymous
    called     TEXT NOT NULL,
    started_ms INTEGER NOT NULL,           -- Unix ms
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID;

-- Recent calls, and retention by age.
CREATE INDEX legs_by_start ON legs (started_ms);
-- Calls of one caller, and erasure by caller number.
CREATE INDEX legs_by_caller ON legs (caller, started_ms);

-- One row for each turn of the conversation.
CREATE TABLE turns (
    call_sid            TEXT NOT NULL,
    leg                 TEXT NOT NULL,
    seq                 INTEGER NOT NULL,  -- from 0 in each leg
    speaker             TEXT NOT NULL CHECK (speaker IN ('caller', 'agent')),
    said                TEXT,              -- NULL: no transcript
    heard               TEXT,              -- what reached the caller
    started_ms          INTEGER NOT NULL,  -- Unix ms
    ended_ms            INTEGER NOT NULL,  -- Unix ms
    backend             TEXT NOT NULL,
    interrupted         INTEGER NOT NULL CHECK (interrupted IN (0, 1)),
    said_ms             INTEGER NOT NULL,  -- length of the audio
    heard_ms            INTEGER NOT NULL,  -- of it, played to the caller
    answer_sent_ms      INTEGER,           -- end of the caller's speech to first agent audio sent; NULL: no answer
    answer_heard_ms     INTEGER,           -- the same to first agent audio played
    input_text_tokens   INTEGER NOT NULL,  -- input counts include their cached part
    input_audio_tokens  INTEGER NOT NULL,
    cached_text_tokens  INTEGER NOT NULL,
    cached_audio_tokens INTEGER NOT NULL,
    output_text_tokens  INTEGER NOT NULL,
    output_audio_tokens INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg, seq)
) STRICT, WITHOUT ROWID;

-- Latency and tokens over a span of time, across calls.
CREATE INDEX turns_by_start ON turns (started_ms);

-- Faults, tools, limits: what is worth knowing and is not a turn. Never anything that was spoken.
CREATE TABLE events (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    seq      INTEGER NOT NULL,             -- from 0 in each leg
    at_ms    INTEGER NOT NULL,             -- Unix ms
    kind     TEXT NOT NULL,
    detail   TEXT NOT NULL,
    PRIMARY KEY (call_sid, leg, seq)
) STRICT, WITHOUT ROWID;

-- How a leg ended. A leg without one is live, or its machine died.
CREATE TABLE endings (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    ended_ms INTEGER NOT NULL,             -- Unix ms
    reason   TEXT NOT NULL,
    turns    INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID;

-- Records that the tables above did not take: a bug of ours. Kept for a human, so that nothing is lost and
-- nothing else waits. `content` is the record as JSON (its caller is json_extract(content, '$.caller')).
CREATE TABLE refused (
    id         TEXT NOT NULL PRIMARY KEY,  -- SHA-256 of content
    kind       TEXT NOT NULL,
    call_sid   TEXT NOT NULL,
    error      TEXT NOT NULL,
    content    TEXT NOT NULL,
    refused_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;

CREATE INDEX refused_by_call ON refused (call_sid);
