"""Programs that measure or prove one promise each, against real processes over real sockets."""
