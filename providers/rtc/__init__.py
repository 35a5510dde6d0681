"""The RTC platform: the pass into a room, and signed calls of its OpenAPI. Whose rooms they are, others know."""
