-- A spool file as the last version before migration 0005 wrote it (`.dump`): evidence is text in `detail`.
BEGIN TRANSACTION;
CREATE TABLE aside (
    id         INTEGER PRIMARY KEY,  -- as it was in the spool
    kind       TEXT NOT NULL,
    call_sid   TEXT NOT NULL,
    caller     TEXT,
    at_ms      INTEGER NOT NULL,
    content    TEXT NOT NULL,
    error      TEXT NOT NULL,        -- why it was refused
    refused_ms INTEGER NOT NULL      -- Unix ms
) STRICT
;
CREATE TABLE open_legs (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    last_ms  INTEGER NOT NULL,  -- Unix ms of the newest record
    turns    INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID
;
CREATE TABLE spool (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: the order of delivery
    kind     TEXT NOT NULL,
    call_sid TEXT NOT NULL,
    caller   TEXT,
    at_ms    INTEGER NOT NULL,
    content  TEXT NOT NULL
) STRICT
;
INSERT INTO "spool" VALUES(1,'CallStarted','CA11111111111111111111111111111111','+491701234567',1763632800000,'{"call_sid": "CA11111111111111111111111111111111", "leg": "l1", "tenant": "acme", "zone": "eu", "region": "fra", "backend": "openai-eu", "model": "gpt-realtime-2.1", "stream_sid": "MZ1", "caller": "+491701234567", "called": "+4930555", "started_ms": 1763632800000}');
INSERT INTO "spool" VALUES(2,'Happening','CA11111111111111111111111111111111',NULL,1763632800000,'{"call_sid": "CA11111111111111111111111111111111", "leg": "l1", "seq": 0, "at_ms": 1763632800000, "kind": "handled", "detail": "edge=ams machine=fra twilio=ie1 by=iad>gru"}');
INSERT INTO "spool" VALUES(3,'Happening','CA11111111111111111111111111111111',NULL,1763632800000,'{"call_sid": "CA11111111111111111111111111111111", "leg": "l1", "seq": 1, "at_ms": 1763632800000, "kind": "backend", "detail": "openai-eu voice=marin residency=eu because=only"}');
INSERT INTO "spool" VALUES(4,'Turn','CA11111111111111111111111111111111',NULL,1763632800000,'{"call_sid": "CA11111111111111111111111111111111", "leg": "l1", "seq": 0, "speaker": "agent", "said": "Guten Tag", "heard": "Guten Tag", "started_ms": 1763632800000, "ended_ms": 1763632800900, "backend": "openai-eu", "interrupted": false, "said_ms": 0, "heard_ms": 0, "answer_sent_ms": null, "answer_heard_ms": null, "input_text_tokens": 0, "input_audio_tokens": 0, "cached_text_tokens": 0, "cached_audio_tokens": 0, "output_text_tokens": 0, "output_audio_tokens": 0, "model": "", "cost_microusd": null}');
INSERT INTO "spool" VALUES(5,'CallEnded','CA11111111111111111111111111111111',NULL,1763632860000,'{"call_sid": "CA11111111111111111111111111111111", "leg": "l1", "ended_ms": 1763632860000, "reason": "caller_hung_up", "turns": 1}');
INSERT INTO "spool" VALUES(6,'CallStarted','CA22222222222222222222222222222222','+491701234567',1763632800001,'{"call_sid": "CA22222222222222222222222222222222", "leg": "l1", "tenant": "acme", "zone": "eu", "region": "fra", "backend": "openai", "model": "gpt-realtime-2.1", "stream_sid": "MZ1", "caller": "+491701234567", "called": "+4930555", "started_ms": 1763632800001}');
INSERT INTO "spool" VALUES(7,'Happening','CA22222222222222222222222222222222',NULL,1763632800001,'{"call_sid": "CA22222222222222222222222222222222", "leg": "l1", "seq": 0, "at_ms": 1763632800001, "kind": "handled", "detail": "edge=none machine=fra twilio=unknown by=none"}');
INSERT INTO "spool" VALUES(8,'Happening','CA22222222222222222222222222222222',NULL,1763632800001,'{"call_sid": "CA22222222222222222222222222222222", "leg": "l1", "seq": 1, "at_ms": 1763632800001, "kind": "backend", "detail": "openai voice=a residency=eu because=only residency=none because=only"}');
INSERT INTO "spool" VALUES(9,'Turn','CA22222222222222222222222222222222',NULL,1763632800001,'{"call_sid": "CA22222222222222222222222222222222", "leg": "l1", "seq": 0, "speaker": "agent", "said": "Guten Tag", "heard": "Guten Tag", "started_ms": 1763632800001, "ended_ms": 1763632800901, "backend": "openai", "interrupted": false, "said_ms": 0, "heard_ms": 0, "answer_sent_ms": null, "answer_heard_ms": null, "input_text_tokens": 0, "input_audio_tokens": 0, "cached_text_tokens": 0, "cached_audio_tokens": 0, "output_text_tokens": 0, "output_audio_tokens": 0, "model": "", "cost_microusd": null}');
INSERT INTO "spool" VALUES(10,'CallEnded','CA22222222222222222222222222222222',NULL,1763632860001,'{"call_sid": "CA22222222222222222222222222222222", "leg": "l1", "ended_ms": 1763632860001, "reason": "caller_hung_up", "turns": 1}');
INSERT INTO "spool" VALUES(11,'CallStarted','CA33333333333333333333333333333333','+491701234567',1763632800002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "tenant": "acme", "zone": "eu", "region": "fra", "backend": "a", "model": "gpt-realtime-2.1", "stream_sid": "MZ1", "caller": "+491701234567", "called": "+4930555", "started_ms": 1763632800002}');
INSERT INTO "spool" VALUES(12,'Happening','CA33333333333333333333333333333333',NULL,1763632800002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "seq": 0, "at_ms": 1763632800002, "kind": "handled", "detail": "edge=ams machine=fra twilio=ie1 by=iad>gru"}');
INSERT INTO "spool" VALUES(13,'Happening','CA33333333333333333333333333333333',NULL,1763632800002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "seq": 1, "at_ms": 1763632800002, "kind": "backend", "detail": "a voice=marin residency=eu,us because=nearest"}');
INSERT INTO "spool" VALUES(14,'Turn','CA33333333333333333333333333333333',NULL,1763632800002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "seq": 0, "speaker": "agent", "said": "Guten Tag", "heard": "Guten Tag", "started_ms": 1763632800002, "ended_ms": 1763632800902, "backend": "a", "interrupted": false, "said_ms": 0, "heard_ms": 0, "answer_sent_ms": null, "answer_heard_ms": null, "input_text_tokens": 0, "input_audio_tokens": 0, "cached_text_tokens": 0, "cached_audio_tokens": 0, "output_text_tokens": 0, "output_audio_tokens": 0, "model": "", "cost_microusd": null}');
INSERT INTO "spool" VALUES(15,'Happening','CA33333333333333333333333333333333',NULL,1763632801002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "seq": 2, "at_ms": 1763632801002, "kind": "failover", "detail": "a backend_lost 1006"}');
INSERT INTO "spool" VALUES(16,'Happening','CA33333333333333333333333333333333',NULL,1763632801002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "seq": 3, "at_ms": 1763632801002, "kind": "backend", "detail": "b voice=marin residency=none because=next"}');
INSERT INTO "spool" VALUES(17,'CallEnded','CA33333333333333333333333333333333',NULL,1763632860002,'{"call_sid": "CA33333333333333333333333333333333", "leg": "l1", "ended_ms": 1763632860002, "reason": "caller_hung_up", "turns": 1}');
INSERT INTO "spool" VALUES(18,'CallStarted','CA44444444444444444444444444444444','+491701234567',1763632800003,'{"call_sid": "CA44444444444444444444444444444444", "leg": "l1", "tenant": "acme", "zone": "eu", "region": "fra", "backend": "openai", "model": "gpt-realtime-2.1", "stream_sid": "MZ1", "caller": "+491701234567", "called": "+4930555", "started_ms": 1763632800003}');
INSERT INTO "spool" VALUES(19,'Happening','CA44444444444444444444444444444444',NULL,1763632800003,'{"call_sid": "CA44444444444444444444444444444444", "leg": "l1", "seq": 0, "at_ms": 1763632800003, "kind": "handled", "detail": "edge=none machine=fra twilio=unknown by=none"}');
INSERT INTO "spool" VALUES(20,'Happening','CA44444444444444444444444444444444',NULL,1763632800003,'{"call_sid": "CA44444444444444444444444444444444", "leg": "l1", "seq": 1, "at_ms": 1763632800003, "kind": "backend", "detail": "openai voice=residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=eu because=only residency=e \u2026 (cut)"}');
INSERT INTO "spool" VALUES(21,'Turn','CA44444444444444444444444444444444',NULL,1763632800003,'{"call_sid": "CA44444444444444444444444444444444", "leg": "l1", "seq": 0, "speaker": "agent", "said": "Guten Tag", "heard": "Guten Tag", "started_ms": 1763632800003, "ended_ms": 1763632800903, "backend": "openai", "interrupted": false, "said_ms": 0, "heard_ms": 0, "answer_sent_ms": null, "answer_heard_ms": null, "input_text_tokens": 0, "input_audio_tokens": 0, "cached_text_tokens": 0, "cached_audio_tokens": 0, "output_text_tokens": 0, "output_audio_tokens": 0, "model": "", "cost_microusd": null}');
INSERT INTO "spool" VALUES(22,'CallEnded','CA44444444444444444444444444444444',NULL,1763632860003,'{"call_sid": "CA44444444444444444444444444444444", "leg": "l1", "ended_ms": 1763632860003, "reason": "caller_hung_up", "turns": 1}');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('spool',22);
COMMIT;
