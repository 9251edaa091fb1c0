-- A ledger file as the last version before migration 0005 wrote it (`.dump`): evidence is text in `detail`.
BEGIN TRANSACTION;
CREATE TABLE database_replacements (
    consented_ms INTEGER NOT NULL PRIMARY KEY  -- Unix ms
) STRICT, WITHOUT ROWID;
CREATE TABLE endings (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    ended_ms INTEGER NOT NULL,             -- Unix ms
    reason   TEXT NOT NULL,
    turns    INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID;
INSERT INTO "endings" VALUES('CA11111111111111111111111111111111','l1',1763632860000,'caller_hung_up',1);
INSERT INTO "endings" VALUES('CA22222222222222222222222222222222','l1',1763632860001,'caller_hung_up',1);
INSERT INTO "endings" VALUES('CA33333333333333333333333333333333','l1',1763632860002,'caller_hung_up',1);
INSERT INTO "endings" VALUES('CA44444444444444444444444444444444','l1',1763632860003,'caller_hung_up',1);
CREATE TABLE erased (
    call_sid  TEXT NOT NULL PRIMARY KEY,
    erased_ms INTEGER NOT NULL             -- Unix ms
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    seq      INTEGER NOT NULL,             -- from 0 in each leg
    at_ms    INTEGER NOT NULL,             -- Unix ms
    kind     TEXT NOT NULL,
    detail   TEXT NOT NULL,
    PRIMARY KEY (call_sid, leg, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "events" VALUES('CA11111111111111111111111111111111','l1',0,1763632800000,'handled','edge=ams machine=fra twilio=ie1 by=iad>gru');
INSERT INTO "events" VALUES('CA11111111111111111111111111111111','l1',1,1763632800000,'backend','openai-eu voice=marin residency=eu because=only');
INSERT INTO "events" VALUES('CA22222222222222222222222222222222','l1',0,1763632800001,'handled','edge=none machine=fra twilio=unknown by=none');
INSERT INTO "events" VALUES('CA22222222222222222222222222222222','l1',1,1763632800001,'backend','openai voice=a residency=eu because=only residency=none because=only');
INSERT INTO "events" VALUES('CA33333333333333333333333333333333','l1',0,1763632800002,'handled','edge=ams machine=fra twilio=ie1 by=iad>gru');
INSERT INTO "events" VALUES('CA33333333333333333333333333333333','l1',1,1763632800002,'backend','a voice=marin residency=eu,us because=nearest');
INSERT INTO "events" VALUES('CA33333333333333333333333333333333','l1',2,1763632801002,'failover','a backend_lost 1006');
INSERT INTO "events" VALUES('CA33333333333333333333333333333333','l1',3,1763632801002,'backend','b voice=marin residency=none because=next');
INSERT INTO "events" VALUES('CA44444444444444444444444444444444','l1',0,1763632800003,'handled','edge=none machine=fra twilio=unknown by=none');
INSERT INTO "events" VALUES('CA44444444444444444444444444444444','l1',1,1763632800003,'backend','openai voice=residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=e … (cut)');
CREATE TABLE heartbeats (
    machine TEXT NOT NULL PRIMARY KEY,
    region  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL               -- Unix ms, by that machine's clock
) STRICT, WITHOUT ROWID;
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
INSERT INTO "legs" VALUES('CA11111111111111111111111111111111','l1','acme','eu','fra','openai-eu','gpt-realtime-2.1','MZ1','+491701234567','+4930555',1763632800000);
INSERT INTO "legs" VALUES('CA22222222222222222222222222222222','l1','acme','eu','fra','openai','gpt-realtime-2.1','MZ1','+491701234567','+4930555',1763632800001);
INSERT INTO "legs" VALUES('CA33333333333333333333333333333333','l1','acme','eu','fra','a','gpt-realtime-2.1','MZ1','+491701234567','+4930555',1763632800002);
INSERT INTO "legs" VALUES('CA44444444444444444444444444444444','l1','acme','eu','fra','openai','gpt-realtime-2.1','MZ1','+491701234567','+4930555',1763632800003);
CREATE TABLE refused (
    id         TEXT NOT NULL PRIMARY KEY,  -- SHA-256 of content
    kind       TEXT NOT NULL,
    call_sid   TEXT NOT NULL,
    error      TEXT NOT NULL,
    content    TEXT NOT NULL,
    refused_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;
CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_ms INTEGER NOT NULL);
INSERT INTO "schema_migrations" VALUES(1,'0001_calls_turns_events.sql','79fcd36c77404f5b42fff1c907fb5143c3e13b43c0a74e12e25287ad3b2f2251',1795294597352);
INSERT INTO "schema_migrations" VALUES(2,'0002_cost_heartbeats_erased.sql','9111e924eb21ba070cde2eb88861f82708d79d60e57ced43f3be0a453bfa3339',1795294597353);
INSERT INTO "schema_migrations" VALUES(3,'0003_tenants.sql','398118b7189776b472af0e331f7ecf587e373a11a72f71565485e6e35e784167',1795294597354);
INSERT INTO "schema_migrations" VALUES(4,'0004_database_replacements.sql','ccea0ecdb9687ec7fe578c33e41dbd440ff80e037b0cdff4119812a9286a21e2',1795294597355);
CREATE TABLE tenant_changes (
    change     INTEGER NOT NULL PRIMARY KEY,
    changed_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;
CREATE TABLE tenant_numbers (
    number TEXT NOT NULL PRIMARY KEY,      -- E.164
    tenant TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tenants (
    name       TEXT NOT NULL PRIMARY KEY,
    content    TEXT NOT NULL,              -- JSON object: the fields of app/call/plan.py that the tenant sets
    changed_ms INTEGER NOT NULL            -- Unix ms
) STRICT, WITHOUT ROWID;
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
    output_audio_tokens INTEGER NOT NULL, model TEXT NOT NULL DEFAULT '', cost_microusd INTEGER,
    PRIMARY KEY (call_sid, leg, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "turns" VALUES('CA11111111111111111111111111111111','l1',0,'agent','Guten Tag','Guten Tag',1763632800000,1763632800900,'openai-eu',0,0,0,NULL,NULL,0,0,0,0,0,0,'',NULL);
INSERT INTO "turns" VALUES('CA22222222222222222222222222222222','l1',0,'agent','Guten Tag','Guten Tag',1763632800001,1763632800901,'openai',0,0,0,NULL,NULL,0,0,0,0,0,0,'',NULL);
INSERT INTO "turns" VALUES('CA33333333333333333333333333333333','l1',0,'agent','Guten Tag','Guten Tag',1763632800002,1763632800902,'a',0,0,0,NULL,NULL,0,0,0,0,0,0,'',NULL);
INSERT INTO "turns" VALUES('CA44444444444444444444444444444444','l1',0,'agent','Guten Tag','Guten Tag',1763632800003,1763632800903,'openai',0,0,0,NULL,NULL,0,0,0,0,0,0,'',NULL);
CREATE INDEX legs_by_start ON legs (started_ms);
CREATE INDEX legs_by_caller ON legs (caller, started_ms);
CREATE INDEX turns_by_start ON turns (started_ms);
CREATE INDEX refused_by_call ON refused (call_sid);
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
COMMIT;
