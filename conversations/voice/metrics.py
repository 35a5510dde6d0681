"""What the voice room counts, for Prometheus. Labels are closed sets: never a site, a room or a person."""

from prometheus_client import Counter

ROOMS_STARTED = Counter("chat_voice_rooms_started", "Voice rooms started on the platform")
ROOMS_STOPPED = Counter("chat_voice_rooms_stopped", "Voice rooms stopped, by who asked for it", ["by"])
ROOMS_GIVEN_UP = Counter("chat_voice_rooms_given_up", "Voice rooms that the platform would not stop")
PLATFORM_CALLS = Counter(
    "chat_voice_platform_calls", "Calls of the RTC platform that are over, by action and end", ["action", "code"]
)
TURNS = Counter("chat_voice_turns", "Calls of the platform for a reply, by what they were", ["kind"])
