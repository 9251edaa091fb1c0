-- An operator's word that this database takes the place of one that was lost, with everything in it: until it is here,
-- machines keep the copies that they have of the lost one. Only adds: a program that knows 0003 alone goes on working.

CREATE TABLE database_replacements (
    consented_ms INTEGER NOT NULL PRIMARY KEY  -- Unix ms
) STRICT, WITHOUT ROWID;
