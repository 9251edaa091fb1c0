"""Every bound and time-out of a call, with its unit and its reason.

Nothing here depends on a tenant: what a tenant may set is in plan.py.
`twilio.md` and `realtime.md` are the notes on the wire formats in app/wire.
"""

NEVER = float("inf")
"""The instant of what will not happen by the clock alone."""

# --- Audio -----------------------------------------------------------------------------------

MULAW_BYTES_PER_MS = 8
"""8 kHz, one byte a sample, mono: the only media format Twilio has (twilio.md 1.2)."""

FRAME_MS = 20
"""Twilio's cadence for caller audio (twilio.md 1.2)."""

LEAD_MAX_MS = 2_000
"""Agent audio sent ahead of what the caller hears. Twilio would buffer ten minutes (twilio.md 1.5), but
all of it has to be thrown away at a barge-in, and an unpaced burst has broken streams in the field."""

LEAD_REFILL_MS = 1_700
"""Send more when the lead has fallen to this: five to six messages a second while the agent speaks."""

PIECE_MAX_MS = 300
"""The longest single media message. Small pieces sound choppy (twilio.md 6.1), one piece of ten seconds
makes the marks too coarse; field reports settle at 20 to 200 ms, a little more halves our messages."""

MARK_EVERY_MS = 200
"""Audio between two marks. Each costs a message each way, and piles of them have slowed streams (twilio.md 6.1);
the clock carries the playhead from one to the next."""

MARK_SLACK_MS = 30
"""How late a mark may come back before we believe that playback has stalled rather than that the mark is
on its way. On top of the measured round trip. While Twilio's playout stalls the playhead is wrong by at most
the spacing of the marks and this; without a stall it is right to a few milliseconds."""

MARK_LOST_S = 1.0
"""A mark this late is not coming (marks can be lost: twilio.md 6.3); from then on the clock alone tells. Well
below LEAD_REFILL_MS, or a lost mark would starve playback."""

EARLY_AUDIO_MAX_MS = 5_000
"""Caller audio kept while the backend is not configured yet; the oldest goes first. A backend that needs
longer than OPEN_LIMIT_S has failed the call anyway."""

UNANSWERED_AUDIO_MAX_MS = 18_000
"""Caller audio kept from the first word until the agent answers, for the next backend: a question, and
DEAD_AIR_MAX_S in which the present one does not answer it."""

PRE_ROLL_FRAMES = 26
"""Of 20 ms, kept at any time in 10 kB: a backend notices speech 0.1 to 0.3 s after it began, and its word for that
takes up to 0.2 s across an ocean."""

GREETING_TAIL_MS = 500
"""Of what the caller says during a greeting that may not be interrupted, this much is kept and passed on
when it ends, so that a caller who starts a moment early does not lose the first word."""

GAP_MIN_MS = 60
"""A jump of the media clock by more than this is a hole to fill; its jitter is 2 ms (twilio.md 1.2)."""

GAP_FILL_MAX_MS = 10_000
"""The most silence that one hole is filled with, as the OpenAI Agents SDK's Twilio transport bounds it."""

STALL_FILL_AFTER_S = 0.75
"""With no frame at all for this long, silence is made without waiting for the next frame to show the hole:
otherwise the backend's VAD never ends the caller's turn (twilio.md 1.2, "Gaps")."""

STALL_FILL_STEP_MS = 200
"""How much silence is made at once while the caller's audio is missing."""

# --- Opening ---------------------------------------------------------------------------------

STREAM_WAIT_S = 15.0
"""A backend session opened by the webhook and not taken by a stream is closed after this: it costs money,
and Twilio opens the stream within a second or not at all."""

START_WAIT_S = 5.0
"""Between the WebSocket's 101 and Twilio's `start` lie 90 to 150 ms (twilio.md 1.1)."""

OPEN_LIMIT_S = 5.0
"""From `start` to a configured backend. Longer silence than this and callers hang up."""

BACKEND_LATE_S = 2.0
"""For a backend to open, and again to be configured, before one that is known to work is dialled in its place.
Once a call. Above a lost SYN (1 s), name look-up and TLS across an ocean (0.9 s)."""

GREETING_LATE_S = 2.5
"""From the request for the greeting to its first audio, before a backend that is known to work is dialled instead.
Above a reasoning model's thinking before its first word (2.3 s at high effort: realtime.md 5.4)."""

GREETING_WAIT_S = 3.0
"""A greeting that has begun as a response and brings no audio, where no other backend can take the call: it is
cancelled and requested once more, and a second silence of this length ends the call with the apology. One that
does not even begin ends it after OPEN_LIMIT_S."""

HISTORY_MAX_CHARS = 20_000
"""Of what was said, which the next backend session is given: about 25 minutes of conversation and 5,000 tokens.
Every response pays for all of it again."""

SESSION_MAX_S = 3_600.0
"""For which a backend session lasts when it does not say (realtime.md 1.2, 2.9)."""

ROLLOVER_BEFORE_S = 240.0
"""Before a session ends, another one is opened beside it, and takes its place at the first quiet moment. A call
without a quiet moment in four minutes is taken over by it when the old one ends."""

SPARE_AGAIN_S = 20.0
"""After a spare session was lost or could not be opened, before the next try."""

TAKE_OVERS_MAX = 3
"""Lost sessions of one call within TAKE_OVERS_LATELY_S: what goes on failing ends in the apology, in no loop."""

TAKE_OVERS_LATELY_S = 60.0

UNHEARD_MS = 300
"""Of a reply without a transcript: whoever has heard less of it than this has heard no word."""

PAUSE_MAX_S = 1.5
"""Of nothing being played while a session is replaced: then the caller hears a tone, and again as often."""

LAST_WORDS_CHARS = 240
"""Of a reply that was cut off, quoted to the backend that goes on with it: two or three sentences."""

STANDSTILL_S = 0.5
"""An event that comes so much later than the call's deadline: this process, and not its peers, has done nothing.
A machine that is paused or moved, a stopped process, a disk that hangs."""

CATCH_UP_S = 1.5
"""After a standstill, before anybody is judged: what the peers sent meanwhile is still to be read. Two minutes of
frames take a tenth of it, and a backend across an ocean can answer what it hears first."""

STANDSTILLS_MAX = 10
"""One after the other, with no deadline met in between: a process that is always late must judge too."""

# --- While it runs ---------------------------------------------------------------------------

PING_EVERY_S = 5.0
"""Both sockets are pinged this often: it measures the round trip and shows a half-open connection."""

PEER_SILENT_S = 12.0
"""Neither a message nor a pong for this long: the peer is gone. Above two ping intervals, and above the
gaps that Twilio is reported to leave in silence (twilio.md 6.6)."""

PEER_MUTE_S = 60.0
"""The same for a peer that has never answered a ping: whether Twilio does is not documented, and some calls have
no frames while the caller is silent (twilio.md 1.1, 1.2)."""

RESPONSE_WAIT_S = 8.0
"""From asking for a response (or the backend's commit of a caller turn) to `response.created`."""

CANCEL_WAIT_S = 0.3
"""After the caller begins to speak, for the backend to cancel its response by itself: some say that they will and
do not (realtime.md 2.2). Above the round trip to a backend across an ocean."""

TURN_WAIT_S = 1.5
"""After the caller's turn is committed the backend makes its own response; requests of ours wait this
long for it so that the two do not collide."""

RESPONSE_STALL_S = 7.0
"""An active response that brings nothing for this long has died and is asked for again, once; audio comes faster
than it plays, so the pause cannot be speech. Leaves a retry time before DEAD_AIR_MAX_S, and is above a reasoning
model's thinking before its first word (2.3 s at high effort: realtime.md 5.4)."""

DEAD_AIR_MAX_S = 12.0
"""For the caller to hear the agent, whatever the backend sends meanwhile, before the backend is given up. From the
moment at which an answer is due and nothing is left to be played; the time that a tool takes does not count. The
limits of a single step leave it room for one retry each, but a backend can begin new steps without end."""

ANSWER_LATE_S = 2.5
"""A wait for the agent that counts as part of the dead air although the caller has ended it by speaking again: who
says "Hello?" every few seconds waits all the same. A shorter one is a pause between two sentences."""

CALLER_SPEAKS_MAX_S = 60.0
"""Of speech without a pause: after that the end of it counts as missed, and the silence of the agent is judged as
after any turn. A backend whose voice detection hangs, or hears a noise as speech, ended no turn in 30 minutes."""

TOOL_WAIT_S = 30.0
"""How long the model waits for a tool's output before it is told that there is none."""

KEYS_WAIT_S = 1.2
"""After the last key before the agent answers it: a caller types several."""

RETRY_AFTER_S = 1.0
"""Before a failed response is asked for again: rate limits speak of about a second (realtime.md 1.6)."""

FAILED_RESPONSES_MAX = 2
"""Responses that fail one after the other before the backend is given up: one retry, then the next backend if the
caller has heard nothing yet, else a sentence. One that ends with neither audio nor a tool call has failed."""

TOOL_ROUNDS_MAX = 8
"""Responses in a row that only call tools. After so many the model must speak, without tools. A model that kept
calling a missing tool was asked again 36,349 times in 14 s while the caller heard nothing."""

TOOL_ROUNDS_FREE = 2
"""Responses in a row that only call tools before the next one has to wait: looking something up and acting on it
takes two."""

TOOL_PAUSE_S = 0.25
"""The first of these waits; each further one is twice as long."""

TOOL_PAUSE_MAX_S = 1.0
"""The longest of these waits. All of them take 5 s."""

TOOL_ROUNDS_MAX_S = 8.0
"""Of silence in which the model only called tools: it must speak then, however few the responses were. Leaves it
time to do so before DEAD_AIR_MAX_S."""

BUSY_REFUSALS_MAX = 5
"""Refusals of one wish because a response is active, before the backend counts as failing."""

AGENT_AUDIO_WAITING_MAX_MS = 600_000
"""Agent audio waiting here to be played: a backend that talks for longer without end is broken."""

AGENT_PIECES_WAITING_MAX = 60_000
"""Pieces of it, each of which takes memory of its own: AGENT_AUDIO_WAITING_MAX_MS in pieces of 10 ms."""

TRANSCRIPT_MAX_CHARS = 16_000
"""The words of one turn, about twenty minutes of speech. A longer text is cut and marked as cut (texts.py)."""

DETAIL_MAX_CHARS = 500
"""The detail of one call_event: codes, names and counts. The longest is the way that a call came."""

CODE_MAX_CHARS = 64
"""An error's code, and the field that it is about."""

ID_MAX_CHARS = 512
"""An id that a peer chose. An id cannot be cut: a message with a longer one is refused. The vendors' ids have
about 30 characters, and OpenAI takes 512 of ours (realtime.md 1.4)."""

TOOL_NAME_MAX_CHARS = 128
"""OpenAI allows 64. A longer name is cut, and names no tool then."""

TOOL_ARGUMENTS_MAX_CHARS = 64_000
"""A response has at most 4,096 tokens (realtime.md 1.3), which is a fourth of this. What is longer is cut, and is
no JSON then: the tool cannot be run with half of it."""

TOKENS_MAX = 10_000_000
"""Tokens of one kind in one response: ten times the largest context of any model. A larger count is a mistake and
counts as none: as ten million it made a call of one second cost $480."""

OPEN_TURNS_MAX = 64
"""Turns begun and not finished; beyond it the oldest is finished as it stands."""

CALL_EVENTS_MAX = 200
"""Happenings recorded of one call, so that one odd backend does not flood the ledger of its neighbours."""

EARLY_CALL_EVENTS_MAX = 20
"""The first ones from before the call talked."""

TRANSCRIPT_WAIT_S = 8.0
"""A caller's transcript comes late and sometimes never (realtime.md 1.5); the turn is recorded without."""

BAD_MESSAGES_MAX = 20
"""Messages on one socket that are not JSON, binary, oversized or out of order before the call is ended."""

BAD_MESSAGE_FORGIVEN_S = 15.0
"""One of them is forgotten so often: a peer that is odd now and then may be so for the whole of a long call."""

KEYS_AT_ONCE_MAX = 32
"""Keys that a caller may press at once; a card number has 19. A key is a message to the backend."""

KEYS_PER_S = 10.0
"""Keys that go on for long: a dialler presses so many, a finger fewer. What is more is dropped and counted."""

KEYS_MAX = 1_000
"""Keys of one call: each stays in the backend's context and is paid for with every response."""

TURNS_MAX = 2_000
"""Turns recorded of one call: an hour with a turn every two seconds. Later ones are counted in a record."""

TURNS_ABSURD = 20_000
"""Turns begun in one call. A backend that hears so many is broken."""

HELD_FRAMES_MAX = 1_000
"""Frames of caller audio kept, each of which takes memory of its own: EARLY_AUDIO_MAX_MS in frames of 5 ms, and
UNANSWERED_AUDIO_MAX_MS in Twilio's of 20."""

UNREAD_S = 20.0
"""A peer that has answered pings and leaves them unanswered for so long, though it sends: it does not read. The
kernel takes minutes of speech for it, so that our own buffer does not tell."""

UNREAD_MARKS_MIN = 5
"""The phone must have lost marks as well: a second of speech, one after the other. Whether Twilio answers every
ping is not documented; that it returns every mark is (twilio.md 1.4)."""

UNREAD_MARKS_MAX = 100
"""Marks lost one after the other, 20 s of speech, tell by themselves of a phone that has never answered a ping.
Marks have been lost at Twilio (twilio.md 6.3), never so many."""

CUT_ITEMS_REMEMBERED = 32
"""Items cut off by barge-ins of which late pieces are recognised."""

TOOL_CALLS_MAX = 32
"""Tool calls of one response; more is a model in a loop."""

# --- Ending ----------------------------------------------------------------------------------

MOVE_QUIET_S = 0.7
"""A call that is to move does so when nobody has spoken for this long. A caller who answers at once has begun by
then, and the backend has noticed it; what is said between the two streams is heard by nobody."""

MOVE_FLUSH_S = 2.0
"""For the records of a call that moves to reach the primary, where the next machine reads them. Without them it
goes on too, and knows less."""

REST_LIMIT_S = 3.0
"""For Twilio to answer a hang-up or a redirect by REST, with all tries; usual are 0.2 s. The caller hears nothing
meanwhile. Shorter than HANG_UP_GRACE_S: after it the stream is closed instead."""

STOP_WAIT_S = 5.0
"""Between Twilio's answer to a redirect and the `stop` of the stream. Closing the stream earlier has won against
redirects (twilio.md 6.5)."""

GOODBYE_LIMIT_S = 15.0
"""From the decision to end to the end, whatever the backend and the marks do (marks can be lost)."""

HANG_UP_GRACE_S = 5.0
"""After the hang-up was asked for, before the sockets are closed from our side: an own close wins a race
against the REST request and shows as error 31921 at Twilio (twilio.md 2.1, 6.5)."""
