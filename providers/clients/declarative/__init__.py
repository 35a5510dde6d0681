"""Any LLM over HTTP, described by a configuration instead of code (WIRE 6; docs/declarative.md)."""
