"""What the engine counts, for Prometheus. Labels are closed sets: never a user, a site or a text."""

from prometheus_client import Counter, Gauge, Histogram

REPLIES_STARTED = Counter("chat_replies_started", "Replies accepted")
REPLIES_ENDED = Counter("chat_replies_ended", "Replies sealed", ["status", "code"])
PROVIDER_CALLS = Counter(
    "chat_provider_calls", "Calls to endpoints that are over, by our code of their end", ["code"]
)
PROMPT_CHARS = Histogram(
    "chat_prompt_chars", "Code points of the prompts sent", buckets=(100, 300, 1000, 3000, 10_000, 30_000, 100_000)
)
FAILOVERS = Counter("chat_failovers", "Attempts given up for the next endpoint")
CHARS = Counter("chat_reply_chars", "Code points of replies sealed")
FIRST_TOKEN_SECONDS = Histogram(
    "chat_first_token_seconds",
    "From acceptance to the first token",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
)
REPLY_SECONDS = Histogram(
    "chat_reply_seconds", "From acceptance to the seal", buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 1800)
)
TICK_SECONDS = Histogram(
    "chat_log_write_seconds",
    "From the beginning of a tick to its commit",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
DATABASE_AWAY = Counter("chat_log_write_failures", "Log writes that had to be repeated")
LIVE_REPLIES = Gauge("chat_live_replies", "Replies under way", multiprocess_mode="livesum")
SUBSCRIBERS = Gauge("chat_subscribers", "Open streams", multiprocess_mode="livesum")
DROPPED_READERS = Counter("chat_dropped_readers", "Streams ended because the client did not read")
SWEPT = Counter("chat_replies_swept", "Replies of dead workers, sealed as interrupted")
FENCED = Counter("chat_workers_fenced", "Times this process found itself declared dead")
